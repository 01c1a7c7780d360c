"""What the terminal shows: progress with time left on standard error, tables, and one line for an error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Report = Callable[[str, int, int], None]  # what is done now, how many are done, of how many


class PerSecond(ProgressColumn):
    """How many a second, of what is counted."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """A bar with the time left on a terminal; silent where nobody watches, or where the output is for a machine."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, of: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        PerSecond(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[int, Any] = {}

        def report(what: str, done: int, of: int) -> None:
            if of not in tasks:
                for other in tasks.values():
                    bar.update(other, visible=False)
                tasks[of] = bar.add_task(what, total=of, completed=done)  # what was there before is not counted as speed
            bar.update(tasks[of], description=what, completed=done, visible=True)

        yield report


def number(value: float | None) -> str:
    """Three digits after the point, without a leading zero where it is a share."""
    if value is None:
        return ""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def interval(row: Mapping[str, Any], name: str, low: str, high: str) -> str:
    if row.get(name) is None:
        return ""
    return f"{number(row[name])} [{number(row[low])}, {number(row[high])}]"


def comparison(record: Mapping[str, Any]) -> Table:
    """The main table: a line a method, a column a number of shots, then the gains at the most shots."""
    shots = list(dict.fromkeys(row["shots"] for row in record["rows"]))
    metric = record["rows"][0]["metric"]
    table = Table(title=f"{record['task']}: {metric} [95 % interval]", title_justify="left", caption_justify="left")
    table.add_column("method")
    for k in shots:
        table.add_column(f"{k} shots" if k != "all" else "all rows", justify="right")
    encoders = {row["encoder"] for row in record["rows"]}
    for title in (f"gain over the start at {shots[-1]}", "gain over the probe", "harm", "fit s"):
        table.add_column(title, justify="right")
    for name in dict.fromkeys((row["method"], row["encoder"]) for row in record["rows"]):
        lines = [row for row in record["rows"] if (row["method"], row["encoder"]) == name]
        by_shots = {row["shots"]: row for row in lines}
        last = by_shots[shots[-1]]
        title = name[0] if len(encoders) == 1 else f"{name[0]}, {name[1]}"
        title += " *" if (name[0], name[1]) == (record["best"], record["details"]["encoder"]["spec"]) else ""
        harm = "" if last["harm_rate"] is None else f"{last['harm_rate']:.0%}"
        cells = [interval(by_shots[k], "mean", "low", "high") if k in by_shots else "" for k in shots]
        gains = [interval(last, gain, f"{gain}_low", f"{gain}_high") + beaten(last, gain) for gain in ("gain", "gain_over_probe")]
        table.add_row(title, *cells, *gains, harm, f"{last['fit_seconds']:.2f}")
    if any(beaten(row, gain) for row in record["rows"] for gain in ("gain", "gain_over_probe")):
        table.caption = "!: beats it, corrected for all methods that were tried (paired bootstrap, Holm, p up to 0.05)"
    return table


def beaten(row: Mapping[str, Any], gain: str) -> str:
    """A mark behind a gain that may be claimed although many methods were tried."""
    from medtame.report.record import beats  # here, because it imports torch, which --help does without

    return " !" if beats(row.get(gain), row.get(f"{gain}_low"), row.get(f"{gain}_p_holm")) else ""


def encoders(record: Mapping[str, Any]) -> Table:
    """Encoders against the first, a method a line: paired, on the same supports and patients."""
    gains = record["details"]["encoder_gains"]
    shots = list(dict.fromkeys(row["shots"] for row in gains))
    table = Table(title=f"gain over {gains[0]['over']} [95 % interval]", title_justify="left")
    table.add_column("method")
    for k in shots:
        table.add_column(f"{k} shots" if k != "all" else "all rows", justify="right")
    for name in dict.fromkeys((row["method"], row["encoder"]) for row in gains):
        by_shots = {row["shots"]: row for row in gains if (row["method"], row["encoder"]) == name}
        cells = [interval(by_shots[k], "gain", "gain_low", "gain_high") if k in by_shots else "" for k in shots]
        table.add_row(f"{name[0]}, {name[1]}", *cells)
    return table


def baselines(record: Mapping[str, Any]) -> Table:
    """The best method against the baselines beside it: a line a metric, a column a baseline."""
    gains = record["details"]["baseline_gains"]
    names = list(dict.fromkeys(row["over"] for row in gains))
    table = Table(title=f"{record['best']}: paired gain over baselines [95 % interval]", title_justify="left")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(row["metric"] for row in gains):
        found = {row["over"]: row for row in gains if row["metric"] == metric}
        table.add_row(metric, *[interval(found[name], "gain", "gain_low", "gain_high") if name in found else "" for name in names])
    return table


def controls(record: Mapping[str, Any]) -> Table:
    """Does the language matter, and is the image read?"""
    table = Table(title=f"controls for {record['best']}", title_justify="left")
    for title in ("arm", "metric", "as given - changed", "verdict"):
        table.add_column(title)
    for row in record["controls"]:
        gap = "" if row["arm"] in ("as given", "words") else interval(row, "difference", "difference_low", "difference_high")
        table.add_row(row["arm"], interval(row, "mean", "low", "high"), gap, row["verdict"])
    return table


def checked(record: Mapping[str, Any]) -> list[Any]:
    """The table of `check`, and a line a finding: how bad, what is so, what to do, and up to three images."""
    from medtame.check import lines

    told = lines(record)
    table = Table(title=f"check of {record['data']}", title_justify="left", show_header=False)
    for title, text in told:
        table.add_row(title, text)
    said: list[Any] = [table] if told else []
    for one in record["findings"]:
        names = ", ".join(one["images"][:3]) + (f" and {one['count'] - 3} more" if one["count"] > 3 else "")
        said.append(f"{one['severity']}: {one['message'].rstrip('.')}{f' ({names})' if names else ''}. Mend: {one['mend'].rstrip('.')}.")
    return [*said, ("usable", "look at it before you use it", "not usable as it is")[record["exit_code"]]]


def metrics(values: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table()
    for title in ("metric", "value", "n"):
        table.add_column(title)
    for name, found in values.items():
        table.add_row(name, interval(found, "value", "low", "high"), str(found["n"]))
    return table


def about(minutes: float) -> str:
    """A time that a method would take: whole minutes, or seconds below two of them."""
    return f"about {minutes:.0f} minutes" if minutes >= 2 else f"about {max(1.0, 60 * minutes):.0f} seconds"


def listing(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table()
    for title in titles:
        table.add_column(title)
    for row in rows:
        table.add_row(*row)
    return table


def show(*things: Any) -> None:
    """Print to standard output, wide enough for the table where nobody watches a terminal."""
    console = Console()
    watched = console.is_terminal
    if not watched:
        console = Console(width=180)
    for thing in things:
        console.print(thing, highlight=False, soft_wrap=isinstance(thing, str) and not watched)


def complain(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"medtame: {' '.join(message.split())}", markup=False, highlight=False)


def fail(message: str, *, as_json: bool) -> None:
    """An error: one line on standard error and, where the output is for a machine, the same as an object on standard output."""
    complain(message)
    if as_json:
        sys.stdout.write(json.dumps({"schema": 1, "error": " ".join(message.split())}) + "\n")


def complain_of(table: Sequence[Mapping[str, Any]]) -> None:
    """One line where some images could not be read."""
    broken = [row for row in table if row.get("prediction") == "" and str(row.get("warning", "")) and len(row) == 3]
    if broken:
        first = next(iter(broken[0].values()))
        complain(f"{len(broken)} of {len(table)} rows could not be read, the first of them {first}: see the column warning")


def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    """A warning as one sentence, without the place in the code that it comes from."""
    complain(f"warning: {message}")
