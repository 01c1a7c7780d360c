"""SimpleITK behind tensors: images in, displacements out. Pixels have side 1 and the first one's centre is the origin.

Every filter runs in one thread and one work unit (`alone`), and the metric reads all pixels: the same pair gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import SimpleITK
import torch
from torch import Tensor

from medtame.errors import DataError

Image: TypeAlias = Any
Transform: TypeAlias = Any


def to_image(pixels: Tensor) -> Image:
    """A grey image (1, 1, H, W)."""
    return SimpleITK.GetImageFromArray(pixels[0, 0].numpy())


def to_displacement(transform: Transform, fixed: Image) -> Tensor:
    """The displacement (1, 2, H, W), in fractions, of a transform from points of the fixed to points of the moving image."""
    field = SimpleITK.TransformToDisplacementField(
        transform, SimpleITK.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    )
    fractions = SimpleITK.GetArrayFromImage(field) / np.array(fixed.GetSize())
    return torch.from_numpy(fractions.astype(np.float32)).movedim(-1, 0)[None].contiguous()


def alone(method: Any) -> Any:
    """A filter in one thread. Without the single work unit sums are added in the order in which threads finish."""
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    return method


def by_information(shrink: Sequence[int], smoothing: Sequence[float]) -> Any:
    """A registration that maximises mutual information (Mattes et al. 2003, 32 bins) over all pixels, coarse to fine.

    `shrink` and `smoothing` (standard deviation in pixels) have one number a level.
    """
    method = alone(SimpleITK.ImageRegistrationMethod())
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel(list(smoothing))
    return method


def run(method: Any, moving: Image, fixed: Image) -> None:
    """Execute a registration. Raises DataError where SimpleITK gives up, as it does when the images no longer overlap."""
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"a pair cannot be registered ({reason}): take it out, or use instance_optimisation") from None


def affine_transform(moving: Image, fixed: Image, iterations: int = 100) -> Transform:
    """The affine transform of most mutual information: three resolutions, regular-step gradient descent, centres matched first."""
    centred = SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    transform = SimpleITK.CenteredTransformInitializer(fixed, moving, SimpleITK.AffineTransform(2), centred)
    method = by_information((4, 2, 1), (2, 1, 0))
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, iterations, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    run(method, moving, fixed)
    return transform


def resampled(image: Image, like: Image, transform: Transform | None = None) -> Image:
    """An image, or a displacement field, on the grid of another, bilinear; beyond the edge the edge goes on."""
    method = alone(SimpleITK.ResampleImageFilter())
    method.SetReferenceImage(like)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetUseNearestNeighborExtrapolator(True)
    if transform is not None:
        method.SetTransform(transform)
    return method.Execute(image)


def shrunk(image: Image, factor: int) -> Image:
    """An image at 1/factor of its resolution, smoothed before."""
    if factor == 1:
        return image
    smoothing = alone(SimpleITK.SmoothingRecursiveGaussianImageFilter())
    smoothing.SetSigma(factor / 2)
    return SimpleITK.Shrink(smoothing.Execute(image), [factor] * 2)
