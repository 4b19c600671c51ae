# SPDX-License-Identifier: Apache-2.0
"""Orthogonal gradient correction (HVPL): new prompts learn in directions that older classes do not use.

At the end of each task, the directions that carry most of the energy of its features are added to an orthonormal basis
M. During later tasks, the component in the span of M is removed from gradients and updates of the prompts.

By default M is a basis in the channels of the features. The procedure of the released code is also available: it finds
directions in the space of samples, which apply to channels only because it collects as many samples as channels.
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
from ..messages import check_at_least
from ..precision import at_least_float32_dtype
from ..processing import CvisVideoProcessor
from ..training.callbacks import RunningTrainer, Task, TrainingCallback

RELEASED_ROWS = 256
RELEASED_COMPONENTS = 50


@dataclass
class GradientProjectionSettings:
    """HVPL's orthogonal gradient correction, which keeps prompts out of the directions of earlier tasks."""

    space: Literal["features", "released"] = field(
        default="features",
        metadata={
            "help": "'features' finds directions in the channels of the features. 'released' computes them like the "
            "released code, from the first 256 frames, and needs a model of 256 channels. The frames differ: the "
            "released code reads the data of a task at the start of the next one, in clips of 4 frames; this package "
            "reads it at the end of the task, with the same model, in clips of the length of the task, so that no data "
            "of older tasks has to be kept."
        },
    )
    threshold: float = field(
        default=0.7, metadata={"help": "Share of the feature energy of a task that the directions hold, 0 to 1."}
    )
    num_clips: int = field(
        default=256,
        metadata={
            "help": "Largest number of training clips of a task from which features are collected; 'released' stops "
            "after 256 frames."
        },
    )
    centre: bool = field(
        default=False, metadata={"help": "Subtract the mean feature first; 'released' always subtracts it."}
    )
    project_update: bool = field(
        default=True,
        metadata={
            "help": "Project the optimiser's update in addition to the gradients, since Adam rescales every entry; "
            "false, like the released code, projects only the gradients."
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` must be a share of the energy from 0 to 1, got {self.threshold}.")
        check_at_least("num_clips", self.num_clips, 1)


class FeatureEnergy:
    """Running sum of `f f^T` over features `f`, in float64 and of constant size, from which a basis is computed.

    Args:
        num_channels: number of channels C of the features.
        centre: subtract the mean feature.
    """

    def __init__(self, num_channels: int, centre: bool = False) -> None:
        self.centre = centre
        self.products = torch.zeros(num_channels, num_channels, dtype=torch.float64)
        self.total = torch.zeros(num_channels, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Add features to the sum.

        Args:
            features: `(..., C)`.

        Raises:
            ValueError: if the number of channels differs, or a feature is not finite.
        """
        if features.shape[-1] != len(self.total):
            raise ValueError(f"The features have {features.shape[-1]} channels, expected {len(self.total)}.")
        rows = features.detach().reshape(-1, features.shape[-1]).double().cpu()
        if not rows.isfinite().all():
            raise ValueError("A feature is not finite, so the basis of protected directions cannot be computed.")
        self.products += rows.T @ rows
        self.total += rows.sum(dim=0)
        self.count += len(rows)

    def matrix(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the sum over all processes.

        Args:
            device: device on which the processes exchange their sums; the GPU with NCCL.

        Returns:
            `(C, C)` float64 on the CPU, the same in every process.

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
    """Compute the directions that a model has to protect after a task, in addition to those of earlier tasks.

    Args:
        model: model with `prompt_features(frames)`, the input features of the prompts, and `protected_directions()`,
            the directions of earlier tasks.
        dataset: training clips of the task; samples 0, 1, ... are used.
        video_processor: video processor of the task, which normalises the clips.
        space: "features", or "released" for the procedure of the released code, which needs as many frames as channels.
        threshold: share of the feature energy to hold, see [`grow_basis`].
        num_clips: number of clips, summed over all processes.
        centre: subtract the mean feature.

    Returns:
        `(C, rank)` float64, orthonormal and orthogonal to the earlier directions, the same in every process.

    Raises:
        ValueError: if a feature is not finite, or there are too few frames for "released".
    """
    state, was_training, before = PartialState(), model.training, model.protected_directions()
    model.eval()
    # The released procedure uses the first frames, so every process reads all of them.
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
    """Add as few directions to the basis as hold `threshold` of the feature energy of a task.

    Args:
        energy: `(C, C)` from [`FeatureEnergy.matrix`].
        threshold: share of the sum of squared singular values of the features, 0 to 1.
        basis: `(C, rank)`, orthonormal, from earlier tasks; None for the first task.

    Returns:
        `(C, rank)` float64, orthonormal, with the columns of `basis` first and fixed signs.

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
    # The tolerance lets a threshold of 1 stop when only rounding errors are left.
    return _extended(basis, vectors.flip(1), shares, threshold - 1e-12)


def grow_basis_released(
    representation: torch.Tensor, threshold: float, basis: torch.Tensor | None = None
) -> torch.Tensor:
    """Add directions to the basis like the released code.

    This differs from [`grow_basis`] in three ways: energies are fourth powers of singular values, which selects few
    directions; the first task selects the directions whose cumulative share is below the threshold, one fewer than
    reach it and possibly none; and the rows need not be channels.

    Args:
        representation: `(rows, columns)`; the basis is in the space of the rows.
        threshold: share of the energy, 0 to 1.
        basis: `(rows, rank)`, orthonormal, from earlier tasks; None for the first task.

    Returns:
        `(rows, rank)` float64, orthonormal, with at most `rows` columns.

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
    """Compute the principal components of the first frames, the input of [`grow_basis_released`].

    Args:
        samples: `(frames, queries * C)`.
        num_rows: number of frames to use; must equal C for the basis to apply to channels.
        num_components: number of principal components.

    Returns:
        `(num_rows, num_components)` float64, by decreasing variance.

    Raises:
        ValueError: if there are fewer than `num_rows` frames.
    """
    if len(samples) < num_rows:
        raise ValueError(
            f"The released procedure needs {num_rows} frames, got {len(samples)}: collect more clips (`num_clips`)."
        )
    samples = samples[:num_rows].double()
    vectors, values, _ = torch.linalg.svd(samples - samples.mean(dim=0), full_matrices=False)
    return (vectors * values)[:, :num_components]


def project_out(tensor: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Remove the component of a tensor in the span of a basis.

    Args:
        tensor: `(..., C)`.
        basis: `(C, rank)`, orthonormal.

    Returns:
        `(..., C)` in the dtype of `tensor`.
    """
    basis = basis.to(tensor.device, at_least_float32_dtype(tensor.dtype))
    wide = tensor.to(basis.dtype)
    return (wide - (wide @ basis) @ basis.T).to(tensor.dtype)


class GradientProjection:
    """Keep parameters from moving within the span of a basis.

    Call [`project_gradients`] after the backward pass and before the gradients are clipped (gradients may be scaled,
    since the projection is linear), and [`project_changes`] after the step of the optimiser. The second call is needed
    because Adam divides every entry by its own scale, which restores the component, as does weight decay.

    Args:
        parameters: parameters of shape `(..., C)`.
        basis: `(C, rank)`, orthonormal; rank 0 changes nothing.
        project_update: also project the change by the optimiser; False, like the released code, projects only the
            gradients.

    Raises:
        ValueError: if a parameter has another number of channels, or the basis is not orthonormal.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], basis: torch.Tensor, project_update: bool = True) -> None:
        self.parameters = list(parameters)
        self.basis = basis.detach().double()
        self.project_update = project_update
        wrong = [tuple(parameter.shape) for parameter in self.parameters if parameter.shape[-1] != len(self.basis)]
        if wrong:
            raise ValueError(
                f"Every parameter must have the {len(self.basis)} channels of the basis, got the shapes {wrong}."
            )
        rank = self.basis.shape[1]
        if not torch.allclose(self.basis.T @ self.basis, torch.eye(rank, dtype=torch.float64), atol=1e-4):
            raise ValueError("The columns of the basis are not orthonormal; take it from `grow_basis`.")
        self._before_step: list[torch.Tensor] = []

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Project every existing gradient out of the span of the basis, and keep a copy of the parameters."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(project_out(parameter.grad, self.basis))
        if self.project_update:
            self._before_step = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def project_changes(self) -> None:
        """Project the changes since [`project_gradients`] out of the span, if `project_update` is set."""
        if not self.project_update:
            return
        for parameter, before in zip(self.parameters, self._before_step, strict=True):
            parameter.copy_(before + project_out(parameter - before, self.basis))
        self._before_step = []


class OrthogonalGradientCorrection(TrainingCallback):
    """Keep the prompts of later tasks out of the directions that older classes use (OGC of HVPL).

    The model stores the directions, which are saved with its tasks, and returns them from `protected_directions()`.

    Args:
        settings: settings of the correction.
    """

    def __init__(self, settings: GradientProjectionSettings) -> None:
        self.settings = settings
        self.projection: GradientProjection | None = None

    def before_task(self, task: Task) -> None:
        """Prepare the projection with the directions of earlier tasks."""
        basis = None if task.is_base else task.model.protected_directions()
        self.projection = None
        if basis is not None:
            parameters = task.model.projected_parameters()
            self.projection = GradientProjection(parameters, basis, self.settings.project_update)

    def after_backward(self, trainer: RunningTrainer) -> None:
        """Project the gradients."""
        if self.projection is not None:
            self.projection.project_gradients()

    def after_step(self, trainer: RunningTrainer, step: int) -> None:
        """Project the change by the optimiser."""
        if self.projection is not None:
            self.projection.project_changes()

    def after_task(self, task: Task) -> None:
        """Add the directions of the task to those that the model protects in later tasks."""
        if task.is_last:
            return
        if not task.is_trained and task.model.protected_directions() is not None:
            return  # the trained base already has directions
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
        raise ValueError(f"`threshold` must be a share of the energy from 0 to 1, got {threshold}.")
    if products.dim() != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"The energy has shape {tuple(products.shape)}, expected (channels, channels).")
    if basis is None:
        basis = products.new_zeros(len(products), 0)
    if len(basis) != len(products):
        raise ValueError(
            f"The basis of earlier tasks has {len(basis)} rows, but the new features have {len(products)}."
        )
    return products, basis.double()


def _extended(basis: torch.Tensor, directions: torch.Tensor, shares: torch.Tensor, threshold: float) -> torch.Tensor:
    """Extend the basis by `directions`, in order of decreasing energy, until it holds `threshold` of the energy."""
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
