"""Make src/medtame/encoders/bundled_alignment.safetensors again; the same packages give the same file.

    python scripts/make_alignment.py [OUT]

Texts: the 1000 ImageNet class descriptions of timm (names and WordNet's definition). Targets: the classifier's weight vectors.
The ridge is the one whose left-out classes rank best. The logit scale is the one at which softmax(scale x cosine) of
scikit-learn's two sample photographs and their quarters with the 1000 weight vectors is as sharp (mean entropy) as the classifier.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo
from torch import Tensor

from medtame.encoders import alignment, bundled, lite0, minilm


def descriptions() -> list[str]:
    """The 1000 classes in the classifier's order: `goldfish, Carassius auratus: small golden …`."""
    texts: list[str] = ImageNetInfo().label_descriptions(detailed=True)
    return texts


def embeddings(texts: list[str]) -> Tensor:
    """(N, 384)"""
    files = [bundled.checked(file) for file in (bundled.TEXT_WEIGHTS, bundled.TEXT_CONFIG, bundled.TOKENIZER)]
    tower = minilm.load(*files)
    found = torch.empty(len(texts), 384)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 50):
        rows = by_length[start : start + 50]
        ids, mask = tower.tokens([texts[i] for i in rows])
        found[rows] = tower.encode(tower.embed(ids), mask)
    return found


def photograph_features(tower: lite0.Lite0Tower) -> Tensor:
    """(10, 1280) pooled features, not of unit norm, of two photographs and the quarters of each."""
    parts = []
    for photograph in load_sample_images().images:
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
        rows, columns = pixels.shape[2] // 2, pixels.shape[3] // 2
        quarters = [pixels[:, :, r : r + rows, c : c + columns] for r in (0, rows) for c in (0, columns)]
        parts += [tower(lite0.prepare(part))[1][0].mean((2, 3)) for part in (pixels, *quarters)]
    return torch.cat(parts)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else bundled.ALIGNMENT
    path = bundled.checked(bundled.IMAGE_WEIGHTS)
    classifier = lite0.weights(path)
    weights, bias = classifier["classifier.weight"], classifier["classifier.bias"]
    texts = embeddings(descriptions())
    ridge = alignment.chosen_ridge(texts, weights)
    made = alignment.align(texts, weights, ridge)
    scale = alignment.matched_scale(photograph_features(lite0.load(path)), weights, bias)
    halves = {"text_mean": made.text_mean.half(), "text_map": made.text_map.half().contiguous()}
    numbers = {"ridge": torch.tensor(ridge, dtype=torch.double), "scale": torch.tensor(round(scale, 2), dtype=torch.double)}
    save_file(halves | numbers, out)  # no metadata: safetensors writes it in an order of its own
    print(f"{out}: ridge {ridge:g}, scale {scale:.2f}, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
