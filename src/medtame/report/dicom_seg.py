"""A mask as a DICOM Segmentation object that points to the image it was drawn on (by highdicom).

The object belongs to the source's patient and study, so it carries their identifiers, as any DICOM answer does.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import dcmread

from medtame.types import Array

ARTIFICIAL_INTELLIGENCE = CodedConcept("123109", "DCM", "Artificial Intelligence")
STRUCTURE = CodedConcept("91723000", "SCT", "Anatomical structure")
SERIES_NUMBER = 900
MAY_BE_EMPTY = (  # what the standard wants to be there, if only empty; files without identifiers often lack it
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def write(mask: Array, structure: str, source: Path, frame: int | None, path: Path) -> None:
    """One binary segment named `structure` with the geometry of `source`; of several frames the mask lies on number `frame`.

    Raises what highdicom raises (ValueError, AttributeError) where the source lacks what a segmentation must repeat.
    """
    dataset: Any = dcmread(source, stop_before_pixels=True)
    for keyword in MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    count = int(dataset.get("NumberOfFrames") or 1)
    drawn = np.zeros((count, *mask.shape), dtype=np.uint8)
    drawn[count // 2 if frame is None else frame] = mask > 0
    algorithm = AlgorithmIdentificationSequence(name="medtame", family=ARTIFICIAL_INTELLIGENCE, version=version("medtame"))
    segment = SegmentDescription(
        segment_number=1,
        segment_label=structure[:64],
        segmented_property_category=STRUCTURE,
        segmented_property_type=STRUCTURE,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    made = Segmentation(
        source_images=[dataset],
        pixel_array=drawn if count > 1 else drawn[0],
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="medtame",
        manufacturer_model_name="medtame",
        software_versions=version("medtame"),
        device_serial_number="none",
        content_label="RESEARCH_ONLY",
        content_description="research use only: not for clinical decisions",
        omit_empty_frames=False,
    )
    made.save_as(path)
