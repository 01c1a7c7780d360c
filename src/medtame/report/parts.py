"""What every record is made of: texts that any page can show, numbers that JSON can hold."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # not allowed in XML, or not UTF-8


def printable(value: Any) -> Any:
    """A text that every page can show: control characters and broken bytes of file names become �."""
    return UNPRINTABLE.sub("\ufffd", value.replace("\r\n", "\n")) if isinstance(value, str) else value


def png(value: str) -> str:
    try:
        start = base64.b64decode(value, validate=True)[:8]
    except binascii.Error:
        start = b""
    if start != b"\x89PNG\r\n\x1a\n":
        raise ValueError("a thumbnail is a PNG file in base64")
    return value


Text: TypeAlias = Annotated[str, BeforeValidator(printable)]
Thumbnail: TypeAlias = Annotated[str, AfterValidator(png)]
Shots: TypeAlias = Annotated[int, Field(ge=0)] | Literal["all"]
Prompts: TypeAlias = dict[Text, list[Text]]


class Part(BaseModel):
    """Frozen, no unknown keys, numbers finite or null."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Measured(Part):
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
