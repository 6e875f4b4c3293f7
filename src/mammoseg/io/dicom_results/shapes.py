"""A lesion's geometry as the objects carry it: pixel edges, (0, 0) at the top-left corner, which is also DICOM's frame.

Numbers are rounded as in `findings.json`, so that results made from the saved findings are those made at once.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.io.dicom_results.maker import Maker, derived_uid
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.types import Lesion, Size

Points = NDArray[np.float64]
POINTS_MAX = 8000  # 8 bytes each: more do not fit the 16-bit length of an explicit VR
_CONTOUR_DIGITS = 2


def closed_outline(lesion: Lesion, size: Size) -> Points:
    """The outline f64[K, 2] of (x, y) with the first point repeated at the end, 4 <= K <= 8001, inside the image.

    A contour of more points is thinned as little as need be; the box stands in for one of fewer than three.
    """
    points = np.round(lesion.contour_xy, _CONTOUR_DIGITS)
    tolerance = 0.1
    while len(points) > POINTS_MAX:
        fewer = cv2.approxPolyDP(lesion.contour_xy.astype(np.float32).reshape(-1, 1, 2), tolerance, True).reshape(-1, 2)
        points = np.round(fewer.astype(np.float64), _CONTOUR_DIGITS)
        tolerance *= 1.5
    if len(points) < 3:
        x1, y1, x2, y2 = np.round(lesion.box, _CONTOUR_DIGITS)
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    points = points.clip(0, (size[1], size[0]))
    return np.vstack([points, points[:1]])


def center(outline: Points) -> Points:
    """The centroid f64[1, 2] of the area inside a closed outline; of its points where there is no area.

    >>> center(np.array([[0.0, 0], [4, 0], [4, 2], [0, 2], [0, 0]])).tolist()
    [[2.0, 1.0]]
    """
    low = outline.min(axis=0)
    x, y = (outline - low).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = float(cross.sum()) / 2
    if abs(area) < 1e-9:
        middle = outline[:-1].mean(axis=0)
    else:
        middle = low + np.array([((x[:-1] + x[1:]) @ cross), ((y[:-1] + y[1:]) @ cross)]) / (6 * area)
    placed: Points = np.round(middle.clip(low, outline.max(axis=0)), _CONTOUR_DIGITS).reshape(1, 2)
    return placed


def tracking_uid(lesion: Lesion, source: SourceImage, maker: Maker) -> str:
    """The lesion's UID, the same in every object that speaks of it."""
    box = ",".join(f"{v + 0.0:.3f}" for v in lesion.box)
    where = (source.sop_instance_uid, maker.version, maker.bundle_sha256)
    return derived_uid("lesion", *where, str(lesion.id), box, f"{lesion.score:.6f}")


def percent(score: float) -> float:
    """A score as certainty in percent, to four decimals, as `findings.json` has it."""
    return round(100 * round(float(score), 6), 4)
