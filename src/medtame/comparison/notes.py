"""What a reader must know before the numbers of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medtame.comparison import answer_cost
from medtame.comparison.grid import Grid, Outcome, Shots
from medtame.encoders import text_lengths
from medtame.run import Data, Run


def said(data: Data, grid: Grid, found: Mapping[tuple[str, Shots], Sequence[Outcome]], run: Run) -> list[str]:
    """The sentences, each once."""
    notes = [*data.samples.notes, data.split.how, *data.split.warnings]
    if data.split.test is None:
        notes.append(f"There is no test part: each row is measured in one of {len(grid.parts)} folds by group.")
    notes += [note for outcomes in found.values() for outcome in outcomes for note in outcome.notes]
    query = run.query(data.samples)
    if query.words is not None and query.candidates is None and len(set(query.words)) == 1:
        notes.append("The prompt is the same for every row, so text cannot help here.")
    if len(set(data.samples.groups.tolist())) < len(data.samples) and "patient" not in data.samples:
        notes.append("There is no column patient; rows of one group stay together.")
    return list(dict.fromkeys(filter(None, [*notes, text_lengths.told(query), cost(data, grid, found)])))


def cost(data: Data, grid: Grid, found: Mapping[tuple[str, Shots], Sequence[Outcome]]) -> str:
    """What the methods cost that work when they are asked, beside zero_shot; empty where there are none."""
    asked = {name: shots for name, shots in found if answer_cost.works_when_asked(data.task, grid.method(name))}
    if not asked:
        return ""
    names = {answer_cost.REFERENCE: next(iter(asked.values())), **asked}
    runs = {name: grid.fitted(grid.method(name), grid.parts[0], shots, 0) for name, shots in names.items()}
    return answer_cost.told(runs, data.samples.take(grid.parts[0].test))
