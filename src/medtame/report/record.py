"""The record of a comparison: what `compare` and `demo` write as JSON, checked when it is made. Its keys are a public surface."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from medtame import state
from medtame.errors import RunError
from medtame.report.figure_values import Figures
from medtame.report.parts import Measured, Part, Prompts, Shots, Text, Thumbnail

SCHEMA = 1


class Data(Part):
    """`classes`: the names, or rows a class; `groups`: how many patients or cases; `split`: a sentence, or rows a part."""

    n: int
    classes: list[Text] | dict[Text, int] = Field(default_factory=list)
    groups: int | None = None
    split: Text | dict[Text, int] = ""


class Row(Part):
    """One method at one number of shots. Gains are positive where the method is better, also for metrics that are better when low.

    `gain_p`: two-sided p-value of no gain, from the paired resamples of the interval. `gain_p_holm`: corrected for all methods with this
    metric and number of shots (Holm); null for the task's references, about which no claim is made.
    """

    method: Text
    strategy: Text
    learning: Text
    encoder: Text
    shots: Shots
    regime: Text
    draws: int
    metric: Text
    mean: float | None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    gain_p: float | None = Field(default=None, ge=0, le=1)
    gain_p_holm: float | None = Field(default=None, ge=0, le=1)
    gain_over_probe: float | None = None
    gain_over_probe_low: float | None = None
    gain_over_probe_high: float | None = None
    gain_over_probe_p: float | None = Field(default=None, ge=0, le=1)
    gain_over_probe_p_holm: float | None = Field(default=None, ge=0, le=1)
    harm_rate: float | None = Field(default=None, ge=0, le=1)
    fit_seconds: float | None = None
    trainable_parameters: int | None = None


class NotRun(Part):
    method: Text
    minutes: float | None = None
    reason: Text = ""  # why these data cannot be served; else it did not fit the minutes


class Control(Part):
    """`difference`: the best method as given minus the changed one; positive where as given is better. `when`: refit or predict."""

    arm: Text
    when: Text = ""
    metric: Text
    mean: float | None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    verdict: Text = ""


class EncoderNote(Part):
    spec: Text
    image_identity: Text = ""
    text_identity: Text = ""
    notes: Text = ""
    medical_text: bool | None = None
    licence: Text = ""
    engine: dict[Text, Any] = Field(default_factory=dict)  # which engine encoded the images, and how it was judged
    logit_scale: float | None = None
    logit_bias: float | None = None


def engine_sentence(engine: Mapping[str, Any]) -> str:
    """The engine that encoded the images and how near it is to the plain one, or nothing."""
    if not engine:
        return ""
    if engine.get("cosine") is None:
        return f"{engine['engine']} (the plain one)"
    return f"{engine['engine']}, smallest cosine to the plain one {engine['cosine']:.6f} on {engine.get('images', 0)} images"


class Protocol(Part):
    regime: Text = "standard"
    draws: int | None = None
    shots: list[Shots] = Field(default_factory=list)
    resamples: int | None = None
    seed: int | None = None
    metric: Text = ""
    lower_is_better: bool = False
    how_best_was_chosen: Text = ""
    split_sentence: Text = ""


class Environment(Part):
    medtame: Text = ""
    python: Text = ""
    torch: Text = ""
    numpy: Text = ""
    scikit_learn: Text = ""
    platform: Text = ""
    cpu_threads: int | None = None


class WorstCase(Part):
    """`image`: the number of its row, or its name where names were asked for. `truth_score`: the probability of the truth."""

    image: Text
    thumbnail: Thumbnail | None = None
    truth: Text = ""
    said: Text = ""
    confidence: float | None = None
    truth_score: float | None = None


class Example(Part):
    image: Text
    thumbnail: Thumbnail
    caption: Text = ""


class PartOfData(Part):
    """One side of the split: `name` train or test, or folds where no row is kept for the test."""

    name: Text
    rows: int
    groups: int
    classes: dict[Text, int] = Field(default_factory=dict)


class Cost(Part):
    """A method at the most shots: means over draws. `peak_megabytes`: the most memory the process had held by then."""

    method: Text
    fits: Text = ""
    draws: int
    fit_seconds: float | None = None
    seconds: float | None = None
    trainable_parameters: int | None = None
    peak_megabytes: float | None = None
    stores_support: bool = False


class EncoderGain(Part):
    """A method on one encoder against the same method on another (`over`), on the same supports and patients."""

    encoder: Text
    over: Text
    method: Text
    shots: Shots
    metric: Text
    gain: float | None
    gain_low: float | None
    gain_high: float | None


class BaselineGain(Part):
    """The best method against a baseline (`over`) that was run beside it, paired, at the most shots."""

    method: Text
    over: Text
    metric: Text
    gain: float | None
    gain_low: float | None
    gain_high: float | None


class BeforeAfter(Part):
    """A metric of the final run on the test rows; `gain` is paired, positive where the temperature makes it better."""

    before: Measured
    after: Measured
    gain: float | None
    gain_low: float | None
    gain_high: float | None


class Temperature(Part):
    """What the final run divides its logits by; `rows`: held-out training rows that it was fitted on, 0 where it was not."""

    value: float = Field(gt=0)
    how: Text
    rows: int = 0
    metrics: dict[Text, BeforeAfter] = Field(default_factory=dict)


class Words(Part):
    """Whether the encoder's words know these classes: the share of training rows that zero-shot names rightly."""

    right: float
    low: float
    high: float
    chance: float
    n: int
    known: bool


class Advice(Part):
    """What to take on these data, why, and what was passed over. `gain` is over zero-shot, held out inside the training rows.

    `test_gain` was measured on the test rows after the choice and is not used for it; `on_test` says it in words.
    """

    method: Text
    why: Text
    words: Words
    rows_a_class: int
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    passed_over: dict[Text, Text] = Field(default_factory=dict)
    test_shots: Shots | None = None
    test_gain: float | None = None
    test_gain_low: float | None = None
    test_gain_high: float | None = None
    on_test: Text = ""


class Details(Part):
    """What the page needs beyond the table. `start` and `plain` name the references of the two gains ("": the task has none)."""

    encoder: EncoderNote
    question: Text = ""
    simulated: bool = False
    start: Text = "zero_shot"
    plain: Text = "linear_probe"
    references: list[Text] = Field(default_factory=list)
    baselines: list[Text] = Field(default_factory=list)
    warnings: list[Text] = Field(default_factory=list)
    prompts: Prompts = Field(default_factory=dict)
    protocol: Protocol = Field(default_factory=Protocol)
    environment: Environment = Field(default_factory=Environment)
    command: Text = ""
    seconds: float | None = None
    controls_note: Text = ""
    parts: list[PartOfData] = Field(default_factory=list)
    leakage: Text = ""
    figures: Figures | None = None
    costs: list[Cost] = Field(default_factory=list)
    best_cases: list[WorstCase] = Field(default_factory=list)
    worst_cases: list[WorstCase] = Field(default_factory=list)
    confident_mistakes: list[WorstCase] = Field(default_factory=list)
    examples: list[Example] = Field(default_factory=list)
    metrics: dict[Text, dict[Text, Measured]] = Field(default_factory=dict)
    encoder_gains: list[EncoderGain] = Field(default_factory=list)
    baseline_gains: list[BaselineGain] = Field(default_factory=list)
    recommendation: Advice | None = None
    temperature: Temperature | None = None


class Record(Part):
    """The JSON of `compare` and `demo`. `run` and `report` are absolute paths."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    task: Text
    data: Data
    rows: list[Row]
    not_run: list[NotRun] = Field(default_factory=list)
    best: Text | None
    controls: list[Control] = Field(default_factory=list)
    run: Text | None = None
    report: Text | None = None
    details: Details


def checked(values: Mapping[str, Any]) -> Record:
    """A record from plain values.

    Raises:
        RunError: a key is missing, unknown or of another kind, or a number is not finite; the line names the place.
    """
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        raise RunError(f"this is not a record of a comparison: {first(error)}") from None


def finite(value: Any) -> Any:
    """Plain values with None for a number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: where, what, and what was got."""
    wrong = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in wrong["loc"]) or "the whole"
    return f"{place}: {wrong['msg'].replace('Input', 'it').replace('Value error, ', '')} (got {str(wrong['input'])[:60]!r})".replace(
        "\n", " "
    )


def write_json(record: Record, path: Path) -> None:
    """The record as JSON; the file appears whole or not at all."""
    write_file(path, json.dumps(record.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Record:
    """What `write_json` wrote; RunError where it is absent, damaged or of another schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; give the result.json that compare wrote") from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({str(error).splitlines()[0]}): make it again with compare") from None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise RunError(f"{path} has schema {found!r}, this medtame reads {SCHEMA}: make it again with compare")
    return checked(values)


def write_file(path: Path, text: str) -> None:
    """A text file, whole or not at all; RunError where the disk refuses."""
    try:
        state.write_text(path, text)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another --out") from None


# ---- numbers in words -----------------------------------------------------------------------------------------


def decimals(*values: float | None) -> int:
    """Digits after the point that suit all these numbers: three for shares, fewer for large ones, more for tiny ones."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if largest >= 0.01 or largest == 0:
        return 3 if largest < 10 else 2 if largest < 100 else 1
    return min(1 - math.floor(math.log10(largest)), 8)


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash where there is none; never a negative zero."""
    if value is None:
        return "–"
    text = f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def bracket(low: float | None, high: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """[low, high], or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{number(low, digits, signed=signed)}, {number(high, digits, signed=signed)}]"


def tone(low: float | None, high: float | None) -> Literal["better", "worse", "none", "unknown"]:
    """What the interval of a difference (positive is better) allows to say."""
    if low is None or high is None:
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "none"


SIGNIFICANT = 0.05  # the largest corrected p-value of a claim


def beats(gain: float | None, low: float | None, p_value: float | None) -> bool:
    """Whether a gain may be claimed: its interval lies above zero, and so it does after a correction for all methods that were tried."""
    return gain is not None and low is not None and p_value is not None and low > 0 and p_value <= SIGNIFICANT


def p_words(p_value: float) -> str:
    """Such as p 0.012, or p < 0.001 where it is smaller."""
    return "p\u00a0<\u00a00.001" if p_value < 0.001 else f"p\u00a0{p_value:.3f}"


def verdict(difference: float | None, low: float | None, high: float | None, digits: int = 3, of: str = "") -> str:
    """A difference in words. `of`, such as " of the text", follows "no measurable benefit"."""
    said = tone(low, high)
    if difference is None or low is None or high is None or said == "unknown":
        return "not measured with an interval"
    if said == "better":
        return f"helps by {number(difference, digits)} {bracket(low, high, digits)}"
    if said == "worse":
        return f"harms by {number(-difference, digits)} {bracket(-high, -low, digits)}"
    return f"no measurable benefit{of} ({number(difference, digits, signed=True)} {bracket(low, high, digits, signed=True)})"
