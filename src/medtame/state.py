"""One function saves fitted things and one loads them: tensors to safetensors, plain values to JSON. No pickle, no code."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medtame.errors import RunError
from medtame.types import Encoder

FORMAT = 1


def save(value: Any, folder: Path, about: Mapping[str, Any]) -> None:
    """Write `value` (fitted things: tensors, plain values, frozen dataclasses of these, encoders) and `about` (plain) to `folder`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    split(dict(about), "about", plain)  # refuses what is not plain
    if plain:
        raise RunError(f"{next(iter(plain))} is a tensor: what is told about a run is plain values")
    config = {"format": FORMAT, "about": dict(about), "value": split(value, "run", tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "weights.safetensors", lambda path: save_file(tensors or {"none": torch.zeros(1)}, path))
    write_text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False))


def load(folder: Path, accepted: Sequence[type], encoder: Callable[[str], Encoder]) -> tuple[Any, Any]:
    """The value and the `about` that `save` wrote.

    Only subclasses of `accepted` inside medtame are made; encoders are opened by their name.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors")
    except OSError:
        missing = next((name for name in ("config.json", "weights.safetensors") if not (folder / name).is_file()), "readable file")
        raise RunError(f"{folder} is not a run: it has no {missing}; give the folder that adapt or compare wrote") from None
    except (ValueError, SafetensorError) as error:
        raise RunError(f"the run {folder} is damaged ({str(error).splitlines()[0]}): make it again") from None
    number = config.get("format") if isinstance(config, dict) else None
    if number != FORMAT:
        raise RunError(f"the run {folder} has format {number!r}, this medtame reads {FORMAT}: fit it again")
    try:
        kinds = tuple(accepted)
        return join(config["value"], tensors, kinds, encoder), config["about"]
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise RunError(f"the run {folder} does not fit this version of medtame ({error}): fit it again") from None


def split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON of a fitted thing; its tensors go into `tensors` under their path."""
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    if hasattr(value, "image_identity"):
        return {"encoder": value.spec}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: split(getattr(value, field.name), f"{path}.{field.name}", tensors) for field in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise RunError(f"{path} has a key that is no text: a fitted thing is saved under names")
        split(list(value), f"{path} (its keys)", tensors)  # a key may hold an address, too
        return {"dict": {key: split(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [split(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [split(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, str) and "://" in value:
        raise RunError(f"{path} holds an address: a run never carries a URL; hand it in when the run is used")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise RunError(f"{path} is a {type(value).__name__}: a fitted thing holds tensors and plain values only")


def join(value: Any, tensors: dict[str, Tensor], accepted: tuple[type, ...], encoder: Callable[[str], Encoder]) -> Any:
    """What `split` took apart."""
    if isinstance(value, list):
        return [join(item, tensors, accepted, encoder) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "encoder" in value:
        return encoder(value["encoder"])
    if "tuple" in value:
        return tuple(join(item, tensors, accepted, encoder) for item in value["tuple"])
    if "dict" in value:
        return {key: join(item, tensors, accepted, encoder) for key, item in value["dict"].items()}
    kind = allowed_class(value["class"], accepted)
    return kind(**{name: join(item, tensors, accepted, encoder) for name, item in value["fields"].items()})


def allowed_class(name: str, accepted: tuple[type, ...]) -> type:
    """The class that a config names, if it is one of medtame's and a subclass of `accepted`."""
    module, _, title = name.partition(":")
    found = getattr(import_module(module), title, None) if module.startswith("medtame.") else None
    if not (isinstance(found, type) and issubclass(found, accepted) and found.__module__ == module):
        raise RunError(f"the run names the class {name!r}, which is not a fitted thing of medtame: do not open runs from strangers")
    return found


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """A file appears whole or not at all: written beside its place, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        with Path(temporary).open("rb") as written:
            os.fsync(written.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
