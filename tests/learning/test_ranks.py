"""Two processes have the loss and the gradient of one, whatever the objective."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from doubles import tiny_encoder
from drawn_pairs import OBJECTIVES, flat, pairs_of, part_of, slopes_of
from medtame.learning import ranks

TESTS = Path(__file__).parents[1]


def found() -> dict[str, tuple[float, torch.Tensor]]:
    """The loss and the gradient of each objective; of 24 pairs in chunks of 5."""
    made = {}
    for name in OBJECTIVES:
        pairs = pairs_of(tiny_encoder(), sentences=1)
        loss, slopes = slopes_of(pairs, {name: (0.7, part_of(name, pairs))}, 5)
        made[name] = (loss, flat(slopes))
    return made


def written(path: str) -> None:
    """What each of two processes does; the first writes."""
    torch.set_num_threads(1)
    with ranks.joined():
        both = found()
        assert ranks.world() == 2
        if ranks.rank() == 0:
            torch.save(both, path)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path):
    script = tmp_path / "share.py"
    script.write_text(f"from learning.test_ranks import written\nwritten({str(tmp_path / 'two.pt')!r})\n", encoding="utf-8")
    paths = os.pathsep.join([str(TESTS), str(TESTS / "contracts"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, (loss, slopes) in found().items():
        assert two[name][0] == pytest.approx(loss, rel=1e-5), name
        torch.testing.assert_close(two[name][1], slopes, atol=2e-5, rtol=1e-4)
