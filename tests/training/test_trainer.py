# SPDX-License-Identifier: Apache-2.0
"""The trainer with a stand-in model: resuming, processes, accumulation, checkpoints, finite checks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from safetensors.torch import load_file

from tests.support.launching import finish, kill_after_first_checkpoint, launch
from tests.support.standin import RECIPE, StandInDataset, StandInModel, train_standin
from transformers_cvis.training import Recipe, checkpoint_files, train
from transformers_cvis.training.trainer import TrainingBatches

STANDIN = Path(__file__).parents[1] / "support" / "standin.py"


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


def assert_same_weights(one: dict, other: dict, **tolerance) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.slow  # test_train has the same with a real model
def test_killed_run_continues_bit_for_bit(tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    train_standin(uninterrupted)

    (process,) = launch(STANDIN, killed, SLEEP="0.05")
    kill_after_first_checkpoint(process, killed / "checkpoints")
    steps = [path.name for path in checkpoint_files.list_checkpoints(killed / "checkpoints")]
    assert steps
    assert "step-00000012" not in steps

    train_standin(killed)
    assert_same_weights(weights(uninterrupted), weights(killed))
    logs = [
        [json.loads(line) for line in (path / "training_log.jsonl").read_text().splitlines()]
        for path in (uninterrupted, killed)
    ]
    assert [(row["step"], row["loss"]) for row in logs[0]] == [(row["step"], row["loss"]) for row in logs[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_can_be_resumed(tmp_path, workers):
    """One step per session, with every generator in use, against one session."""
    overrides = ["checkpoint_every=1", f"data.num_workers={workers}"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train_standin(whole, [*overrides, "max_steps=4", "learning_rate_schedule.warmup_steps=0"])
    for steps in range(1, 5):
        torch.manual_seed(steps)  # a session does not depend on earlier random draws
        np.random.seed(steps)
        train_standin(pieces, [*overrides, f"max_steps={steps}", "learning_rate_schedule.warmup_steps=0"])
    assert_same_weights(weights(whole), weights(pieces))


@pytest.mark.slow  # test_train has the same with a real model
def test_two_processes_equal_one(tmp_path):
    train_standin(tmp_path / "one", dropout=0.0)
    finish(launch(STANDIN, tmp_path / "two", processes=2, DROPOUT="0"))
    assert_same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-4, atol=1e-5)
    log = [json.loads(line) for line in (tmp_path / "two" / "training_log.jsonl").read_text().splitlines()]
    reference = [json.loads(line) for line in (tmp_path / "one" / "training_log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in reference], rel=1e-4)
    names = {path.name for path in (tmp_path / "two" / "checkpoints" / "step-00000012").iterdir()}
    assert {"random_states_0.json", "random_states_1.json"} <= names


def test_the_gradient_scaler_continues(tmp_path):
    """A loss scale that doubles every second step: fp16 training needs a GPU, its bookkeeping does not."""

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    train_standin(tmp_path / "whole", scaler=scaler())
    train_standin(tmp_path / "pieces", ["max_steps=7"], scaler=scaler())
    train_standin(tmp_path / "pieces", scaler=scaler())
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "pieces"))
    state = json.loads((tmp_path / "whole/checkpoints/step-00000012/trainer_state.json").read_text())
    assert state["scaler"]["scale"] == 2.0**16


def test_fp16_needs_a_gpu(tmp_path):
    message = r"`mixed_precision: fp16` needs a GPU, but this run does not .*`device: cpu`.* `--set mixed_precision=no`"
    with pytest.raises(ValueError, match=message):
        train_standin(tmp_path / "out", ["mixed_precision=fp16"])
    assert not (tmp_path / "out").exists()


def test_a_process_has_one_precision(tmp_path):
    train_standin(tmp_path / "first", ["max_steps=1"])
    message = "`mixed_precision: bf16`: this process has already trained with 'no', .* in a new process"
    with pytest.raises(ValueError, match=message):
        train_standin(tmp_path / "second", ["mixed_precision=bf16"])
    assert not (tmp_path / "second").exists()
    with pytest.raises(ValueError, match=message):  # before the trainer looks for the missing data
        train(Recipe.from_dict({**RECIPE, "mixed_precision": "bf16"}), tmp_path / "second")


def test_accumulation_equals_the_whole_batch(tmp_path):
    train_standin(tmp_path / "whole", dropout=0.0)
    train_standin(tmp_path / "parts", ["gradient_accumulation_steps=2"], dropout=0.0)
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"), rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_together(tmp_path):
    """A gradient norm above the limit moves the weights like the gradient scaled to the limit."""
    overrides = [
        "max_steps=1",
        "learning_rate_schedule.warmup_steps=0",
        "optimizer.epsilon=1.0",
        "optimizer.weight_decay=0",
    ]
    moved = {}
    for limit in (0.01, 0.02):
        output_dir = tmp_path / str(limit)
        train_standin(output_dir, [*overrides, f"optimizer.max_gradient_norm={limit}"], dropout=0.0)
        state = load_file(output_dir / "checkpoints" / "step-00000001" / "optimizer.safetensors")
        first_moments = [value for name, value in state.items() if name.endswith("exp_avg")]
        moved[limit] = torch.cat([moment.flatten() for moment in first_moments]).norm() / 0.1
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[0.02] == pytest.approx(0.02, rel=1e-3)


def test_batches_share_each_step_over_rounds_and_processes():
    recipe = Recipe.load(Recipe.from_dict(RECIPE), ["batch_size=8", "gradient_accumulation_steps=2", "max_steps=3"])
    parts = [list(TrainingBatches(recipe, 1, rank, 2)) for rank in range(2)]
    assert parts[0] == [[8, 9], [12, 13], [16, 17], [20, 21]]
    assert parts[1] == [[10, 11], [14, 15], [18, 19], [22, 23]]
    assert len(TrainingBatches(recipe, 1, 0, 2)) == 4
    with pytest.raises(ValueError, match="8 cannot be divided among 3 processes .* a multiple of 6"):
        TrainingBatches(recipe, 0, 0, 3)


def test_a_loss_that_is_not_finite_names_the_batch(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is not finite at step 5, in the batch of video-16, .*video-19"):
        train_standin(tmp_path, dataset=StandInDataset(bad_sample=17))
    steps = [path.name for path in checkpoint_files.list_checkpoints(tmp_path / "checkpoints")]
    assert steps == ["step-00000003"]


def test_gradients_that_are_not_finite_name_the_batch(tmp_path, monkeypatch):
    def forward(self, inputs, labels, forward=StandInModel.forward):
        outputs = forward(self, inputs, labels)
        if labels[0] == StandInDataset()[8]["label"]:
            outputs.loss = outputs.loss + (outputs.loss * 0).sqrt()  # 0, whose gradient is infinite
        return outputs

    monkeypatch.setattr(StandInModel, "forward", forward)
    with pytest.raises(FloatingPointError, match="gradient norm is not finite at step 3, in the batch of video-8, "):
        train_standin(tmp_path)


def test_errors_of_the_model_name_the_batch(tmp_path, monkeypatch):
    def forward(self, inputs, labels):
        raise ValueError("`labels` do not fit.")

    monkeypatch.setattr(StandInModel, "forward", forward)
    with pytest.raises(ValueError, match="Step 1, batch of video-0, video-1, video-2, video-3: `labels` do not fit"):
        train_standin(tmp_path)


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    def full_disk(optimizer, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    train_standin(tmp_path, ["max_steps=3"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/step-00000003").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_optimizer", full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            train_standin(tmp_path, ["max_steps=6"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/step-00000003").iterdir()}
    train_standin(tmp_path, ["max_steps=6"])
    assert checkpoint_files.list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-00000006"


def test_files_left_by_a_kill_are_removed(tmp_path):
    stale = tmp_path / "checkpoints" / "step-00000003.incomplete"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half of it")
    assert checkpoint_files.find_checkpoint(tmp_path / "checkpoints", "auto") is None
    train_standin(tmp_path, ["max_steps=3"])
    assert not stale.exists()


def test_only_the_last_checkpoints_are_kept(tmp_path):
    train_standin(tmp_path, ["keep_checkpoints=2", "checkpoint_every=2", "max_steps=7"])
    names = [path.name for path in checkpoint_files.list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000006", "step-00000007"]


def test_finding_checkpoints(tmp_path):
    train_standin(tmp_path, ["max_steps=3"])
    directory = tmp_path / "checkpoints"
    assert checkpoint_files.find_checkpoint(directory, directory / "step-00000003").name == "step-00000003"
    assert checkpoint_files.find_checkpoint(directory, "restart") is None
    with pytest.raises(FileNotFoundError, match="not a checkpoint: trainer_state.json is missing"):
        checkpoint_files.find_checkpoint(directory, tmp_path)


def test_older_checkpoint_replaces_later_ones(tmp_path):
    train_standin(tmp_path / "run", ["checkpoint_every=2", "keep_checkpoints=9", "max_steps=6"])
    first = load_file(tmp_path / "run/model.safetensors")
    directory = tmp_path / "run" / "checkpoints"
    train_standin(
        tmp_path / "run",
        ["checkpoint_every=3", "keep_checkpoints=9", "max_steps=6"],
        resume=directory / "step-00000002",
    )
    assert [path.name for path in checkpoint_files.list_checkpoints(directory)] == [
        f"step-0000000{step}" for step in (2, 3, 6)
    ]
    assert_same_weights(first, weights(tmp_path / "run"))
    train_standin(tmp_path / "run", ["max_steps=1"], resume="restart")
    assert [path.name for path in checkpoint_files.list_checkpoints(directory)] == ["step-00000001"]


def test_evaluation_does_not_change_the_training(tmp_path):
    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"AP": torch.rand(1).item()}

    train_standin(tmp_path / "plain")
    _, result = train_standin(tmp_path / "evaluated", ["evaluate_every=2"], evaluate=evaluate)
    assert_same_weights(weights(tmp_path / "plain"), weights(tmp_path / "evaluated"))
    assert "AP" in result["metrics"]
    rows = [json.loads(line) for line in (tmp_path / "evaluated" / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "AP" in row] == [2, 4, 6, 8, 10, 12]


def test_the_log_has_times_and_losses(tmp_path):
    train_standin(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    for row in rows:
        assert row["loss_mask"] == pytest.approx(row["loss"])  # the stand-in's two mask losses add up to its loss
        assert {"seconds_per_step", "data_seconds_per_step", "eta_seconds", "gradient_norm"} <= row.keys()


def test_accelerate_trackers_get_the_log_values(tmp_path, monkeypatch):
    class RecordingTracker(GeneralTracker):
        """Replacement of tensorboard, which need not be installed."""

        name = "tensorboard"
        requires_logging_directory = True
        records, calls = [], []

        def __init__(self, run_name, logging_dir):
            super().__init__()
            self.calls.append(("start", run_name, Path(logging_dir)))

        @property
        def tracker(self):
            return self.records

        def store_init_configuration(self, values):
            self.calls.append(("configuration", values["optimizer.learning_rate"], values["max_steps"]))

        def log(self, values, step=None, **kwargs):
            self.records.append({"step": step, **values})

        def finish(self):
            self.calls.append(("finish",))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", RecordingTracker)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    train_standin(tmp_path, ["trackers=[auto]"], evaluate=lambda model: {"AP": 0.5})
    calls = [("start", "transformers_cvis", tmp_path), ("configuration", 1e-2, 12), ("finish",)]
    assert RecordingTracker.calls == calls
    rows = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert RecordingTracker.records == rows
    assert [row["step"] for row in rows if "loss" in row] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert rows[-1] == {"step": 12, "AP": 0.5}


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ValueError, match="'no-such-tracker' is not installed. Choose from auto, jsonl"):
        train_standin(tmp_path, ["trackers=[no-such-tracker]"])
