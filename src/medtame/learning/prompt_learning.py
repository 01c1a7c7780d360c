"""Prompts with free vectors in them (context optimisation, Zhou et al. 2022, arxiv:2109.01134): words of candidates around a context.

All C prompts start with the same tokens. Under causal attention these see nothing that follows, so they are computed once: one row
[start context | name 1 end | name 2 end | ...] in which a token sees the shared part and its own prompt, and stands at the position
that it has there. That is exact, and a row of 58 tokens replaces 8 of 77 (`packed`). Where attention looks both ways (BERT, SigLIP)
every prompt is a row of its own, of its true length, or of the full one where padding is attended to.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from medtame.encoders.opened import opened
from medtame.errors import EncoderError, PairError, SettingsError
from medtame.learning.scores import classification_loss, cosine_logits, masked
from medtame.types import Adapted, Candidates, Encoder, Query, Scores

Precision = Literal["float32", "bfloat16"]  # of the frozen text tower: 16 bits are faster, and gradients good to four digits
Place = Literal["end", "middle", "front"]  # of the candidate's name: after the context, inside it, before it
PACKED_TOKENS = 512  # of one row: attention grows with its square
STRINGS_AT_ONCE = 64


@dataclass(frozen=True)
class Padding:
    """What stands in the rest of a row where a tower reads it too (SigLIP), and whether it stands first."""

    token: Tensor  # () its id, or (E,) its embedding
    first: bool


@dataclass(frozen=True, kw_only=True)
class Wording:
    """C prompts as embeddings of their tokens: a start, the beginning that all share, each one's own words, an end."""

    tower: Any
    ids: Tensor  # (M,) of the beginning
    start: Tensor  # (S, E) special tokens before everything; S is 0 or 1
    beginning: Tensor  # (M, E)
    names: tuple[Tensor, ...]  # of C: (L, E)
    end: Tensor  # (1, E)
    padding: Padding | None  # where padding is attended to
    template: str  # "" where the prompts were taken as given

    @property
    def spread(self) -> float:
        """The deviation of the words' numbers: the unit of learning rates, since towers differ tenfold in it."""
        return float(torch.cat([self.beginning, *self.names]).std())

    def texts(self, context: Tensor, place: Place = "end") -> Tensor:
        """(C, D) unit norm, with one context (M, E) in all prompts, or (C, M, E) with one for each."""
        if context.ndim == 2:
            return self.texts_of_rows(context[None], place)[0]
        own = [torch.cat(_around(one[None], name, place), 1) for one, name in zip(context, self.names, strict=True)]
        ends = [torch.cat([part, self.end[None]], 1) for part in own]
        return encoded(self.tower, self.start[None], ends, self.padding)[0]

    def texts_of_rows(self, contexts: Tensor, place: Place = "end") -> Tensor:
        """(N, C, D) unit norm, with a context (N, M, E) for each of N rows."""
        n = len(contexts)
        parts = [_around(contexts, name, place) for name in self.names]
        shared = torch.cat([self.start.expand(n, -1, -1), parts[0][0]], 1)
        own = [torch.cat([before, after, self.end.expand(n, -1, -1)], 1) for _, before, after in parts]
        return encoded(self.tower, shared, own, self.padding)

    def cast(self, dtype: torch.dtype) -> Wording:
        """The same, computed in another precision."""
        if dtype == torch.float32:
            return self
        tower = copy.deepcopy(self.tower).to(dtype)
        return Wording(**{**self.__dict__, "tower": tower})


def _around(contexts: Tensor, name: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts (N, M, E) and a name (L, E): the part that all prompts share, and a prompt's own two parts."""
    own = name.expand(len(contexts), -1, -1)
    before = {"end": contexts.shape[1], "middle": contexts.shape[1] // 2, "front": 0}[place]
    return contexts[:, :before], own, contexts[:, before:]


def encoded(tower: Any, shared: Tensor, own: Sequence[Tensor], padding: Padding | None) -> Tensor:
    """(N, C, D) unit norm: C prompts that start with shared (N, S, E) and go on with own (N or 1, L, E), in the tower's precision."""
    n, before = len(shared), shared.shape[1]
    longest = max(before + part.shape[1] for part in own)
    if longest > tower.length:
        raise EncoderError(
            f"a prompt has {longest} tokens and the encoder reads {tower.length}: shorten the class names or give fewer context tokens"
        )
    dtype = next(tower.parameters()).dtype
    shared, own = shared.to(dtype), [part.to(dtype).expand(n, -1, -1) for part in own]
    read = _packed if tower.causal else _padded
    parts = [read(tower, shared, some, padding) for some in _portions(own, before, packed=tower.causal)]
    return torch.cat(parts, 1).float()


def _portions(own: Sequence[Tensor], before: int, *, packed: bool) -> list[list[Tensor]]:
    """Prompts that are read together."""
    portions: list[list[Tensor]] = [[]]
    for part in own:
        tokens = before + sum(one.shape[1] for one in portions[-1]) + part.shape[1]
        if portions[-1] and (tokens > PACKED_TOKENS if packed else len(portions[-1]) == STRINGS_AT_ONCE):
            portions.append([])
        portions[-1].append(part)
    return portions


def _packed(tower: Any, shared: Tensor, own: Sequence[Tensor], padding: Padding | None) -> Tensor:
    before, lengths = shared.shape[1], torch.tensor([part.shape[1] for part in own])
    owner = torch.cat([torch.full((before,), -1), torch.arange(len(own)).repeat_interleave(lengths)])
    positions = torch.cat([torch.arange(before), *(before + torch.arange(int(length)) for length in lengths)])
    earlier = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    seen = earlier & ((owner[None] == -1) | (owner[None] == owner[:, None]))
    found: Tensor = tower.encode_packed(torch.cat([shared, *own], 1), positions, seen, before - 1 + lengths.cumsum(0))
    return found


def _padded(tower: Any, shared: Tensor, own: Sequence[Tensor], padding: Padding | None) -> Tensor:
    n, before = len(shared), shared.shape[1]
    lengths = torch.tensor([before + part.shape[1] for part in own])
    length = int(lengths.max()) if padding is None else tower.length
    filler = torch.zeros_like(shared[:1, :1]) if padding is None else padding.token.to(shared.dtype)[None, None]
    rows = []
    for part, used in zip(own, lengths.tolist(), strict=True):
        rest = filler.expand(n, length - used, -1)
        rows.append(torch.cat([rest, shared, part] if padding is not None and padding.first else [shared, part, rest], 1))
    mask = (torch.arange(length) < lengths[:, None]).long() if padding is None else torch.ones(len(own), length, dtype=torch.long)
    return tower.encode(torch.stack(rows, 1).flatten(0, 1), mask.repeat(n, 1)).unflatten(0, (n, len(own)))  # type: ignore[no-any-return]


def wording(tower: Any, candidates: Candidates, template: str, known: Tensor | None = None) -> Wording:
    """The first prompt of each candidate, then of its absence where it has one, around the words that all begin with.

    Prompts that share no beginning are put into `template`. `known` are the token ids (M,) of the beginning that a fit found, with the
    template that it used ("": the prompts as given): a prompt that begins otherwise is its own words as a whole. Names are no words.
    Raises PairError without tokens, EncoderError where a prompt is longer than the tower reads.
    """
    if tower is None:
        raise PairError("prompt learning needs a text side with tokens, which this encoder does not have: use linear_probe")
    given = [sentences[0] for sentences in (*candidates.prompts, *(candidates.negatives or ()))]
    specials = _specials(tower)
    if known is None:
        used, rows, known = _chosen(tower, given, template, specials)
    else:
        used = template
        rows = _rows(tower, [template.replace("{}", prompt) for prompt in given] if template else given, specials)
    own = [row[len(known) :] if torch.equal(row[: len(known)], known) else row for row in rows]
    start, end, padding = specials
    with torch.no_grad():
        return Wording(
            tower=opened(tower),
            ids=known,
            start=tower.embed(start[None])[0],
            beginning=tower.embed(known[None])[0],
            names=tuple(tower.embed(row[None])[0] for row in own),
            end=tower.embed(end[None])[0],
            padding=None if padding is None else Padding(tower.embed(padding.token[None, None])[0, 0], padding.first),
            template=used,
        )


Specials = tuple[Tensor, Tensor, Padding | None]  # ids


def _chosen(tower: Any, given: list[str], template: str, specials: Specials) -> tuple[str, list[Tensor], Tensor]:
    """The template in use, the prompts' ids, and those that all begin with."""
    rows = _rows(tower, given, specials)
    shared = _beginning(rows)
    if shared:
        return "", rows, rows[0][:shared]
    if "{}" not in template:
        raise SettingsError(f"the template {template!r} has no place for the prompt: write {{}} in it")
    rows = _rows(tower, [template.replace("{}", prompt) for prompt in given], specials)
    shared = _beginning(rows)
    if not shared:
        raise SettingsError(f"prompts made of the template {template!r} share no first word: begin it with words, as 'an image of {{}}'")
    return template, rows, rows[0][:shared]


def _specials(tower: Any) -> Specials:
    """Ids of what a tower puts before a string and after it, and of padding where that is attended to."""
    (empty, one), mask = tower.tokens(["", "a"])
    padding = None
    if bool((mask > 0).all()) and len(empty) == tower.length:
        padding = Padding(empty[0], first=True) if one[0] == empty[0] and one[-1] != empty[-1] else Padding(empty[-1], first=False)
    row = _real(empty, mask[0], padding)
    return row[:-1], row[-1:], padding


def _real(ids: Tensor, mask: Tensor, padding: Padding | None) -> Tensor:
    """A row of ids without its padding."""
    if padding is None:
        return ids[mask > 0]
    other = torch.nonzero(ids != padding.token)[:, 0].tolist()
    if not other:
        return ids[:0]
    return ids[other[0] :] if padding.first else ids[: other[-1] + 1]


def _rows(tower: Any, strings: Sequence[str], specials: Specials) -> list[Tensor]:
    """The token ids of each string, without special ones."""
    start, end, padding = specials
    rows = []
    for first in range(0, len(strings), STRINGS_AT_ONCE):
        part = list(strings[first : first + STRINGS_AT_ONCE])
        for string, ids, mask in zip(part, *tower.tokens(part), strict=True):
            row = _real(ids, mask, padding)
            if len(row) + (padding is not None) >= tower.length:  # what is cut off may end with padding
                short = f"{string[:40]}..." if len(string) > 40 else string
                raise EncoderError(f"the prompt {short!r} fills all {tower.length} tokens that the encoder reads: shorten the class name")
            rows.append(row[len(start) : len(row) - len(end)])
    return rows


def _beginning(rows: Sequence[Tensor]) -> int:
    """How many first tokens all rows share; at least one of each row stays its own."""
    shortest = min(len(row) for row in rows)
    same = (torch.stack([row[:shortest] for row in rows]) == rows[0][:shortest]).all(0)
    return max(0, min(int(same.long().cumprod(0).sum()), shortest - 1))


def scores_of(texts: Tensor, query: Query, vectors: Tensor, encoder: Encoder) -> Tensor:
    """(N, C) logits of rows' vectors (N, D) and the prompts of a wording (C, D), or (2C, D) where a candidate has negatives.

    As `Query.texts` has it: a negative prompt is taken away, a row's words are added. (N, C, D) or (N, 2C, D) where each row has its own.
    """
    if query.wanted.negatives is not None:
        present, absent = texts.chunk(2, -2)
        texts = normalize(present - absent, dim=-1)
    if query.words is not None:
        texts = normalize(encoder.texts(query.words)[:, None] + texts, dim=-1)
    return masked(cosine_logits(vectors, texts, encoder), query.allowed)


@dataclass(frozen=True)
class Lesson:
    """Labelled rows whose image vectors stay as they are, and the prompts that are learnt on them."""

    words: Wording
    query: Query
    vectors: Tensor  # (n, D)
    targets: Tensor  # (n, C)

    def logits(self, texts: Tensor, batch: Tensor) -> Tensor:
        """(B, C) of some rows, from the prompts' vectors."""
        return self.logits_at(texts, batch, self.vectors[batch])

    def logits_at(self, texts: Tensor, batch: Tensor, vectors: Tensor) -> Tensor:
        """The same with other image vectors (B, D)."""
        plain = self.query.words is None and self.query.allowed is None
        return scores_of(texts, self.query if plain else self.query.take(batch.numpy()), vectors, self.query.encoder)

    def loss(self, texts: Tensor, batch: Tensor) -> Tensor:
        return self.loss_of(self.logits(texts, batch), self.targets[batch])

    def loss_at(self, texts: Tensor, batch: Tensor, vectors: Tensor) -> Tensor:
        return self.loss_of(self.logits_at(texts, batch, vectors), self.targets[batch])

    def loss_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(logits, targets, exclusive=self.query.wanted.exclusive)

    def likely(self, logits: Tensor) -> Tensor:
        """Targets (n, C) made of logits: what a teacher says."""
        return logits.softmax(1) if self.query.wanted.exclusive else logits.sigmoid()


def lesson(query: Query, targets: Tensor, template: str, precision: Precision = "float32") -> Lesson:
    """A lesson of labelled rows; image vectors are made once."""
    words = wording(query.encoder.text_tower, query.wanted, template).cast(getattr(torch, precision))
    return Lesson(words, query, query.vectors(), targets)


def first_context(words: Wording, tokens: int, seed: int, *, each: bool = False) -> Tensor:
    """(M, E) what learning starts with: the words that the prompts begin with or, where `tokens` is not 0, as many random vectors.

    With `each`, (C, M, E), the same for every prompt.
    """
    first = words.beginning.clone()
    if tokens:
        first = 0.02 * torch.randn(tokens, words.beginning.shape[1], generator=torch.Generator().manual_seed(seed))
    return first.expand(len(words.names), -1, -1).clone() if each else first


@dataclass(frozen=True)
class Prompted(Adapted):
    """A learnt context. With one for each of `names`, only these can be asked about."""

    context: Tensor  # (M, E) or (C, M, E)
    ids: Tensor  # the token ids of the words that it replaces
    template: str  # "" where the prompts are taken as given
    place: Place = "end"
    names: tuple[str, ...] = ()
    note: str = ""

    def answer(self, query: Query) -> Scores:
        if self.context.ndim == 3 and query.wanted.names != self.names:
            new = next(iter(sorted(set(query.wanted.names) - set(self.names))), "other candidates")
            raise PairError(
                f"this run has a context of its own for each of {len(self.names)} classes and was asked about {new!r}: "
                "fit it with class_specific=false to ask for new words"
            )
        words = wording(query.encoder.text_tower, query.wanted, self.template, self.ids)
        with torch.no_grad():
            return Scores(scores_of(words.texts(self.context, self.place), query, query.vectors(), query.encoder))
