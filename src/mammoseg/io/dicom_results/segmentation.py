"""Segmentation: a segment a lesion, one source image an object (mammograms share no frame of reference).

highdicom makes the object's structure; the bits are set here lesion by lesion, so that no image-sized array a lesion is
needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammoseg.io.dicom_results import codes
from mammoseg.io.dicom_results.maker import NOTICE, Maker, derived_uid, maker_of, plain
from mammoseg.io.dicom_results.objects import KINDS, complete
from mammoseg.io.dicom_results.shapes import tracking_uid
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.types import Findings, Lesion, Size

_COLOURS = (
    (37767, 53021, 47545),
    (60948, 29172, 55769),
    (52556, 20560, 44461),
    (42147, 32768, 16448),
)  # CIELab, PS3.3 C.10.7.1.1


def segmentation(source: SourceImage, findings: Findings) -> Dataset:
    """The lesions of one processed image as a binary segmentation, segment number = lesion id = label in `mask.png`.

    Raises ValueError where there is no lesion: a segmentation without segments cannot be.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

    lesions = sorted(findings.lesions, key=lambda item: item.id)
    if not lesions:
        raise ValueError("segmentation: expected at least one lesion, got none")
    maker, size = maker_of(findings), (int(findings.image.height or 0), int(findings.image.width or 0))
    descriptions = []
    for number, lesion in enumerate(lesions, start=1):
        one = SegmentDescription(
            segment_number=number,
            segment_label=f"Mass {lesion.id}",
            segmented_property_category=codes.ABNORMAL_STRUCTURE,
            segmented_property_type=codes.MASS,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence(
                maker.algorithm_name, codes.ARTIFICIAL_INTELLIGENCE, maker.algorithm_version
            ),
            tracking_uid=tracking_uid(lesion, source, maker),
            tracking_id=f"mass {lesion.id}",
            anatomic_regions=[codes.BREAST],
        )
        one.SegmentDescription = plain(f"score {lesion.score:.4f}, {lesion.outline}. {NOTICE}", 1024)
        one.RecommendedDisplayCIELabValue = list(_COLOURS[(number - 1) % len(_COLOURS)])
        if source.laterality is not None:
            one.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [codes.item(codes.SIDE[source.laterality])]
        descriptions.append(one)
    ds = Segmentation(
        [_stand_in(source, size)],
        np.zeros((1, *size), dtype=np.uint8),
        SegmentationTypeValues.BINARY,
        descriptions,
        series_instance_uid=derived_uid("series"),
        series_number=1,
        sop_instance_uid=derived_uid("instance"),
        instance_number=1,
        manufacturer="",
        manufacturer_model_name="",
        software_versions="",
        device_serial_number="",
        content_label="MASSES",
        content_description=NOTICE,
        omit_empty_frames=False,
    )
    out = _plain_dataset(ds)
    _own_identifiers(out, source, maker)
    out.PatientOrientation = list(source.orientation or ()) or None
    out.SegmentsOverlap = "YES" if _overlap(lesions, size) else "NO"
    out.PixelData = packed(lesions, size)
    return out


def packed(lesions: list[Lesion], size: Size) -> bytes:
    """The masks as frames of one bit a pixel, one after the other without gaps (PS3.5 8.1.1), of even length."""
    height, width = size
    bits: NDArray[np.uint8] = np.zeros(-(-len(lesions) * height * width // 8), dtype=np.uint8)
    for frame, lesion in enumerate(lesions):
        rows, columns = np.nonzero(lesion.mask)
        place = (frame * height + rows + lesion.origin_px[0]) * width + columns + lesion.origin_px[1]
        np.bitwise_or.at(bits, place >> 3, (1 << (place & 7)).astype(np.uint8))
    data = bits.tobytes()
    return data + b"\0" * (len(data) % 2)


def _overlap(lesions: list[Lesion], size: Size) -> bool:
    taken = np.zeros(size, dtype=np.bool_)
    for lesion in lesions:
        r, c = lesion.origin_px
        window = taken[r : r + lesion.mask.shape[0], c : c + lesion.mask.shape[1]]
        if (window & lesion.mask).any():
            return True
        window |= lesion.mask
    return False


def _stand_in(source: SourceImage, size: Size) -> Dataset:
    """What highdicom must know of the source image; without its patient, whose elements are copied as they are later."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"):
        setattr(ds, keyword, "")
    ds.StudyTime = ds.ReferringPhysicianName = ""
    ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "MG", source.study_instance_uid, source.series_instance_uid
    ds.SOPClassUID, ds.SOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
    ds.Rows, ds.Columns = size
    return ds


def _plain_dataset(ds: Dataset) -> Dataset:
    out = Dataset()
    out.update(ds)
    return out


def _own_identifiers(ds: Dataset, source: SourceImage, maker: Maker) -> None:
    """Replaces what highdicom drew by chance or read from the clock."""
    kind = KINDS["seg"]
    complete(ds, kind, source, maker)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in ds:
            delattr(ds, keyword)
    organization = derived_uid("dimensions", kind.name, source.sop_instance_uid, maker.version, maker.bundle_sha256)
    for sequence in (ds.DimensionOrganizationSequence, ds.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = organization
    for item in ds.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = "".join(source.when)
    ds.ContentCreatorName = None
