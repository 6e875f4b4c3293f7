"""What the screen says to someone who is new to it: which view is meant, which lesions are counted, what a word means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.system

VIEWS = ("RCC", "LCC", "RMLO", "LMLO")


def scores(exam: Any, kind: str = "lesions") -> dict[str, list[float]]:
    """Of the lesions (or candidates) of each view, as findings.json has them."""
    documents = {view: json.loads((exam.folder(view) / "findings.json").read_text()) for view in VIEWS}
    return {view: [found["score"] for found in document[kind]] for view, document in documents.items()}


def image_ids(server: Any) -> dict[str, str]:
    images = httpx.get(f"{server.url}api/v1/images", trust_env=False).json()
    return {f"{image['laterality']}{image['view_position']}": image["image_id"] for image in images}


def active(viewer: Any) -> str:
    """The view that the panel's heading names; the border, the list and the downloads must agree."""
    view = str(viewer.page.locator("#display h2", has_text="Window").inner_text().removeprefix("Window, "))
    marked = viewer.page.locator(".pane.active")
    assert marked.count() == 1
    assert marked.get_attribute("aria-label").startswith(f"{view}:")
    border = marked.evaluate("p => { const s = getComputedStyle(p, '::after'); return [s.borderTopWidth, s.borderTopColor]; }")
    chosen = viewer.page.locator(".image-entry[aria-pressed=true]")
    assert border == ["2px", chosen.evaluate("b => getComputedStyle(b).borderTopColor")]
    assert chosen.inner_text().split()[0] == view
    assert f"This image: {view}" in viewer.page.locator("#downloads").inner_text()
    return view


@pytest.mark.parametrize("way", ["click", "drag", "right drag", "wheel"])
def test_a_view_touched_with_the_mouse_is_the_one_acted_on(way: str, server: Any, view_of: Callable[..., Any]) -> None:
    """Also where the focus is in its pane already, and another view was chosen by key since."""
    viewer = view_of().open(server.url)
    mouse = viewer.page.mouse
    viewer.pane("LCC").focus()
    viewer.press("p")
    assert active(viewer) == "LMLO"
    box = viewer.pane("LCC").bounding_box()
    mouse.move(box["x"] + box["width"] - 60, box["y"] + box["height"] - 60)
    if way == "wheel":
        mouse.wheel(0, -100)
    else:
        button = "right" if way == "right drag" else "left"
        mouse.down(button=button)
        if way != "click":
            mouse.move(box["x"] + box["width"] - 90, box["y"] + box["height"] - 90, steps=3)
        mouse.up(button=button)
    viewer.settle()
    assert active(viewer) == "LCC"
    before = {view: viewer.shot(viewer.pane(view)).astype(int) for view in ("LCC", "LMLO")}
    viewer.press("i")
    turned = {view: np.abs(viewer.shot(viewer.pane(view)) - shot).mean() > 20 for view, shot in before.items()}
    assert turned == {"LCC": True, "LMLO": False}


def test_counts_of_single_scales_are_those_of_the_active_view(server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.page.locator("#show-scales").check()
    viewer.page.wait_for_selector("#show-scale-4", timeout=60_000)
    viewer.settle()
    viewer.threshold(0.2)
    ids, seen = image_ids(server), set()
    for view in VIEWS:
        viewer.page.mouse.move(2, 2)
        viewer.pane(view).click(position={"x": 20, "y": 120})
        viewer.settle()
        layers = httpx.get(f"{server.url}api/v1/images/{ids[view]}/layers", trust_env=False, timeout=60).json()
        expected = [
            f"{scale['size'][1]} × {scale['size'][0]}: "
            f"{sum(d['score'] >= 0.2 for d in scale['detections'])} of {len(scale['detections'])}"
            for scale in layers["scales"]
        ]
        said = viewer.page.locator(".layers").inner_text()
        assert [line.strip() for line in said.splitlines() if re.match(r"\s*\d+ × \d+:", line)] == expected
        assert f"{view}: boxes that score 0.20 or more" in said
        assert "width × height, pixels" in said
        seen.add(tuple(expected))
    assert len(seen) > 1


def test_all_counts_of_lesions_follow_the_threshold(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    """In the list of studies, over the images, and over the list of lesions."""
    viewer = view_of(size=(1280, 800)).open(server.url)
    found = scores(exam)
    every = sorted(score for of_view in found.values() for score in of_view)
    for threshold in (0.0, round((every[0] + every[-1]) / 2, 2), 1.0):
        viewer.threshold(threshold)
        for view, of_view in found.items():
            shown, all_ = sum(score >= threshold for score in of_view), len(of_view)
            words = f"{shown} of {all_} lesion" if shown < all_ else f"{all_} lesion"
            entry = viewer.page.locator(".image-entry", has_text=view).inner_text()
            assert re.search(rf"\b{words}s?$", entry.strip()), entry
            pane = viewer.pane(view)
            assert pane.locator(".found").inner_text().startswith(words)
            title, badge = (pane.locator(f".{name}").bounding_box() for name in ("title", "found"))
            assert title["x"] + title["width"] <= badge["x"], "the badge covers the view's name"
        shown = sum(score >= threshold for score in every)
        heading = viewer.page.locator("#findings h2").inner_text()
        assert heading == f"Lesions ({shown} of {len(every)})" if shown < len(every) else f"Lesions ({shown})"


def test_downloads_hold_all_lesions_and_say_so(exam: Any, server: Any, view_of: Callable[..., Any], tmp_path: Path) -> None:
    viewer = view_of().open(server.url)
    viewer.threshold(1.0)
    assert "All lesions reported, whatever the threshold" in viewer.page.locator("#downloads").inner_text()
    with viewer.page.expect_download() as asked:
        viewer.page.locator(".downloads a", has_text="JSON").click()
    assert "the browser saves it" in viewer.page.locator(".downloads").inner_text()
    asked.value.save_as(tmp_path / "findings.json")
    lesions = json.loads((tmp_path / "findings.json").read_text())["lesions"]
    assert [lesion["score"] for lesion in lesions] == scores(exam)["RCC"]


def test_a_chosen_lesion_without_contours_and_boxes_has_corner_marks_alone(
    exam: Any, server: Any, view_of: Callable[..., Any]
) -> None:
    viewer = view_of().open(server.url)
    viewer.show(labels=False, candidates=False, contours=False)
    viewer.page.locator(".row.lesion").last.click()
    viewer.page.mouse.move(2, 2)
    viewer.settle()
    pane = viewer.pane("LMLO")
    over = viewer.shot(pane).astype(int)
    viewer.show(overlays=False)
    drawn = np.abs(over - viewer.shot(pane)).max(axis=2) > 30
    assert 20 < drawn.sum() < 400
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    height, width = rows[-1] - rows[0], columns[-1] - columns[0]
    middle = drawn[rows[0] + height // 3 : rows[0] + 2 * height // 3, columns[0] : columns[0] + width]
    assert not middle.any(), "its sides are drawn"


def test_the_score_of_a_candidate_is_read_by_pointing_at_it(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.threshold(0.05)
    document = json.loads((exam.folder("LCC") / "findings.json").read_text())
    others = [c for c in document["candidates"][len(document["lesions"]) :] if c["score"] >= 0.05]
    assert others

    def area(box: list[float]) -> float:
        return (box[2] - box[0]) * (box[3] - box[1])

    smallest = min(others, key=lambda c: area(c["box_xyxy"]))
    pane = viewer.pane("LCC")
    x, y = viewer.project(pane, np.array(smallest["box_xyxy"]).reshape(2, 2)).mean(axis=0)
    box = pane.bounding_box()
    before = viewer.shot(pane).astype(int)
    viewer.page.mouse.move(box["x"] + x, box["y"] + y)
    viewer.settle()
    assert f"candidate, score {smallest['score']:.2f}" in viewer.page.locator("#readout").inner_text()
    assert (np.abs(viewer.shot(pane) - before).max(axis=2) > 30).sum() > 20
    viewer.page.mouse.move(2, 2)
    viewer.settle()
    assert np.array_equal(viewer.shot(pane), before)


def test_nothing_moves_under_the_hand(server: Any, view_of: Callable[..., Any]) -> None:
    """Neither the threshold nor a computation that begins moves what can be clicked; a number and a reset beside the slider."""
    viewer = view_of(size=(1280, 800)).open(server.url)

    def places() -> list[float]:
        names = ("#threshold", "#show-overlays", "#window-center", "#show-mask", "#show-scales")
        return [viewer.page.locator(name).bounding_box()["y"] for name in names]

    before = places()
    number = viewer.page.get_by_label("Score at least, as a number")
    default = viewer.page.get_by_role("button", name="Default")
    at_first = number.input_value()
    assert default.inner_text() == f"Default {at_first}"
    assert default.is_disabled()
    for threshold in ("0.05", "1"):
        number.fill(threshold)
        viewer.settle()
        assert float(viewer.page.locator("#threshold").input_value()) == float(threshold)
        assert places() == before
    default.click()
    assert number.input_value() == at_first
    held: list[Any] = []
    viewer.page.route("**/layers", lambda route: held.append(route))
    viewer.page.locator("#show-scales").scroll_into_view_if_needed()
    before = places()
    viewer.page.locator("#show-mask").check()
    viewer.page.wait_for_selector("text=Computing the detections again")
    assert places()[3:] == before[3:]
    for route in held:
        route.continue_()
    viewer.page.wait_for_selector("text=White rim", timeout=60_000)
    viewer.settle()
    assert places()[3] == before[3]


def test_switches_that_do_nothing_are_grey_and_say_why(
    exam: Any, serve: Callable[..., Any], view_of: Callable[..., Any]
) -> None:
    viewer = view_of().open(serve(exam.inputs, exam.results).url)
    truth = viewer.page.locator("label", has_text="Truth")
    assert "none for this study" in truth.inner_text()
    assert "--truth" in truth.get_attribute("title")
    viewer.show(overlays=False)
    for name in ("contours", "boxes", "candidates", "labels", "mask", "scales"):
        assert viewer.page.locator(f"#show-{name}").is_disabled()
        assert viewer.page.locator(f"label.off[for=show-{name}]").count() == 1
    viewer.show(overlays=True)
    assert viewer.page.locator("#show-contours").is_enabled()


def test_findings_without_their_images_say_what_to_do(
    exam: Any, serve: Callable[..., Any], view_of: Callable[..., Any]
) -> None:
    """Over each pane and once in the terminal; nothing is asked for that is not there."""
    server = serve(exam.results)
    viewer = view_of()
    asked: list[str] = []
    viewer.page.on("request", lambda request: asked.append(request.url))
    viewer.page.goto(server.url)
    viewer.page.wait_for_selector(".row.lesion")
    viewer.settle()
    for view in VIEWS:
        assert "mammoseg serve IMAGES RESULTS" in viewer.pane(view).locator(".notice").inner_text()
    viewer.page.locator(".row.lesion").first.click()
    viewer.press("m", "Enter", "f", "0")
    assert not [url for url in asked if "/pixels" in url or "/layers" in url]
    said = server.process.stderr.readline()
    assert "findings without their image files: 4" in said
    assert "mammoseg serve IMAGES RESULTS" in said
    assert "phantom" not in said
