"""Texts of which a text side reads only the beginning, because they have more tokens than it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medtame.types import Encoder, Query

SPECIAL_TOKENS = 3  # the most that tokenizers put around a text
STRINGS_AT_ONCE = 256
SHOWN_CHARACTERS = 60


def told(query: Query) -> str:
    """A sentence about the prompts, candidates and words of a query that are cut off; empty where all are read to their end."""
    wanted = query.candidates
    prompts = [] if wanted is None else [*wanted.prompts, *(wanted.negatives or [])]
    strings = list(dict.fromkeys([*(sentence for sentences in prompts for sentence in sentences), *(query.words or ())]))
    found = cut(query.encoder, strings)
    if not found:
        return ""
    which = "1 text is longer" if len(found) == 1 else f"{len(found)} texts are longer"
    reads = f"the {query.encoder.text_tower.length} tokens that {query.encoder.spec} reads"
    return f"{which} than {reads}, so the rest is not seen: shorten what is long ({found[0][:SHOWN_CHARACTERS]}…)."


def cut(encoder: Encoder, strings: Sequence[str]) -> list[str]:
    """Those of which the text side does not read the last letter. Its weights are opened only where a text may be that long."""
    card: Any = getattr(encoder, "card", None)
    if not encoder.text_identity:
        return []
    most = None if card is None else card.text_length
    # no token is shorter than a byte
    long = [one for one in strings if one.strip() and (most is None or len(one.encode(errors="surrogatepass")) + SPECIAL_TOKENS > most)]
    found: list[str] = []
    for start in range(0, len(long), STRINGS_AT_ONCE):
        part = [string.rstrip(" .,;:!?\n") for string in long[start : start + STRINGS_AT_ONCE]]
        fuller, shorter = [f"{string} {string}" for string in part], [string[:-1] for string in part]
        ids = encoder.text_tower.tokens([*part, *fuller, *shorter])[0].reshape(3, len(part), -1)
        unread = (ids[0] == ids[1]).all(1) & (ids[0] == ids[2]).all(1)  # more is not seen, and less makes no difference
        found += [string for string, is_cut in zip(part, unread.tolist(), strict=True) if is_cut]
    return found
