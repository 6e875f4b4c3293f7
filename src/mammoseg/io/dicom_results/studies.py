"""The images of one study with their findings, in an order of their own, as both reports take them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mammoseg.io.dicom_results.maker import NOTICE, Maker, maker_of
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.types import Findings, Size

REMARK = f"{NOTICE} A certainty is the detector's score that there is a mass; it is no probability of cancer."


@dataclass(frozen=True, eq=False)
class StudyImage:
    """One image of a study and its findings."""

    source: SourceImage
    findings: Findings

    @property
    def name(self) -> str:
        """Side and view for text, such as "L MLO"; nothing of the patient."""
        return " ".join(v for v in (self.source.laterality, self.source.view_position) if v) or "view unknown"

    @property
    def size(self) -> Size:
        """(rows, columns) of a processed image."""
        height, width = self.findings.image.height, self.findings.image.width
        if height is None or width is None:
            raise ValueError(f"StudyImage.size: expected a processed image, got {self.findings.status}")
        return height, width


@dataclass(frozen=True, eq=False)
class Study:
    """images: by series, instance and UID, each SOP instance once. maker: of the findings."""

    images: tuple[StudyImage, ...]
    maker: Maker

    @property
    def sources(self) -> list[SourceImage]:
        """The images' headers, in order."""
        return [image.source for image in self.images]

    def numbers(self, status: str) -> list[int]:
        """Places (from 1) of the images that ended with `status`."""
        return [n for n, image in enumerate(self.images, start=1) if image.findings.status == status]

    @property
    def n_lesions(self) -> int:
        """How many lesions were found in all images."""
        return sum(len(image.findings.lesions) for image in self.images)

    @property
    def n_unread(self) -> int:
        """How many images were not processed."""
        return len(self.images) - len(self.numbers("processed"))

    def outcome(self, number: int) -> str:
        """What became of image `number`, as one sentence."""
        image = self.images[number - 1]
        found = image.findings
        head = f"Image {number} ({image.name}): "
        if found.status != "processed":
            return f"{head}{found.status}, not analysed: {found.reason}."
        count = len(found.lesions)
        if not count:
            return f"{head}processed, no mass found."
        unmeasured = any(lesion.area_mm2 is None for lesion in found.lesions)
        why = "; not measured, as the image does not tell its pixel spacing" if unmeasured else ""
        return f"{head}processed, {count} {'mass' if count == 1 else 'masses'} found{why}."

    def description(self) -> str:
        """All outcomes, and what the report is and is not."""
        return " ".join([*self.outcomes(), REMARK])

    def outcomes(self) -> list[str]:
        """What became of each image, in order."""
        return [self.outcome(number) for number in range(1, len(self.images) + 1)]


def study_of(images: Iterable[StudyImage]) -> Study | None:
    """One study from its images; None where none of them is a mammogram.

    Images of other kinds (an ultrasound in the same folder, rejected) are left out; of two files of one SOP instance the
    processed one is taken. Raises ValueError for images of several studies.
    """
    kept: dict[str, StudyImage] = {}
    for image in sorted(images, key=_order):
        if image.source.is_mammography or image.findings.status == "processed":
            before = kept.get(image.source.sop_instance_uid)
            if before is None or (before.findings.status, image.findings.status) in _BETTER:
                kept[image.source.sop_instance_uid] = image
    if not kept:
        return None
    if len({image.source.study_instance_uid for image in kept.values()}) > 1:
        raise ValueError("study_of: expected images of one study, got several")
    ordered = tuple(sorted(kept.values(), key=_order))
    return Study(ordered, maker_of(ordered[0].findings))


_BETTER = {("rejected", "processed"), ("failed", "processed"), ("failed", "rejected")}


def _order(image: StudyImage) -> tuple[int, str, int, str, str]:
    s = image.source
    return s.series_number, s.series_instance_uid, s.instance_number, s.sop_instance_uid, image.findings.image.file_sha256 or ""
