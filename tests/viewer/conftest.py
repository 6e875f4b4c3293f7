"""A real browser on a real server over phantoms that `mammoseg segment` has worked on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
SIZE = (4084, 3328)  # of the largest mammograms in common use
SEED = 3  # of an exam with a mass in every view
ORDER = ("RCC", "LCC", "RMLO", "LMLO")
# The two messages a browser writes by itself about graphics; everything else on the console is a fault.
HARMLESS = re.compile(r"GL Driver Message|GPU stall due to ReadPixels")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Exam:
    """inputs: folder of the four views. results: what `mammoseg segment` wrote. phantoms: with annotations.json."""

    phantoms: Path
    results: Path

    @property
    def inputs(self) -> Path:
        return self.phantoms / "images"

    def file(self, view: str) -> Path:
        return next(self.inputs.glob(f"*_{view}.dcm"))

    def folder(self, view: str) -> Path:
        return next(p for p in self.results.iterdir() if p.is_dir() and p.name.endswith(f"_{view}"))


def mammoseg(*arguments: str | Path, ok: tuple[int, ...] = (0,)) -> None:
    """Runs the command line as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "mammoseg.apps.cli", *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode in ok, done.stderr


@pytest.fixture(scope="session")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Exam:
    """Four phantoms of 3328 x 4084 pixels, segmented with the installed weights as in the paper: all have lesions, and Mₛ."""
    from mammoseg.datasets.phantom import PhantomConfig
    from mammoseg.datasets.phantom_files import write_exams

    root = tmp_path_factory.mktemp("viewer")
    write_exams(root / "phantoms", 1, seed=SEED, config=PhantomConfig(size=SIZE))
    mammoseg("segment", root / "phantoms" / "images", "--out", root / "results", "--workers", "0", "--fusion", "msf")
    return Exam(root / "phantoms", root / "results")


@dataclass
class Server:
    """A running `mammoseg serve`."""

    process: subprocess.Popen[str]
    url: str


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends them."""
    running: list[Server] = []

    def start(*arguments: str | Path) -> Server:
        state = tmp_path_factory.mktemp("state")
        command = [
            sys.executable,
            "-m",
            "mammoseg.apps.cli",
            "serve",
            *map(str, arguments),
            "--port",
            "0",
            "--state",
            str(state),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found, said
        running.append(Server(process, found[0]))
        return running[-1]

    yield start
    for server in running:
        server.process.terminate()
        server.process.wait(timeout=20)


@pytest.fixture(scope="session")
def server(exam: Exam, serve: Callable[..., Server]) -> Server:
    """The exam with its findings and its truth."""
    return serve(exam.inputs, exam.results, "--truth", f"phantom:{exam.phantoms}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Callable[..., Any]]:
    """Starts Chromium with further switches; each set of switches once."""
    sync_api = pytest.importorskip("playwright.sync_api")
    assert Path(CHROMIUM).exists(), "these tests need Debian's package chromium"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    started: dict[tuple[str, ...], Any] = {}
    with sync_api.sync_playwright() as playwright:

        def start(*switches: str) -> Any:
            if switches not in started:
                started[switches] = playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, *switches])
            return started[switches]

        yield start
        for browser in started.values():
            browser.close()


@dataclass
class Viewer:
    """A page with the viewer in it. said: faults on the console."""

    page: Any
    ratio: float = 1.0
    said: list[str] = field(default_factory=list)
    asking: int = 0

    def __post_init__(self) -> None:
        self.page.on("request", lambda _: self._ask(1))
        self.page.on("requestfinished", lambda _: self._ask(-1))
        self.page.on("requestfailed", lambda _: self._ask(-1))
        self.page.on("console", lambda m: self._hear(m.type, m.text))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def _ask(self, by: int) -> None:
        self.asking += by

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not HARMLESS.search(text):
            self.said.append(f"{kind}: {text}")

    def open(self, url: str, panes: int = 4) -> Viewer:
        """Opens the viewer and waits until `panes` images are drawn."""
        self.page.goto(url)
        self.wait_drawn(panes)
        self.page.wait_for_selector(".row.lesion, .images-without li")
        return self.settle()

    def wait_drawn(self, panes: int) -> None:
        drawn = self.page.locator(".pane[data-view]:visible")
        for _ in range(600):
            if drawn.count() >= panes:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{drawn.count()} images are drawn, expected {panes}")

    def settle(self) -> Viewer:
        """Waits until no answer is awaited, the finest level needed is drawn, and everything is on the screen."""
        before = None
        for _ in range(400):
            self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            now = self.page.evaluate("[...document.querySelectorAll('.pane')].map(p => [p.dataset.view, p.dataset.level])")
            if now == before and self.asking == 0:
                return self
            before = now
            self.page.wait_for_timeout(20)
        raise AssertionError(f"the screen does not come to rest; {self.asking} answers awaited")

    def pane(self, view: str) -> Any:
        """The pane that shows a view (the one with overlays, where there are two)."""
        return self.page.locator(f'.pane:visible[aria-label^="{view}:"]').last

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def shot(self, pane: Any) -> Image:
        """What is on the screen in a pane, BGR, device pixels; the pane begins at a whole pixel."""
        found = cv2.imdecode(np.frombuffer(self.page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
        box = {k: v * self.ratio for k, v in pane.bounding_box().items()}
        left, top, right, bottom = box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]
        assert found is not None
        assert all(v == round(v) for v in (left, top, right, bottom)), box
        return found[round(top) : round(bottom), round(left) : round(right)].astype(np.uint8)

    def threshold(self, value: float) -> None:
        """Moves the slider."""
        self.page.locator("#threshold").fill(str(value))
        self.settle()

    def show(self, **switches: bool) -> None:
        """Sets overlay switches by their boxes."""
        for name, on in switches.items():
            self.page.locator(f"#show-{name}").set_checked(on)
        self.settle()

    def project(self, pane: Any, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Native points [N, 2] on the pane's screenshot, by the test's own arithmetic from what the pane says of itself."""
        scale, x, y, mirrored = (float(v) for v in pane.get_attribute("data-view").split())
        width, height = pane.evaluate("p => [p.clientWidth, p.clientHeight]")
        sign = -1.0 if mirrored else 1.0
        centred = (np.asarray(points, dtype=np.float64) - [x, y]) * [sign * scale, scale]
        return (centred + np.array([width / 2, height / 2])) * self.ratio


@pytest.fixture
def view_of(chromium: Callable[..., Any]) -> Iterator[Callable[..., Viewer]]:
    """Pages with the viewer; at their end nothing may have been wrong on the console."""
    pages: list[tuple[Any, Viewer]] = []

    def make(*switches: str, ratio: float = 1.0, size: tuple[int, int] = (1440, 900)) -> Viewer:
        viewport = {"width": size[0], "height": size[1]}
        context = chromium(*switches).new_context(viewport=viewport, device_scale_factor=ratio)
        pages.append((context, Viewer(context.new_page(), ratio)))
        return pages[-1][1]

    yield make
    for context, viewer in pages:
        context.close()
        assert viewer.said == []
