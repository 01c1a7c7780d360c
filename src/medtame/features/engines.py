"""Engines: faster ways to run a frozen image tower, each used only where it is shown to give the plain tower's features.

Reduced precision is never promised. Where many images are to be encoded, some of them are encoded by the plain tower (PyTorch,
single precision) and by each candidate; a candidate may be used where whole and maps of every image agree, also after the mean
feature is taken off, which is what a probe sees. The fastest of those, by CPU time, is used and remembered on disk. A kind of
numbers that is lossless on one network can ruin another: on the trained EfficientNet 16-bit weights gave a cosine of .992.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from medtame.encoders.towers import TowerEncoder
from medtame.errors import EncoderError
from medtame.features.store import write_whole
from medtame.types import Picture

PLAIN = "eager"
GATE_IMAGES = 16
WORTH_IMAGES = 128  # below it a choice costs more than it saves
LEAST_COSINE, LEAST_CENTRED_COSINE = 0.999, 0.998
SAME_COSINE = 0.99999  # above it an engine is not measured again on other images
LEAST_GAIN = 1.1  # less is noise
FORMAT = "medtame-engine-1"
UNFIT = (  # what exporters, runtimes and towers raise on what they do not know
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    ImportError,
    OSError,
    MemoryError,
)
Features: TypeAlias = tuple[Tensor, tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate on the images: smallest cosines to the plain tower over images and kinds, CPU seconds, and why it is not used."""

    engine: str
    cosine: float | None = None
    centred_cosine: float | None = None
    seconds: float | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The engine in use, what it was measured to be, and what else was tried. The plain one needs no measure: None."""

    engine: str = PLAIN
    cosine: float | None = None
    centred_cosine: float | None = None
    images: int = 0
    plain_seconds: float | None = None
    tried: tuple[Trial, ...] = ()


class CastTower(nn.Module):
    """A copy of a tower in another type or layout of numbers, cast once; what it gives is float32 and of unit norm again."""

    def __init__(self, tower: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.dtype, self.layout = dtype, layout
        self.tower: nn.Module = copy.deepcopy(tower).to(dtype=dtype).to(memory_format=layout)

    def forward(self, prepared: Tensor) -> Features:
        whole, maps = self.tower(prepared.to(self.dtype).contiguous(memory_format=self.layout))
        return normalize(whole.float(), dim=-1), tuple(scale.float().contiguous() for scale in maps)


class GraphTower(nn.Module):
    """An exported tower, run by onnxruntime with as many threads as PyTorch uses at that time. Gives no gradient."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.graph, self.threads = graph, 0

    def forward(self, prepared: Tensor) -> Features:
        if self.threads != torch.get_num_threads():
            self.threads = torch.get_num_threads()
            self.session = _session(self.graph, self.threads)
        with _plain_errors():
            whole, *maps = self.session.run(None, {self.session.get_inputs()[0].name: prepared.contiguous().numpy()})
        return torch.from_numpy(whole), tuple(torch.from_numpy(scale) for scale in maps)


def channels_last(tower: nn.Module, example: Tensor, graph_path: Path | None) -> nn.Module:
    """Single precision, the channels of a pixel side by side: what convolutions like."""
    return CastTower(tower, torch.float32, torch.channels_last)


def bf16(tower: nn.Module, example: Tensor, graph_path: Path | None) -> nn.Module:
    """16-bit brain floats, half the numbers to move and, on CPUs that know them, twice the arithmetic."""
    return CastTower(tower, torch.bfloat16, torch.contiguous_format)


def onnxruntime(tower: nn.Module, example: Tensor, graph_path: Path | None) -> nn.Module:
    """The tower as one fused graph in single precision; exported once and kept beside the features."""
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        raise ImportError('not installed: run pip install "medtame[fast]"')
    graph = None if graph_path is None else kept_graph(graph_path)
    if graph is None:
        graph = exported(tower, example)
        if graph_path is not None:
            keep_graph(graph_path, graph)
    return GraphTower(graph)


Build: TypeAlias = Callable[[nn.Module, Tensor, Path | None], nn.Module]
BUILDERS: Mapping[str, Build] = {"channels_last": channels_last, "bf16": bf16, "onnxruntime": onnxruntime}


def candidates_of(word: str) -> tuple[str, ...]:
    """The engines that may be tried: `auto` all, `eager` none, else the one of that name. Raises EncoderError."""
    if word in ("auto", PLAIN):
        return tuple(BUILDERS) if word == "auto" else ()
    if word not in BUILDERS:
        raise EncoderError(f"no engine is called {word!r}: set MEDTAME_ENGINE to auto, {PLAIN}, {', '.join(BUILDERS)}")
    return (word,)


def candidates_here() -> tuple[str, ...]:
    """What MEDTAME_ENGINE allows; all where it is not set. Raises EncoderError."""
    return candidates_of(os.environ.get("MEDTAME_ENGINE") or "auto")


class Ladder:
    """The engine of one image tower: the plain one until another is chosen, here or in an earlier run.

    A choice is kept under `folder`, with the versions that it holds for; None keeps nothing. It is made at most once, but one that
    is not exact is measured again on other images, and given up where it no longer agrees.
    """

    def __init__(self, identity: str, folder: Path | None, candidates: Sequence[str]) -> None:
        stamp = "\n".join([FORMAT, identity, *versions()])
        name = hashlib.sha256(stamp.encode()).hexdigest()[:32]
        self.candidates = tuple(candidates)
        self.place = None if folder is None else folder / "engines" / name
        kept = None if self.place is None else _kept_verdict(self.place.with_suffix(".json"), stamp)
        self.stamp, self.chosen = stamp, kept is not None and kept.engine in (PLAIN, *self.candidates)
        self.verdict = kept if kept is not None and self.chosen else Verdict()
        self._towers: dict[str, nn.Module] = {}

    def settle(self, encoder: TowerEncoder, missing: Sequence[Picture], asked: int) -> None:
        """Before `missing` of `asked` pictures are encoded: open the engine in use, or choose one where that is worth its cost."""
        enough = len(missing) >= WORTH_IMAGES
        some = [missing[i * len(missing) // GATE_IMAGES] for i in range(GATE_IMAGES)] if enough else []
        if not self.chosen and self.candidates and enough and 2 * len(missing) > asked:
            self._choose(encoder, some, self.candidates)
        elif self.verdict.engine != PLAIN and enough and (self.verdict.centred_cosine or 0) < SAME_COSINE:
            self._choose(encoder, some, (self.verdict.engine,))
        elif self.verdict.engine not in (PLAIN, *self._towers):
            try:
                self._towers[self.verdict.engine] = self._built(self.verdict.engine, encoder)
            except UNFIT as error:
                self.verdict = Verdict(tried=(Trial(engine=self.verdict.engine, refused=_line(error)),))

    def running(self, encoder: TowerEncoder) -> TowerEncoder:
        """The encoder with the engine in use as its image tower."""
        return encoder if self.verdict.engine == PLAIN else replace(encoder, image_tower=self._towers[self.verdict.engine])

    def _choose(self, encoder: TowerEncoder, pictures: Sequence[Picture], candidates: Sequence[str]) -> None:
        self.verdict, towers = judged(encoder, pictures, candidates, lambda name: self._built(name, encoder))
        self.chosen, self._towers = True, towers
        if self.place is not None:
            with suppress(OSError):  # no room: it is chosen anew next time
                if self.verdict.engine != "onnxruntime":
                    self.place.with_suffix(".onnx").unlink(missing_ok=True)
                self.place.parent.mkdir(parents=True, exist_ok=True)
                kept = {"stamp": self.stamp, "verdict": asdict(self.verdict)}
                write_whole(self.place.with_suffix(".json"), json.dumps(kept, indent=1).encode())

    def _built(self, name: str, encoder: TowerEncoder) -> nn.Module:
        example = encoder.prepare(torch.zeros(1, 1, 8, 8)).repeat(2, 1, 1, 1)
        return BUILDERS[name](encoder.image_tower, example, None if self.place is None else self.place.with_suffix(".onnx"))


def judged(
    encoder: TowerEncoder, pictures: Sequence[Picture], candidates: Sequence[str], build: Callable[[str], nn.Module]
) -> tuple[Verdict, dict[str, nn.Module]]:
    """The best engine on these pictures, and its tower unless it is the plain one. Raises ImageError."""
    replace(encoder, image_tower=_Blank()).both(pictures)  # pixels are prepared, and remembered, before anything is timed
    wanted, plain_seconds = _timed(encoder, pictures)
    trials: list[Trial] = []
    best: tuple[float, Trial, dict[str, nn.Module]] = (plain_seconds / LEAST_GAIN, Trial(engine=PLAIN), {})
    for name in candidates:
        try:
            tower = build(name)
            found, seconds = _timed(replace(encoder, image_tower=tower), pictures)
            cosine, centred = agreement(wanted, found)
        except UNFIT as error:
            trials.append(Trial(engine=name, refused=_line(error)))
            continue
        fits = cosine >= LEAST_COSINE and centred >= LEAST_CENTRED_COSINE
        trial = Trial(engine=name, cosine=cosine, centred_cosine=centred, seconds=seconds, refused="" if fits else "other features")
        trials.append(trial)
        if fits and seconds < best[0]:
            best = (seconds, trial, {name: tower})
    _, trial, towers = best
    verdict = Verdict(
        engine=trial.engine,
        cosine=trial.cosine,
        centred_cosine=trial.centred_cosine,
        images=len(pictures),
        plain_seconds=plain_seconds,
        tried=tuple(trials),
    )
    return verdict, towers


def agreement(wanted: Features, found: Features) -> tuple[float, float]:
    """Smallest cosine over images, whole and maps; the same after the wanted mean feature is taken off. NaN counts as -1."""
    plain, centred = [], []
    for a, b in zip((wanted[0], *wanted[1]), (found[0], *found[1]), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"features of shape {tuple(b.shape)}, not {tuple(a.shape)}")
        mean = a.mean([0, *range(2, a.ndim)], keepdim=True)
        plain.append(cosine_similarity(a.flatten(1).double(), b.flatten(1).double()))
        centred.append(cosine_similarity((a - mean).flatten(1).double(), (b - mean).flatten(1).double()))
    return float(torch.cat(plain).nan_to_num(-1).min()), float(torch.cat(centred).nan_to_num(-1).min())


def exported(tower: nn.Module, example: Tensor) -> bytes:
    """The tower as an ONNX graph for any number of images. Raises one of UNFIT."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        images = torch.export.Dim("images", min=1, max=2**16)
        program: Any = torch.onnx.export(tower, (example,), dynamo=True, dynamic_shapes=({0: images},), verbose=False)
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def kept_graph(path: Path) -> bytes | None:
    """A graph that was kept with its SHA-256 before it; None where it is absent, cut or altered."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def keep_graph(path: Path, graph: bytes) -> None:
    """Keep a graph where there is room for it."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(graph).digest() + graph)


@cache
def versions() -> tuple[str, ...]:
    """What a verdict holds for besides the encoder: the libraries and what the CPU can do."""
    return (torch.__version__, *(_version(package) for package in ("onnxruntime", "onnxscript")), torch.backends.cpu.get_cpu_capability())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


class _Blank(nn.Module):
    def forward(self, prepared: Tensor) -> Features:
        return prepared[:, 0, 0, :1], (prepared[:, :1, :1, :1],)


def _timed(encoder: TowerEncoder, pictures: Sequence[Picture]) -> tuple[Features, float]:
    """Whole and maps of prepared pictures, and CPU seconds; the first two warm the engine up."""
    encoder.both(pictures[:2])
    start = time.process_time()
    found = encoder.both(pictures)
    return found, time.process_time() - start


def _kept_verdict(path: Path, stamp: str) -> Verdict | None:
    """None where there is none, or where it is damaged or for something else."""
    try:
        kept = json.loads(path.read_bytes())
        tried = tuple(Trial(**trial) for trial in kept["verdict"].pop("tried"))
        return Verdict(tried=tried, **kept["verdict"]) if kept["stamp"] == stamp else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _session(graph: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the CPU to others
    with _plain_errors():
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@contextmanager
def _plain_errors() -> Iterator[None]:
    """The exceptions of onnxruntime, which share no base of their own, become a RuntimeError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        yield
    except kinds as error:
        raise RuntimeError(_line(error)) from None


def _line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
