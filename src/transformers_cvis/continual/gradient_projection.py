# SPDX-License-Identifier: Apache-2.0
"""Orthogonal gradient correction (HVPL): new prompts learn in directions that older classes do not use.

At the end of a task its features give the directions that carry most of their energy; these join an orthonormal basis M
that grows from task to task. While a later task is learnt, gradients and updates of its prompts lose their component in
the span of M.

By default M lives in the channels of the features. The procedure of the released code is here too: its directions are
those of samples, and apply to channels only because it collects as many samples as there are channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as distributed
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Dataset

from ..data import collate_clips
from ..precision import at_least_float32_dtype
from ..processing import CvisVideoProcessor
from ..training.callbacks import RunningTrainer, Task, TrainingCallback

RELEASED_ROWS = 256
RELEASED_COMPONENTS = 50


@dataclass
class GradientProjectionSettings:
    """HVPL's orthogonal gradient correction: prompts of later tasks keep clear of the directions of earlier tasks."""

    space: Literal["features", "released"] = field(
        default="features",
        metadata={
            "help": "'features' takes directions of the channels of the features. 'released' repeats the computation "
            "of the released code, whose directions are those of the first 256 frames and apply to channels only "
            "because there are 256 of these as well. The frames differ: the released code goes through the data of a "
            "task, in clips of 4 frames, when the next one begins; here this happens at the end of the task, with the "
            "same model, in clips as long as the task's own, so no data of older tasks has to be kept."
        },
    )
    threshold: float = field(
        default=0.7, metadata={"help": "Share of the features' energy that the directions of a task hold, 0 to 1."}
    )
    num_clips: int = field(
        default=256,
        metadata={
            "help": "Largest number of training clips of a task whose features are collected; 256 in the released "
            "code. 'released' stops at 256 frames."
        },
    )
    centre: bool = field(default=False, metadata={"help": "Subtract the mean feature first; 'released' always does."})
    project_update: bool = field(
        default=True,
        metadata={
            "help": "Restrict the optimiser's update as well, since Adam scales every entry by itself. false, as "
            "released, corrects gradients only."
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is a share of the energy in 0..1, got {self.threshold}.")
        if self.num_clips < 1:
            raise ValueError(f"`num_clips` must be at least 1, got {self.num_clips}.")


class FeatureEnergy:
    """Sum over features f of `f f^T`, from which a basis grows; float64, of constant size.

    Args:
        num_channels: number of channels of the features.
        centre: subtract the mean feature.
    """

    def __init__(self, num_channels: int, centre: bool = False) -> None:
        self.centre = centre
        self.products = torch.zeros(num_channels, num_channels, dtype=torch.float64)
        self.total = torch.zeros(num_channels, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Add features `(..., channels)`, e.g. (queries, frames, channels).

        Raises:
            ValueError: if the number of channels differs, or a feature is not finite.
        """
        if features.shape[-1] != len(self.total):
            raise ValueError(f"The features have {features.shape[-1]} channels, expected {len(self.total)}.")
        rows = features.detach().reshape(-1, features.shape[-1]).double().cpu()
        if not rows.isfinite().all():
            raise ValueError("A feature is not finite; the basis of protected directions cannot be made of it.")
        self.products += rows.T @ rows
        self.total += rows.sum(dim=0)
        self.count += len(rows)

    def matrix(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the sum, `(channels, channels)`, the same in all processes.

        Args:
            device: device on which the processes exchange their sums; the GPU with NCCL.

        Raises:
            ValueError: if no features were added.
        """
        products, total, count = (tensor.to(device, copy=True) for tensor in (self.products, self.total, self.count))
        if distributed.is_available() and distributed.is_initialized():
            for tensor in (products, total, count):
                distributed.all_reduce(tensor)
        if count == 0:
            raise ValueError("No features were collected; run the model over data of the task first.")
        if self.centre:
            products -= torch.outer(total, total) / count
        return products.cpu()


@torch.no_grad()
def collect_directions(
    model: nn.Module,
    dataset: Dataset,
    video_processor: CvisVideoProcessor,
    space: str = "features",
    threshold: float = 0.7,
    num_clips: int = 256,
    centre: bool = False,
) -> torch.Tensor:
    """Compute the directions that a model, at the end of a task, adds to those it protects.

    They are the same in all processes.

    Args:
        model: has `prompt_features(frames)`, the features that prompts of later tasks will meet, and
            `protected_directions()`, those of earlier tasks.
        dataset: training clips of the task; samples 0, 1, ... are used.
        video_processor: the processor of the task, which normalises the clips.
        space: "features", or "released" for the published procedure, which wants as many frames as channels.
        threshold: see [`grow_basis`].
        num_clips: number of clips, over all processes together.
        centre: see [`FeatureEnergy`].

    Returns:
        `(channels, rank)` float64 orthonormal, orthogonal to the directions before.

    Raises:
        ValueError: if a feature is not finite, or there are too few frames for "released".
    """
    state, was_training, before = PartialState(), model.training, model.protected_directions()
    model.eval()
    # The released procedure is about the first frames, so every process looks at all of them.
    shared = space == "features"
    numbers = range(state.process_index, num_clips, state.num_processes) if shared else range(num_clips)
    energy, samples = None, []
    for number in numbers:
        frames = collate_clips([dataset[number]], video_processor)["pixel_values_videos"][0]
        features = model.prompt_features(frames.to(model.device, model.dtype))  # (T, F, C)
        if shared:
            energy = energy or FeatureEnergy(features.shape[-1], centre)
            energy.update(features)
        else:
            samples.append(features.flatten(1).float().cpu())
            if sum(map(len, samples)) >= RELEASED_ROWS:
                break
    model.train(was_training)
    if shared:
        basis = grow_basis(energy.matrix(state.device), threshold, before)
    else:
        basis = grow_basis_released(released_representation(torch.cat(samples)), threshold, before)
    directions = [basis[:, 0 if before is None else before.shape[1] :].contiguous()]
    return broadcast_object_list(directions)[0]


def grow_basis(energy: torch.Tensor, threshold: float, basis: torch.Tensor | None = None) -> torch.Tensor:
    """Add the fewest directions with which the basis holds `threshold` of a task's feature energy.

    Args:
        energy: `(channels, channels)` from [`FeatureEnergy.matrix`].
        threshold: 0 to 1, of the sum of squared singular values of the features.
        basis: `(channels, rank)` of the tasks before.

    Returns:
        `(channels, rank)` float64 orthonormal, the columns of `basis` first, signs fixed.

    Raises:
        ValueError: if the threshold is outside 0 to 1, or shapes do not fit.
    """
    energy, basis = _checked(energy.double(), threshold, basis)
    total = energy.trace()
    if total == 0:
        return basis
    residual = _without(_without(energy, basis).T, basis)
    values, vectors = torch.linalg.eigh((residual + residual.T) / 2)
    shares = values.flip(0).clamp(min=0) / total
    # The slack lets a threshold of 1 end where nothing but rounding is left.
    return _extended(basis, vectors.flip(1), shares, threshold - 1e-12)


def grow_basis_released(
    representation: torch.Tensor, threshold: float, basis: torch.Tensor | None = None
) -> torch.Tensor:
    """Grow a basis like the released code.

    This differs from [`grow_basis`] in three ways: energies are fourth powers of singular values, which leaves few
    directions; the first task takes those whose cumulative share is below the threshold, one fewer than reach it,
    perhaps none; and rows need not be channels.

    Args:
        representation: `(rows, columns)`; the basis lives in the space of the rows.
        threshold: 0 to 1.
        basis: `(rows, rank)` of the tasks before.

    Returns:
        `(rows, rank)` float64 orthonormal, at most `rows` columns.

    Raises:
        ValueError: if the threshold is outside 0 to 1, or shapes do not fit.
    """
    representation = representation.double()
    first_task = basis is None
    products, basis = _checked(representation @ representation.T, threshold, basis)
    total = products.square().sum()
    vectors, values, _ = torch.linalg.svd(_without(products.T, basis).T)
    shares = values.square() / total
    if first_task:
        return _with_fixed_signs(vectors[:, : int((shares.cumsum(0) < threshold).sum())])
    return _extended(basis, vectors, shares, threshold)


def released_representation(
    samples: torch.Tensor, num_rows: int = RELEASED_ROWS, num_components: int = RELEASED_COMPONENTS
) -> torch.Tensor:
    """Compute the input of [`grow_basis_released`] in the released code: principal components of the first frames.

    Args:
        samples: `(frames, queries * channels)`.
        num_rows: frames to use; the number of channels, or the basis has the wrong size.

    Returns:
        `(num_rows, num_components)` float64, by falling variance.

    Raises:
        ValueError: if there are fewer than `num_rows` frames.
    """
    if len(samples) < num_rows:
        raise ValueError(
            f"There are {len(samples)} frames, the released procedure needs {num_rows}: collect more clips "
            "(`num_clips`)."
        )
    samples = samples[:num_rows].double()
    vectors, values, _ = torch.linalg.svd(samples - samples.mean(dim=0), full_matrices=False)
    return (vectors * values)[:, :num_components]


def project_out(tensor: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return `tensor (..., channels)` without its component in the span of `basis (channels, rank)`, in its type."""
    basis = basis.to(tensor.device, at_least_float32_dtype(tensor.dtype))
    wide = tensor.to(basis.dtype)
    return (wide - (wide @ basis) @ basis.T).to(tensor.dtype)


class GradientProjection:
    """Keep parameters from moving within the span of a basis.

    Call [`project_gradients`] after the backward pass and before gradients are clipped (scaled gradients are fine: the
    projection is linear), and [`project_changes`] after the step of the optimiser. The latter is needed because Adam
    divides every entry by a scale of its own, which brings the component back, and so would weight decay.

    Args:
        parameters: parameters of shape `(..., channels)`.
        basis: `(channels, rank)`, orthonormal; rank 0 changes nothing.
        project_update: False for the released behaviour, which corrects gradients only.

    Raises:
        ValueError: if a parameter has another number of channels, or the basis is not orthonormal.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], basis: torch.Tensor, project_update: bool = True) -> None:
        self.parameters = list(parameters)
        self.basis = basis.detach().double()
        self.project_update = project_update
        wrong = [tuple(parameter.shape) for parameter in self.parameters if parameter.shape[-1] != len(self.basis)]
        if wrong:
            raise ValueError(f"The basis has {len(self.basis)} channels, the parameters' shapes are {wrong}.")
        rank = self.basis.shape[1]
        if not torch.allclose(self.basis.T @ self.basis, torch.eye(rank, dtype=torch.float64), atol=1e-4):
            raise ValueError("The columns of the basis are not orthonormal; take it from `grow_basis`.")
        self._before_step: list[torch.Tensor] = []

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Project every existing gradient out of the span of the basis, and remember the parameters."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(project_out(parameter.grad, self.basis))
        if self.project_update:
            self._before_step = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def project_changes(self) -> None:
        """Project the changes since [`project_gradients`] out of the span; do nothing if `project_update` is False."""
        if not self.project_update:
            return
        for parameter, before in zip(self.parameters, self._before_step, strict=True):
            parameter.copy_(before + project_out(parameter - before, self.basis))
        self._before_step = []


class OrthogonalGradientCorrection(TrainingCallback):
    """Have prompts of later tasks learn clear of the directions that older classes use (HVPL's OGC).

    The model keeps the directions, in `protected_directions()`, and they are saved with its tasks.

    Args:
        settings: how directions are found and used.
    """

    def __init__(self, settings: GradientProjectionSettings) -> None:
        self.settings = settings
        self.projection: GradientProjection | None = None

    def before_task(self, task: Task) -> None:
        basis = None if task.is_base else task.model.protected_directions()
        self.projection = None
        if basis is not None:
            parameters = task.model.projected_parameters()
            self.projection = GradientProjection(parameters, basis, self.settings.project_update)

    def after_backward(self, trainer: RunningTrainer) -> None:
        if self.projection is not None:
            self.projection.project_gradients()

    def after_step(self, trainer: RunningTrainer, step: int) -> None:
        if self.projection is not None:
            self.projection.project_changes()

    def after_task(self, task: Task) -> None:
        """Have the model protect the directions of the task, for the tasks that follow."""
        if task.is_last:
            return
        if not task.is_trained and task.model.protected_directions() is not None:
            return  # they came with the base
        settings = self.settings
        directions = collect_directions(
            task.model,
            task.dataset,
            task.video_processor,
            settings.space,
            settings.threshold,
            settings.num_clips,
            settings.centre,
        )
        task.model.protect_directions(directions)


def _without(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    return rows - (rows @ basis) @ basis.T


def _checked(products: torch.Tensor, threshold: float, basis: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold is {threshold}, expected a share of the energy from 0 to 1.")
    if products.dim() != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"The energy has shape {tuple(products.shape)}, expected (channels, channels).")
    if basis is None:
        basis = products.new_zeros(len(products), 0)
    if len(basis) != len(products):
        raise ValueError(f"The basis of the tasks before has {len(basis)} rows, the new features {len(products)}.")
    return products, basis.double()


def _extended(basis: torch.Tensor, directions: torch.Tensor, shares: torch.Tensor, threshold: float) -> torch.Tensor:
    """Extend the basis by `directions`, ordered by falling share of the energy, until it holds `threshold` of it."""
    share_in_basis, num_new = 1 - shares.sum(), 0
    while share_in_basis < threshold and num_new < len(basis) - basis.shape[1]:
        share_in_basis = share_in_basis + shares[num_new]
        num_new += 1
    return torch.cat((basis, _with_fixed_signs(directions[:, :num_new])), dim=1)


def _with_fixed_signs(directions: torch.Tensor) -> torch.Tensor:
    """Return the directions, each with the sign that makes its largest entry positive."""
    if not directions.shape[1]:
        return directions
    return directions * directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
