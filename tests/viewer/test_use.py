"""The viewer as it is used: threshold, list, window, layers, keys, side by side, uploads, what could not be analysed."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams

pytestmark = pytest.mark.system

VIEWS = ("RCC", "LCC", "RMLO", "LMLO")
UNTIL_ANALYSED_MS = 120_000
SMALL_SEED = 3


def findings(exam: Any) -> dict[str, Any]:
    return {view: json.loads((exam.folder(view) / "findings.json").read_text()) for view in VIEWS}


def rows(viewer: Any) -> list[str]:
    return [" ".join(text.split()) for text in viewer.page.locator(".row.lesion").all_inner_texts()]


def drawn(viewer: Any, view: str) -> int:
    """How many pixels of a pane the overlays change."""
    pane = viewer.pane(view)
    viewer.show(overlays=True)
    over = viewer.shot(pane).astype(int)
    viewer.show(overlays=False)
    changed = int((np.abs(over - viewer.shot(pane)).max(axis=2) > 30).sum())
    viewer.show(overlays=True)
    return changed


def middle(viewer: Any, view: str) -> float:
    """Mean grey of a part of a pane that is all image, without overlays."""
    viewer.show(overlays=False)
    shot = viewer.shot(viewer.pane(view))
    viewer.show(overlays=True)
    h, w = shot.shape[:2]
    return float(shot[h // 4 : 3 * h // 4, w // 2 - 40 : w // 2 + 40].mean())


def test_the_list_says_view_score_and_size_and_leads_there(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    """Every lesion of findings.json with its size in mm; a click puts it in the middle of its pane, marked."""
    viewer = view_of().open(server.url)
    expected = [
        f"{view} {lesion['id']} {lesion['score']:.2f} {lesion['long_axis_mm']:.1f} × {lesion['short_axis_mm']:.1f} mm"
        for view, document in findings(exam).items()
        for lesion in document["lesions"]
    ]
    assert expected
    assert rows(viewer) == expected
    assert "Size: long × short" in viewer.page.locator(".row.head").inner_text()
    row = viewer.page.locator(".row.lesion").last
    row.click()
    viewer.settle()
    assert row.get_attribute("aria-pressed") == "true"
    last = findings(exam)["LMLO"]["lesions"][-1]["box_xyxy"]
    corners = viewer.project(viewer.pane("LMLO"), np.array(last).reshape(2, 2))
    height, width = viewer.shot(viewer.pane("LMLO")).shape[:2]
    assert np.allclose(corners.mean(axis=0), [width / 2, height / 2], atol=1)
    assert np.isclose((np.ptp(corners, axis=0) / [width, height]).max(), 0.35, atol=0.01)


def test_the_threshold_moves_lesions_and_candidates(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.show(labels=False)
    documents = findings(exam)
    scores = sorted(lesion["score"] for d in documents.values() for lesion in d["lesions"])
    before = drawn(viewer, "RCC")
    assert before > 100
    for threshold in (0.0, round((scores[0] + scores[-1]) / 2, 2), 1.0):
        viewer.threshold(threshold)
        assert len(rows(viewer)) == sum(score >= threshold for score in scores)
        said = viewer.page.locator("#findings").inner_text()
        other = sum(c["score"] >= threshold for d in documents.values() for c in d["candidates"]) - sum(
            s >= threshold for s in scores
        )
        assert (f"{other} other candidate" in said) == (other > 0), said
    if scores[-1] < 1:
        assert drawn(viewer, "RCC") == 0
    assert "no lesion above the threshold" in viewer.page.locator("#findings").inner_text()
    assert "no lesion found" not in viewer.page.locator("#stage").inner_text()
    viewer.threshold(0.05)
    assert drawn(viewer, "RCC") > before  # candidates came
    viewer.show(candidates=False)
    assert abs(drawn(viewer, "RCC") - before) < 0.2 * before


def test_overlays_switch_and_fade(server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.show(labels=False, candidates=False)
    pane = viewer.pane("RCC")
    contours = drawn(viewer, "RCC")
    viewer.show(boxes=True)
    assert drawn(viewer, "RCC") > contours
    viewer.show(contours=False, boxes=False)
    assert drawn(viewer, "RCC") == 0
    viewer.show(contours=True, overlays=False)
    bare = viewer.shot(pane).astype(int)
    viewer.show(overlays=True)
    strength = {}
    for opacity in (1.0, 0.3):
        viewer.page.locator("#opacity").fill(str(opacity))
        viewer.settle()
        strength[opacity] = np.abs(viewer.shot(pane).astype(int) - bare).sum()
    assert 0.2 < strength[0.3] / strength[1.0] < 0.4


def test_window_and_invert(server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.pane("RCC").focus()
    first, other = middle(viewer, "RCC"), middle(viewer, "LCC")
    viewer.press("i")
    assert abs(middle(viewer, "RCC") - (255 - first)) < 3
    viewer.press("i")
    assert middle(viewer, "RCC") == first
    viewer.press(".", ".", ".")
    assert middle(viewer, "RCC") > first + 3
    viewer.press("r")
    assert middle(viewer, "RCC") == first
    box = viewer.pane("RCC").bounding_box()
    viewer.page.mouse.move(box["x"] + 200, box["y"] + 200)
    viewer.page.mouse.down(button="right")
    viewer.page.mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
    viewer.page.mouse.up(button="right")
    viewer.settle()
    assert middle(viewer, "RCC") > first + 3
    viewer.page.locator("#window-center").fill("1000")
    viewer.page.locator("#window-width").fill("500")
    viewer.page.keyboard.press("Tab")
    viewer.settle()
    shot = viewer.shot(viewer.pane("RCC"))
    assert ((shot == 0) | (shot == 255)).mean() > 0.7  # much is beyond so narrow a window
    assert middle(viewer, "LCC") == other  # each image has its own


def test_layers_show_how_it_was_found(exam: Any, server: Any, view_of: Callable[..., Any]) -> None:
    """Boxes of the single scales, and M_s over them; its rim holds what MSF made a box of."""
    viewer = view_of().open(server.url)
    viewer.show(contours=False, labels=False, candidates=False)
    assert drawn(viewer, "RCC") == 0
    viewer.page.locator("#show-scales").check()
    viewer.page.wait_for_selector("#show-scale-4", timeout=60_000)
    viewer.settle()
    boxes = drawn(viewer, "RCC")
    assert boxes > 100
    for k in range(5):
        viewer.page.locator(f"#show-scale-{k}").uncheck()
    assert drawn(viewer, "RCC") == 0
    viewer.page.locator("#show-mask").check()
    viewer.settle()
    assert "0.6" in viewer.page.locator(".layers").inner_text()
    pane = viewer.pane("RCC")
    masked = viewer.shot(pane).astype(int)
    viewer.show(overlays=False)
    colour = np.abs(masked - viewer.shot(pane)).max(axis=2) > 10  # faint, so that tissue and contours stay visible
    x1, y1, x2, y2 = viewer.project(pane, np.array(findings(exam)["RCC"]["lesions"][0]["box_xyxy"]).reshape(2, 2)).ravel()
    assert colour[round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2].mean() > 0.95
    assert colour.mean() < 0.2


def test_keys(server: Any, view_of: Callable[..., Any]) -> None:
    """Views, lesions and help by the keyboard alone; what is typed into a field is no command."""
    viewer = view_of().open(server.url)
    panes = viewer.page.locator(".pane:visible")
    stage = viewer.page.locator("#stage")
    viewer.press("4")
    assert (stage.get_attribute("data-layout"), panes.count()) == ("one", 1)
    assert panes.get_attribute("aria-label").startswith("LMLO")
    viewer.press("0", "n")
    assert panes.count() == 4
    chosen = viewer.page.locator(".row.lesion[aria-pressed=true]")
    assert chosen.inner_text().split()[0] == "RCC"
    viewer.press("p")
    assert chosen.inner_text().split()[0] == "LMLO"
    view = viewer.pane("LMLO").get_attribute("data-view")
    viewer.press("+", "ArrowLeft")
    assert viewer.pane("LMLO").get_attribute("data-view") != view
    viewer.press("f")
    fitted = viewer.pane("LMLO").get_attribute("data-view").split()
    assert abs(float(fitted[0]) * 4084 - viewer.pane("LMLO").bounding_box()["height"]) < 1e-6
    viewer.press("?")
    sheet = viewer.page.locator("dialog#help")
    assert sheet.is_visible()
    assert all(word in sheet.inner_text() for word in ("Invert", "Fusion mask", "Next lesion", "Side by side: without | with"))
    viewer.press("Escape")
    assert not sheet.is_visible()
    viewer.page.locator("#window-width").focus()
    viewer.page.keyboard.type("4")
    assert stage.get_attribute("data-layout") == "four"


def test_without_and_with_side_by_side(server: Any, view_of: Callable[..., Any]) -> None:
    viewer = view_of().open(server.url)
    viewer.pane("LMLO").focus()
    viewer.press("s")
    viewer.wait_drawn(2)
    panes = viewer.page.locator(".pane:visible")
    assert panes.count() == 2
    assert all(panes.nth(k).get_attribute("aria-label").startswith("LMLO") for k in (0, 1))
    box = panes.first.bounding_box()
    viewer.page.mouse.move(box["x"] + 100, box["y"] + 100)
    viewer.page.mouse.wheel(0, -400)
    viewer.page.mouse.move(2, 2)
    viewer.settle()
    assert panes.first.get_attribute("data-view") == panes.last.get_attribute("data-view")
    bare, over = (viewer.shot(panes.nth(k)).astype(int) for k in (0, 1))
    width = min(bare.shape[1], over.shape[1])
    differs = np.abs(bare[40:, :width] - over[40:, :width]).max(axis=2) > 30
    assert 0.001 < differs.mean() < 0.2


def test_what_was_not_analysed_is_shown_as_such(tmp_path: Path, serve: Callable[..., Any], view_of: Callable[..., Any]) -> None:
    """Rejected, failed, waiting and nothing found, in words, on the image and in the list; no image of another study stays."""
    write_exams(tmp_path / "phantoms", 1, seed=SMALL_SEED, format="png", config=PhantomConfig(size=(832, 640)))
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "odd_RCC.png"), np.zeros((800, 600), np.uint8))
    (images / "odd_LCC.dcm").write_text("this is no image")
    for view in ("RMLO", "LMLO"):
        source = next((tmp_path / "phantoms" / "images").glob(f"*_{view}.png"))
        (images / f"odd_{view}.png").write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "mammoseg.apps.cli", "segment", *map(str, sorted(images.iterdir())), "--workers", "0"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "results"), "--min-score", "0.999"], capture_output=True, timeout=300
    )
    assert done.returncode == 3
    (images / "odd_RCC_2.png").write_bytes((images / "odd_RMLO.png").read_bytes()[:-1] + b"\0")  # waits, and is another file
    viewer = view_of().open(serve(images, tmp_path / "results").url, panes=3)
    said = {view: viewer.pane(view).inner_text() for view in VIEWS}
    assert "Not analysed: rejected" in said["RCC"]
    assert "blank image" in said["RCC"]
    assert "Not analysed: failed" in said["LCC"]
    assert "got text" in said["LCC"]
    assert all("no lesion found" in said[view] and "Not analysed" not in said[view] for view in ("RMLO", "LMLO"))
    listed = viewer.page.locator(".images-without").inner_text()
    assert "RCC: not analysed, rejected." in listed
    assert "LCC: not analysed, failed." in listed
    assert "RMLO: analysed, no lesion found" in listed
    browser = viewer.page.locator("#studies").inner_text()
    assert all(word in browser for word in ("rejected", "failed", "none found", "1 waiting"))


def test_dropped_files_are_uploaded_and_analysed(
    tmp_path: Path, exam: Any, serve: Callable[..., Any], view_of: Callable[..., Any]
) -> None:
    """Dropping a file: it appears, its analysis is followed, and its findings come by themselves."""
    write_exams(tmp_path, 1, seed=SMALL_SEED, format="png", config=PhantomConfig(size=(832, 640)))
    data = base64.b64encode(next((tmp_path / "images").glob("*_RMLO.png")).read_bytes()).decode()
    viewer = view_of()
    viewer.page.goto(serve().url)
    viewer.page.wait_for_selector("#studies >> text=Drop mammograms")
    assert "Research use only" in viewer.page.locator("footer").inner_text()
    viewer.page.evaluate(
        """([name, data]) => {
             const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
             const moved = new DataTransfer();
             moved.items.add(new File([bytes], name, { type: 'image/png' }));
             for (const kind of ['dragover', 'drop'])
               document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
           }""",
        ["new_RMLO.png", data],
    )
    viewer.page.wait_for_selector(".job progress", timeout=30_000)
    viewer.page.wait_for_selector(".image-entry.processed", timeout=UNTIL_ANALYSED_MS)
    viewer.wait_drawn(1)
    viewer.settle()
    assert "1 of 1 taken" in viewer.page.locator("#sources").inner_text()
    assert "not analysed" not in viewer.page.locator("#stage").inner_text()
    assert viewer.page.locator(".row.lesion, .images-without li").count() >= 1


def test_everything_has_a_name_and_enough_contrast(server: Any, view_of: Callable[..., Any]) -> None:
    """Inputs and buttons are labelled, focus is visible, text stands out by 4.5 to 1 or more, at 1280 pixels nothing is cut."""
    viewer = view_of(size=(1280, 720)).open(server.url)
    names = viewer.page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, a')].filter(e => e.offsetParent !== null)
             .map(e => (e.labels?.[0]?.innerText ?? '') + (e.innerText ?? '') + (e.ariaLabel ?? ''))"""
    )
    assert len(names) > 25
    assert all(name.strip() for name in names)
    contrasts = viewer.page.evaluate(
        """() => {
             const light = text => {
               const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                 .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
               return 0.2126 * r + 0.7152 * g + 0.0722 * b;
             };
             const ground = e => {
               const c = getComputedStyle(e).backgroundColor;
               return c.startsWith('rgba') && c.endsWith(' 0)') && e.parentElement ? ground(e.parentElement) : c;
             };
             return [...document.querySelectorAll('header *, aside *, footer *, #readout')]
               .filter(e => e.offsetParent && !e.closest('.off'))
               .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
               .map(e => {
                 const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
                 return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 30)];
               });
           }"""
    )
    assert len(contrasts) > 30
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    viewer.page.keyboard.press("Tab")
    outline = viewer.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    overflow = viewer.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0

    right = (
        "Math.max(...[...document.querySelectorAll('#tools button, .downloads a')].map(b => b.getBoundingClientRect().right))"
    )
    assert viewer.page.evaluate(right) <= 1280


def test_going_to_another_study_and_back(
    tmp_path: Path, exam: Any, serve: Callable[..., Any], view_of: Callable[..., Any]
) -> None:
    """Each study shows its own images; a place that the other study filled is empty where this one has nothing."""
    write_exams(tmp_path / "png", 1, seed=SMALL_SEED, format="png", config=PhantomConfig(size=(832, 640)))
    folder = tmp_path / "images"
    folder.mkdir()
    for view in VIEWS:
        (folder / f"first_{view}.png").write_bytes(next((tmp_path / "png" / "images").glob(f"*_{view}.png")).read_bytes())
    (folder / "second_LCC.png").write_bytes((folder / "first_LMLO.png").read_bytes())
    viewer = view_of().open(serve(folder).url)
    before = {view: viewer.shot(viewer.pane(view)) for view in VIEWS}
    viewer.page.locator(".study", has_text="second").click()
    viewer.wait_drawn(1)
    viewer.settle()
    panes = viewer.page.locator(".pane:visible")
    empty = [k for k in range(4) if panes.nth(k).get_attribute("aria-label") == "empty"]
    assert len(empty) == 3
    assert all(viewer.shot(panes.nth(k)).max() < 10 for k in empty)
    assert not np.array_equal(viewer.shot(viewer.pane("LCC")), before["LCC"])
    viewer.page.locator(".study", has_text="first").click()
    viewer.wait_drawn(4)
    viewer.settle()
    for view in VIEWS:
        assert np.abs(viewer.shot(viewer.pane(view)).astype(int) - before[view]).mean() < 0.5, view


def test_a_server_that_asks_for_a_token(exam: Any, serve: Callable[..., Any], view_of: Callable[..., Any]) -> None:
    """The address that the server prints opens the viewer; the token does not stay in it."""
    token = "a-token-of-twenty-six-letters"
    server = serve(exam.inputs, exam.results, "--token", token)
    assert token in server.url
    viewer = view_of().open(server.url)
    assert token not in viewer.page.url
    assert len(rows(viewer)) == sum(len(d["lesions"]) for d in findings(exam).values())
