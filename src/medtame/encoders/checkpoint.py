"""Weight files read without running anything in them, and fitted to a model with a report of what does not fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from medtame.errors import EncoderError

# Buffers that older versions of the libraries stored; a model makes them itself.
HARMLESS = ("*position_ids", "*token_type_ids", "attn_mask", "*.attn_mask", "input_resolution", "context_length", "vocab_size")
NOT_READ = (
    OSError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
)
NAMED = 3  # how many tensors of each kind an error names


@dataclass(frozen=True)
class Report:
    """How stored tensors fit a model. It fits where every list but `matched` is empty."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]  # name, stored shape, wanted shape
    not_finite: tuple[str, ...]

    @property
    def faults(self) -> str:
        """Counts and first names, in one line; empty where all fits."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of a wrong shape": self.wrong_shape,
            "with NaN or infinite numbers": self.not_finite,
        }
        return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names)


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a PyTorch file read with `weights_only`. Raises EncoderError."""
    if path.suffix == ".safetensors":
        try:
            stored: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _not_safetensors(path, error) from None
        return stored
    try:
        opened = torch.load(path, map_location="cpu", weights_only=True)
    except NOT_READ as error:
        raise EncoderError(
            f"{path} is no plain weight file, and medtame runs no code from one ({type(error).__name__}): save the weights as safetensors"
        ) from None
    return _state(opened, path)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors; of a safetensors file only the header is read. Raises EncoderError."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in tensors(path).items()}
    try:
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from None


def number(path: Path, name: str) -> float | None:
    """One stored number, None where there is none of that name. Raises EncoderError, also where it is not finite."""
    if path.suffix != ".safetensors":
        return value_of(tensors(path), name, path)
    try:
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            stored = {name: file.get_tensor(name)} if name in names else {}
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from None
    return value_of(stored, name, path)


def value_of(stored: Mapping[str, Tensor], name: str, path: Path) -> float | None:
    """The same from tensors in memory."""
    tensor = stored.get(name)
    if tensor is None:
        return None
    if tensor.numel() != 1 or not torch.isfinite(tensor).all():
        raise EncoderError(f"{path}: {name} is no finite number (shape {tuple(tensor.shape)}): get the file again")
    return float(tensor)


def compared(model: nn.Module, stored: Mapping[str, Tensor]) -> Report:
    """How the tensors fit the model; buffers that it makes itself are left out."""
    wanted = model.state_dict()
    there = [name for name in wanted if name in stored]
    return Report(
        matched=tuple(name for name in there if stored[name].shape == wanted[name].shape),
        missing=tuple(name for name in wanted if name not in stored),
        unexpected=tuple(name for name in stored if name not in wanted and not any(fnmatch(name, each) for each in HARMLESS)),
        wrong_shape=tuple(
            f"{name} {tuple(stored[name].shape)} for {tuple(wanted[name].shape)}"
            for name in there
            if stored[name].shape != wanted[name].shape
        ),
        not_finite=tuple(name for name in there if stored[name].is_floating_point() and not torch.isfinite(stored[name]).all()),
    )


def fill(model: nn.Module, stored: Mapping[str, Tensor], path: Path) -> Report:
    """Put the tensors into the model, all of them or none. Raises EncoderError with counts and first names."""
    report = compared(model, stored)
    if report.faults:
        raise EncoderError(f"{path} does not fit its configuration: {report.faults}; {len(report.matched)} fit: get both from one source")
    model.load_state_dict({name: stored[name] for name in report.matched})
    return report


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises EncoderError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} is no readable JSON file ({type(error).__name__}): get it again") from None
    if not isinstance(found, dict):
        raise EncoderError(f"{path} holds a {type(found).__name__} where an object is wanted: get it again")
    return found


def digest(*paths: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of one file, or of several in order. Raises EncoderError."""
    try:
        parts = [_file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise EncoderError(f"{error.filename} cannot be read ({error.strerror}): get it again") from None
    return parts[0][:16] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def digest_of(value: object) -> str:
    """First 8 hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _state(opened: object, path: Path) -> dict[str, Tensor]:
    """The tensors of an opened PyTorch file, `state_dict` and the prefix of distributed training taken off."""
    if isinstance(opened, dict) and isinstance(opened.get("state_dict"), dict):
        opened = opened["state_dict"]
    if not isinstance(opened, dict) or not opened or not all(isinstance(key, str) for key in opened):
        raise EncoderError(f"{path} holds a {type(opened).__name__} and no tensors by name: save the model's state_dict as safetensors")
    others = [key for key, value in opened.items() if not isinstance(value, Tensor)]
    if others:
        raise EncoderError(f"{path} holds what is no tensor ({_first(others)}): save the model's state_dict as safetensors")
    return {key.removeprefix("module."): value for key, value in opened.items()}


def _not_safetensors(path: Path, error: Exception) -> EncoderError:
    try:
        with path.open("rb") as opened:
            start = opened.read(4)
    except OSError:
        start = b""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return EncoderError(f"{path} is a pickle named safetensors, which is not opened: get the model's real safetensors file")
    return EncoderError(f"{path} is no safetensors file, or a damaged one ({type(error).__name__}): get it again")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
