"""Controls of methods that read a findings file: do the findings matter, and does it matter which class they are of?

The file stays as it is: the encoder is given other words wherever a finding stands in a sentence, at fit and at predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medtame.data.class_findings import chosen, read
from medtame.trust.controls import random_code
from medtame.types import Encoder, Samples


@dataclass(frozen=True, eq=False)
class OtherWords:
    """An encoder that reads other words in place of some. Satisfies `Encoder`."""

    inner: Encoder
    table: Mapping[str, str]  # what is read in place of a finding

    @property
    def spec(self) -> str:
        return self.inner.spec

    @property
    def image_identity(self) -> str:
        return self.inner.image_identity

    @property
    def text_identity(self) -> str:
        return self.inner.text_identity

    @property
    def scale(self) -> float:
        return self.inner.scale

    @property
    def bias(self) -> float:
        return self.inner.bias

    @property
    def image_tower(self) -> nn.Module:
        return self.inner.image_tower

    @property
    def text_tower(self) -> Any:
        return self.inner.text_tower

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        """(N, D), unit norm."""
        return self.inner.whole(samples, column)

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        """One map (N, F, G, G) a scale."""
        return self.inner.grid(samples, column)

    def texts(self, strings: Sequence[str]) -> Tensor:
        """(N, D), unit norm, of the sentences with other words in them."""
        return self.inner.texts([self.said(string) for string in strings])

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> OtherWords:
        """The same words on another tower."""
        return OtherWords(self.inner.changed(image=image, text=text, identity=identity), self.table)

    def said(self, sentence: str) -> str:
        """A sentence with the longest finding that it holds replaced."""
        found = max((finding for finding in self.table if finding in sentence), key=len, default=None)
        return sentence if found is None else sentence.replace(found, self.table[found])


def other_findings(arm: str, names: Sequence[str], file: str, shipped: Path) -> dict[str, str]:
    """Finding -> what is read in its place: a random code, or (`shuffled_findings`) a finding of the next class.

    Without a file that speaks of all classes every shipped finding is meant, and there are no owners to shuffle.
    """
    found, _ = chosen(names, file, shipped)
    if arm == "random_findings":
        files = [found] if found is not None else [read(path) for path in sorted(shipped.glob("*.json"))]
        every = list(dict.fromkeys(finding for one in files for lines in one.classes.values() for finding in lines))
        return dict(zip(every, random_code(every), strict=True))
    owned = [] if found is None else [found.of(name) for name in names]
    table: dict[str, str] = {}
    for own, following in zip(owned, owned[1:] + owned[:1], strict=True):
        for place, finding in enumerate(own):
            if following:
                table.setdefault(finding, following[place % len(following)])
    return table
