"""Towers around transformers' CLIPModel, SiglipModel and Siglip2Model; the words are those of `image_towers` and `text_towers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from medtame.encoders.image_towers import Maps, as_map, each_alone
from medtame.encoders.text_towers import hiding, last_of
from medtame.errors import EncoderError


class ClipImage(nn.Module):
    """(N, 3, S, S) -> whole (N, D), maps (N, D, G, G) and (N, width, G, G)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        vision: Any = self.vision
        raw = vision.encoder(inputs_embeds=vision.pre_layrnorm(vision.embeddings(prepared))).last_hidden_state
        whole = self.projection(vision.post_layernorm(raw[:, 0]))
        aligned = self.projection(vision.post_layernorm(raw[:, 1:]))
        return normalize(whole, dim=-1), (as_map(aligned), as_map(raw[:, 1:]))


class SiglipImage(nn.Module):
    """SigLIP and SigLIP 2 with their attention pool: (N, 3, S, S) -> whole (N, D), maps (N, D, G, G) and (N, width, G, G).

    SigLIP 2's variable resolution is used at one: the square of as many patches as it has position embeddings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not model.vision_model.use_head:
            raise EncoderError("this SigLIP image tower has no pooling head (vision_use_head is false): give a checkpoint that has one")
        self.vision = model.vision_model
        self.patches = hasattr(self.vision.embeddings, "num_patches") and isinstance(self.vision.embeddings.patch_embedding, nn.Linear)

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        vision: Any = self.vision
        raw = vision.encoder(inputs_embeds=self.embedded(prepared), attention_mask=None).last_hidden_state
        tokens = vision.post_layernorm(raw)
        return normalize(vision.head(tokens), dim=-1), (as_map(each_alone(vision.head, tokens)), as_map(raw))

    def embedded(self, prepared: Tensor) -> Tensor:
        """(N, G x G, width), positions added."""
        embeddings: Any = self.vision.embeddings
        if not self.patches:
            found: Tensor = embeddings(prepared)
            return found
        patch = embeddings.patch_size
        grid = prepared.shape[2] // patch
        cells = prepared.reshape(len(prepared), 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)  # N, row, column, y, x, C
        square = torch.full((len(prepared), 2), grid, dtype=torch.long, device=prepared.device)
        placed: Tensor = embeddings(cells.reshape(len(prepared), grid * grid, -1), square)
        return placed


class ClipText(nn.Module):
    """CLIP's causal text transformer, read at the end token. Satisfies `TextTower`."""

    causal = True

    def __init__(self, model: Any, tokenizer: Any, length: int) -> None:
        super().__init__()
        self.text, self.projection, self.tokenizer, self.length = model.text_model, model.text_projection, tokenizer, length

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L), which ends at the end token."""
        found = self.tokenizer(list(strings), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, E), before positions are added."""
        text: Any = self.text
        words: Tensor = text.embeddings.token_embedding(ids)
        return words

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, D), unit norm."""
        text: Any = self.text
        length = embedded.shape[1]
        later = torch.full((length, length), float("-inf"), dtype=embedded.dtype, device=embedded.device).triu(1)[None, None]
        states = text.encoder(inputs_embeds=text.embeddings(inputs_embeds=embedded), attention_mask=later).last_hidden_state
        return normalize(self.projection(last_of(text.final_layer_norm(states), mask)), dim=-1)

    def encode_packed(self, embedded: Tensor, positions: Tensor, seen: Tensor, ends: Tensor) -> Tensor:
        """(N, C, D), unit norm, of C strings that share one row: see `learning.prompt_learning`."""
        text: Any = self.text
        placed = embedded + text.embeddings.position_embedding(positions)
        states = text.encoder(inputs_embeds=placed, attention_mask=hiding(seen, embedded)[None, None]).last_hidden_state
        return normalize(self.projection(text.final_layer_norm(states[:, ends])), dim=-1)


class SiglipText(nn.Module):
    """SigLIP's text transformer: padded to its length, padding attended to, read at the last position. Satisfies `TextTower`."""

    causal = False

    def __init__(self, model: Any, tokenizer: Any, length: int) -> None:
        super().__init__()
        self.text, self.tokenizer, self.length = model.text_model, tokenizer, length

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and a mask (N, L) of ones."""
        found = self.tokenizer(list(strings), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        return found["input_ids"], torch.ones_like(found["input_ids"])

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, E), before positions are added."""
        text: Any = self.text
        words: Tensor = text.embeddings.token_embedding(ids)
        return words

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, D), unit norm."""
        text: Any = self.text
        states = text.encoder(inputs_embeds=text.embeddings(inputs_embeds=embedded), attention_mask=None).last_hidden_state
        return normalize(text.head(text.final_layer_norm(states)[:, -1]), dim=-1)
