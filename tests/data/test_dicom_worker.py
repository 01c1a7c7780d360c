"""The decoding process: it outlives files, dies with the one that hangs it, and takes no more than its share."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutator
import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medtame.data.dicom import patient_of
from medtame.data.images import FilePicture
from medtame.data.worker import Worker, worker
from medtame.errors import ImageError

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="stops and forks processes")


@pytest.fixture
def hasty() -> Iterator[Worker]:
    """The worker of this process, with one second a file."""
    usual, worker().limit_s = worker().limit_s, 1.0
    yield worker()
    worker().limit_s = usual


@pytest.fixture
def scan(tmp_path: Path) -> FilePicture:
    return FilePicture(mutator.written(mutator.dicom(mutator.scan()), tmp_path / "scan.dcm"), "scan.dcm")


def running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def zeros(count: int, block: int = 1 << 20) -> bytes:
    """A raw deflate stream of `count` MiB of zeros, made of one block repeated."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    once = coder.compress(bytes(block)) + coder.flush(zlib.Z_FULL_FLUSH)
    return once * count + b"\x03\0"


def test_the_process_never_imports_torch() -> None:
    code = "import sys, medtame.data.decoder_process, medtame.data.nifti, medtame.data.volumes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_one_process_serves_many_files(scan: FilePicture) -> None:
    scan.values()
    first = worker().pid
    for _ in range(20):
        assert np.array_equal(scan.values(), mutator.scan())
    assert first is not None
    assert worker().pid == first


def test_a_file_that_hangs_pydicom_is_refused_and_the_next_one_reads(tmp_path: Path, scan: FilePicture, hasty: Worker) -> None:
    eight = mutator.scan(top=255).astype(np.uint8)
    whole = mutator.boxed_jpeg2000(eight, tmp_path / "boxed.dcm")
    assert np.array_equal(FilePicture(whole, "boxed.dcm").values(), eight)
    before = hasty.pid
    whole.write_bytes(mutator.endless(whole.read_bytes()))
    for read in (FilePicture(whole, "boxed.dcm").array, FilePicture(whole, "boxed.dcm").values):
        with pytest.raises(ImageError, match=r"^boxed\.dcm cannot be read: it took longer than 1 s"):
            read()
    assert np.array_equal(scan.values(), mutator.scan())
    assert hasty.pid != before
    assert FilePicture(whole, "boxed.dcm").geometry().spacing_mm == (0.5, 0.7)  # asks for no pixels, so it does not hang
    assert patient_of(whole) == mutator.PATIENT.encode()


@posix
def test_geometry_frames_and_patient_are_under_the_clock_too(scan: FilePicture, hasty: Worker) -> None:
    for read in (scan.geometry, scan.frames):
        scan.values()
        assert hasty.pid is not None
        os.kill(hasty.pid, signal.SIGSTOP)
        with pytest.raises(ImageError, match="it took longer than 1 s"):
            read()
    scan.values()
    os.kill(hasty.pid, signal.SIGSTOP)
    assert patient_of(scan.path) is None
    assert patient_of(scan.path) == mutator.PATIENT.encode()


@posix
def test_a_crash_costs_one_file(scan: FilePicture) -> None:
    scan.values()
    pid = worker().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    crash = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    crash.start()
    with pytest.raises(ImageError, match=r"^scan\.dcm cannot be read: its decoder broke down on it"):
        scan.values()
    assert np.array_equal(scan.values(), mutator.scan())


@posix
def test_a_process_that_died_between_two_files_is_replaced(scan: FilePicture) -> None:
    scan.values()
    pid = worker().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while running(pid):
        time.sleep(0.01)
    assert np.array_equal(scan.values(), mutator.scan())


def test_threads_get_their_own_answers(tmp_path: Path) -> None:
    pixels = [mutator.scan(seed) for seed in range(8)]
    paths = [mutator.written(mutator.dicom(image), tmp_path / f"{seed}.dcm") for seed, image in enumerate(pixels)]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda k: FilePicture(paths[k % 8], "x").values(), range(64)))
    assert all(np.array_equal(image, pixels[k % 8]) for k, image in enumerate(read))


@posix
def test_a_fork_starts_its_own(scan: FilePicture) -> None:
    scan.values()
    own = worker().pid
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        right = np.array_equal(scan.values(), mutator.scan())
        os.write(writing, f"{int(right)} {worker().pid}".encode())
        worker().close()
        os._exit(0)
    os.waitpid(child, 0)
    right, pid = map(int, os.read(reading, 99).split())
    assert right == 1
    assert pid != own
    assert np.array_equal(scan.values(), mutator.scan())
    assert worker().pid == own
    os.close(reading)
    os.close(writing)


@posix
@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_it_ends_with_its_parent(scan: FilePicture, end: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from medtame.data.dicom import patient_of;"
        f"from medtame.data.worker import worker; patient_of(Path(sys.argv[1])); print(worker().pid, flush=True); {end}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(scan.path)], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 5
    while running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(int(done.stdout))


# ---- memory ---------------------------------------------------------------------------------------------------


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024


def test_bombs_are_refused_in_bounded_memory(tmp_path: Path, scan: FilePicture) -> None:
    made = mutator.written(mutator.dicom(mutator.scan()), tmp_path / "deflated.dcm", DeflatedExplicitVRLittleEndian)
    assert np.array_equal(FilePicture(made, "x").values(), mutator.scan())
    head = made.read_bytes()
    length = 144 + struct.unpack("<I", head[140:144])[0]
    made.write_bytes(head[:length] + zeros(5000))
    with pytest.raises(ImageError, match=r"^deflated\.dcm cannot be read: it grows to more than 512 MiB when inflated$"):
        FilePicture(made, "deflated.dcm").array()
    assert patient_of(made) is None

    volume = mutator.nifti(tmp_path / "a.nii", np.ones((20, 30, 4), np.uint8)).read_bytes()
    stored = b"\0" + struct.pack("<HH", len(volume), len(volume) ^ 0xFFFF) + volume  # a deflate block as it is
    gzipped = b"\x1f\x8b\x08" + bytes(7) + stored + zeros(5000)
    (tmp_path / "a.nii.gz").write_bytes(gzipped)
    assert FilePicture(tmp_path / "a.nii.gz", "a").values().shape == (30, 20)  # what lies behind the voxels is not read

    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 12000 12000 300\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(1000))
    with pytest.raises(ImageError, match=r"^a\.nrrd cannot be read"):
        FilePicture(tmp_path / "a.nrrd", "a.nrrd").array()
    huge = mutator.dicom(mutator.scan(), NumberOfFrames=2_000_000_000)
    with pytest.raises(ImageError, match="cannot be read"):
        FilePicture(mutator.written(huge, tmp_path / "frames.dcm"), "frames.dcm").array()
    wide = mutator.dicom(mutator.scan(), Rows=65535, Columns=65535)
    with pytest.raises(ImageError, match="it claims no pixels, or more than 178956970"):
        FilePicture(mutator.written(wide, tmp_path / "wide.dcm"), "wide.dcm").array()
    scan.values()
    assert worker().pid is not None
    assert peak_bytes(worker().pid or 0) < 1 << 30


def test_a_png_that_claims_too_much_is_refused_from_its_header(tmp_path: Path) -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(bytes(1 << 20), 9)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + bytes(4))
    for read in ("read", "values", "geometry", "frames"):
        with pytest.raises(ImageError, match=r"^a\.png cannot be read: it claims more than 178956970 pixels$"):
            getattr(FilePicture(tmp_path / "a.png", "a.png"), read)()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit on memory that Linux keeps")
def test_the_process_has_a_limit_on_its_memory(scan: FilePicture) -> None:
    scan.values()
    limits = Path(f"/proc/{worker().pid}/limits").read_text()
    assert "Max address space         4294967296" in limits


@posix
def test_a_pipe_or_a_folder_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    for name in ("pipe.dcm", "."):
        with pytest.raises(ImageError, match="it is a folder or a device, no file"):
            FilePicture(tmp_path / name, name).digest()
    assert patient_of(tmp_path / "pipe.dcm") is None
