"""Outlines of masses that are known by their box alone: what a trained segmenter draws in the true box, made to fit the box."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammoseg.config import to_dict
from mammoseg.datasets.images import load_item
from mammoseg.datasets.masks import tight
from mammoseg.geometry import box_iou, mask_box
from mammoseg.io.atomic import write_atomic
from mammoseg.reconstruction import ReconstructionConfig, native_field
from mammoseg.segmentation.predictor import Segmenter
from mammoseg.types import BoolMask, DatasetItem, Mammogram, TrueMass

log = logging.getLogger("mammoseg.segmentation")

FIT_LEAST = 0.75
"""An outline whose own box overlaps the true one by a lower IoU is not taken."""
LEAST_SIDE_PX = 8.0
_THRESHOLDS = np.linspace(0.1, 0.9, 17)


def outline_in_box(segmenter: Segmenter, mammogram: Mammogram, box: ArrayLike) -> tuple[BoolMask, tuple[int, int], float]:
    """What `segmenter` draws in the true `box` (`xyxy`, native frame): mask bool[h, w], its origin (row, column), its fit.

    The mask is the largest 4-connected region, holes filled, of what reaches a probability; which one of 17 from 0.1 to 0.9
    is decided by the fit: the IoU of the mask's own box with `box`. A fit of 0 comes with an empty mask.
    """
    given = np.asarray(box, dtype=np.float64).reshape(1, 4)
    config = ReconstructionConfig()
    field, origin = native_field(segmenter.segment(mammogram, given)[0], mammogram.size, config)
    best: tuple[BoolMask, tuple[int, int], float] = (np.zeros((0, 0), dtype=np.bool_), origin, 0.0)
    for threshold in _THRESHOLDS:
        above = (field + np.float32(config.threshold) >= threshold).astype(np.uint8)
        found, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=4)
        if found < 2:
            break
        largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        fit = float(box_iou(np.array([mask_box(largest, origin)]), given)[0, 0])
        if fit > best[2]:
            best = (largest, origin, fit)
    if best[2] == 0.0:
        return best
    cut = tight(_filled(best[0]), origin)
    assert cut is not None
    return cut[0], cut[1], best[2]


def with_outlines(
    items: Sequence[DatasetItem], segmenter: Segmenter, made_by: str, kept: Path
) -> tuple[list[DatasetItem], int, int]:
    """`items` with the masses' masks: their own, or where there is none what `outline_in_box` gives, as far as it fits.

    Masses without a mask that fits are left out; so are items without a mass then. Also returns how many masses were outlined
    and how many of them were left out. made_by: what identifies the segmenter; outlines of the same segmenter, images and boxes
    are taken from the file `kept` where they are there, and written to it otherwise. Raises ImageError for an unreadable image.
    """
    bare = [(item, n) for item in items for n, mass in enumerate(item.annotation.masses) if mass.mask is None]
    asked = [[item.image_id, n, list(item.annotation.masses[n].box)] for item, n in bare]
    key = hashlib.sha256(json.dumps([made_by, to_dict(segmenter.spec), FIT_LEAST, asked]).encode()).hexdigest()
    outlines = _read(kept, key)
    if outlines is None:
        outlines = {}
        image: tuple[str, Mammogram] | None = None
        for done, (item, n) in enumerate(bare, start=1):
            if image is None or image[0] != item.image_id:
                image = item.image_id, load_item(item)
            box = np.asarray(item.annotation.masses[n].box)
            if (box[2:] - box[:2]).min() >= LEAST_SIDE_PX:
                mask, origin, fit = outline_in_box(segmenter, image[1], box)
                if fit >= FIT_LEAST:
                    outlines[item.image_id, n] = mask, origin
            if done % 200 == 0 or done == len(bare):
                log.info("outlined %d/%d masses known by their box alone", done, len(bare))
        _write(kept, key, outlines)
    out = []
    for item in items:
        masses = [_masked(mass, outlines.get((item.image_id, n))) for n, mass in enumerate(item.annotation.masses)]
        known = tuple(mass for mass in masses if mass.mask is not None)
        if known:
            out.append(replace(item, annotation=replace(item.annotation, masses=known)))
    return out, len(bare), len(bare) - len(outlines)


_Outlines = dict[tuple[str, int], tuple[BoolMask, tuple[int, int]]]


def _masked(mass: TrueMass, outline: tuple[BoolMask, tuple[int, int]] | None) -> TrueMass:
    return mass if outline is None else replace(mass, mask=outline[0], origin_px=outline[1])


def _filled(mask: BoolMask) -> BoolMask:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = np.zeros(mask.shape, dtype=np.uint8)
    cv2.drawContours(out, contours, -1, 1, thickness=cv2.FILLED)
    return out.astype(np.bool_)


def _write(path: Path, key: str, outlines: _Outlines) -> None:
    """As JSON: of each outline image, number of the mass, origin, shape and packed bits in hexadecimal."""
    rows = [
        [image, n, list(origin), list(mask.shape), np.packbits(mask).tobytes().hex()]
        for (image, n), (mask, origin) in outlines.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"key": key, "outlines": rows}).encode())


def _read(path: Path, key: str) -> _Outlines | None:
    """What `_write` wrote for the same key; None where it is not there."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if content.get("key") != key:
        return None
    out: _Outlines = {}
    for image, n, (row, column), (height, width), bits in content["outlines"]:
        packed: NDArray[np.uint8] = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
        mask = np.unpackbits(packed, count=height * width).reshape(height, width).astype(np.bool_)
        out[str(image), int(n)] = mask, (int(row), int(column))
    return out
