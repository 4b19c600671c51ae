# SPDX-License-Identifier: Apache-2.0
"""The training loop: one model, one data set, AdamW, on Accelerate."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, set_seed
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging as transformers_logging

from ..files import incomplete_path, remove_incomplete, write_json
from ..logs import progress_bar
from . import checkpoint_files
from .callbacks import TrainingCallback
from .optimization import learning_rate_factor, parameter_groups
from .recipe import Recipe
from .tracking import resolve_trackers

logger = transformers_logging.get_logger(__name__)

LOSS_SUFFIX = re.compile(r"(_\d+|_clip\d+)+$")  # "loss_mask_3", "loss_mask_0_clip2" -> "loss_mask"


def runs_on_cpu(device: str) -> bool:
    """Return whether a recipe with this `device` runs on the CPU, which Accelerate must be told (`cpu=True`)."""
    return device == "cpu" or not torch.accelerator.is_available()


def check_precision(recipe: Recipe) -> None:
    """Check that this process can train in the precision of a recipe.

    Raises:
        ValueError: if the precision is fp16 without a GPU, or differs from that of an earlier training in this process.
    """
    precision = recipe.mixed_precision
    if precision == "fp16" and runs_on_cpu(recipe.device):
        reason = "`device: cpu`" if recipe.device == "cpu" else "torch finds none"
        raise ValueError(
            f"`mixed_precision: fp16` needs a GPU, but this run does not use one ({reason}). Train in full precision "
            "with `--set mixed_precision=no`, or in bf16, which also runs on a CPU."
        )
    if is_initialized() and (before := AcceleratorState().mixed_precision) != precision:
        raise ValueError(
            f"`mixed_precision: {precision}`: this process has already trained with {before!r}, and Accelerate allows "
            "one precision per process. Run this training in a new process."
        )


class TrainingBatches:
    """Sample numbers of the batches of one process, starting at an optimiser step.

    Step `s` uses the samples `s * batch_size` to `(s + 1) * batch_size - 1`; each accumulation round divides its part
    among the processes. The position in the data therefore depends on the step alone.

    Args:
        recipe: the training.
        first_step: optimiser step to start at, from 0.
        rank: number of this process.
        num_processes: number of processes.

    Raises:
        ValueError: if the batch size is not divisible by the number of processes times that of accumulation rounds.
    """

    def __init__(self, recipe: Recipe, first_step: int, rank: int, num_processes: int) -> None:
        rounds = recipe.gradient_accumulation_steps
        if recipe.batch_size % (rounds * num_processes):
            raise ValueError(
                f"`batch_size` is the total per optimiser step, and {recipe.batch_size} cannot be divided among "
                f"{num_processes} processes with {rounds} accumulation steps each. Set it to a multiple of "
                f"{rounds * num_processes}."
            )
        self.recipe, self.first_step, self.rank, self.num_processes = recipe, first_step, rank, num_processes
        self.micro_batch_size = recipe.batch_size // (rounds * num_processes)

    def __len__(self) -> int:
        return (self.recipe.max_steps - self.first_step) * self.recipe.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.recipe.max_steps):
            for accumulation_round in range(self.recipe.gradient_accumulation_steps):
                share = accumulation_round * self.num_processes + self.rank
                start = step * self.recipe.batch_size + share * self.micro_batch_size
                yield list(range(start, start + self.micro_batch_size))


class Trainer:
    """Train a model from a recipe, with checkpoints in `output_dir/checkpoints`.

    A step is the same (up to rounding) on one process and on several: the batch size is the total, losses are
    normalised over all processes, and gradients are averaged. The exceptions are the statistics of batch norm layers
    that are not frozen, the padding of clips to the largest of their batch, and the random points of the mask losses.
    With gradient accumulation, the loss of each micro-batch is normalised by its own objects, and the losses are
    averaged.

    Batches take samples in the order of their numbers and may mix orientations, unlike the published loaders: landscape
    and portrait clips are padded to a common size, which costs memory. In training, padding counts as image, like in
    the published training; at inference the processor masks it, and results do not depend on it.

    Args:
        recipe: the training.
        output_dir: folder of the run.
        model: model that returns an output with `loss` and `loss_dict` for a batch.
        dataset: data set whose sample `n`, for any `n >= 0`, depends only on `n` and the seed.
        collate: function from a list of samples to the keyword arguments of the model and the names of the samples.
        evaluate: function from the model to metrics by name, called in every process; None does not evaluate.
        checkpoint: checkpoint folder from which `model` was loaded, to continue from it.
        callbacks: callbacks, called in this order; `with_model_callbacks(model)` returns those that a model needs.

    Raises:
        ValueError: if precision, batch size or trackers do not fit, or all parameters are frozen.
    """

    def __init__(
        self,
        recipe: Recipe,
        output_dir: str | Path,
        model: torch.nn.Module,
        dataset: Dataset,
        collate: Callable[[list], tuple[dict, list[str]]],
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        check_precision(recipe)
        self.recipe = recipe
        self.output_dir = Path(output_dir)
        self.checkpoint_dir = self.output_dir / "checkpoints"
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        self.evaluate = evaluate
        self.checkpoint = checkpoint
        self.callbacks = list(callbacks)
        self.first_step, self.seconds_before, self.checkpoint_state = 0, 0.0, None
        if checkpoint is not None:
            self.checkpoint_state = json.loads((checkpoint / checkpoint_files.STATE_FILE).read_text(encoding="utf-8"))
            self.first_step, self.seconds_before = self.checkpoint_state["step"], self.checkpoint_state["seconds"]

        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            cpu=runs_on_cpu(recipe.device),
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=resolve_trackers(recipe.trackers, self.output_dir, self.first_step),
            project_dir=str(self.output_dir),
            # A step may not use all layers: GenVIS does not read its memory in samples of one clip.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        set_seed(recipe.seed, device_specific=True)

        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.optimizer),
            betas=tuple(recipe.optimizer.betas),
            eps=recipe.optimizer.epsilon,
            fused=True if runs_on_cpu(recipe.device) else None,  # about three times as fast for many small tensors
        )
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.trained_parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.model, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)

        batches = TrainingBatches(
            recipe, self.first_step, self.accelerator.process_index, self.accelerator.num_processes
        )
        workers = recipe.data.num_workers
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # otherwise each new iterator draws from torch's global generator
        )
        # Micro-batches (step, sample names, loss, losses by name) and gradient norms since the last log entry.
        self.unchecked_losses: list[tuple[int, list[str], torch.Tensor, dict]] = []
        self.unchecked_norms: list[torch.Tensor] = []

    def train(self) -> dict:
        """Train up to the last step.

        Returns:
            `{"steps", "seconds", "metrics"}`, with the metrics of the last evaluation, or {} without one.

        Raises:
            FloatingPointError: if a loss or gradient is not finite; the message names the step and the videos.
            ValueError: if the model rejects a batch; the message names the step and the videos.
        """
        recipe, accelerator = self.recipe, self.accelerator
        accelerator.init_trackers("transformers_cvis", config=_flatten(recipe.to_dict()))
        if accelerator.is_main_process:
            remove_incomplete(self.checkpoint_dir)
            checkpoint_files.remove_later(self.checkpoint_dir, self.first_step)
        batches = iter(self.loader)
        if self.checkpoint is not None:
            self._load_checkpoint()
        self.model.train()
        self.started = time.perf_counter()
        window_start, data_seconds, window_steps = self.started, 0.0, 0
        progress = progress_bar(
            total=recipe.max_steps,
            initial=self.first_step,
            desc=f"train {recipe.system}",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )
        metrics, evaluated = {}, False
        for step in range(self.first_step, recipe.max_steps):
            factor = learning_rate_factor(recipe.learning_rate_schedule, step, recipe.max_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            for callback in self.callbacks:
                callback.before_step(self, step)
            for _ in range(recipe.gradient_accumulation_steps):
                fetch_start = time.perf_counter()
                inputs, names = next(batches)
                data_seconds += time.perf_counter() - fetch_start
                self._micro_step(step + 1, _to_device(inputs, accelerator.device), names)
            for callback in self.callbacks:
                callback.after_step(self, step)
            done = step + 1
            window_steps += 1
            progress.update()
            last = done == recipe.max_steps
            save = last or _due(done, recipe.checkpoint_every)
            if save or _due(done, recipe.log_every):
                values = self._mean_losses()
                now = time.perf_counter()
                values["seconds_per_step"] = (now - window_start) / window_steps
                values["data_seconds_per_step"] = data_seconds / window_steps
                values["eta_seconds"] = values["seconds_per_step"] * (recipe.max_steps - done)
                values["learning_rate"] = recipe.optimizer.learning_rate * factor
                accelerator.log(values, step=done)
                progress.set_postfix(
                    {"loss": f"{values['loss']:.3f}", "data": f"{values['data_seconds_per_step']:.2f}s"}, refresh=False
                )
                window_start, data_seconds, window_steps = now, 0.0, 0
            if save:
                self._save_checkpoint(done)
            if self.evaluate is not None and (last or _due(done, recipe.evaluate_every)):
                evaluation_start = time.perf_counter()
                metrics, evaluated = self._evaluate(done), True
                window_start += time.perf_counter() - evaluation_start
        progress.close()
        if self.evaluate is not None and not evaluated:  # the run was already complete
            metrics = self._evaluate(recipe.max_steps)
        accelerator.wait_for_everyone()
        return {"steps": recipe.max_steps, "seconds": self.seconds, "metrics": metrics}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, summed over all sessions of an interrupted run."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def unwrapped_model(self) -> torch.nn.Module:
        """The model, without the wrapper of a distributed run."""
        return self.accelerator.unwrap_model(self.model)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _micro_step(self, step: int, inputs: dict, names: list[str]) -> None:
        """Run one forward and backward pass; in the last accumulation round, also update the weights."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            try:
                outputs = self.model(**inputs)
            except ValueError as error:  # the input is at fault, or the weights of the step before are not finite
                self._check_finite()
                raise ValueError(f"Step {step}, batch of {', '.join(names)}: {error}") from error
            accelerator.backward(outputs.loss)
            losses = {name: value.detach() for name, value in (outputs.loss_dict or {}).items()}
            self.unchecked_losses.append((step, names, outputs.loss.detach(), losses))
            if accelerator.sync_gradients:
                for callback in self.callbacks:
                    callback.after_backward(self)
                # This also unscales the gradients; without a limit, it only computes their norm.
                limit = self.recipe.optimizer.max_gradient_norm
                norm = accelerator.clip_grad_norm_(self.trained_parameters, float("inf") if limit is None else limit)
                self.unchecked_norms.append(norm)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()

    def _check_finite(self) -> None:
        """Raise `FloatingPointError` if a loss or gradient since the last log entry is not finite."""
        rounds = self.recipe.gradient_accumulation_steps
        for index, (step, names, loss, by_name) in enumerate(self.unchecked_losses):
            # In fp16, loss scaling lets gradients overflow now and then, and skips those steps.
            measured = index // rounds < len(self.unchecked_norms) and self.recipe.mixed_precision != "fp16"
            if not loss.isfinite():
                what = "loss"
            elif measured and not self.unchecked_norms[index // rounds].isfinite():
                what = "gradient norm"
            else:
                continue
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in by_name.items())
            raise FloatingPointError(
                f"The {what} is not finite at step {step}, in the batch of {', '.join(names)} (losses: {values}). "
                "Check these videos with `transformers-cvis validate`; if they are valid, lower the learning rate or "
                "set `mixed_precision: no`. No checkpoint of these weights was written."
            )

    def _mean_losses(self) -> dict[str, float]:
        """Return the mean losses of all processes since the last log entry; here the host waits for the GPU."""
        every_value = torch.stack([*(loss.float() for _, _, loss, _ in self.unchecked_losses), *self.unchecked_norms])
        if not every_value.isfinite().all():
            self._check_finite()
        sums: defaultdict[str, Any] = defaultdict(float)
        for _, _, loss, by_name in self.unchecked_losses:
            for name, value in [("loss", loss), *by_name.items()]:
                sums[LOSS_SUFFIX.sub("", name)] += value.float()
        means = torch.stack(list(sums.values())) / len(self.unchecked_losses)
        means = self.accelerator.reduce(means, reduction="mean").tolist()
        gradient_norm = torch.stack(self.unchecked_norms).mean().item()
        self.unchecked_losses.clear()
        self.unchecked_norms.clear()
        return {**dict(zip(sums, means, strict=True)), "gradient_norm": gradient_norm}

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the current weights, and restore training mode and random generators."""
        states = checkpoint_files.capture_random_states()
        model = self.unwrapped_model.eval()
        with torch.no_grad():
            metrics = self.evaluate(model)
        self.model.train()
        checkpoint_files.restore_random_states(states)
        self.accelerator.log(metrics, step=step)
        return metrics

    def _save_checkpoint(self, step: int) -> None:
        """Save a checkpoint after `step` optimiser steps, and delete old ones."""
        path = checkpoint_files.checkpoint_path(self.checkpoint_dir, step)
        directory = incomplete_path(path)
        accelerator = self.accelerator
        if accelerator.is_main_process:
            remove_incomplete(self.checkpoint_dir)
            directory.mkdir()
        accelerator.wait_for_everyone()
        try:
            checkpoint_files.save_random_states(directory, accelerator.process_index)
            if accelerator.is_main_process:
                save_quietly(self.unwrapped_model, directory)
                checkpoint_files.save_optimizer(self.optimizer, directory / "optimizer.safetensors")
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                state = {
                    "step": step,
                    "seconds": self.seconds,
                    "num_processes": accelerator.num_processes,
                    "scaler": scaler,
                    "recipe": self.recipe.to_dict(),
                }
                write_json(directory / checkpoint_files.STATE_FILE, state, indent=2)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                checkpoint_files.commit(path, keep=self.recipe.keep_checkpoints)
        except BaseException:
            remove_incomplete(self.checkpoint_dir)
            raise
        accelerator.wait_for_everyone()

    def _load_checkpoint(self) -> None:
        """Restore optimiser, gradient scaler and random generators. The caller has loaded the model."""
        checkpoint_files.load_optimizer(self.optimizer, self.checkpoint / "optimizer.safetensors")
        state, recipe = self.checkpoint_state, self.recipe.to_dict()
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["num_processes"] == self.accelerator.num_processes:
            checkpoint_files.load_random_states(self.checkpoint, self.accelerator.process_index)
        else:
            logger.warning(
                f"{self.checkpoint} was written by {state['num_processes']} processes, and this run has "
                f"{self.accelerator.num_processes}: the random points of the losses will differ from those of an "
                "uninterrupted run."
            )
        changed = [key for key in recipe if recipe[key] != state["recipe"].get(key)]
        if changed:
            logger.warning(
                f"The recipe differs from that of the checkpoint in {', '.join(changed)}; the new values are used."
            )


def save_quietly(model: torch.nn.Module, directory: Path) -> None:
    """Save a model without a progress bar, which would disrupt that of the training."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors in nested lists and dictionaries to a device, without waiting for the copies."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_device(entry, device) for entry in value]
    return value


def _flatten(values: dict, prefix: str = "") -> dict:
    """Flatten nested settings to dotted keys with values that every tracker accepts."""
    flat: dict[str, int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
