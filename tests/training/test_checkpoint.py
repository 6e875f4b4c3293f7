"""Checkpoints and model directories: written whole or not at all, read back equal, no pickle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mammoseg.errors import TrainingError
from mammoseg.training.checkpoint import Checkpoint, latest_checkpoint, load_model, save_checkpoint, save_model


def _checkpoint(step: int) -> Checkpoint:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    return Checkpoint(step, state, {k: v + 1 for k, v in state.items()}, optimizer.state_dict(), {"seconds": 1.5})


def test_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    saved = _checkpoint(7)
    save_checkpoint(tmp_path, saved)
    read = latest_checkpoint(tmp_path)
    assert read is not None
    assert (read.step, read.extra) == (7, {"seconds": 1.5})
    assert all(torch.equal(read.model[k], saved.model[k]) and torch.equal(read.ema[k], saved.ema[k]) for k in saved.model)
    for index, values in saved.optimizer["state"].items():
        assert all(torch.equal(read.optimizer["state"][index][k], v) for k, v in values.items())
    optimizer = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    optimizer.load_state_dict(read.optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_newest_two_are_kept_and_half_written_ones_are_not_seen(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, _checkpoint(step))
    (tmp_path / ".checkpoint-00000020.1.tmp").mkdir()
    read = latest_checkpoint(tmp_path)
    assert read is not None
    assert read.step == 15
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-00000010", "checkpoint-00000015"]
    save_checkpoint(tmp_path, _checkpoint(20))  # a run that was killed leaves nothing for good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000015", "checkpoint-00000020"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, _checkpoint(1))
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "tensors.safetensors"]


def test_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, _checkpoint(1))
    (folder / "tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="remove it"):
        latest_checkpoint(tmp_path)


def test_model_directory_round_trip_in_fp32_and_replaces_an_older_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        state = {"w": torch.full((2,), value, dtype=torch.bfloat16), "n": torch.tensor(3)}
        save_model(tmp_path / "model", "detector", state, {"a": 1}, {"b": [2]}, {"n_images": 4})
    read = load_model(tmp_path / "model")
    assert read.kind == "detector"
    assert (read.config, read.spec, read.record) == ({"a": 1}, {"b": [2]}, {"n_images": 4})
    assert read.state["w"].dtype == torch.float32
    assert read.state["w"].tolist() == [2.0, 2.0]
    assert int(read.state["n"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"model\.json"):
        load_model(tmp_path)
