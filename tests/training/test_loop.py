"""The loop: a killed and resumed run equals one left alone, a loss that is not finite is an error, rates keep the schedule."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mammoseg.errors import ConfigError, TrainingError, UsageError
from mammoseg.training.checkpoint import latest_checkpoint
from mammoseg.training.curve import read_curve
from mammoseg.training.curve_plot import plot_curve
from mammoseg.training.identity import admit
from mammoseg.training.loop import LoopConfig, fit, learning_rate
from mammoseg.training.seeding import batch_indices, generator


class TinyTask:
    """A network with batch normalisation and dropout (state beyond weights) learning to answer 1."""

    def __init__(self, stop_at: int | None = None, bad_at: int | None = None) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 1))
        self.stop_at, self.bad_at, self.calls = stop_at, bad_at, 0
        self.validated: list[float] = []

    def batch(self, step: int, places: range, seed: int) -> Tensor:
        items = [generator(seed, step, place).normal(size=(1, 8, 8)) for place in places]
        return torch.from_numpy(np.stack(items).astype("float32"))

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        answer = model(batch)
        loss = (answer - 1).square().mean()
        if self.calls == self.bad_at:
            loss = loss * float("nan")
        return {"loss": loss, "mean": answer.mean()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        return {"one": float(model(torch.ones(1, 1, 8, 8)).mean())}


CONFIG = LoopConfig(steps=23, batch_size=2, log_every=4, checkpoint_every=5, validate_every=6, warmup_steps=3, ema_decay=0.9)


class _BadGradient(torch.autograd.Function):
    """A finite value whose gradient is not."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * float("inf")


def test_a_gradient_that_is_not_finite_leaves_the_last_checkpoint_sound(tmp_path: Path) -> None:
    class BadGradientTask(TinyTask):
        def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
            parts = super().loss(model, batch)
            return parts | {"loss": _BadGradient.apply(parts["loss"])} if self.calls == 13 else parts

    with pytest.raises(TrainingError, match="the gradient is not finite at step 12"):
        fit(BadGradientTask(), CONFIG, tmp_path, resume=False)
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.step == 10
    assert all(torch.isfinite(v).all() for v in kept.model.values() if v.is_floating_point())
    assert fit(TinyTask(), CONFIG, tmp_path, resume=True).steps == CONFIG.steps


def test_a_resumed_run_killed_at_once_keeps_the_curve(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    fit(TinyTask(), CONFIG, whole, resume=False)
    out = tmp_path / "killed"
    for calls in (14, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            fit(TinyTask(stop_at=calls), CONFIG, out, resume=(out / "checkpoints").exists())
        assert read_curve(out / "curve.csv")
    fit(TinyTask(), CONFIG, out, resume=True)
    assert (out / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("killed_at", [1, 5, 14])
def test_killed_and_resumed_run_gives_the_same_curve_and_weights(tmp_path: Path, optimizer: str, killed_at: int) -> None:
    config = LoopConfig(**(CONFIG.__dict__ | {"optimizer": optimizer}))
    whole = fit(TinyTask(), config, tmp_path / "whole", resume=False)
    with pytest.raises(KeyboardInterrupt):
        fit(TinyTask(stop_at=killed_at), config, tmp_path / "killed", resume=False)
    resumed = fit(TinyTask(), config, tmp_path / "killed", resume=True)
    assert (tmp_path / "killed/curve.csv").read_bytes() == (tmp_path / "whole/curve.csv").read_bytes()
    assert all(torch.equal(whole.state[k], resumed.state[k]) for k in whole.state)
    assert whole.history == resumed.history
    assert [s for s, _ in whole.history] == [6, 12, 18, 23]


def test_another_seed_gives_another_curve(tmp_path: Path) -> None:
    fit(TinyTask(), CONFIG, tmp_path / "a", resume=False)
    fit(TinyTask(), LoopConfig(**(CONFIG.__dict__ | {"seed": 1})), tmp_path / "b", resume=False)
    assert (tmp_path / "a/curve.csv").read_bytes() != (tmp_path / "b/curve.csv").read_bytes()


def test_loss_that_is_not_finite_stops_with_step_and_values_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 12 \(loss=nan, mean="):
        fit(TinyTask(bad_at=13), CONFIG, tmp_path, resume=False)
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.step == 10
    assert all(t.isfinite().all() for t in kept.model.values())
    assert fit(TinyTask(), CONFIG, tmp_path, resume=True).steps == 23


def test_run_is_not_written_over(tmp_path: Path) -> None:
    fit(TinyTask(), CONFIG, tmp_path, resume=False)
    with pytest.raises(UsageError, match="--resume"):
        fit(TinyTask(), CONFIG, tmp_path, resume=False)


def test_only_the_same_run_goes_on_and_the_error_names_what_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    identity = {"settings": {"rate": 0.1, "sizes": (1, 2)}, "data": {"fold": "abc"}}
    fit(TinyTask(), CONFIG, tmp_path, resume=False, identity=identity)
    fit(TinyTask(), CONFIG, tmp_path, resume=True, identity=identity)
    other = {"settings": {"rate": 0.2, "sizes": [1, 2]}, "data": {"fold": None}, "start": {}}
    with pytest.raises(UsageError) as caught:
        fit(TinyTask(), CONFIG, tmp_path, resume=True, identity=other)
    text = 'data.fold "abc" there, nothing here; settings.rate 0.1 there, 0.2 here; start nothing there, {} here; give the same'
    assert text in str(caught.value)
    state = max((tmp_path / "checkpoints").iterdir()) / "state.json"
    early = json.loads(state.read_text())
    del early["extra"]["identity"]  # as checkpoints were before they said whose they are
    state.write_text(json.dumps(early))
    fit(TinyTask(), CONFIG, tmp_path, resume=True, identity=other)
    assert "they are not checked" in caplog.text


def test_resume_without_a_run_says_that_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mammoseg.training"):
        admit(tmp_path / "out", {}, resume=False)
        assert not caplog.text
        admit(tmp_path / "out", {}, resume=True)
    assert "no checkpoint to go on from; training starts at the beginning" in caplog.text


def test_averaged_weights_are_the_running_average(tmp_path: Path) -> None:
    class Constant:
        def __init__(self) -> None:
            self.model = nn.Linear(1, 1, bias=False)
            nn.init.zeros_(self.model.weight)

        def batch(self, step: int, places: range, seed: int) -> Tensor:
            return torch.ones(len(places), 1)

        def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": -model(batch).sum()}  # the gradient is -1: SGD adds the rate at every step

        def validate(self, model: nn.Module) -> dict[str, float]:
            return {}

    config = LoopConfig(
        steps=3, batch_size=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, warmup_steps=0,
        schedule="constant", gradient_clip=0.0, ema_decay=0.5,
    )  # fmt: skip
    result = fit(Constant(), config, tmp_path, resume=False)
    # weights 1, 2, 3; decay min(0.5, (1 + n) / (10 + n)) = 0.1, 2/11, 0.25
    expected = 0.0
    for n, weight in enumerate([1.0, 2.0, 3.0]):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    assert float(result.state["weight"]) == pytest.approx(expected)


def test_rates_of_the_schedules() -> None:
    steps = LoopConfig(steps=30, learning_rate=1e-3, schedule="step", milestones=(10, 20), factor=0.1, warmup_steps=0)
    assert [learning_rate(steps, s) for s in (0, 9, 10, 19, 20, 29)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    cosine = LoopConfig(steps=110, learning_rate=1.0, schedule="cosine", warmup_steps=10, final_factor=0.0)
    assert learning_rate(cosine, 4) == pytest.approx(0.5)
    assert learning_rate(cosine, 60) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert learning_rate(cosine, 109) < 1e-3


def test_every_item_is_seen_once_an_epoch_also_across_batches() -> None:
    seen = [i for step in range(10) for i in batch_indices(7, step, 7, 0)]
    assert all(sorted(seen[e * 7 : e * 7 + 7]) == list(range(7)) for e in range(10))
    assert seen == [i for step in range(35) for i in batch_indices(7, step, 2, 0)]
    assert seen[:7] != seen[7:14]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="divide"):
        LoopConfig(batch_size=3, devices=2)
    with pytest.raises(ConfigError, match="ema_decay"):
        LoopConfig(ema_decay=1.0)


def test_two_devices_train_together_and_rank_zero_alone_writes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_loop import TinyTask, LoopConfig, fit
config = LoopConfig(steps=6, batch_size=4, devices=2, accelerator="cpu", threads=1, log_every=2, warmup_steps=0)
result = fit(TinyTask(), config, Path({str(tmp_path / "out")!r}), resume=False)
if result.is_main:
    print("main", result.steps)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("main 6") == 1
    rows = read_curve(tmp_path / "out/curve.csv")
    assert [r[0] for r in rows if r[2] == "loss"] == [2, 4, 6]


def test_the_picture_of_a_curve_shows_every_metric_and_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    fit(TinyTask(), CONFIG, tmp_path / "out", resume=False)
    drawn = (tmp_path / "out/curve.svg").read_text()
    for words in (">loss<", ">mean<", ">one<", ">validation<", ">step<"):
        assert words in drawn
    plot_curve(tmp_path / "out/curve.csv", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
    with pytest.raises(TrainingError, match="no rows"):
        plot_curve(tmp_path / "missing.csv", tmp_path / "none.svg")


def test_a_run_ended_early_keeps_the_planned_rates_and_then_falls_linearly() -> None:
    planned = LoopConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_factor=0.01)
    early = LoopConfig(steps=70, warmup_steps=10, learning_rate=1.0, final_factor=0.01, horizon=100, cooldown_steps=21)
    assert [learning_rate(early, s) for s in range(49)] == [learning_rate(planned, s) for s in range(49)]
    rates = np.array([learning_rate(early, s) for s in range(49, 70)])
    assert rates[0] == learning_rate(planned, 49)
    assert rates[-1] == pytest.approx(0.01 * rates[0])
    np.testing.assert_allclose(np.diff(rates), np.diff(rates)[0])


@pytest.mark.parametrize("wrong", [{"cooldown_steps": 11}, {"cooldown_steps": -1}, {"cooldown_steps": 2, "horizon": 7}])
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="cooldown_steps"):
        LoopConfig(steps=10, **wrong)
