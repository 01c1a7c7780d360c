"""Image vectors as the beginning of a small causal language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each after a layer norm and added to what came in (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L, width) to the same."""
        split = self.ask(self.before(hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        hidden = hidden + self.join(seen.transpose(1, 2).flatten(2))
        changed: Tensor = hidden + self.narrow(gelu(self.wide(self.after(hidden))))
        return changed


class PrefixDecoder(nn.Module):
    """Vectors of an image (N, V, F), each made a token by a linear map, then words (N, L): logits of what follows (N, L, words).

    The transformer is causal, so what pads a row on its right never reaches its words, nor does another row.
    """

    def __init__(self, image: int, vectors: int, words: int, longest: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.prefix = nn.Linear(image, width)
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.zeros(vectors + longest, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, words)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        hidden = torch.cat([self.prefix(image), self.words(ids)], 1)
        hidden = hidden + self.places[: hidden.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.out(self.norm(hidden[:, image.shape[1] :]))
        return logits
