"""What a check has to say: one finding is how bad it is, what is so, what to do, and which images it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "info"]
SHOWN = 20  # names of images in one finding
EXIT_CODES = {"info": 0, "warning": 1, "error": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`code` is for machines and stays; `message` says what is so, `mend` what to do; `images` are at most 20 names of `count`."""

    severity: Severity
    code: str
    message: str
    mend: str
    images: tuple[str, ...] = ()
    count: int = 0

    def json(self) -> dict[str, Any]:
        plain = {"severity": self.severity, "code": self.code, "message": self.message, "mend": self.mend}
        return {**plain, "images": list(self.images), "count": self.count}


def finding(severity: Severity, code: str, message: str, mend: str, images: Sequence[str] = ()) -> Finding:
    """A finding about these images, of which the first 20 are kept by name."""
    return Finding(severity=severity, code=code, message=message, mend=mend, images=tuple(images[:SHOWN]), count=len(images))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 usable, 1 look at it, 2 not usable."""
    return max((EXIT_CODES[one.severity] for one in findings), default=0)


def many(count: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
