"""How a checkpoint wants its images: size, resize, crop, mean and deviation, as tensors.

The pixels are those of the libraries' PIL transforms to within rounding. Grey is resized as one channel and expanded last;
8 bits stay 8 bits until they are scaled, 16 bits are resized in single precision and never rounded to 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from medtame.errors import EncoderError

WHOLE = "@whole"  # at the end of a spec: the whole image is stretched where the checkpoint would cut
MODES = ("squash", "shortest", "longest")
KERNELS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
PIL_KERNELS = {2: "bilinear", 3: "bicubic"}  # the numbers in a preprocessor_config.json


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """One image (1, C, H, W), uint8 or float32 in 0..1, C being 1 or 3 -> (1, 3, S, S) as the tower takes it.

    squash: the whole image is stretched to S x S. shortest: its shorter side becomes `edge`, then the middle S x S is cut out.
    longest: its longer side becomes S, the rest is filled.
    """

    side: int  # S
    mode: str
    edge: int
    kernel: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    fill: int = 0  # of 0..255
    rounded_crop: bool = True  # where the crop begins: rounded as torchvision does, or cut as transformers does

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        resized = image
        if (height, width) != self.size(height, width):
            resized = v2.resize(image, list(self.size(height, width)), interpolation=KERNELS[self.kernel], antialias=True)
        if self.mode != "squash":
            resized = self.middle(resized)
        unit = resized.to(torch.float32) / 255 if image.dtype == torch.uint8 else resized.clamp(0, 1)
        return (unit - _column(self.mean)) / _column(self.deviation)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize; the longer side is cut to a whole number as torchvision does."""
        if self.mode == "squash":
            return self.side, self.side
        if self.mode == "longest":
            ratio = max(height, width) / self.side
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        long = int(self.edge * max(height, width) / min(height, width))
        return (long, self.edge) if width <= height else (self.edge, long)

    def middle(self, image: Tensor) -> Tensor:
        """The middle S x S, filled where the image is smaller."""
        height, width = image.shape[2:]
        pad_h, pad_w = max(0, self.side - height), max(0, self.side - width)
        if pad_h or pad_w:
            fill = self.fill if image.dtype == torch.uint8 else self.fill / 255
            image = v2.pad(image, [pad_w // 2, pad_h // 2, (pad_w + 1) // 2, (pad_h + 1) // 2], fill=fill)
        top, left = (image.shape[2] - self.side) / 2, (image.shape[3] - self.side) / 2
        top, left = (round(top), round(left)) if self.rounded_crop else (int(top), int(left))
        return image[:, :, top : top + self.side, left : left + self.side]

    @property
    def whole(self) -> Preparation:
        """The same without a cut: the whole image is stretched."""
        return replace(self, mode="squash", edge=self.side)

    @property
    def identity(self) -> str:
        """All that changes a pixel."""
        edge = f":{self.edge}" if self.mode == "shortest" else f":{self.fill}" if self.mode == "longest" else ""
        crop = "" if self.mode == "squash" or self.rounded_crop else "-cut"
        numbers = ",".join(f"{value:.6g}" for value in (*self.mean, *self.deviation))
        return f"{self.mode}{edge}{crop}{self.side}-{self.kernel}-{numbers}"


def of_open_clip(config: Mapping[str, Any], side: int, path: str) -> Preparation:
    """From `preprocess_cfg` of an open_clip_config.json, or of a tag; what it does not say is open_clip's own. Raises EncoderError."""
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    said = {key: value for key, value in config.items() if value is not None}
    size = _square(said.get("size", side), path)
    kernel = {"random": "bicubic"}.get(said.get("interpolation", usual.interpolation), said.get("interpolation", usual.interpolation))
    made = Preparation(
        side=size,
        mode=said.get("resize_mode", usual.resize_mode),
        edge=size,
        kernel=kernel,
        mean=_three(said.get("mean", usual.mean), path),
        deviation=_three(said.get("std", usual.std), path),
        fill=int(said.get("fill_color", usual.fill_color)),
    )
    return _checked(made, side, path)


def of_transformers(config: Mapping[str, Any], side: int, path: str) -> Preparation:
    """From a preprocessor_config.json of CLIP or SigLIP. Raises EncoderError."""
    if config.get("do_resize") is False or config.get("do_normalize") is False or config.get("do_rescale") is False:
        raise EncoderError(f"{path} leaves out resizing, scaling or normalising, which medtame does not follow: give the checkpoint's own")
    if abs(float(config.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-3:
        raise EncoderError(f"{path} scales by {config['rescale_factor']}, not by 1/255, which medtame does not follow")
    size = config.get("size", {"height": side, "width": side})
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    squash = None if shortest else _square((size.get("height"), size.get("width")), path)
    crops = bool(config.get("do_center_crop", bool(shortest)))
    crop = config.get("crop_size", shortest or squash)
    cut = _square((crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else crop, path) if crops else None
    if shortest and cut is None:
        raise EncoderError(f"{path} resizes the shorter side and cuts nothing, so images keep their shapes, which medtame does not follow")
    made = Preparation(
        side=int(cut or squash or side),
        mode="shortest" if shortest else "squash",
        edge=int(shortest or squash or side),
        kernel=PIL_KERNELS.get(config.get("resample", 3), str(config.get("resample"))),
        mean=_three(config.get("image_mean"), path),
        deviation=_three(config.get("image_std"), path),
        rounded_crop=False,
    )
    return _checked(made, side, path)


def first(prepare: Preparation, whole: bool) -> tuple[Preparation, Preparation | None]:
    """How images are prepared for `whole` and for maps; the second only where it differs."""
    if whole or prepare.mode == "squash":
        return prepare.whole, None
    return prepare, prepare.whole


def image_side(size: object, path: Path | str) -> int:
    """The side of a square image size as configurations write it. Raises EncoderError."""
    return _square(size, str(path))


def _checked(made: Preparation, side: int, path: str) -> Preparation:
    if made.side != side:
        raise EncoderError(f"{path} prepares images of {made.side} pixels for a tower that takes {side}: get both from one source")
    if made.mode not in MODES or made.kernel not in KERNELS:
        raise EncoderError(f"{path} resizes by {made.mode} and {made.kernel}; known are {', '.join(MODES)} and {', '.join(KERNELS)}")
    return made


def _square(size: object, path: str) -> int:
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
    if not sides or any(not isinstance(each, int) or each < 1 for each in sides) or len(set(sides)) > 1:
        raise EncoderError(f"{path} wants images of {size}; only squares are known: give another encoder")
    return int(str(sides[0]))


def _three(values: object, path: str) -> tuple[float, ...]:
    numbers = [values] * 3 if isinstance(values, int | float) else values
    if not isinstance(numbers, Sequence) or len(numbers) != 3 or not all(isinstance(each, int | float) for each in numbers):
        raise EncoderError(f"{path} gives {values!r} where the mean or deviation of three channels is wanted: get it again")
    return tuple(float(each) for each in numbers)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]
