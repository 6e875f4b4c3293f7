"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
os.environ.setdefault("MAMMOSEG_CACHE", "off")  # no test leaves compiled networks in the user's own folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the training data; tests that need it are marked `data`."""
    folder = Path(os.environ.get("MAMMOSEG_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no training data at {folder.name}/data; set MAMMOSEG_SHARED to run this test")
    return folder


TINY_DETECTOR = {"backbone": "efficientnet_lite0", "neck_widths": [8, 16, 16], "neck_pairs": 1, "prior": 0.02}
TINY_SEGMENTER = {"arch": "unetpp", "network": {"widths": [8, 8, 16, 16, 16]}}


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model directories of a random detector, scaled so that it finds a few things, and of a random segmenter."""
    torch = pytest.importorskip("torch")
    from mammoseg.runtime.torch_runtime import build
    from mammoseg.training.checkpoint import save_model

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    detector, segmenter = build("detector", TINY_DETECTOR), build("segmenter", TINY_SEGMENTER)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == 18:
                module.weight.mul_(6.0)
    record = {"image_sha256": ["0" * 64], "patient_sha256": ["1" * 64], "dataset": "none, random weights"}
    spec = {"arch": "yolov3-efficientnet_lite0", "scales": [[128, 64], [192, 96]]}
    save_model(root / "detector", "detector", detector.state_dict(), TINY_DETECTOR, spec, record)
    save_model(root / "segmenter", "segmenter", segmenter.state_dict(), TINY_SEGMENTER, {"crop": {"size": 64}}, record)
    return root / "detector", root / "segmenter"


@pytest.fixture(scope="session")
def tiny_bundle(model_directories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of small random networks, made as real ones are; forced, since int8 costs random masks more than it may."""
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    pipeline = {"fusion": {"score_min": 0.05}}
    make_bundle(
        *model_directories,
        out,
        BundleOptions("tiny", pipeline, metrics={"note": "random weights"}, quantise_from=1024, force=True),
    )
    return out


@pytest.fixture(scope="session")
def small_exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exams of small phantoms as PNG: a folder with eight images."""
    from mammoseg.datasets.phantom import PhantomConfig
    from mammoseg.datasets.phantom_files import write_exams

    out = tmp_path_factory.mktemp("exams") / "png"
    write_exams(out, 2, seed=1, format="png", config=PhantomConfig(size=(416, 320)))
    return out / "images"
