"""The value under the cursor is the stored one, and what is drawn is that value through the window."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from mammoseg.datasets.phantom import PhantomConfig, make_exam
from mammoseg.datasets.phantom_files import to_dicom

pytestmark = pytest.mark.system

SIZE = (417, 333)  # odd, so that halved levels have half-filled edges
# bits stored, photometric interpretation, signed, window
KINDS = [
    (8, "MONOCHROME1", False, (128, 256)),
    (8, "MONOCHROME2", False, (90, 120)),
    (12, "MONOCHROME1", False, (2048, 4096)),
    (12, "MONOCHROME2", False, (1500, 2000)),
    (16, "MONOCHROME1", False, (32768, 65536)),
    (16, "MONOCHROME2", False, (20000, 30001)),
    (16, "MONOCHROME2", True, (-3000, 20000)),
]
SAID = re.compile(r"column (\d+), row (\d+) .* stored value (-?\d+)")


def write(folder: Path, number: int, kind: tuple[int, str, bool, tuple[int, int]]) -> Path:
    """A phantom's view with other values: noise over the whole range, so that no two neighbours are alike."""
    bits, photometric, signed, (center, width) = kind
    view = make_exam(7, PhantomConfig(size=SIZE))[1]
    data = to_dicom(view, f"VALUES-{number}")
    rng = np.random.default_rng(number)
    values = (view.pixels.astype(np.int64) * (1 << bits) // 4096 + rng.integers(0, 1 << (bits - 3), SIZE)) % (1 << bits)
    if signed:
        values -= 1 << (bits - 1)
    allocated = 8 if bits == 8 else 16
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    data.PixelData = values.astype(dtype).tobytes() + b"\0" * (values.size * dtype.itemsize % 2)
    data["PixelData"].VR = "OB" if allocated == 8 else "OW"
    data.BitsAllocated, data.BitsStored, data.HighBit = allocated, bits, bits - 1
    data.PixelRepresentation = int(signed)
    data.PhotometricInterpretation = photometric
    data.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    data.WindowCenter, data.WindowWidth = center, width
    path = folder / f"{bits}{'s' if signed else 'u'}_{photometric}.dcm"
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("values")
    return [write(folder, number, kind) for number, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def address(files: list[Path], serve: Callable[..., Any]) -> str:
    url: str = serve(files[0].parent).url
    return url


def read(viewer: Any, pane: Any, column: float, row: float) -> tuple[int, int, int]:
    """What the status line says with the pointer on a native point."""
    box = pane.bounding_box()
    x, y = viewer.project(pane, np.array([[column, row]]))[0] / viewer.ratio
    viewer.page.mouse.move(box["x"] + x, box["y"] + y)
    said = SAID.search(viewer.page.locator("#readout").inner_text())
    assert said, viewer.page.locator("#readout").inner_text()
    return int(said[1]), int(said[2]), int(said[3])


def grey(stored: NDArray[np.int64], center: float, width: float, inverted: bool) -> NDArray[np.float64]:
    """DICOM PS3.3 C.11.2.1.2.1, to 0..255; slope 1, intercept 0."""
    linear = ((stored - (center - 0.5)) / (width - 1) + 0.5) * 255
    shown = np.where(
        stored <= center - 0.5 - (width - 1) / 2, 0, np.where(stored > center - 0.5 + (width - 1) / 2, 255, linear)
    )
    return np.asarray(255 - shown if inverted else shown)


@pytest.mark.parametrize(
    ("number", "query"),
    [(number, "") for number in range(len(KINDS))] + [(2, "?draw=webgl"), (6, "?draw=webgl")],
    ids=["-".join(map(str, k[:3])) for k in KINDS] + ["webgl-12-MONOCHROME1", "webgl-16-signed"],
)
def test_values_under_the_cursor_and_on_the_screen(
    files: list[Path], address: str, view_of: Callable[..., Any], number: int, query: str
) -> None:
    bits, photometric, _, (center, width) = KINDS[number]
    stored = pydicom.dcmread(files[number]).pixel_array.astype(np.int64)
    viewer = view_of(size=(1280, 720))
    viewer.open(address + query, panes=1)
    viewer.page.locator(".study", has_text=files[number].stem).click()
    viewer.settle()
    viewer.page.get_by_role("button", name="One view").click()
    viewer.settle()
    pane = viewer.page.locator(".pane:visible")
    # Fitted: many pixels to a dot; whatever pixel the line names, its value must be that pixel's.
    rng = np.random.default_rng(number)
    for column, row in rng.uniform([0, 0], [SIZE[1], SIZE[0]], (12, 2)):
        at = read(viewer, pane, column, row)
        assert abs(at[0] - column) <= 2
        assert abs(at[1] - row) <= 2
        assert at[2] == stored[at[1], at[0]]
    # Enlarged: the named pixel is the one there, to the edges of the image.
    middle = SIZE[1] // 2 + 0.5, SIZE[0] // 2 + 0.5
    box = pane.bounding_box()
    viewer.page.mouse.move(*(v + s for v, s in zip(viewer.project(pane, np.array([middle]))[0], (box["x"], box["y"]))))
    for _ in range(12):
        viewer.page.mouse.wheel(0, -300)
    viewer.settle()
    scale = float(pane.get_attribute("data-view").split()[0])
    assert scale == 32
    for dx, dy in [(0.1, 0.1), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.9, 0.9)]:
        for column, row in [(middle[0] // 1 + i, middle[1] // 1 + j) for i, j in [(-3, 2), (0, 0), (4, -5)]]:
            at = read(viewer, pane, column + dx, row + dy)
            assert at == (column, row, stored[int(row), int(column)])
    # What is drawn at the middles of the enlarged pixels is their value through the window of the file.
    viewer.page.mouse.move(2, 2)
    shot = viewer.shot(pane)
    for i, j in [(-4, -4), (-2, 3), (0, 0), (3, -1), (5, 4)]:
        column, row = int(middle[0]) + i, int(middle[1]) + j
        x, y = viewer.project(pane, np.array([[column + 0.5, row + 0.5]]))[0]
        drawn = shot[round(y) - 1 : round(y) + 1, round(x) - 1 : round(x) + 1].mean()
        wanted = grey(stored[row, column], center, width, photometric == "MONOCHROME1")
        assert abs(drawn - wanted) <= 5, (bits, photometric, column, row)
