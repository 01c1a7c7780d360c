"""COCO: an object with `images`, `annotations`, `categories`.

Each annotation becomes a row: image, label (the category's name), xmin, ymin, xmax, ymax in pixels (from `bbox`, which is x, y,
width, height), and text where it is a caption. An image without an annotation keeps one row without a box. Other plain fields of
an image (a patient, a site) become columns. Crowds, outlines, run-length masks and key points are left out, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtame.data.readers.table import Fault, Table, nested, of_records, quoted, told
from medtame.errors import DataError

_PLAIN = {"id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured"}
_FARTHEST = 1e9  # pixels
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def fits(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("images"), list) and ("annotations" in content or "categories" in content)


def read(name: str, content: Mapping[str, Any]) -> Table:
    """Rows in the order of `images`. Raises DataError for unknown ids and boxes that are not four numbers, all at once."""
    images, categories = _by_id(name, content, "images"), _by_id(name, content, "categories")
    annotations = _objects(name, content, "annotations")
    held: dict[Any, list[int]] = {identity: [] for identity in images}
    faults = []
    for number, annotation in enumerate(annotations):
        faults += [Fault(number, what, mend) for what, mend in _wrong(annotation, images, categories)]
        if not annotation.get("iscrowd") and _key(annotation.get("image_id")) in held:
            held[_key(annotation.get("image_id"))].append(number)
    if faults:
        raise DataError(told(name, faults, [f"annotation {number + 1}" for number in range(len(annotations))]))
    records, places = [], []
    for place, (identity, image) in enumerate(images.items(), 1):
        plain = {key: value for key, value in image.items() if key not in _PLAIN and not nested(value)}
        own: list[int | None] = [*held[identity]] or [None]
        for chosen in own:
            annotation = {} if chosen is None else annotations[chosen]
            records.append({"image": image.get("file_name"), **plain, **_cells(annotation, categories)})
            places.append(f"image {place}" if chosen is None else f"annotation {chosen + 1}")
    return of_records(records, places, _notes(annotations))


def _by_id(name: str, content: Mapping[str, Any], kind: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    faults, entries = [], _objects(name, content, kind)
    for number, entry in enumerate(entries):
        key = _key(entry.get("id"))
        if key is None or key in found:
            told_id = "no id" if key is None else f"the id {quoted(key)}, which another has"
            faults.append(Fault(number, told_id, "Give each an id of its own."))
        found[key] = entry
    if faults:
        raise DataError(told(name, faults, [f"{kind}, entry {number + 1}" for number in range(len(entries))]))
    return found


def _objects(name: str, content: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    entries = content.get(kind) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{name}: {kind!r} is no list of objects: write COCO as its format says")
    return entries


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _wrong(annotation: Mapping[str, Any], images: Mapping[Any, Any], categories: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """(what, mend) of one annotation."""
    found = []
    for field, known, kind in (("image_id", images, "images"), ("category_id", categories, "categories")):
        absent = field == "category_id" and field not in annotation
        if not absent and (_key(annotation.get(field)) is None or annotation[field] not in known):
            found.append((f"{field} {quoted(annotation.get(field))} is not among the {kind}", f"Use an id of {kind}, or add that entry."))
    box = annotation.get("bbox")
    if box not in (None, []) and not (isinstance(box, list) and len(box) == 4 and all(map(_number, box))):
        found.append((f"bbox {quoted(box)} is not four numbers", "Write bbox as x, y, width, height in pixels."))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _FARTHEST


def _cells(annotation: Mapping[str, Any], categories: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    if categories:
        cells["label"] = categories.get(annotation.get("category_id"), {}).get("name")
    if annotation.get("bbox"):
        x, y, width, height = annotation["bbox"]
        cells |= dict(zip(_CORNERS, (x, y, x + width, y + height), strict=True))
    if "caption" in annotation:
        cells["text"] = annotation["caption"]
    return cells


def _notes(annotations: list[Mapping[str, Any]]) -> list[str]:
    crowds = sum(bool(annotation.get("iscrowd")) for annotation in annotations)
    outlines = sum(bool(annotation.get("segmentation")) for annotation in annotations)
    points = sum(bool(annotation.get("keypoints")) for annotation in annotations)
    notes = [f"{outlines} segmentations (outlines or run-length masks) were left out; their boxes were read."] if outlines else []
    notes += [f"{points} annotations have key points, which were left out."] if points else []
    return notes + ([f"{crowds} crowd annotations (iscrowd) were left out."] if crowds else [])
