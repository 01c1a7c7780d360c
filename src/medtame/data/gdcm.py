"""One compressed DICOM frame through SimpleITK's GDCM, for what pydicom's plug-ins cannot decode. Runs in the worker.

GDCM applies slope, intercept and palettes itself. So it is given a file that has none of them: the frame, its sizes and bit
depths, and nothing of the patient. What comes back are the stored numbers; YBR is turned into RGB.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import SecondaryCaptureImageStorage

if TYPE_CHECKING:
    from medtame.types import Array

_KEPT = ("SamplesPerPixel", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")


def decoded(dataset: Any, index: int) -> Array:
    """(H, W) or (H, W, 3) the stored numbers of frame `index` of a pydicom data set. Raises RuntimeError where GDCM cannot."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = "1.2.3"
    for name in _KEPT:
        if name in dataset:
            setattr(bare, name, dataset[name].value)
    bare.PhotometricInterpretation = "MONOCHROME2" if dataset.SamplesPerPixel == 1 else dataset.PhotometricInterpretation
    frames = int(dataset.get("NumberOfFrames") or 1)
    offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in dataset else None
    bare.PixelData = encapsulate([get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)])
    bare["PixelData"].is_undefined_length = True
    with TemporaryDirectory() as folder:
        bare.save_as(Path(folder) / "frame.dcm", enforce_file_format=True)
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(Path(folder) / "frame.dcm"))
        pixels: Array = SimpleITK.GetArrayFromImage(reader.Execute())[0]
    return pixels
