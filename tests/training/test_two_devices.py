"""One batch, one input size, one loss, however many devices share it: two CPU processes give the curve of one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.detection.cache import cached_images
from mammoseg.detection.losses import LossConfig
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.detection.training import DetectionTask, SamplingConfig
from mammoseg.experiments.train_segmenter import SegmenterTask, SegmenterTrainConfig
from mammoseg.preprocessing.augmentation import AugmentationConfig
from mammoseg.preprocessing.crops import CropConfig
from mammoseg.preprocessing.resize import FrameConfig, frame_transform
from mammoseg.segmentation.losses import SegmentationLossConfig
from mammoseg.segmentation.regions import load_regions
from mammoseg.training.batches import share_of
from mammoseg.training.curve import read_curve
from mammoseg.training.loop import LoopConfig, fit

SIZES = ((96, 64), (128, 64), (128, 96), (64, 64))
LOOP = LoopConfig(
    steps=10, batch_size=4, optimizer="sgd", learning_rate=2e-2, warmup_steps=0, schedule="constant", log_every=1, threads=1,
    ema_decay=0.0, accelerator="cpu", checkpoint_every=0, precision="32-true",
)  # fmt: skip
KINDS = ("dense", "published", "segmenter")


class NoNorm(nn.Module):
    """Three maps of strides 8, 16, 32, or one of full size; no batch normalisation, whose statistics are a device's own."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, 8) if maps == 3 else nn.Conv2d(3, 8, 3, 1, 1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 2, 2) for _ in range(maps - 1))
        self.out = nn.ModuleList(nn.Conv2d(8, 18 if maps == 3 else 1, 1) for _ in range(maps))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [torch.relu(self.first(x))]
        for down in self.down:
            features.append(torch.relu(down(features[-1])))
        return [out(f) for out, f in zip(self.out, features, strict=True)]


def make_task(kind: str, data: Path, cache: Path) -> DetectionTask | SegmenterTask:
    torch.manual_seed(0)
    items = read_dataset(f"phantom:{data}")
    if kind == "segmenter":
        crop = CropConfig(size=32)
        config = SegmenterTrainConfig(crop=crop, loss=SegmentationLossConfig(bce_weight=1.0), training=LOOP)
        return SegmenterTask(NoNorm(1), config, load_regions(items, crop, config.jitter))
    frame = FrameConfig("full", "keep", "percentile")
    images = cached_images(items, cache, frame, 160)
    anchors = tuple((float(s), float(s)) for s in (6, 8, 10, 13, 16, 20, 26, 34, 44))
    spec = DetectorSpec(anchors=anchors, frame=frame, scales=((128, 96),), xy_scale=2.0)
    loss = LossConfig(kind)  # type: ignore[arg-type]
    sampling = SamplingConfig(SIZES, LOOP.batch_size, resize_every=2)
    return DetectionTask(NoNorm(3), images, (), spec, loss, sampling, AugmentationConfig())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "phantoms"
    write_exams(out, 3, seed=4, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.4))
    return out


def test_the_input_size_changes_with_the_global_batch_and_every_size_comes(data: Path, tmp_path: Path) -> None:
    task = make_task("dense", data, tmp_path)
    assert isinstance(task, DetectionTask)
    sizes = [task.size_of(step, seed=0) for step in range(80)]
    assert all(len(set(sizes[i : i + 2])) == 1 for i in range(0, 80, 2))  # held for `resize_every` batches
    assert set(sizes) == set(SIZES)
    assert sum(a != b for a, b in zip(sizes[1::2], sizes[2::2])) > 20  # and drawn anew after them
    assert sizes != [task.size_of(step, seed=1) for step in range(80)]
    for step in range(6):
        whole = task.batch(step, share_of(0, 1, 4), 0)
        parts = [task.batch(step, share_of(rank, 2, 4), 0) for rank in range(2)]
        assert tuple(whole["images"].shape[2:]) == sizes[step]
        assert torch.equal(torch.cat([p["images"] for p in parts]), whole["images"])
        assert torch.equal(torch.cat([p["boxes"] for p in parts]), whole["boxes"])
        owners = torch.cat([p["image"] + 2 * rank for rank, p in enumerate(parts)])
        assert torch.equal(owners, whole["image"])


def test_transplanted_masses_come_with_their_boxes_and_move_no_other_draw(data: Path, tmp_path: Path) -> None:
    task = make_task("dense", data, tmp_path)
    assert isinstance(task, DetectionTask)
    bare, size, more = AugmentationConfig(noise=0.0), (160, 128), 0
    for place, cached in enumerate(task.train * 4):
        views = []
        for config in (bare, replace(bare, transplant=1.0)):
            task.augmentation = config
            views.append(task.view(cached, size, np.random.default_rng(place)))
        (image, boxes, _), (other, with_graft, _) = views
        np.testing.assert_array_equal(with_graft[: len(boxes)], boxes)
        more += len(with_graft) - len(boxes)
        assert (len(with_graft) > len(boxes)) == bool((np.abs(image - other) > 0.02).any())
        for x1, y1, x2, y2 in with_graft[len(boxes) :].astype(int):
            assert (np.abs(image - other)[y1:y2, x1:x2] > 0.02).mean() > 0.2
    assert more > len(task.train)  # of four views each


def test_a_zoom_shows_an_image_smaller_about_the_middle_of_its_frame(data: Path, tmp_path: Path) -> None:
    task = make_task("dense", data, tmp_path)
    assert isinstance(task, DetectionTask)
    size, middle = (160, 128), np.array([64, 80, 64, 80])
    for cached in task.train[:4]:
        image, boxes, _ = task.view(cached, size, None)
        small, small_boxes, _ = task.view(replace(cached, zoom=0.5), size, None)
        assert len(boxes) == len(small_boxes)
        np.testing.assert_allclose(small_boxes, (boxes - middle) / 2 + middle)
        half = cv2.resize(image, (64, 80), interpolation=cv2.INTER_AREA)
        assert np.abs(small[40:120, 32:96] - half).mean() < 0.01
        task.augmentation = AugmentationConfig(flip_horizontal=1.0, flip_vertical=0.0, scale=1.0, aspect=1.0, shift=0.0)
        _, drawn, _ = task.view(replace(cached, zoom=0.5), size, np.random.default_rng(0))
        np.testing.assert_allclose(drawn, (size[1], 0, size[1], 0) + small_boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1))
    assert sum(len(cached.boxes) for cached in task.train[:4])


def test_other_regions_are_ignored_where_they_lie(data: Path, tmp_path: Path) -> None:
    task = make_task("dense", data, tmp_path)
    assert isinstance(task, DetectionTask)
    item = read_dataset(f"phantom:{data}")[0]
    height, width = item.annotation.size
    marked = replace(
        item, attributes=item.attributes | {"other_regions": [(width * 0.25, height * 0.25, width * 0.75, height * 0.5)]}
    )
    (cached,) = cached_images([marked], tmp_path, task.spec.frame, 160)
    frame = task.view(cached, (160, 128), None)
    whole = frame_transform(np.asarray(cached.measured.box), (160, 128), "keep")
    np.testing.assert_allclose(frame[2], whole.boxes(cached.ignored))
    np.testing.assert_allclose(cached.ignored[0, [1, 3]], [40, 80], atol=0.5)
    task.train = [cached]
    batch = task.batch(0, range(2), 0)
    assert len(batch["ignored"]) == len(batch["ignored_image"]) >= 1


def test_two_devices_give_the_curve_and_the_weights_of_one(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"""
import os, sys
from dataclasses import replace
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from mammoseg.errors import TrainingError
from test_two_devices import KINDS, LOOP, fit, make_task
for kind in KINDS:
    out = Path({str(tmp_path)!r}) / f"two-{{kind}}"
    task = make_task(kind, Path({str(data)!r}), Path({str(tmp_path / "cache")!r}))
    result = fit(task, replace(LOOP, devices=2), out, resume=False)
    if result.is_main:
        torch.save(result.state, out / "state.pt")

class BadOnTheSecond(type(task)):
    def loss(self, model, batch):
        parts = super().loss(model, batch)
        return parts | {{"loss": parts["loss"] * (float("nan") if os.environ["LOCAL_RANK"] == "1" else 1.0)}}

task.__class__ = BadOnTheSecond
try:
    fit(task, replace(LOOP, devices=2), Path({str(tmp_path)!r}) / "bad", resume=False)
except TrainingError as error:
    print(os.environ["LOCAL_RANK"], error)
""")
    make_task("dense", data, tmp_path / "cache")  # the cache is there before two processes want it
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 the loss is not finite at step 0 (loss=nan" in done.stdout  # the first stops for the second's loss
    for kind in KINDS:
        task = make_task(kind, data, tmp_path / "cache")
        if isinstance(task, DetectionTask):
            positives = [[len(task.batch(s, share_of(r, 2, 4), 0)["boxes"]) for r in range(2)] for s in range(LOOP.steps)]
            assert any(a != b for a, b in positives)  # else a wrong normalisation would not show
        one = fit(task, LOOP, tmp_path / f"one-{kind}", resume=False)
        curves = [read_curve(tmp_path / f"{n}-{kind}" / "curve.csv") for n in ("one", "two")]
        assert [row[:3] for row in curves[0]] == [row[:3] for row in curves[1]]
        np.testing.assert_allclose([r[3] for r in curves[1]], [r[3] for r in curves[0]], rtol=1e-4, atol=1e-6)
        losses = [r[3] for r in curves[0] if r[2] == "loss"]
        assert losses[-1] < 0.9 * losses[0]  # something was learnt
        two = torch.load(tmp_path / f"two-{kind}" / "state.pt", weights_only=True)
        for key, value in one.state.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
