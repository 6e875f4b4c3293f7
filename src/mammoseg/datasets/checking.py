"""What is odd or missing in a dataset that could be read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mammoseg.geometry import box_iou, mask_box
from mammoseg.types import DatasetItem


def check_items(items: Sequence[DatasetItem]) -> list[str]:
    """One line for each kind of oddity, with how many images it concerns and an example; empty when all is well.

    Looks at: empty datasets, assumed patients, missing laterality or view, no mass in any image, boxes that disagree with
    their masks (IoU < 0.5), tiny masses (< 4 pixels wide or high), left-out crowds, and equal files under different patients.
    Images without a mass beside others are not odd: they are free of masses, and belong in a data set.
    """
    if not items:
        return ["the dataset holds no image"]
    found: list[str] = []

    def report(what: str, which: Sequence[str]) -> None:
        if which:
            found.append(f"{what}: {len(which)} of {len(items)} images, such as {which[0]}")

    assumed = [i.image_id for i in items if i.attributes.get("patient_id_is") == "assumed"]
    report("no patient_id, each image counts as its own patient (splits may part the views of one breast)", assumed)
    report("no laterality", [i.image_id for i in items if i.laterality is None])
    report("no view_position", [i.image_id for i in items if i.view_position is None])
    if not any(i.annotation.masses for i in items):
        report("no mass", [i.image_id for i in items])
    report("regions marked iscrowd were left out", [i.image_id for i in items if i.attributes.get("n_crowd")])
    masses = [(i.image_id, m) for i in items for m in i.annotation.masses]
    odd = [n for n, m in masses if m.mask is not None and box_iou([m.box], [mask_box(m.mask, m.origin_px)])[0, 0] < 0.5]
    report("a box that disagrees with its mask", sorted(set(odd)))
    tiny = [name for name, m in masses if min(m.box[2] - m.box[0], m.box[3] - m.box[1]) < 4]
    report("a mass less than 4 pixels wide or high", sorted(set(tiny)))
    report("the same file under another patient", _equal_files(items))
    return found


def _equal_files(items: Sequence[DatasetItem]) -> list[str]:
    by_length: dict[int, list[DatasetItem]] = defaultdict(list)
    for item in items:
        if Path(item.path).is_file():
            by_length[Path(item.path).stat().st_size].append(item)
    by_hash: dict[str, list[DatasetItem]] = defaultdict(list)
    for group in by_length.values():
        if len(group) > 1:
            for item in group:
                by_hash[hashlib.sha256(Path(item.path).read_bytes()).hexdigest()].append(item)
    return [i.image_id for same in by_hash.values() if len({s.patient_id for s in same}) > 1 for i in same]
