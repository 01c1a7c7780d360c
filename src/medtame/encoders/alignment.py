"""How `bundled` learns its text map: ridge regression from sentence embeddings to an image classifier's weight vectors.

A class's weight vector is the direction in which its images lie, so a map from its description to that direction puts words
and images into one space (as in Elhoseiny et al. 2013, doi:10.1109/ICCV.2013.321). Trained on 800 ImageNet classes it ranks
the right one of the 200 others among the first five for 80 to 90 % of them. It knows no medical word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from medtame.errors import EncoderError

RIDGES = tuple(10.0 ** (step / 4) for step in range(-8, 9))


@dataclass(frozen=True)
class Alignment:
    """A text vector is the direction of (embedding - text_mean) @ text_map."""

    text_mean: Tensor  # (E,)
    text_map: Tensor  # (E, D)

    def vectors(self, text_embeddings: Tensor) -> Tensor:
        """(N, E) -> (N, D), unit norm."""
        return normalize((text_embeddings - self.text_mean) @ self.text_map, dim=-1)


def align(text_embeddings: Tensor, weights: Tensor, ridge: float) -> Alignment:
    """Ridge regression, in double precision, of unit-norm weight vectors (n, D) on centred text embeddings (n, E)."""
    texts, directions = text_embeddings.double(), normalize(weights.double(), dim=-1)
    mean = texts.mean(0)
    centred = texts - mean
    penalised = centred.T @ centred + ridge * torch.eye(centred.shape[1], dtype=torch.double)
    return Alignment(mean, torch.linalg.solve(penalised, centred.T @ (directions - directions.mean(0))))


def leave_one_out(text_embeddings: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """(n, D) the prediction for each class by the map learnt from the others, by the hat matrix, without n fits."""
    texts, directions = text_embeddings.double(), normalize(weights.double(), dim=-1)
    centred, wanted = texts - texts.mean(0), directions - directions.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    shrunk = left * (values**2 / (values**2 + ridge))
    leverage = (shrunk * left).sum(1) + 1 / len(texts)
    predicted: Tensor = wanted - (wanted - shrunk @ (left.T @ wanted)) / (1 - leverage)[:, None]
    return predicted


def ranks(vectors: Tensor, weights: Tensor) -> Tensor:
    """(n,) how many of n weight vectors lie nearer to each text vector, by cosine, than its own."""
    cosine = normalize(vectors.double(), dim=-1) @ normalize(weights.double(), dim=-1).T
    return (cosine > cosine.diagonal()[:, None]).sum(1)


def chosen_ridge(text_embeddings: Tensor, weights: Tensor, candidates: Sequence[float] = RIDGES) -> float:
    """The ridge whose left-out classes rank best: least mean logarithm of the rank."""
    losses = [ranks(leave_one_out(text_embeddings, weights, ridge), weights).double().log1p().mean() for ridge in candidates]
    return candidates[int(torch.stack(losses).argmin())]


def matched_scale(features: Tensor, weights: Tensor, bias: Tensor) -> float:
    """The logit scale at which softmax(scale x cosine) of features (N, D) and weights (n, D) has the classifier's own mean entropy."""
    features, weights = features.double(), weights.double()
    cosine = normalize(features, dim=-1) @ normalize(weights, dim=-1).T
    wanted = entropy(features @ weights.T + bias.double())
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle * cosine) > wanted else (low, middle)
    return (low + high) / 2


def entropy(logits: Tensor) -> float:
    """Mean entropy, in nats, of softmax over the last axis."""
    logarithm = logits.log_softmax(-1)
    return float(-(logarithm.exp() * logarithm).sum(-1).mean())


def scale_of(path: Path) -> float:
    """The logit scale that an alignment file states; its large tensors are not read. Raises EncoderError."""
    try:
        with safe_open(path, "pt") as file:
            return float(file.get_tensor("scale"))
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path} is no alignment file ({type(error).__name__}): reinstall medtame") from None


def load(path: Path) -> Alignment:
    """An alignment file, in single precision. Raises EncoderError."""
    try:
        with safe_open(path, "pt") as file:
            return Alignment(file.get_tensor("text_mean").float(), file.get_tensor("text_map").float())
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path} is no alignment file ({type(error).__name__}): reinstall medtame") from None
