"""Where things lie on the screen: the image itself, the contours of the findings, the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.system

Points = NDArray[np.float64]
MOST_PX = 2.0
MOST_OF_IMAGE_PX = 0.3
HALF_LINE = 1.4  # CSS pixels: half of the widest line drawn here and its soft edge


def contours_of(exam: Any, view: str) -> list[Points]:
    document = json.loads((exam.folder(view) / "findings.json").read_text())
    return [np.array(lesion["contour_xy"]) for lesion in document["lesions"]]


def truth_of(exam: Any, view: str) -> list[Points]:
    """Outlines of the phantom's masses, by OpenCV from the masks that the phantom drew, in pixel edges."""
    from mammoseg.datasets.phantom_files import read

    item = next(i for i in read(exam.phantoms) if i.path.endswith(f"_{view}.dcm"))
    outlines = []
    for mass in item.annotation.masses:
        found, _ = cv2.findContours(np.pad(mass.mask, 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        largest = max(found, key=len)[:, 0].astype(np.float64)
        outlines.append(largest - 1 + 0.5 + [mass.origin_px[1], mass.origin_px[0]])
    return outlines


def dense(points: Points, step: float = 0.5) -> Points:
    """Points along a closed outline, at most `step` apart."""
    ends = np.roll(points, -1, axis=0)
    parts = []
    for a, b in zip(points, ends, strict=True):
        n = max(1, int(np.ceil(np.linalg.norm(b - a) / step)))
        parts.append(a + (b - a) * (np.arange(n) / n)[:, None])
    return np.concatenate(parts)


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8], colour: str) -> Points:
    """Centres of the pixels that plainly changed between two screenshots, towards amber (findings) or green (truth)."""
    blue, green, red = np.moveaxis(after.astype(int) - before.astype(int), 2, 0)
    towards = red - blue if colour == "amber" else 2 * green - red - blue
    rows, columns = np.nonzero(towards > 60)
    return np.stack([columns, rows], axis=1) + 0.5


def inside(points: Points, shape: tuple[int, ...], margin: float = 3.0) -> Points:
    keep = ((points > margin) & (points < np.array([shape[1], shape[0]]) - margin)).all(axis=1)
    return points[keep]


def distances(a: Points, b: Points) -> NDArray[np.float64]:
    """From each point of `a` to the nearest of `b`."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(b).query(a)[0])


def misplacement(viewer: Any, pane: Any, file: Any, around: Points) -> float:
    """How far the drawn image lies from where the pane says it does, in CSS pixels: the file's values, resampled here, are
    looked for on the screen, to a quarter of a pixel."""
    data = pydicom.dcmread(file)
    values = np.asarray(data.pixel_array, dtype=np.float32)
    shot = cv2.cvtColor(viewer.shot(pane), cv2.COLOR_BGR2GRAY)
    corners = viewer.project(pane, np.array([[0.0, 0.0], [values.shape[1], 0.0], [0.0, values.shape[0]]]))
    # cv2 counts pixel centres: both frames are moved by half a pixel.
    to_screen = cv2.getAffineTransform(
        np.array([[-0.5, -0.5], [values.shape[1] - 0.5, -0.5], [-0.5, values.shape[0] - 0.5]], np.float32),
        (corners - 0.5).astype(np.float32),
    )
    shrink = np.linalg.norm(to_screen[:, 0])
    if shrink < 1:  # no aliasing: what the screen cannot show is blurred away first
        values = cv2.GaussianBlur(values, (0, 0), 0.5 / shrink)
    expected = cv2.warpAffine(values, to_screen, shot.shape[::-1], flags=cv2.INTER_LINEAR)
    low = np.clip(around.min(axis=0) - 40, 12, np.array(shot.shape[::-1]) - 60).astype(int)
    high = np.clip(around.max(axis=0) + 40, low + 40, np.array(shot.shape[::-1]) - 12).astype(int)
    pattern = cv2.resize(expected[low[1] : high[1], low[0] : high[0]], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    window = shot[low[1] - 10 : high[1] + 10, low[0] - 10 : high[0] + 10].astype(np.float32)
    field = cv2.resize(window, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    match = cv2.matchTemplate(field, pattern.astype(np.float32), cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(match)
    assert best > 0.9, f"what is on the screen does not look like the file ({best:.2f})"
    return float(np.hypot(x / 4 - 10, y / 4 - 10)) / viewer.ratio


def check_contours(viewer: Any, exam: Any, view: str) -> tuple[float, float]:
    """Image and contours of one view are where they belong; returns the largest errors in CSS pixels."""
    pane = viewer.pane(view)
    viewer.show(overlays=True, labels=False, candidates=False, boxes=False, truth=False)
    viewer.page.mouse.move(2, 2)
    drawn_over = viewer.shot(pane)
    viewer.show(overlays=False)
    bare = viewer.shot(pane)
    wanted = np.concatenate([dense(viewer.project(pane, c)) for c in contours_of(exam, view)])
    seen, wanted = inside(changed(bare, drawn_over, "amber"), bare.shape), inside(wanted, bare.shape)
    assert len(wanted) > 50
    assert len(seen) > 50, "no contour is drawn"
    image = misplacement(viewer, pane, exam.file(view), wanted)
    missing, straying = distances(wanted, seen).max(), distances(seen, wanted).max() - HALF_LINE * viewer.ratio
    contour = max(missing, straying) / viewer.ratio
    viewer.show(overlays=True)
    assert image <= MOST_OF_IMAGE_PX, f"{view}: image {image:.2f} px away"
    assert image + contour <= MOST_PX, f"{view}: image {image:.2f} px, contour {contour:.2f} px away"
    return image, contour


@pytest.mark.parametrize(
    ("switches", "query", "ratio"),
    [((), "", 1.0), ((), "", 2.0), ((), "?draw=webgl", 1.0), ((), "?draw=webgl", 2.0)],
    ids=["cpu", "cpu, fine screen", "webgl in software", "webgl in software, fine screen"],
)
def test_contours_lie_on_the_masses(
    exam: Any,
    server: Any,
    view_of: Callable[..., Any],
    switches: tuple[str, ...],
    query: str,
    ratio: float,
    record_property: Callable[[str, object], None],
) -> None:
    """Four views fitted, then each lesion gone to, then one view large and one to one: within 2 px everywhere."""
    viewer = view_of(*switches, ratio=ratio).open(server.url + query)
    errors = [check_contours(viewer, exam, view) for view in ("RCC", "LCC", "RMLO", "LMLO")]
    viewer.page.locator(".row.lesion").first.click()
    viewer.settle()
    errors.append(check_contours(viewer, exam, "RCC"))
    viewer.page.locator("body").press("4")
    viewer.settle()
    errors.append(check_contours(viewer, exam, "LMLO"))
    if not query:
        viewer.press("x")  # mirrored, with its contours
        assert viewer.pane("LMLO").get_attribute("data-view").endswith(" 1")
        errors.append(check_contours(viewer, exam, "LMLO"))
    record_property("largest error of the image, px", round(max(e[0] for e in errors), 2))
    record_property("largest error of a contour, px", round(max(e[1] for e in errors), 2))


def test_the_masses_are_what_is_outlined(exam: Any) -> None:
    """The findings on which the other tests stand are real ones: each mass of the phantom has a contour that lies on it.

    That it covers most of the mass and not much else; how well is measured elsewhere, on mammograms.
    """
    for view in ("RCC", "LCC", "RMLO", "LMLO"):
        for outline in truth_of(exam, view):
            best, covered = 0.0, 0.0
            for contour in contours_of(exam, view):
                masks = [np.zeros((4084, 3328), np.uint8) for _ in range(2)]
                for mask, points in zip(masks, (outline, contour), strict=True):
                    cv2.fillPoly(mask, [np.rint(points - 0.5).astype(np.int32)], 1)
                both, either = float((masks[0] & masks[1]).sum()), float((masks[0] | masks[1]).sum())
                best, covered = max((best, covered), (both / either, both / float(masks[0].sum())))
            assert best > 0.25, f"{view}: {best:.2f}"
            assert covered > 0.75, f"{view}: {covered:.2f}"


def test_truth_is_drawn_where_the_data_set_has_it(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.page.locator(".row.lesion").last.click()
    viewer.show(contours=False, labels=False, candidates=False)
    pane = viewer.pane("LMLO")
    viewer.page.mouse.move(2, 2)
    before = viewer.shot(pane)
    viewer.show(truth=True)
    seen = changed(before, viewer.shot(pane), "green")
    assert len(seen) > 50, "no truth is drawn"
    wanted = np.concatenate([dense(viewer.project(pane, outline)) for outline in truth_of(exam, "LMLO")])
    scale = float(pane.get_attribute("data-view").split()[0])
    # The outline of a mask goes through pixel centres here, along their edges there: one native pixel apart at most.
    assert distances(seen, wanted).max() - HALF_LINE - scale <= MOST_PX


def test_chest_walls_meet_in_the_middle(server: Any, view_of: Callable[..., Any]) -> None:
    """RCC LCC above RMLO LMLO; at the inner edges there is tissue, at the outer ones none."""
    viewer = view_of().open(server.url)
    viewer.show(overlays=False)
    boxes = {view: viewer.pane(view).bounding_box() for view in ("RCC", "LCC", "RMLO", "LMLO")}
    assert boxes["RCC"]["x"] < boxes["LCC"]["x"]
    assert boxes["RCC"]["y"] < boxes["RMLO"]["y"] == boxes["LMLO"]["y"]
    for view in boxes:
        shot = viewer.shot(viewer.pane(view)).mean(axis=2)
        height = shot.shape[0]
        middle = shot[height // 3 : 2 * height // 3]
        inner, outer = (middle[:, -8:-3], middle[:, 3:8]) if view[0] == "R" else (middle[:, 3:8], middle[:, -8:-3])
        assert inner.mean() > 20 > 5 > outer.mean(), view
