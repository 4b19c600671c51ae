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
    """Accelerate must be told, else it does not let CPU processes join."""
    return device == "cpu" or not torch.accelerator.is_available()


def check_precision(recipe: Recipe) -> None:
    """Refuse a precision in which this process cannot train.

    Raises:
        ValueError: fp16 without a GPU, or another precision than that of a training before in this process.
    """
    precision = recipe.mixed_precision
    if precision == "fp16" and runs_on_cpu(recipe.device):
        where = "`device: cpu`" if recipe.device == "cpu" else "torch sees none"
        raise ValueError(
            f"`mixed_precision: fp16` needs a GPU, and this run has none ({where}). Train in full precision, with "
            "`--set mixed_precision=no`, or with bf16, which also runs on CPU."
        )
    if is_initialized() and (before := AcceleratorState().mixed_precision) != precision:
        raise ValueError(
            f"`mixed_precision: {precision}`: this process trained with {before!r} before, and Accelerate has one "
            "precision per process. Run this training in a process of its own."
        )


class TrainingBatches:
    """Sample numbers of the batches of one process, from optimiser step `first_step` on.

    Step `s` of the run takes samples `s * batch_size` to `(s + 1) * batch_size - 1`; each accumulation round splits
    its part over the processes. Where a run is follows from the step alone.
    """

    def __init__(self, recipe: Recipe, first_step: int, rank: int, num_processes: int) -> None:
        rounds = recipe.gradient_accumulation_steps
        if recipe.batch_size % (rounds * num_processes):
            raise ValueError(
                f"`batch_size` is the total per optimiser step: {recipe.batch_size} cannot be shared by "
                f"{num_processes} processes with {rounds} accumulation steps each. Make it a multiple of "
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

    The same recipe gives the same weights (up to rounding) on one process and on several: the batch size is the
    total, the losses are normalised over all processes, and gradients are averaged. Three things are per process by
    nature: the statistics of batch norm layers that are not frozen, the padding of clips to the largest of their
    batch, and the random points of the mask losses. With gradient accumulation the micro-batches' losses are averaged,
    each normalised by its own objects.

    A batch takes samples in the order of their numbers and is not of one orientation, as the published loaders make it:
    landscape and portrait are padded to a size that holds both, which costs memory. In training padding counts as
    image, as in the published training; at inference the processor marks it and nothing depends on it.

    Args:
        recipe: the training.
        output_dir: folder of the run.
        model: returns an output with `loss` and `loss_dict` when called with a batch.
        dataset: `dataset[n]` is sample `n` of the run, for any `n >= 0`, a function of `n` and the seed alone.
        collate: list of samples -> `(batch of keyword arguments of the model, names of the samples)`.
        evaluate: model -> metrics by name; called in every process.
        checkpoint: folder to continue from; `model` must have been loaded from it.
        callbacks: called in this order at each of their hooks; see [`TrainingCallback`]. `with_model_callbacks(model)`
            has those that a model needs.
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
            # A step may leave layers out: GenVIS with samples of one clip those that read its memory.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        set_seed(recipe.seed, device_specific=True)

        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.optimizer),
            betas=tuple(recipe.optimizer.betas),
            eps=recipe.optimizer.epsilon,
            fused=True if runs_on_cpu(recipe.device) else None,  # a third of the time for many small tensors
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
            generator=torch.Generator(),  # else each new iterator would draw from torch's global generator
        )
        # (step, sample names, loss, losses by name) of micro-batches, and gradient norms, that no one has looked at yet
        self.unchecked_losses: list[tuple[int, list[str], torch.Tensor, dict]] = []
        self.unchecked_norms: list[torch.Tensor] = []

    def train(self) -> dict:
        """Train to the last step.

        Returns:
            `{"steps", "seconds", "metrics"}`; `metrics` are the last evaluation's, empty without one.

        Raises:
            FloatingPointError: if a loss or gradient is not finite; the message names the step and the videos.
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
        if self.evaluate is not None and not evaluated:  # a run that was complete is evaluated again
            metrics = self._evaluate(recipe.max_steps)
        accelerator.wait_for_everyone()
        return {"steps": recipe.max_steps, "seconds": self.seconds, "metrics": metrics}

    @property
    def seconds(self) -> float:
        """Wall time of training so far, over all sessions of a run that was interrupted."""
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
        """One forward and backward pass; the last accumulation round also moves the weights."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            try:
                outputs = self.model(**inputs)
            except ValueError as error:  # what the model says of its input, or of the weights that came before
                self._check_finite()
                raise ValueError(f"Step {step}, batch of {', '.join(names)}: {error}") from error
            accelerator.backward(outputs.loss)
            losses = {name: value.detach() for name, value in (outputs.loss_dict or {}).items()}
            self.unchecked_losses.append((step, names, outputs.loss.detach(), losses))
            if accelerator.sync_gradients:
                for callback in self.callbacks:
                    callback.after_backward(self)
                # Also unscales; without a limit it only measures.
                limit = self.recipe.optimizer.max_gradient_norm
                norm = accelerator.clip_grad_norm_(self.trained_parameters, float("inf") if limit is None else limit)
                self.unchecked_norms.append(norm)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()

    def _check_finite(self) -> None:
        """Raise for the first micro-batch since the last look whose loss or gradient is not finite."""
        rounds = self.recipe.gradient_accumulation_steps
        for index, (step, names, loss, by_name) in enumerate(self.unchecked_losses):
            # Loss scaling lets fp16 gradients overflow now and then, and skips those steps.
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
                "Check these videos with `transformers-cvis validate`; if they are sound, lower the learning rate, "
                "or set `mixed_precision: no`. No checkpoint of these weights was written."
            )

    def _mean_losses(self) -> dict[str, float]:
        """Means since the last look, over all processes, of losses that are finite. Here the host waits for the GPU."""
        every_value = torch.stack([*(loss.float() for _, _, loss, _ in self.unchecked_losses), *self.unchecked_norms])
        if not every_value.isfinite().all():
            self._check_finite()
        sums = defaultdict(float)
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
        """Metrics of the current weights; leaves mode and random numbers of the training as they were."""
        states = checkpoint_files.capture_random_states()
        model = self.unwrapped_model.eval()
        with torch.no_grad():
            metrics = self.evaluate(model)
        self.model.train()
        checkpoint_files.restore_random_states(states)
        self.accelerator.log(metrics, step=step)
        return metrics

    def _save_checkpoint(self, step: int) -> None:
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
        """Restore optimiser, gradient scaler and random numbers; the model has come from the checkpoint already."""
        checkpoint_files.load_optimizer(self.optimizer, self.checkpoint / "optimizer.safetensors")
        state, recipe = self.checkpoint_state, self.recipe.to_dict()
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["num_processes"] == self.accelerator.num_processes:
            checkpoint_files.load_random_states(self.checkpoint, self.accelerator.process_index)
        else:
            logger.warning(
                f"{self.checkpoint} was written by {state['num_processes']} processes, this run has "
                f"{self.accelerator.num_processes}: the random points of the losses will differ from those of an "
                "uninterrupted run."
            )
        changed = [key for key in recipe if recipe[key] != state["recipe"].get(key)]
        if changed:
            logger.warning(f"The recipe differs from the checkpoint's in {', '.join(changed)}; the new values count.")


def save_quietly(model: torch.nn.Module, directory: Path) -> None:
    """`save_pretrained` without its progress bar, which would tear the training's."""
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
    """Move the tensors in nested lists and dictionaries, without waiting."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_device(entry, device) for entry in value]
    return value


def _flatten(values: dict, prefix: str = "") -> dict:
    """Nested configuration -> dotted keys with values that every tracker accepts."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
