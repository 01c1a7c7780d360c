"""Text towers of open_clip's models. Each satisfies `TextTower`: tokens, then word embeddings, then a unit vector.

Strings are cut at the model's own length. Where attention is causal, or padding is masked out, a batch is trimmed to its longest
string, which changes nothing; where padding is attended to (SigLIP), it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from medtame.errors import EncoderError

Tokenizer = Callable[[list[str]], Tensor]  # strings -> ids (N, context length)
BERTS = ("bert", "roberta", "xlm-roberta")
POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")


def tower_of(text: Any, tokenizer: Tokenizer) -> nn.Module:
    """The tower around the text side of an open_clip model. Raises EncoderError for an unknown kind."""
    kinds = {"TextTransformer": TransformerText, "HFTextEncoder": BertText}
    kind = type(text).__name__
    if kind not in kinds:
        raise EncoderError(f"text towers of kind {kind} are not known: give a CLIP, SigLIP or BiomedCLIP kind of model")
    return kinds[kind](text, tokenizer)


class TransformerText(nn.Module):
    """open_clip's own text transformer: CLIP's (causal, read at the end token) and SigLIP's (padded, read at the last position)."""

    def __init__(self, text: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        if text.cls_emb is not None or text.pool_type == "none":
            raise EncoderError("this text transformer reads a class token as CoCa does, which is not known: give another encoder")
        self.text, self.tokenizer, self.length = text, tokenizer, int(text.context_length)
        self.ends = text.pool_type in ("argmax", "eos")

    @property
    def causal(self) -> bool:
        text: Any = self.text
        return self.ends and text.attn_mask is not None

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L): up to the end token, or all where padding is attended to."""
        text: Any = self.text
        ids = self.tokenizer(list(strings))
        if not self.ends:
            return ids, torch.ones_like(ids)
        end = ids.argmax(1) if text.pool_type == "argmax" else (ids == text.eos_id).int().argmax(1)
        mask = (torch.arange(ids.shape[1]) <= end[:, None]).long()
        longest = int(end.max()) + 1 if text.attn_mask is not None else ids.shape[1]
        return ids[:, :longest], mask[:, :longest]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, E), before positions are added."""
        text: Any = self.text
        words: Tensor = text.token_embedding(ids)
        return words

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, D), unit norm."""
        text: Any = self.text
        length = embedded.shape[1]
        causal = None if text.attn_mask is None else text.attn_mask[:length, :length]
        states = text.ln_final(text.transformer(embedded + text.positional_embedding[:length], attn_mask=causal))
        return self._projected(last_of(states, mask) if self.ends else states[:, -1 if text.pool_type == "last" else 0])

    def encode_packed(self, embedded: Tensor, positions: Tensor, seen: Tensor, ends: Tensor) -> Tensor:
        """(N, C, D), unit norm, of C strings that share one row: see `learning.prompt_learning`."""
        text: Any = self.text
        states = text.transformer(embedded + text.positional_embedding[positions], attn_mask=hiding(seen, embedded))
        return self._projected(text.ln_final(states[:, ends]))

    def _projected(self, pooled: Tensor) -> Tensor:
        text: Any = self.text
        projection = text.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return normalize(pooled, dim=-1)


class BertText(nn.Module):
    """A BERT of transformers with open_clip's pooler and projection (BiomedCLIP)."""

    def __init__(self, text: Any, tokenizer: Any) -> None:
        super().__init__()
        if not hasattr(text, "proj"):
            raise EncoderError("the text configuration names no known projection: hf_proj_type must be linear or mlp")
        self.text, self.tokenizer, self.length, self.causal = text, tokenizer, int(tokenizer.context_length), False

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L), padding masked out."""
        text: Any = self.text
        ids = self.tokenizer(list(strings))
        mask = (ids != text.config.pad_token_id).long()
        longest = max(1, int(mask.sum(1).max()))
        return ids[:, :longest], mask[:, :longest]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, E), before positions and token types are added."""
        text: Any = self.text
        words: Tensor = text.transformer.get_input_embeddings()(ids)
        return words

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, D), unit norm."""
        text: Any = self.text
        found = text.transformer(inputs_embeds=embedded, attention_mask=mask)
        return normalize(text.proj(text.pooler(found, mask)), dim=-1)


def hiding(seen: Tensor, like: Tensor) -> Tensor:
    """A mask to be added to attention: minus infinity where `seen` (P, P) is false."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def last_of(states: Tensor, mask: Tensor) -> Tensor:
    """The state (N, E) at the last position of each row where the mask (N, L) is one."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return states[torch.arange(len(states), device=mask.device), (place * (mask > 0)).argmax(1)]
