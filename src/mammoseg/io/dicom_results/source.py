"""The source image of a result: what is read again from its file, so that a result lies under the right patient and study."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from mammoseg.errors import ImageError
from mammoseg.io import dicom_attributes as attributes
from mammoseg.io.dicom import looks_like_dicom, open_dataset
from mammoseg.io.dicom_codec import check_deflated
from mammoseg.types import Spacing

# The Patient, General Study, Patient Study and Clinical Trial modules (PS3.3 C.7.1, C.7.2) as far as results carry them.
_COPIED = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup",
    "PatientComments", "QualityControlSubject", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "PhysiciansOfRecord", "ProcedureCodeSequence",
    "PatientAge", "PatientSize", "PatientWeight", "AdditionalPatientHistory",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)  # fmt: skip
_REQUIRED = (  # type 2: present, if empty
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
_TEXT_VRS = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"))
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DATE, _TIME = re.compile(r"\d{8}"), re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
NO_DATE = ("19700101", "000000")  # where a type 1 date is needed and the source names none


@dataclass(frozen=True, eq=False)
class SourceImage:
    """The header of a DICOM image that has what results must refer to: SOP class and instance, series, study.

    path: its file. header: without pixels. patient_and_study: the elements that results copy, byte for byte as in the file
    (names keep their character set). None of it goes into messages.
    """

    path: Path
    header: Dataset
    patient_and_study: Dataset
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str

    @property
    def series_number(self) -> int:
        """The source series' number, 0 where it has none."""
        return max(attributes.integer(self.header, "SeriesNumber") or 0, 0)

    @property
    def instance_number(self) -> int:
        """The image's number, 1 where it has none."""
        return max(attributes.integer(self.header, "InstanceNumber") or 1, 1)

    @property
    def when(self) -> tuple[str, str]:
        """(date, time) of the image as DA and TM: of its content, else acquisition, else series, else study."""
        for kind in ("Content", "Acquisition", "Series", "Study"):
            date, time = attributes.text(self.header, f"{kind}Date"), attributes.text(self.header, f"{kind}Time")
            if _DATE.fullmatch(date):
                return date, time if _TIME.fullmatch(time) else NO_DATE[1]
        return NO_DATE

    @property
    def laterality(self) -> str | None:
        """ "L", "R" or None."""
        return attributes.laterality(self.header)

    @property
    def view_position(self) -> str | None:
        """ "CC", "MLO", ... or None."""
        return attributes.view_position(self.header)

    @property
    def spacing_mm(self) -> Spacing | None:
        """(row, column) at the breast in mm, or None where unknown."""
        return attributes.spacing(self.header)[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """(rows, columns) as the header says, or None."""
        rows, columns = attributes.integer(self.header, "Rows"), attributes.integer(self.header, "Columns")
        return (rows, columns) if rows and columns and 0 < rows < 65536 and 0 < columns < 65536 else None

    @property
    def orientation(self) -> tuple[str, str] | None:
        """Patient Orientation of rows and columns, or None where there is none."""
        found = attributes.value(self.header, "PatientOrientation")
        words = [str(v) for v in found] if found is not None and not isinstance(found, (str, bytes)) else []
        return (words[0], words[1]) if len(words) == 2 and all(re.fullmatch("[APRLHF]{1,3}", w) for w in words) else None

    @property
    def study_when(self) -> tuple[str, str]:
        """Study Date and Time, "" where missing or malformed."""
        date, time = attributes.text(self.header, "StudyDate"), attributes.text(self.header, "StudyTime")
        return date if _DATE.fullmatch(date) else "", time if _TIME.fullmatch(time) else ""

    @property
    def modality(self) -> str:
        """Modality, "" where missing."""
        return attributes.text(self.header, "Modality")

    @property
    def is_mammography(self) -> bool:
        """Whether its own header calls it a mammogram."""
        return self.modality == "MG"

    @property
    def reference(self) -> Dataset:
        """Referenced SOP Class and Instance UID."""
        ds = Dataset()
        ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = self.sop_class_uid, self.sop_instance_uid
        return ds


def read_source(path: Path) -> SourceImage | None:
    """The source image in `path`; None where it is no DICOM file, or one without the UIDs that a result must refer to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns with values from the file
        try:
            with path.open("rb") as file:
                if not looks_like_dicom(file.read(200)):
                    return None
            check_deflated(path)
            header = open_dataset(path, pixels=False)
        except (ImageError, OSError):
            return None
        kept = _copy(header, _COPIED)  # before anything is converted
        uids = [_uid(header, k) for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
        if None in uids:
            return None
        for keyword in _REQUIRED:
            if keyword not in kept:
                setattr(kept, keyword, None)
        sop_class, instance, series, study = (str(u) for u in uids)
        kept.StudyInstanceUID = study
        return SourceImage(path, header, kept, sop_class, instance, series, study)


def _uid(ds: Dataset, keyword: str) -> str | None:
    found = str(attributes.value(ds, keyword) or "").strip("\0 ")
    return found if len(found) <= 64 and _UID.fullmatch(found) else None


def _copy(source: Dataset, keywords: Iterable[str]) -> Dataset:
    """The named elements: text as the bytes that stand in the file, sequences converted; what cannot be read is left out."""
    out = Dataset()
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        raw = source.get_item(tag) if tag is not None and tag in source else None
        if raw is None:
            continue
        vr = dictionary_VR(tag)
        if isinstance(raw, RawDataElement) and vr in _TEXT_VRS:
            data = bytes(raw.value or b"")
            out[raw.tag] = RawDataElement(raw.tag, vr, len(data), data, 0, False, True, True)
        elif vr == "SQ":
            items = _items(attributes.value(source, keyword))
            if items is not None:
                out[raw.tag] = DataElement(raw.tag, "SQ", items)
        else:
            found = attributes.value(source, keyword)
            if found is not None:
                out[raw.tag] = DataElement(raw.tag, vr, found)
    return out


def _items(sequence: Any) -> DicomSequence | None:
    """A sequence with every value converted, so that it can be written in any encoding; None where it cannot be read."""
    items = []
    try:
        for item in sequence or ():
            copy = Dataset()
            for element in item:
                if element.tag.is_private:
                    continue
                nested = _items(element.value) if element.VR == "SQ" else element.value
                copy.add(DataElement(element.tag, element.VR, nested if nested is not None else []))
            items.append(copy)
    except Exception:  # pydicom converts on access and raises anything on damaged values
        return None
    return DicomSequence(items) if items else None
