# SPDX-License-Identifier: Apache-2.0
"""Groups of queries, one per task: the base queries, and the prompts that each later task added (HVPL, CRISP).

Groups share the frozen network and never attend to each other, so the results of an older group do not change when a
new one is added, to the last bit. At inference the first group runs in calls of its own, whose shapes do not depend on
the later groups, so its results are the same with and without them on every device. Later groups of one width run as
elements of a batch, in a `BatchInvariance`, so that on CPU none depends on the number of groups that follow.

B videos, T frames, N images or videos, Q queries of all groups (frame queries or video queries), P queries of a group,
C channels, K classes of all tasks.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from ...kernels import BatchInvariance, batch_invariant_linear
from ..frame_detector.masked_attention_decoder import MaskedAttentionDecoder, inside_masks
from ..frame_detector.pixel_decoder import NUM_LEVELS
from ..layers.mask_logits import MaskEmbedder, group_mask_logits
from ..layers.query_groups import GroupParameters
from .places import NO_OBJECT_HEAD

# Rows and outputs of the class heads are padded to cache lines, which keeps the matrices of a batch aligned.
CLASS_HEAD_ALIGNMENT = 16
FOREIGN_CLASS_LOGIT = -10.0


class TaskQueryGroup(nn.Module):
    """Parameters that a task adds at one stage: prompts, their positions in every layer, and a mask head.

    Args:
        num_prompts: number of prompts P.
        num_layers: layers of the decoder, each with positions of its own.
        hidden_dim: channels C.
        mask_dim: channels of mask embeddings.
        token_positions: add positions of the group's frame queries, for the video stage, which reads them.
    """

    def __init__(
        self, num_prompts: int, num_layers: int, hidden_dim: int, mask_dim: int, token_positions: bool = False
    ) -> None:
        super().__init__()
        self.features = nn.Embedding(num_prompts, hidden_dim)
        self.positions = nn.ModuleList(nn.Embedding(num_prompts, hidden_dim) for _ in range(num_layers))
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_dim)
        self.token_positions = nn.Embedding(num_prompts, hidden_dim) if token_positions else None

    @torch.no_grad()
    def start_from(self, base: GroupParameters) -> None:
        """Set prompts and positions to the mean of the base's, and the mask head to a copy of its mask head."""
        embeddings, starts = [self.features, *self.positions], [base.features, *base.positions]
        if self.token_positions is not None:
            embeddings.append(self.token_positions)
            starts.append(base.token_positions)
        for embedding, rows in zip(embeddings, starts, strict=True):
            embedding.weight.copy_(rows.mean(dim=0).expand_as(embedding.weight))
        self.mask_embedder.load_state_dict(base.mask_embedder.state_dict())

    def group(self) -> GroupParameters:
        """Return the parameters in the form that base and later tasks share."""
        token_positions = None if self.token_positions is None else self.token_positions.weight
        positions = [embedding.weight for embedding in self.positions]
        return GroupParameters(self.features.weight, positions, self.mask_embedder, token_positions)


class TaskClassPredictor(nn.Module):
    """Class heads of all tasks: the no-object head, which tasks share, and one head per task (see `places`).

    Args:
        hidden_dim: channels C.
        class_counts: number of classes of each task, the base first.
        deep: build heads of three layers instead of one.
    """

    def __init__(self, hidden_dim: int, class_counts: Sequence[int], deep: bool = True) -> None:
        super().__init__()
        self.hidden_dim, self.deep = hidden_dim, deep
        self.heads = nn.ModuleList(self._head(count) for count in (1, *class_counts))

    def _head(self, num_classes: int) -> nn.Module:
        return MaskEmbedder(self.hidden_dim, num_classes) if self.deep else nn.Linear(self.hidden_dim, num_classes)

    @torch.no_grad()
    def add_task(self, num_classes: int, fresh: bool = False) -> None:
        """Append a head that starts as the no-object head, with its output repeated for every class.

        Args:
            num_classes: classes of the new task.
            fresh: start from random weights instead.
        """
        no_object = self.heads[NO_OBJECT_HEAD]
        reference = next(no_object.parameters())
        head = self._head(num_classes).to(reference.device, reference.dtype)
        if fresh:
            self.heads.append(head)
            return
        for ours, theirs in zip(head.parameters(), no_object.parameters(), strict=True):
            ours.copy_(theirs.expand_as(ours))  # the output layer has one row, other layers have the same shape
        self.heads.append(head)

    def reset_parameters(self) -> None:
        """Initialise all heads as PyTorch does."""
        for head in self.heads:
            for layer in _linear_layers(head):
                layer.reset_parameters()

    def remove_task(self) -> None:
        """Drop the head of the last task."""
        del self.heads[-1]

    def forward(self, queries: torch.Tensor, layout: "GroupLayout | None" = None) -> torch.Tensor:
        """Compute raw class logits of every query for the classes of all tasks.

        Args:
            queries: `(..., Q, C)`.
            layout: layout of the queries; one group by default.

        Returns:
            `(..., Q, K + 1)`, classes task after task, no-object last.
        """
        layout = layout or GroupLayout([queries.shape[-2]])
        parts = zip(layout.split(queries), layout.runs, strict=True)
        return layout.join([self._classify(part, run.num_groups) for part, run in parts])

    def _classify(self, queries: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Classify one run; the heads, whose number also grows with every task, are further elements of the batch."""
        groups = queries.reshape(num_groups, -1, queries.shape[-1])  # (groups, rows, C)
        num_rows = groups.shape[1]
        groups = nn.functional.pad(groups, (0, 0, 0, _aligned(num_rows) - num_rows))[:, None]
        heads = [_linear_layers(head) for head in self.heads]
        widths = [layers[-1].out_features for layers in heads]
        heads_of_width = defaultdict(list)
        for head, width in enumerate(widths):
            heads_of_width[_aligned(width)].append(head)
        logits: dict[int, torch.Tensor] = {}  # by head (groups, rows, classes)
        for aligned_width, alike in heads_of_width.items():
            network = _StackedLayers.stack([heads[head] for head in alike], aligned_width).repeat(num_groups)
            results = network(groups.expand(-1, len(alike), -1, -1).flatten(0, 1)).unflatten(0, (num_groups, -1))
            for head, result in zip(alike, results.unbind(1), strict=True):
                logits[head] = result[:, :num_rows, : widths[head]]
        no_object = logits.pop(NO_OBJECT_HEAD)
        return torch.cat([*(logits[head] for head in sorted(logits)), no_object], dim=-1).reshape(
            *queries.shape[:-1], -1
        )


class GroupRun(NamedTuple):
    """Neighbouring groups of one width, computed as one batch; the very first group is always a run by itself."""

    width: int
    num_groups: int
    is_first: bool

    def batch_invariance(self) -> AbstractContextManager:
        """Return a context in which the result of each group is independent of the number of groups."""
        return nullcontext() if self.is_first else BatchInvariance()


class GroupLayout:
    """Layout of groups that lie one after the other in `(..., Q, C)`, and the runs in which they are computed.

    Args:
        widths: number of queries of each group.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = list(widths)
        self.num_queries = sum(self.widths)
        later = [GroupRun(width, len(list(same)), False) for width, same in groupby(self.widths[1:])]
        self.runs = [GroupRun(self.widths[0], 1, True), *later]

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Split `(..., Q, C)` into runs: `(..., P, C)` for the first, `(groups, ..., P, C)` for each later one."""
        first, *rest = states.split([run.width * run.num_groups for run in self.runs], dim=-2)
        later = [
            part.unflatten(-2, (run.num_groups, run.width)).movedim(-3, 0).contiguous()
            for part, run in zip(rest, self.runs[1:], strict=True)
        ]
        return [first.contiguous(), *later]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join runs to `(..., Q, C)`; the inverse of `split`."""
        first, *rest = parts
        return torch.cat([first, *(part.movedim(0, -3).flatten(-3, -2) for part in rest)], dim=-2) if rest else first

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """Apply `function` to each run, as `split` gives it: `(..., Q, C)` to `(..., Q, channels)`."""
        parts = []
        for part, run in zip(self.split(states), self.runs, strict=True):
            with run.batch_invariance():
                parts.append(function(part))
        return self.join(parts)

    def mask_logits(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Compute the mask logits of each query on each frame.

        Args:
            mask_embeddings: `(B, Q, C)`.
            mask_features: `(B, T, C, h, w)`.

        Returns:
            `(B, Q, T, h, w)`.
        """
        num_frames, _, height, width = mask_features.shape[1:]
        logits = mask_features.new_empty(*mask_embeddings.shape[:2], num_frames, height * width)
        for frame, features in enumerate(mask_features.flatten(3).unbind(1)):
            logits[:, :, frame] = self.apply(partial(group_mask_logits, mask_features=features), mask_embeddings)
        return logits.unflatten(-1, (height, width))


class DecodedGroups(NamedTuple):
    """Output of a decoder for groups: first for the learned queries, then for every layer."""

    states: list[torch.Tensor]
    """`(N, Q, C)`."""
    queries: list[torch.Tensor]
    """`(N, Q, C)`, normalised."""
    mask_embeddings: list[torch.Tensor]
    """`(N, Q, mask channels)`, of all but the last."""


class GroupedQueries:
    """Parameters of several groups, run by run, for one pass of a decoder.

    In every list of runs the first run has the shape `(P, C)` and each later one `(groups, 1, P, C)`, which fits states
    `(N, P, C)` and `(groups, N, P, C)`.

    Args:
        groups: groups of several tasks, the base first; or a single group of any task.

    Attributes:
        layout (`GroupLayout`): layout of the queries.
        token_layout (`GroupLayout`): layout of the frame queries that they read, at the video stage.
        features (`list[torch.Tensor]`): learned queries by run.
        positions (`list[list[torch.Tensor]]`): positions by layer and run.
        token_positions (`list[torch.Tensor]`): positions of the frame queries by run, at the video stage; those of
            later runs have the shape `(groups, 1, 1, P, C)`, as frame queries have an axis of frames.
    """

    def __init__(self, groups: Sequence[GroupParameters]) -> None:
        self.layout = GroupLayout([len(group.features) for group in groups])
        self.features = self._by_run([group.features for group in groups])
        self.positions = [self._by_run(layer) for layer in zip(*(group.positions for group in groups), strict=True)]
        if groups[0].token_positions is not None:
            self.token_layout = GroupLayout([len(group.token_positions) for group in groups])
            token_positions = self._by_run([group.token_positions for group in groups])
            self.token_positions = [token_positions[0], *(positions[:, None] for positions in token_positions[1:])]
        self._first_mask_embedder = groups[0].mask_embedder
        networks = iter([_linear_layers(group.mask_embedder) for group in groups[1:]])
        self._later_mask_embedders = [
            _StackedLayers.stack([next(networks) for _ in range(run.num_groups)]) for run in self.layout.runs[1:]
        ]

    def _by_run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        first, *others = tensors
        rest = iter(others)
        later = [torch.stack([next(rest) for _ in range(run.num_groups)])[:, None] for run in self.layout.runs[1:]]
        return [first, *later]

    def start(self, batch_size: int) -> list[torch.Tensor]:
        """Return the learned queries by run: `(N, P, C)`, then `(groups, N, P, C)` for each later run."""
        first, *later = self.features
        return [first.expand(batch_size, -1, -1), *(part.expand(-1, batch_size, -1, -1) for part in later)]

    def decode(
        self,
        decoder: MaskedAttentionDecoder,
        level_keys: Sequence[torch.Tensor],
        level_values: Sequence[torch.Tensor],
        level_mask_features: Sequence[torch.Tensor],
        value_residual: torch.Tensor | None = None,
    ) -> DecodedGroups:
        """Run a decoder on the queries of each group, like `MaskedAttentionDecoder.forward`.

        Args:
            decoder: decoder that all groups share.
            level_keys: keys of each level of the maps, `(N, S, C)`.
            level_values: values of each level, `(N, S, C)`.
            level_mask_features: mask features at the size of each level, `(N, mask channels, S)`.
            value_residual: `(P, C)`, added to the values of self-attention in every layer; for a single group.
        """
        layout = self.layout
        states = self.start(len(level_keys[0]))  # by run, like all lists below
        normalised = [decoder.layernorm(part) for part in states]
        decoded = DecodedGroups([layout.join(states)], [layout.join(normalised)], [])
        for index, (layer, positions) in enumerate(zip(decoder.layers, self.positions, strict=True)):
            level = index % NUM_LEVELS
            update, keys, values = layer, level_keys[level], level_values[level]
            if len(layout.runs) > 1:
                update, (keys, values) = layer.update, layer.cross_attn.project(keys, values)
            embeddings = self.mask_embeddings_by_run(normalised)
            for number, run in enumerate(layout.runs):
                with run.batch_invariance():
                    allowed = inside_masks(embeddings[number], level_mask_features[level])
                    states[number] = update(states[number], positions[number], keys, values, allowed, value_residual)
                    normalised[number] = decoder.layernorm(states[number])
            decoded.states.append(layout.join(states))
            decoded.queries.append(layout.join(normalised))
            decoded.mask_embeddings.append(layout.join(embeddings))
        return decoded

    def mask_embeddings_by_run(self, queries: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute mask embeddings by run from queries by run, with the mask head of each group."""
        first, *later = queries
        embeddings = [self._first_mask_embedder(first)]
        for states, network in zip(later, self._later_mask_embedders, strict=True):
            embeddings.append(network(states.flatten(1, -2)).unflatten(1, states.shape[1:-1]))
        return embeddings

    def mask_embeddings(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute mask embeddings with the mask head of each group: `(..., Q, C)` to `(..., Q, mask channels)`."""
        return self.layout.join(self.mask_embeddings_by_run(self.layout.split(queries)))


def calibrate_class_logits(
    class_logits: torch.Tensor, group_widths: Sequence[int], class_counts: Sequence[int], deltas: Sequence[float]
) -> torch.Tensor:
    """Make the class logits of groups of different tasks comparable (ECLIPSE, section 3.4; HVPL's inference).

    The queries of a group predict only its own classes: the logits of other classes become -10. If the delta of the
    task is positive, the probability of no-object becomes delta times the summed probability of those other classes
    (at most 1); if it is negative, -delta times its own probability; 0 leaves it as it is. Probabilities are sigmoids,
    and the new one is kept in 0.001..0.999. The logits of a model without later tasks are returned unchanged.

    Args:
        class_logits: raw logits `(..., Q, K + 1)`, no-object last.
        group_widths: number of queries of each group, Q in total.
        class_counts: number of classes of each task, K in total.
        deltas: delta of each task; cut to the number of tasks, or continued with the last one.

    Returns:
        `(..., Q, K + 1)`.
    """
    if len(class_counts) == 1:
        return class_logits
    deltas = [*deltas, *[deltas[-1]] * len(class_counts)][: len(class_counts)]
    device = class_logits.device
    owner, class_owner = (
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
        for sizes in (list(group_widths), list(class_counts))
    )
    foreign = owner[:, None] != class_owner  # (Q, K)
    delta = class_logits.new_tensor(deltas)[owner]  # (Q,)
    probabilities = class_logits.sigmoid()
    others = (probabilities[..., :-1] * foreign).sum(dim=-1).clamp(max=1)
    probability = torch.where(delta > 0, delta * others, -delta * probabilities[..., -1])
    no_object = torch.where(delta == 0, class_logits[..., -1], probability.clamp(0.001, 0.999).logit())
    return torch.cat([class_logits[..., :-1].masked_fill(foreign, FOREIGN_CLASS_LOGIT), no_object[..., None]], dim=-1)


class _StackedLayers:
    """Networks of Linear layers with ReLU between them, run as one batch; only their last layers may differ in width.

    Args:
        weights: weights of each layer, `(networks, outputs, inputs)`.
        biases: biases of each layer, `(networks, outputs)`.
    """

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
        self.weights, self.biases = weights, biases

    @classmethod
    def stack(cls, networks: Sequence[list[nn.Linear]], output_width: int | None = None) -> "_StackedLayers":
        """Stack networks; outputs of fewer than `output_width` channels are padded with zeros."""
        weights, biases = [], []
        for layers in zip(*networks, strict=True):
            last = layers[0] is networks[0][-1] and output_width is not None
            width = output_width if last else layers[0].out_features
            weights.append(
                torch.stack([nn.functional.pad(layer.weight, (0, 0, 0, width - len(layer.weight))) for layer in layers])
            )
            biases.append(
                torch.stack([nn.functional.pad(layer.bias, (0, width - len(layer.bias))) for layer in layers])
            )
        return cls(weights, biases)

    def repeat(self, times: int) -> "_StackedLayers":
        """Repeat the stacked networks `times` times."""
        weights, biases = (
            [part.expand(times, *part.shape).flatten(0, 1) for part in parts] for parts in (self.weights, self.biases)
        )
        return _StackedLayers(weights, biases)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Run each network on rows of its own: `(networks, rows, C)` to `(networks, rows, output channels)`."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            states = batch_invariant_linear(states.relu() if index else states, weight, bias)
        return states


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    """Return the Linear layers of a network, in order."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def _aligned(width: int) -> int:
    """Return a width rounded up to whole cache lines."""
    return -(-width // CLASS_HEAD_ALIGNMENT) * CLASS_HEAD_ALIGNMENT
