"""One training loop for every network: Lightning Fabric drives devices and precision, a `Task` brings model, data and loss."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mammoseg.errors import ConfigError, TrainingError
from mammoseg.training.batches import prefetched, share_of, to_device
from mammoseg.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from mammoseg.training.curve import Curve, ProgressLine
from mammoseg.training.curve_plot import plot_curve
from mammoseg.training.devices import environment
from mammoseg.training.identity import admit
from mammoseg.training.memory import keep_memory
from mammoseg.training.seeding import seed_all

log = logging.getLogger("mammoseg.training")
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    steps: optimizer steps in all. warmup_steps: linear from 0. schedule: "cosine" falls to `final_factor` of the rate at the
    end, "step" multiplies by `factor` at each of `milestones`. gradient_clip: largest norm, 0 = off. ema_decay: 0 = off.
    backbone_factor: rate of `backbone.*` relative to the rest. horizon: for how many steps the schedule is drawn, 0 = `steps`;
    cooldown_steps: at the end, from where the schedule is then, the rate falls linearly to `final_factor` of that. Together
    they end a run early that was planned for longer.
    precision: "auto" takes bf16 where the device computes in it natively, else fp32. checkpoint_every, validate_every: in
    steps, 0 = only at the end. devices: how many processes train together, each on its share of the one batch of
    `batch_size` items. threads: of computation for each (CPU), 0 = as torch chooses. workers: threads that prepare batches
    ahead.
    """

    steps: int = 1000
    batch_size: int = 8
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    backbone_factor: float = 1.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    warmup_steps: int = 100
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    final_factor: float = 0.01
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    horizon: int = 0
    cooldown_steps: int = 0
    gradient_clip: float = 10.0
    ema_decay: float = 0.999
    precision: Literal["auto", "bf16-mixed", "16-mixed", "32-true"] = "auto"
    seed: int = 0
    checkpoint_every: int = 200
    validate_every: int = 0
    log_every: int = 20
    devices: int = 1
    accelerator: str = "auto"
    threads: int = 0
    workers: int = 1
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.log_every < 1:
            raise ConfigError("training: expected steps, batch_size and log_every of at least 1")
        if not 0 <= self.cooldown_steps <= self.steps or (self.horizon and self.horizon < self.steps - self.cooldown_steps):
            raise ConfigError(
                f"training: expected cooldown_steps ({self.cooldown_steps}) within steps ({self.steps}), and a horizon "
                f"({self.horizon}) that reaches to where it begins"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"training: expected ema_decay in [0, 1), got {self.ema_decay}")
        if self.devices < 1 or self.batch_size % self.devices:
            raise ConfigError(f"training: expected a batch_size ({self.batch_size}) that devices ({self.devices}) divide")


class Task(Protocol):
    """What is trained."""

    model: nn.Module

    def batch(self, step: int, places: range, seed: int) -> Any:
        """The items at `places` of batch number `step`. Called in a thread.

        Each item is a pure function of (seed, step, place), so that a resumed run sees the same, and several devices, which
        take different places of the same batch, see together what one device sees alone.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars; key "loss" is the total that is minimised, the others are logged.

        Over several devices their means are what counts: whatever is divided by a number of items that differs from device
        to device is divided by `mammoseg.training.devices.shared_count`.
        """
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model` (the averaged weights, in evaluation mode); may be empty."""
        ...


@dataclass(frozen=True)
class FitResult:
    """state: the averaged weights (fp32, CPU). metrics: of the last validation. history: of all, with their steps.

    is_main: False in the helper processes of a run on several devices, which must write nothing. environment: on what it was
    computed.
    """

    state: dict[str, Tensor]
    metrics: dict[str, float]
    steps: int
    seconds: float
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    is_main: bool = True
    environment: dict[str, Any] = field(default_factory=dict)


def learning_rate(config: LoopConfig, step: int) -> float:
    """The rate of step number `step` (the first is 0)."""
    begins = config.steps - config.cooldown_steps
    if config.cooldown_steps and step >= begins:
        left = 1 - (step - begins) / max(1, config.cooldown_steps - 1)
        return _scheduled(config, begins) * (config.final_factor + (1 - config.final_factor) * left)
    return _scheduled(config, step)


def _scheduled(config: LoopConfig, step: int) -> float:
    steps = config.horizon or config.steps
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        factor = 1.0
    elif config.schedule == "step":
        factor = config.factor ** sum(step >= m for m in config.milestones)
    else:
        done = min(1.0, max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps)))
        factor = config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * warm * factor


def resolve_precision(config: LoopConfig) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """ "auto" as a real precision: bf16 where the hardware has it (on CPUs: AVX512-BF16 or AMX), else fp32."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16-mixed" if native else "32-true"


def fit(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    resume: bool,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Trains `task.model` and returns its averaged weights.

    out: gets `curve.csv` and its picture `curve.svg`, TensorBoard events in `tensorboard/` and `checkpoints/`. resume: go on
    from the newest checkpoint, which must be of the same `identity` (see `admit`); without it an `out` that holds checkpoints
    is refused. Killed at any moment and resumed, a run gives the same curve. Raises UsageError as `admit`, TrainingError where
    the loss is not finite; the last checkpoint is kept.
    """
    checkpoints = out / "checkpoints"
    identity = dict(identity or {})
    admit(out, identity, resume)
    start = latest_checkpoint(checkpoints)
    precision = resolve_precision(config)
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        precision=precision,
        strategy="ddp" if config.devices > 1 else "auto",
    )
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_all(config.seed)
    model, optimizer, ema = _prepare(task, config, fabric, start)
    first = start.step if start else 0
    curve = Curve(out, first) if fabric.global_rank == 0 else None
    line = ProgressLine(config.steps, first, progress) if fabric.global_rank == 0 else None
    history: list[tuple[int, dict[str, float]]] = [(s, m) for s, m in start.extra["history"]] if start else []
    seconds = float(start.extra["seconds"]) if start else 0.0
    sums: dict[str, float] = dict(start.extra["sums"]) if start else {}
    places = share_of(fabric.global_rank, config.devices, config.batch_size)
    began = time.monotonic()
    model.train()
    for step, batch in prefetched(lambda n: task.batch(n, places, config.seed), first, config.steps, config.workers):
        seed_all(config.seed, step, fabric.global_rank)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        parts = _step(task, config, fabric, (model, optimizer), to_device(batch, fabric.device, config.channels_last), step)
        _update_ema(ema, task.model, config.ema_decay, step)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            count = (done - 1) % config.log_every + 1
            means = {k: sums[k] / count for k in parts} | {"learning_rate": rate}
            sums = {}
            if curve and line:
                curve.add(done, "train", means)
                line.show(done, means)
        if (config.validate_every and done % config.validate_every == 0) or done == config.steps:
            metrics = _validate(task, fabric, ema)
            if metrics:
                history.append((done, metrics))
                if curve and line:
                    curve.add(done, "validation", metrics)
                    line.note(done, metrics)
        if (config.checkpoint_every and done % config.checkpoint_every == 0) or done == config.steps:
            spent = seconds + time.monotonic() - began
            extra = {"seconds": spent, "history": history, "sums": sums, "identity": identity}
            if curve:
                curve.flush()
                state = Checkpoint(done, task.model.state_dict(), ema, optimizer.state_dict(), extra)
                save_checkpoint(checkpoints, state)
            fabric.barrier()
    seconds += time.monotonic() - began
    if curve and line:
        curve.close()
        line.close()
        plot_curve(out / "curve.csv", out / "curve.svg")
    final = {k: v.detach().cpu().clone() for k, v in ema.items()}
    metrics = history[-1][1] if history else {}
    computed_on = environment(fabric.device, config.devices, precision)
    return FitResult(final, metrics, config.steps, seconds, history, fabric.global_rank == 0, computed_on)


def _prepare(
    task: Task, config: LoopConfig, fabric: Fabric, start: Checkpoint | None
) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Tensor]]:
    if start is not None:
        task.model.load_state_dict(start.model)
    if config.channels_last:
        task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.model.to(fabric.device)
    made = _optimizer(task.model, config)
    model, optimizer = fabric.setup(task.model, made)
    if start is not None:
        optimizer.load_state_dict(start.optimizer)
        ema = {k: v.to(fabric.device) for k, v in start.ema.items()}
    else:
        ema = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
    return model, optimizer, ema


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Weights decay; biases and the parameters of normalisation (one dimension) do not. `backbone.*` learns at its own rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, name.startswith("backbone.")), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "factor": config.backbone_factor if backbone else 1.0,
        }
        for (decays, backbone), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, lr=config.learning_rate)


def _step(
    task: Task,
    config: LoopConfig,
    fabric: Fabric,
    trained: tuple[nn.Module, torch.optim.Optimizer],
    batch: Any,
    step: int,
) -> dict[str, float]:
    model, optimizer = trained
    parts = task.loss(model, batch)
    stacked = fabric.all_reduce(torch.stack([v.detach().float() for v in parts.values()]), reduce_op="mean")
    values = dict(zip(parts, stacked.tolist(), strict=True))  # of all devices: a bad one stops them all
    if not all(math.isfinite(v) for v in values.values()):
        listed = ", ".join(f"{k}={v:g}" for k, v in values.items())
        raise _not_finite("the loss", step, listed)
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(parts["loss"])
    norm = fabric.clip_gradients(model, optimizer, max_norm=config.gradient_clip or math.inf, error_if_nonfinite=False)
    # With 16-mixed the scaler itself skips steps whose gradients overflow.
    if norm is not None and config.precision != "16-mixed" and not torch.isfinite(norm):
        raise _not_finite("the gradient", step, f"norm {float(norm):g}, loss {values['loss']:g}")
    optimizer.step()
    return values


def _not_finite(what: str, step: int, listed: str) -> TrainingError:
    return TrainingError(
        f"{what} is not finite at step {step} ({listed}); the checkpoint before it is kept: "
        "lower training.learning_rate or training.gradient_clip and go on with --resume"
    )


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    now = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    floats, news = [], []
    for name, value in model.state_dict().items():
        if value.is_floating_point() and now:
            floats.append(ema[name])
            news.append(value.detach())
        else:
            ema[name].copy_(value)
    if floats:
        torch._foreach_lerp_(floats, news, 1 - now)


def _validate(task: Task, fabric: Fabric, ema: dict[str, Tensor]) -> dict[str, float]:
    """The metrics of the averaged weights, computed on the first device; the others wait."""
    metrics: dict[str, float] = {}
    if fabric.global_rank == 0:
        twin = copy.deepcopy(task.model)
        twin.load_state_dict(ema)
        twin.eval()
        threads = torch.get_num_threads()
        torch.set_num_threads(threads * fabric.world_size)  # the others wait
        with torch.no_grad():
            metrics = {k: float(v) for k, v in task.validate(twin).items()}
        torch.set_num_threads(threads)
    fabric.barrier()
    return metrics
