"""Orthogonal gradient correction (HVPL): new prompts learn in directions that older classes do not use.

At the end of a task its features give the directions that carry most of their energy; these join an orthonormal basis M
that grows from task to task. While a later task is learnt, gradients and updates of its prompts lose their component in
the span of M.

By default M lives in the channels of the features. The procedure of the released code is here too: its directions are
those of samples, and apply to channels only because it collects as many samples as there are channels.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as distributed
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import collate_clips
from ..processing import CvisVideoProcessor
from ..training.build import config_of_base
from ..training.recipe import Recipe
from .schedule import Schedule

RELEASED_ROWS = 256
RELEASED_COMPONENTS = 50


def check_collection(schedule: Schedule, recipes: Sequence[Recipe]) -> None:
    """See, before any training, that the directions which a schedule asks for can be collected and used.

    Args:
        recipes: the training of every task.

    Raises:
        ValueError: the released procedure, and fewer frames than it wants, or a model of another width.
    """
    projection = schedule.gradient_projection
    collecting = recipes[:-1]  # nothing follows the last task
    if projection is None or projection.space != "released" or not collecting:
        return
    for number, recipe in enumerate(collecting):
        num_clips, clip_length = projection.num_clips, recipe.data.num_frames
        if num_clips * clip_length < RELEASED_ROWS:
            raise ValueError(
                f"`gradient_projection`: the released procedure needs {RELEASED_ROWS} frames of every task, and "
                f"{num_clips} clips of {clip_length}, as task {number} has them, are {num_clips * clip_length}: set "
                f"`num_clips` to {-(-RELEASED_ROWS // clip_length)} or more."
            )
    num_channels = config_of_base(recipes[0], schedule.base_model).detector_config.hidden_dim
    if num_channels != RELEASED_ROWS:
        raise ValueError(
            f"`gradient_projection`: the released procedure takes directions of {RELEASED_ROWS} frames for directions "
            f"of channels, so it needs a model of as many; this one has {num_channels} "
            "(`detector_config.hidden_dim`). Use `space: features`."
        )


class FeatureEnergy:
    """Sum over features f of `f f^T`, all that growing a basis needs of them; float64, of constant size.

    Args:
        num_channels: of the features.
        centre: subtract the mean feature.
    """

    def __init__(self, num_channels: int, centre: bool = False):
        self.centre = centre
        self.products = torch.zeros(num_channels, num_channels, dtype=torch.float64)
        self.total = torch.zeros(num_channels, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add features `(..., channels)`, e.g. (queries, frames, channels).

        Raises:
            ValueError: another number of channels, or a feature that is not finite.
        """
        if features.shape[-1] != len(self.total):
            raise ValueError(f"The features have {features.shape[-1]} channels, expected {len(self.total)}.")
        rows = features.detach().reshape(-1, features.shape[-1]).double().cpu()
        if not rows.isfinite().all():
            raise ValueError("A feature is not finite; the basis of protected directions cannot be made of it.")
        self.products += rows.T @ rows
        self.total += rows.sum(dim=0)
        self.count += len(rows)

    def matrix(self, device: torch.device | str = "cpu") -> Tensor:
        """`(channels, channels)`, the same in all processes.

        Args:
            device: on which the processes exchange their sums; the GPU where they talk over NCCL.

        Raises:
            ValueError: there were no features.
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
) -> Tensor:
    """The directions that a model, at the end of a task, adds to those it protects; the same in all processes.

    Args:
        model: has `prompt_features(frames)`, the features that prompts of later tasks will meet, and
            `protected_directions()`, those of earlier tasks.
        dataset: training clips of the task; its samples 0, 1, ... are looked at.
        video_processor: the processor of the task, which normalises the clips.
        space: "features", or "released" for the published procedure, which wants as many frames as channels.
        threshold, centre: see [`grow_basis`], [`FeatureEnergy`].
        num_clips: how many clips are looked at, over all processes together.

    Returns:
        `(channels, rank)` float64 orthonormal, orthogonal to the directions before.

    Raises:
        ValueError: a feature is not finite; "released" and too few frames.
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


def grow_basis(energy: Tensor, threshold: float, basis: Tensor | None = None) -> Tensor:
    """Add the fewest directions with which the basis holds `threshold` of a task's feature energy.

    Args:
        energy: `(channels, channels)` from [`FeatureEnergy.matrix`].
        threshold: 0 to 1, of the sum of squared singular values of the features.
        basis: `(channels, rank)` of the tasks before.

    Returns:
        `(channels, rank)` float64 orthonormal, the columns of `basis` first, signs fixed.

    Raises:
        ValueError: a threshold outside 0 to 1, or shapes that do not fit.
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


def grow_basis_released(representation: Tensor, threshold: float, basis: Tensor | None = None) -> Tensor:
    """The growth of the released code.

    It differs from [`grow_basis`] in three ways: energies are fourth powers of singular values, which leaves few
    directions; the first task takes those whose cumulative share is below the threshold, one fewer than reach it,
    perhaps none; and rows need not be channels.

    Args:
        representation: `(rows, columns)`; the basis lives in the space of the rows.
        threshold: 0 to 1.
        basis: `(rows, rank)` of the tasks before.

    Returns:
        `(rows, rank)` float64 orthonormal, at most `rows` columns.

    Raises:
        ValueError: a threshold outside 0 to 1, or shapes that do not fit.
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
    samples: Tensor, num_rows: int = RELEASED_ROWS, num_components: int = RELEASED_COMPONENTS
) -> Tensor:
    """What the released code passes to [`grow_basis_released`]: principal component scores of the first frames.

    Args:
        samples: `(frames, queries * channels)`.
        num_rows: frames to use; the number of channels, or the basis has the wrong size.

    Returns:
        `(num_rows, num_components)` float64, by falling variance.

    Raises:
        ValueError: there are fewer than `num_rows` frames.
    """
    if len(samples) < num_rows:
        raise ValueError(
            f"There are {len(samples)} frames, the released procedure needs {num_rows}: collect more clips "
            "(`num_clips`)."
        )
    samples = samples[:num_rows].double()
    vectors, values, _ = torch.linalg.svd(samples - samples.mean(dim=0), full_matrices=False)
    return (vectors * values)[:, :num_components]


def project_out(tensor: Tensor, basis: Tensor) -> Tensor:
    """`tensor (..., channels)` without its component in the span of `basis (channels, rank)`, in its own type."""
    basis = basis.to(tensor.device, torch.promote_types(tensor.dtype, torch.float32))
    wide = tensor.to(basis.dtype)
    return (wide - (wide @ basis) @ basis.T).to(tensor.dtype)


class GradientProjection:
    """Keeps parameters from moving within the span of a basis.

    Call `project_gradients()` after the backward and before gradients are clipped (scaled gradients are fine: it is
    linear). `attach(optimizer)` also restricts what the optimiser does: Adam divides every entry by a scale of its own,
    which brings the component back, and so would weight decay.

    Args:
        parameters: `(..., channels)` each.
        basis: `(channels, rank)`, orthonormal; rank 0 changes nothing.
        project_update: False for the released behaviour, which corrects gradients only.

    Raises:
        ValueError: a parameter of another number of channels, or a basis that is not orthonormal.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], basis: Tensor, project_update: bool = True):
        self.parameters = list(parameters)
        self.basis = basis.detach().double()
        self.project_update = project_update
        wrong = [tuple(parameter.shape) for parameter in self.parameters if parameter.shape[-1] != len(self.basis)]
        if wrong:
            raise ValueError(f"The basis has {len(self.basis)} channels, the parameters' shapes are {wrong}.")
        rank = self.basis.shape[1]
        if not torch.allclose(self.basis.T @ self.basis, torch.eye(rank, dtype=torch.float64), atol=1e-4):
            raise ValueError("The columns of the basis are not orthonormal; take it from `grow_basis`.")
        self._before: list[Tensor] = []

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Remove the component of every gradient that there is."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(project_out(parameter.grad, self.basis))

    def attach(self, optimizer: torch.optim.Optimizer) -> "GradientProjection":
        """Project the change of every step of `optimizer`; nothing happens with `project_update=False`."""
        if self.project_update:
            optimizer.register_step_pre_hook(lambda *_: self._remember())
            optimizer.register_step_post_hook(lambda *_: self._project_changes())
        return self

    def _remember(self) -> None:
        self._before = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def _project_changes(self) -> None:
        for parameter, before in zip(self.parameters, self._before, strict=True):
            parameter.copy_(before + project_out(parameter - before, self.basis))
        self._before = []


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis) @ basis.T


def _checked(products: Tensor, threshold: float, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold is {threshold}, expected a share of the energy from 0 to 1.")
    if products.dim() != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"The energy has shape {tuple(products.shape)}, expected (channels, channels).")
    if basis is None:
        basis = products.new_zeros(len(products), 0)
    if len(basis) != len(products):
        raise ValueError(f"The basis of the tasks before has {len(basis)} rows, the new features {len(products)}.")
    return products, basis.double()


def _extended(basis: Tensor, directions: Tensor, shares: Tensor, threshold: float) -> Tensor:
    """As many `directions`, by falling share of the energy, as let the basis hold `threshold` of it."""
    held, num_new = 1 - shares.sum(), 0
    while held < threshold and num_new < len(basis) - basis.shape[1]:
        held = held + shares[num_new]
        num_new += 1
    return torch.cat((basis, _with_fixed_signs(directions[:, :num_new])), dim=1)


def _with_fixed_signs(directions: Tensor) -> Tensor:
    """Each with its largest entry positive."""
    if not directions.shape[1]:
        return directions
    return directions * directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
