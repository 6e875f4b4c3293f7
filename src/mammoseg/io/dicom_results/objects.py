"""What every result object shares: modules copied from the source, series, equipment, identifiers, and its bytes.

A SOP Instance UID is derived from the object's own content, so that equal input and weights give equal bytes, and that
two objects that differ in any byte never share a UID.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from mammoseg.io.dicom_results.maker import IMPLEMENTATION_CLASS_UID, NAME, Maker, derived_uid, plain
from mammoseg.io.dicom_results.source import SourceImage


@dataclass(frozen=True)
class Kind:
    """A kind of result. number: of its series, in thousands. per_study: one for all images of a study."""

    name: str
    sop_class_uid: str
    modality: str
    number: int
    description: str
    per_study: bool = False


KINDS = {
    "seg": Kind("seg", "1.2.840.10008.5.1.4.1.1.66.4", "SEG", 61, "mammoseg masses, segmentation (research)"),
    "cadsr": Kind("cadsr", "1.2.840.10008.5.1.4.1.1.88.50", "SR", 62, "mammoseg masses, CAD report (research)", True),
    "sr": Kind("sr", "1.2.840.10008.5.1.4.1.1.88.33", "SR", 63, "mammoseg masses, measurements (research)", True),
    "pr": Kind("pr", "1.2.840.10008.5.1.4.1.1.11.1", "PR", 64, "mammoseg masses, outlines (research)"),
    "sc": Kind("sc", "1.2.840.10008.5.1.4.1.1.7", "OT", 65, "mammoseg masses, picture (research)"),
}


def complete(ds: Dataset, kind: Kind, source: SourceImage, maker: Maker, when: tuple[str, str] | None = None) -> None:
    """Fills in (or replaces) Patient, Study, Series, Equipment and SOP Common modules of an object under way.

    source: the image it is made from; of a study any one. when: Content Date and Time, those of the source by default.
    """
    for element in source.patient_and_study.values():
        ds[element.tag] = element
    ds.SOPClassUID = kind.sop_class_uid
    ds.Modality = kind.modality
    scope = source.study_instance_uid if kind.per_study else source.series_instance_uid
    ds.SeriesInstanceUID = derived_uid("series", kind.name, scope, maker.version, maker.bundle_sha256)
    ds.SeriesNumber = kind.number * 1000 + (0 if kind.per_study else source.series_number % 1000)
    ds.SeriesDescription = kind.description
    ds.InstanceNumber = 1 if kind.per_study else source.instance_number
    ds.Manufacturer = ds.ManufacturerModelName = NAME
    ds.DeviceSerialNumber = maker.serial_number
    ds.SoftwareVersions = [plain(maker.version, 64), plain(maker.bundle, 64)]
    ds.ContentDate, ds.ContentTime = when or source.when


def decimal(value: float) -> str:
    """A number as DS: at most 16 characters, whole numbers without a point.

    >>> decimal(416.0), decimal(0.07)
    ('416', '0.07')
    """
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(format_number_as_ds(number))


def to_bytes(ds: Dataset, kind: Kind) -> bytes:
    """The object as a DICOM file, Explicit VR Little Endian; gives it its SOP Instance UID."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = kind.sop_class_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = f"MAMMOSEG_{ds.SoftwareVersions[0]}"[:16]
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    blank = derived_uid("instance")  # as long as the one that takes its place in file header and data set
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = blank
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of character sets that the source names and nobody knows
        dcmwrite(stream, ds, enforce_file_format=True)
    data = stream.getvalue()
    uid = derived_uid("instance", kind.name, hashlib.sha256(data).hexdigest())
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid
    return data.replace(blank.encode(), uid.encode(), 2)
