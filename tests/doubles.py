"""Test doubles: small VLMs with real towers, fixed seeds and planted concepts, which answer in milliseconds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medtame.encoders.towers import TowerEncoder, frozen
from medtame.types import Array

KINDS, SIDES = ("nothing", "bright", "dark"), ("left", "right")
CONCEPTS = ("an image of {}", "a medical image showing {}", "a scan of a patient with {}", "{}", "a {} disc")
SIDE, WIDTH = 32, 32  # pixels of a prepared image; D, the length of both kinds of vectors
WORDS, LONGEST = 997, 64  # rows of the word table; tokens a sentence may have


def disc(kind: str, side: str, random: np.random.Generator, height: int = 48, width: int = 40) -> tuple[Array, Array]:
    """A noisy grey image (H, W), 0..1, with a bright disc, a dark disc or nothing on one side, and the disc's mask."""
    pixels = 0.5 + 0.05 * random.standard_normal((height, width))
    y, x = random.uniform(0.3, 0.7) * height, random.uniform(0.2, 0.32) * width + (width / 2 if side == "right" else 0)
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows - y) ** 2 + (columns - x) ** 2 <= (0.16 * width) ** 2) & (kind != "nothing")
    pixels[mask] += 0.4 if kind == "bright" else -0.4
    return np.clip(pixels, 0, 1).astype(np.float32), mask


def prepared(image: Tensor) -> Tensor:
    """(1, 3, 32, 32) about zero mean and unit deviation of one image (1, C, H, W), as a checkpoint's preprocessing would have it."""
    small = nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (small.expand(-1, 3, -1, -1) - 0.5) / 0.25


class TinyImageTower(nn.Module):
    """A convolutional stem and pointwise convolutions: whole (N, 32); maps (N, 32, 8, 8) in the text's space and (N, 16, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.down = nn.Conv2d(16, 64, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(64, 64, 1)
        self.out = nn.Conv2d(64, WIDTH, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        fine = torch.relu(self.stem(pixels))
        hidden = torch.relu(self.down(fine))
        hidden = torch.relu(hidden + self.mix(hidden))
        whole = self.out(hidden.amax((2, 3), keepdim=True)).flatten(1)
        return nn.functional.normalize(whole, dim=-1), (self.out(hidden), fine)


class TinyBlock(nn.Module):
    """A transformer block in plain layers. torch's own runs a fused path that passes by layers put around its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        n, length, _ = tokens.shape
        heads = self.qkv(self.first(tokens)).reshape(n, length, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(n, length, WIDTH)
        tokens = tokens + self.proj(mixed)
        return tokens + self.down(nn.functional.gelu(self.up(self.second(tokens))))


class TinyVitTower(nn.Module):
    """A vision transformer, patches of 8: whole (N, 32) from the first token or from the mean of the patches; one map (N, 32, 4, 4)."""

    def __init__(self, pooling: str = "cls", depth: int = 3) -> None:
        super().__init__()
        self.pooling = pooling
        self.patch = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.1 * torch.randn(1, (SIDE // 8) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(TinyBlock() for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def embedded(self, pixels: Tensor) -> Tensor:
        """(N, 1 + 16, 32): the first token and the patches, with their positions."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(pixels), -1, -1), patches], 1) + self.positions

    def read(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the last block's tokens (N, 1 + 16, 32) say of the image."""
        found = self.out(self.norm(tokens))
        whole = found[:, 0] if self.pooling == "cls" else found[:, 1:].mean(1)
        side = SIDE // 8
        return nn.functional.normalize(whole, dim=-1), (found[:, 1:].transpose(1, 2).reshape(-1, WIDTH, side, side),)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tokens = self.embedded(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.read(tokens)


class TinyTextTower(nn.Module):
    """Hashed words between a first and a last token (ids 1 and 2, 0 is empty); a layer, the mean over tokens, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.causal = LONGEST, False
        self.table, self.positions = nn.Embedding(WORDS, 48), nn.Parameter(0.02 * torch.randn(LONGEST, 48))
        self.layer, self.aligned = nn.Linear(48, 64), nn.Linear(64, WIDTH, bias=False)

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        words = [[zlib.crc32(word.encode()) % (WORDS - 3) + 3 for word in string.lower().split()][: LONGEST - 2] for string in strings]
        length = max((len(row) for row in words), default=0) + 2
        ids = torch.tensor([[1, *row, 2, *[0] * (length - 2 - len(row))] for row in words], dtype=torch.long).reshape(-1, length)
        return ids, (ids > 0).float()

    def embed(self, ids: Tensor) -> Tensor:
        return torch.as_tensor(self.table(ids))

    def pooled(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, 64) before the alignment."""
        hidden = torch.tanh(self.layer(embedded + self.positions[: embedded.shape[1]]))
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.normalize(self.aligned(self.pooled(embedded, mask)), dim=-1)


def planted() -> tuple[Tensor, list[str]]:
    """Prepared images with one of three concepts, and a sentence each that names it: what the text side is aligned to."""
    random = np.random.default_rng(99)
    rows = [(kind, side, template) for kind in KINDS for side in SIDES for template in CONCEPTS for _ in range(2)]
    pixels = [prepared(torch.from_numpy(disc(kind, side, random)[0])[None, None]) for kind, side, _ in rows]
    return torch.cat(pixels), [template.format(kind) for kind, _, template in rows]


def centred(image: nn.Module, last: nn.Module, pixels: Tensor) -> None:
    """Move the bias of the last layer so that the planted images have zero mean before they are normalised."""
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, given, found: seen.append(found.detach()))
    with torch.no_grad():
        image(pixels)
        hook.remove()
        mean = seen[0].mean((0, 2, 3)) if seen[0].ndim == 4 else seen[0][:, 0].mean(0)
        last.bias -= mean  # type: ignore[operator]


def aligned(image: nn.Module, text: TinyTextTower, pixels: Tensor, sentences: list[str]) -> None:
    """Ridge from the pooled words to the image vectors, so that zero-shot is better than chance."""
    with torch.no_grad():
        target = image(pixels)[0]
        ids, mask = text.tokens(sentences)
        words = text.pooled(text.embed(ids), mask)
        text.aligned.weight.copy_(torch.linalg.solve(words.T @ words + 0.01 * torch.eye(64), words.T @ (target - target.mean(0))).T)


def small_encoder(spec: str, image: nn.Module, text: TinyTextTower, last: nn.Module) -> TowerEncoder:
    pixels, sentences = planted()
    centred(image, last, pixels)
    aligned(image, text, pixels, sentences)
    return TowerEncoder(
        spec=spec,
        image_identity=f"{spec}-image-1",
        text_identity=f"{spec}-text-1",
        scale=20.0,
        bias=-0.5,
        image_tower=frozen(image),
        text_tower=frozen(text),
        prepare=prepared,
    )


def tiny_encoder(spec: str = "tiny") -> TowerEncoder:
    """A convolutional VLM, the same at each call. `spec` is there so that it can open runs: `medtame.run.open(folder, tiny_encoder)`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        image, text = TinyImageTower(), TinyTextTower()
    return small_encoder(spec, image, text, image.out)


def tiny_vit_encoder(spec: str = "tiny_vit", pooling: str = "cls") -> TowerEncoder:
    """A VLM with a vision transformer, the same at each call; its image side has transformer blocks to open."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        image, text = TinyVitTower(pooling), TinyTextTower()
    return small_encoder(spec, image, text, image.out)


ENCODERS = {"tiny": tiny_encoder, "tiny_vit": tiny_vit_encoder}
