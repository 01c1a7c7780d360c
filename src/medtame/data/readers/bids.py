"""BIDS: `sub-01[/ses-02]/anat/sub-01_T1w.nii.gz`, with `participants.tsv`.

Each anatomical image becomes one row: image, patient (`01`, from the path), study (`02`, the session, where there is one),
modality (`T1w`), and the columns of participants.tsv: sex, age, and so on. `diagnosis`, else `group`, is also the label.
`n/a` is an empty cell; the age `89+` becomes 89. Other folders (func, dwi, derivatives) and masks are left out; a note says how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medtame.data.readers import delimited, walk
from medtame.data.readers.table import Table, of_records
from medtame.errors import DataError

_LABELS = ("label", "diagnosis", "group")


def fits(folder: Path) -> bool:
    named = (folder / "dataset_description.json").is_file() or (folder / "participants.tsv").is_file()
    return named or any(part.name.startswith("sub-") and any(part.rglob("anat/*.nii*")) for part in walk.subfolders(folder))


def read(folder: Path) -> Table:
    """Rows by patient and file. Raises DataError where there is no patient or no anatomical image."""
    patients = [part for part in walk.subfolders(folder) if part.name.startswith("sub-")]
    if not patients:
        raise DataError(f"{folder.name} looks like BIDS but has no folder sub-…: give the folder that holds sub-01, sub-02, …")
    about, notes = _participants(folder)
    records, places, others, masks = [], [], 0, 0
    for patient in patients:
        for file in walk.files(patient):
            stem = file.name.split(".")[0]
            anatomical = file.parent.name == "anat" and file.name.lower().endswith((".nii", ".nii.gz"))
            masks += (mask := anatomical and stem.rpartition("_")[2].lower().endswith(("mask", "roi", "dseg")))
            others += not anatomical and walk.is_image(file)
            if anatomical and not mask:
                where = file.relative_to(folder)
                session = next((part.removeprefix("ses-") for part in where.parts if part.startswith("ses-")), None)
                row = {"image": where.as_posix(), "patient": patient.name.removeprefix("sub-"), "study": session}
                records.append({**row, "modality": stem.rpartition("_")[2], **about.get(patient.name, {})})
                places.append(f"file {where.as_posix()}")
    if not records:
        raise DataError(f"{folder.name} has no sub-…/anat/*.nii.gz: other BIDS data are not read; give a manifest that names the images")
    unknown = sum(patient.name not in about for patient in patients)
    notes += [f"{unknown} of {len(patients)} patients are not in participants.tsv."] if about and unknown else []
    notes += [f"{others} images outside anat and {masks} masks were left out."] if others or masks else []
    if not any(record["study"] for record in records):
        records = [{name: value for name, value in record.items() if name != "study"} for record in records]
    return of_records(records, places, notes)


def _participants(folder: Path) -> tuple[dict[str, Mapping[str, str | None]], list[str]]:
    """sub-01 -> its columns; and notes."""
    path = folder / "participants.tsv"
    if not path.is_file():
        return {}, ["There is no participants.tsv, so nothing is known of the patients."]
    columns = dict(delimited.read(path).columns)
    if "participant_id" not in columns:
        raise DataError(f"participants.tsv has no column 'participant_id'; it has {', '.join(columns)}: rename the column with sub-01, …")
    names = [name if name is None or name.startswith("sub-") else f"sub-{name}" for name in columns.pop("participant_id")]
    columns = {name: [None if cell == "n/a" else cell for cell in cells] for name, cells in columns.items()}
    notes = []
    if "89+" in columns.get("age", ()):
        notes.append("The age 89+ was read as 89.")
        columns["age"] = [cell.removesuffix("+") if cell else cell for cell in columns["age"]]
    source = next((name for name in _LABELS if name in columns), None)
    if source is not None and source != "label":
        columns["label"] = columns[source]
        notes.append(f"The label is the column {source!r} of participants.tsv; name another with --columns label=YOURS.")
    for taken in {"image", "patient", "study", "modality"} & columns.keys():
        del columns[taken]
    return {name: {key: cells[row] for key, cells in columns.items()} for row, name in enumerate(names) if name}, notes
