"""The text side of `bundled`: MiniLM-L6 sentence embeddings (Wang et al. 2020), mapped into the image space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from medtame.encoders.towers import frozen
from medtame.errors import EncoderError

MAX_TOKENS = 256  # the length that the sentence model was made for, special tokens included


class SentenceTower(nn.Module):
    """Strings -> sentence embeddings (N, 384), unit norm: the mean of BERT's last states. Satisfies `TextTower`."""

    def __init__(self, bert: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.bert, self.tokenizer, self.length, self.causal = bert, tokenizer, MAX_TOKENS, False

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L). What goes beyond 256 tokens is cut off, as the sentence model does."""
        found = self.tokenizer(list(strings), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, 384), before positions and token types are added."""
        bert: Any = self.bert
        words: Tensor = bert.embeddings.word_embeddings(ids)
        return words

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, 384), unit norm. BERT adds positions and token types and normalises, once."""
        states = self.bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        kept = mask[..., None].to(states.dtype)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


class AlignedTower(nn.Module):
    """A sentence tower and a linear map of its centred embeddings into the image space. Satisfies `TextTower`."""

    def __init__(self, sentences: SentenceTower, text_mean: Tensor, text_map: Tensor) -> None:
        super().__init__()
        self.sentences, self.length, self.causal = sentences, sentences.length, False
        self.aligned = nn.Linear(text_map.shape[0], text_map.shape[1], bias=False, device="meta")
        self.aligned.weight = nn.Parameter(text_map.T.contiguous())
        self.text_mean: Tensor
        self.register_buffer("text_mean", text_mean)

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L); what goes beyond 256 tokens is cut off."""
        return self.sentences.tokens(strings)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, 384), before positions and token types are added."""
        return self.sentences.embed(ids)

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, 1280), unit norm."""
        return nn.functional.normalize(self.aligned(self.sentences.encode(embedded, mask) - self.text_mean), dim=-1)


def load(model: Path, config: Path, tokenizer: Path) -> SentenceTower:
    """The frozen sentence tower from its three files; no hub is asked. Raises EncoderError."""
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced: leave the caller's generator alone
        bert = BertModel(BertConfig.from_json_file(str(config)), add_pooling_layer=False)
    try:
        stored = load_file(model)
        bert.load_state_dict({name: stored[name] for name in bert.state_dict()})
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{model} does not hold MiniLM-L6 ({type(error).__name__}): install or copy it again") from None
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    words = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), model_max_length=MAX_TOKENS, **special)
    tower = SentenceTower(bert, words)
    frozen(tower)
    return tower
