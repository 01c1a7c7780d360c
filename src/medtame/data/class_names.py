"""Which classes are asked about, and what is said of those that cannot be served. Every message stays one line, however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from medtame.errors import DataError

SHOWN = 8  # names in a message, at most
MOST_SCORES = 50_000_000  # of all test rows: more than that, in the few copies that measuring needs, fills the memory of a laptop


def few(names: Sequence[str], most: int = SHOWN) -> str:
    """Names by commas; of many the first, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def in_quotes(names: Sequence[str], most: int = 5) -> str:
    return few([repr(name) for name in names], most)


def kept(labels: Sequence[str | None], classes: Sequence[str]) -> tuple[list[int], str]:
    """Rows of the wanted classes, and a sentence that counts those left out; empty where none is.

    Raises DataError where no row has a wanted class, naming the classes that there are.
    """
    wanted = set(classes)
    rows = [row for row, label in enumerate(labels) if label is None or str(label) in wanted]
    if not any(labels[row] is not None for row in rows):
        there = sorted({str(label) for label in labels if label is not None})
        raise DataError(f"no row is of the classes {few(list(classes))}: the labels are {few(there)}, so correct the setting classes")
    out = Counter(str(label) for label in labels if label is not None and str(label) not in wanted)
    if not out:
        return rows, ""
    counted = few([f"{name!r} {count:,}" for name, count in out.most_common()])
    return rows, f"{sum(out.values()):,} of {len(labels):,} rows are left out, for their class is not asked about: {counted}."


def unlearnt(test: Sequence[str | None], learnt: Sequence[str], what: str = "class") -> None:
    """Raises DataError where a test row has a class that no training row has: it could be neither learnt nor answered."""
    known = set(learnt)
    new = Counter(str(label) for label in test if label is not None and str(label) not in known)
    if new:
        names = sorted(new)
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        plural = {"class": "classes", "finding": "findings"}[what] if len(names) > 1 else what
        wanted = ",".join(learnt) if len(learnt) <= SHOWN else f"{','.join(learnt[:2])},…"
        raise DataError(
            f"the {plural} {in_quotes(names)} {are} in test only ({sum(new.values()):,} rows), so nothing can learn {them}: "
            f"move some of the patients to train, or leave {them} out with --set task.classes={wanted}"
        )


def alike(prompts: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError where two classes have the same sentences: words could not tell them apart."""
    owner: dict[frozenset[str], str] = {}
    for name, sentences in prompts.items():
        said = frozenset(" ".join(sentence.split()) for sentence in sentences)
        if said in owner:
            same = sum(frozenset(" ".join(sentence.split()) for sentence in other) == said for other in prompts.values())
            more = f" (and of {same - 2:,} more)" if same > 2 else ""
            raise DataError(
                f"the prompts of {owner[said]!r} and of {name!r}{more} are the same ({sorted(said)[0]!r}), "
                "so words cannot tell them apart: give each a sentence of its own, or write {} for the name in the templates"
            )
        owner[said] = name


def held(test: Sequence[str | None], learnt: Sequence[str]) -> None:
    """Raises DataError where a score of each class for each test row would be more numbers than are held at a time."""
    if len(test) * len(learnt) > MOST_SCORES:
        raise DataError(
            f"{len(learnt):,} classes for {len(test):,} test rows are {len(test) * len(learnt):,} scores, of which at most "
            f"{MOST_SCORES:,} are held: ask about fewer classes with --set task.classes=..., measure fewer rows, or map a coarser "
            "column with --columns label=..."
        )
