"""The pictures of docs/viewer.md: of phantoms only, made here. MAMMOSEG_PICTURES names the folder they are kept in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("viewer", "viewer-lesion", "viewer-layers", "viewer-side-by-side", "viewer-help")


def test_the_pictures_of_the_page(server: Any, view_of: Callable[..., Any], tmp_path: Path) -> None:
    folder = Path(os.environ.get("MAMMOSEG_PICTURES", tmp_path))
    viewer = view_of(size=(1280, 800)).open(server.url)

    def keep(name: str, first: str = "#findings h2") -> None:
        viewer.page.locator(first).evaluate("e => e.scrollIntoView({ block: 'start' })")
        viewer.settle()
        viewer.page.screenshot(path=folder / f"{name}.png")

    # The phantom's own window is its whole range.
    for view in ("RCC", "LCC", "RMLO", "LMLO"):
        viewer.pane(view).focus()
        for name, value in (("center", "1800"), ("width", "3200")):
            viewer.page.locator(f"#window-{name}").fill(value)
            viewer.page.locator(f"#window-{name}").press("Tab")
    viewer.pane("RCC").focus()
    keep("viewer")
    viewer.page.locator(".row.lesion").last.click()
    viewer.show(truth=True)
    box = viewer.pane("LMLO").bounding_box()
    viewer.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    keep("viewer-lesion")
    viewer.page.mouse.move(2, 2)
    viewer.page.locator('.image-entry:has-text("LCC")').click()
    viewer.show(truth=False, mask=True, candidates=False)
    viewer.page.locator("#show-scales").check()
    viewer.page.wait_for_selector("#show-scale-4", timeout=60_000)
    viewer.settle()
    keep("viewer-layers", first="#show-overlays")
    viewer.show(mask=False)
    viewer.page.locator("#show-scales").uncheck()
    viewer.page.get_by_role("button", name="Side by side").click()
    viewer.wait_drawn(2)
    keep("viewer-side-by-side")
    viewer.page.get_by_role("button", name="Help").click()
    keep("viewer-help")
    viewer.page.keyboard.press("Escape")
    for name in NAMES:
        picture = cv2.imread(str(folder / f"{name}.png"))
        assert picture is not None
        assert picture.shape == (800, 1280, 3)
        assert np.ptp(picture) > 200


def test_the_page_shows_them_all() -> None:
    page = (REPOSITORY / "docs" / "viewer.md").read_text()
    for name in NAMES:
        assert f"](images/{name}.png)" in page
        assert (REPOSITORY / "docs" / "images" / f"{name}.png").is_file()
