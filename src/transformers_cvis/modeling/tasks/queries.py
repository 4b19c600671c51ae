# SPDX-License-Identifier: Apache-2.0
"""Groups of queries, one per task: the base queries, and the prompts that each later task added (HVPL, CRISP).

Groups share the frozen network and never attend to each other, so a new group changes nothing of what an older one
computes, to the last bit. At inference the first group runs by calls of its own, whose shapes do not depend on the
later ones: on every device it gives what it gives without them. The later groups of one width run as elements of a
batch, in a `BatchInvariance`, so that on CPU none depends on how many follow.

N images or videos, F queries of all groups, P queries of a group, C channels, K classes of all tasks.
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

# Rows and outputs of the class heads are filled up to cache lines, which keeps the matrices of a batch aligned.
CLASS_HEAD_ALIGNMENT = 16
FOREIGN_CLASS_LOGIT = -10.0


class TaskQueryGroup(nn.Module):
    """What a task adds at one stage: prompts, their positions in every layer, and a mask head.

    Args:
        token_positions: also positions of the group's frame queries, where these are read (video stage).
    """

    def __init__(
        self, num_prompts: int, num_layers: int, hidden_dim: int, mask_dim: int, token_positions: bool = False
    ):
        super().__init__()
        self.features = nn.Embedding(num_prompts, hidden_dim)
        self.positions = nn.ModuleList(nn.Embedding(num_prompts, hidden_dim) for _ in range(num_layers))
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_dim)
        self.token_positions = nn.Embedding(num_prompts, hidden_dim) if token_positions else None

    @torch.no_grad()
    def start_from(self, base: GroupParameters) -> None:
        """Prompts and positions become the mean row of the base's, the mask head a copy of its mask head."""
        pairs = [(self.features, base.features), *zip(self.positions, base.positions, strict=True)]
        if self.token_positions is not None:
            pairs.append((self.token_positions, base.token_positions))
        for embedding, rows in pairs:
            embedding.weight.copy_(rows.mean(dim=0).expand_as(embedding.weight))
        self.mask_embedder.load_state_dict(base.mask_embedder.state_dict())

    def group(self) -> GroupParameters:
        token_positions = None if self.token_positions is None else self.token_positions.weight
        positions = [embedding.weight for embedding in self.positions]
        return GroupParameters(self.features.weight, positions, self.mask_embedder, token_positions)


class TaskClassPredictor(nn.Module):
    """Class logits of all tasks: the no-object head, which tasks share, and the head of each task, see `places`.

    Args:
        class_counts: classes of each task, the base first.
        deep: heads of three layers instead of one.
    """

    def __init__(self, hidden_dim: int, class_counts: Sequence[int], deep: bool = True):
        super().__init__()
        self.hidden_dim, self.deep = hidden_dim, deep
        self.heads = nn.ModuleList(self._head(count) for count in (1, *class_counts))

    def _head(self, num_classes: int) -> nn.Module:
        return MaskEmbedder(self.hidden_dim, num_classes) if self.deep else nn.Linear(self.hidden_dim, num_classes)

    @torch.no_grad()
    def add_task(self, num_classes: int, fresh: bool = False) -> None:
        """Another head, which starts as the no-object head with its output repeated for every class.

        Args:
            fresh: start from random weights instead.
        """
        no_object = self.heads[NO_OBJECT_HEAD]
        reference = next(no_object.parameters())
        head = self._head(num_classes).to(reference.device, reference.dtype)
        if fresh:
            self.heads.append(head)
            return
        for ours, theirs in zip(head.parameters(), no_object.parameters(), strict=True):
            ours.copy_(theirs.expand_as(ours))  # the output layer has one row, the others are of one shape
        self.heads.append(head)

    def reset_parameters(self) -> None:
        """Start all heads afresh, as PyTorch does."""
        for head in self.heads:
            for layer in _linear_layers(head):
                layer.reset_parameters()

    def remove_task(self) -> None:
        """Drop the head of the last task."""
        del self.heads[-1]

    def forward(self, queries: torch.Tensor, layout: "GroupLayout | None" = None) -> torch.Tensor:
        """Raw class logits of every query for the classes of all tasks.

        Args:
            queries: (..., F, C)
            layout: of the queries; one group by default.

        Returns:
            (..., F, K + 1), classes task after task, no-object last
        """
        layout = layout or GroupLayout([queries.shape[-2]])
        parts = zip(layout.split(queries), layout.runs, strict=True)
        return layout.join([self._classify(part, run.count) for part, run in parts])

    def _classify(self, queries: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Of one run: the heads are further elements of the batch, as they are more with every task, too."""
        groups = queries.reshape(num_groups, -1, queries.shape[-1])  # (groups, rows, C)
        num_rows = groups.shape[1]
        groups = nn.functional.pad(groups, (0, 0, 0, _aligned(num_rows) - num_rows))[:, None]
        heads = [_linear_layers(head) for head in self.heads]
        widths = [layers[-1].out_features for layers in heads]
        heads_of_width = defaultdict(list)
        for head, width in enumerate(widths):
            heads_of_width[_aligned(width)].append(head)
        logits = [None] * len(heads)  # per head (groups, rows, classes)
        for aligned_width, alike in heads_of_width.items():
            network = _StackedLayers.of([heads[head] for head in alike], aligned_width).repeated(num_groups)
            results = network(groups.expand(-1, len(alike), -1, -1).flatten(0, 1)).unflatten(0, (num_groups, -1))
            for head, result in zip(alike, results.unbind(1), strict=True):
                logits[head] = result[:, :num_rows, : widths[head]]
        no_object = logits.pop(NO_OBJECT_HEAD)
        return torch.cat([*logits, no_object], dim=-1).reshape(*queries.shape[:-1], -1)


class GroupRun(NamedTuple):
    """Neighbouring groups of one width, computed as one batch; the first group of all is a run of its own."""

    width: int
    count: int
    is_first: bool

    def isolation(self) -> AbstractContextManager:
        """In which to compute the run, so that no group of it depends on how many there are."""
        return nullcontext() if self.is_first else BatchInvariance()


class GroupLayout:
    """Where the queries of each group lie, one group behind the other in `(..., F, C)`, and how they are computed.

    Args:
        widths: queries of each group.
    """

    def __init__(self, widths: Sequence[int]):
        self.widths = list(widths)
        self.num_queries = sum(self.widths)
        rest = [GroupRun(width, len(list(same)), False) for width, same in groupby(self.widths[1:])]
        self.runs = [GroupRun(self.widths[0], 1, True), *rest]

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """(..., F, C) -> for the first run (..., P, C), for each other one (groups, ..., P, C)"""
        first, *rest = states.split([run.width * run.count for run in self.runs], dim=-2)
        later = [
            part.unflatten(-2, (run.count, run.width)).movedim(-3, 0).contiguous()
            for part, run in zip(rest, self.runs[1:], strict=True)
        ]
        return [first.contiguous(), *later]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        first, *rest = parts
        return torch.cat([first, *(part.movedim(0, -3).flatten(-3, -2) for part in rest)], dim=-2) if rest else first

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """`function` of the states of each run, as `split` gives them, all in all (..., F, C) -> (..., F, channels)"""
        parts = []
        for part, run in zip(self.split(states), self.runs, strict=True):
            with run.isolation():
                parts.append(function(part))
        return self.join(parts)

    def mask_logits(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Mask logits of each query on each frame: (B, F, C) and (B, T, C, h, w) -> (B, F, T, h, w)"""
        num_frames, _, height, width = mask_features.shape[1:]
        logits = mask_features.new_empty(*mask_embeddings.shape[:2], num_frames, height * width)
        for frame, features in enumerate(mask_features.flatten(3).unbind(1)):
            logits[:, :, frame] = self.apply(partial(group_mask_logits, mask_features=features), mask_embeddings)
        return logits.unflatten(-1, (height, width))


class DecodedGroups(NamedTuple):
    """What a decoder makes of groups, of the learned queries first and then of every layer."""

    states: list[torch.Tensor]  # (N, F, C)
    queries: list[torch.Tensor]  # (N, F, C), normalised
    mask_embeddings: list[torch.Tensor]  # (N, F, mask channels), of all but the last


class GroupedQueries:
    """The parameters of several groups, run by run, ready for one pass of a decoder.

    In every list of runs the first run has the shape `(P, C)`, each later one `(groups, 1, P, C)`, which fits states
    `(N, P, C)` and `(groups, N, P, C)`.

    Args:
        groups: the base first; or a single group of any task.

    Attributes:
        layout, token_layout: of the queries, and of their tokens where these have positions.
        features, token_positions (`list[torch.Tensor]`): by run; with `(groups, 1, 1, P, C)` for positions of tokens, which
            stand in frames.
        positions (`list[list[torch.Tensor]]`): by layer and run.
    """

    def __init__(self, groups: Sequence[GroupParameters]):
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
            _StackedLayers.of([next(networks) for _ in range(run.count)]) for run in self.layout.runs[1:]
        ]

    def _by_run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        first, *rest = tensors
        rest = iter(rest)
        later = [torch.stack([next(rest) for _ in range(run.count)])[:, None] for run in self.layout.runs[1:]]
        return [first, *later]

    def start(self, batch_size: int) -> list[torch.Tensor]:
        """The learned queries by run: (N, P, C), then (groups, N, P, C)."""
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
        """As `MaskedAttentionDecoder.forward`, each group by itself.

        Args:
            value_residual: (P, C), added to the values of self-attention in every layer; for a single group.
        """
        layout = self.layout
        states = self.start(len(level_keys[0]))  # by run, as all that follows
        normalised = [decoder.layernorm(part) for part in states]
        decoded = DecodedGroups([layout.join(states)], [layout.join(normalised)], [])
        for index, (layer, positions) in enumerate(zip(decoder.layers, self.positions, strict=True)):
            level = index % NUM_LEVELS
            update, keys, values = layer, level_keys[level], level_values[level]
            if len(layout.runs) > 1:
                update, (keys, values) = layer.update, layer.cross_attn.project(keys, values)
            embeddings = self.mask_embeddings_by_run(normalised)
            for number, run in enumerate(layout.runs):
                with run.isolation():
                    allowed = inside_masks(embeddings[number], level_mask_features[level])
                    states[number] = update(states[number], positions[number], keys, values, allowed, value_residual)
                    normalised[number] = decoder.layernorm(states[number])
            decoded.states.append(layout.join(states))
            decoded.queries.append(layout.join(normalised))
            decoded.mask_embeddings.append(layout.join(embeddings))
        return decoded

    def mask_embeddings_by_run(self, queries: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queries by run -> mask embeddings by run, each group by its own mask head"""
        first, *later = queries
        embeddings = [self._first_mask_embedder(first)]
        for states, network in zip(later, self._later_mask_embedders, strict=True):
            embeddings.append(network(states.flatten(1, -2)).unflatten(1, states.shape[1:-1]))
        return embeddings

    def mask_embeddings(self, queries: torch.Tensor) -> torch.Tensor:
        """(..., F, C) -> (..., F, mask channels)"""
        return self.layout.join(self.mask_embeddings_by_run(self.layout.split(queries)))


def calibrate_class_logits(
    class_logits: torch.Tensor, group_widths: Sequence[int], class_counts: Sequence[int], deltas: Sequence[float]
) -> torch.Tensor:
    """Class logits with which the groups of different tasks can be compared (ECLIPSE, section 3.4; HVPL's inference).

    A group speaks of its own classes only: the logits of others become -10. Where its delta is positive, no-object
    becomes delta times the summed probability of those others (at most 1); where it is negative, -delta times its own
    probability. Probabilities are sigmoids, the new one is kept in [0.001, 0.999]. A model without later tasks is left
    as it is.

    Args:
        class_logits: raw logits (..., F, K + 1), no-object last.
        group_widths: queries of each group, F together.
        class_counts: classes of each task, K together.
        deltas: of each task; cut to the number of tasks, or continued with the last one.
    """
    if len(class_counts) == 1:
        return class_logits
    deltas = [*deltas, *[deltas[-1]] * len(class_counts)][: len(class_counts)]
    device = class_logits.device
    owner, class_owner = (
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
        for sizes in (list(group_widths), list(class_counts))
    )
    foreign = owner[:, None] != class_owner  # (F, K)
    delta = class_logits.new_tensor(deltas)[owner]  # (F,)
    probabilities = class_logits.sigmoid()
    others = (probabilities[..., :-1] * foreign).sum(dim=-1).clamp(max=1)
    probability = torch.where(delta > 0, delta * others, -delta * probabilities[..., -1])
    no_object = torch.where(delta == 0, class_logits[..., -1], probability.clamp(0.001, 0.999).logit())
    return torch.cat([class_logits[..., :-1].masked_fill(foreign, FOREIGN_CLASS_LOGIT), no_object[..., None]], dim=-1)


class _StackedLayers:
    """Networks of Linear layers with ReLU between, of one shape but for their outputs, run as one batch."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor]):
        self.weights, self.biases = weights, biases

    @classmethod
    def of(cls, networks: Sequence[list[nn.Linear]], output_width: int | None = None) -> "_StackedLayers":
        """Outputs of fewer than `output_width` channels are filled up with zeros."""
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

    def repeated(self, times: int) -> "_StackedLayers":
        """All networks, and all of them again."""
        weights, biases = (
            [part.expand(times, *part.shape).flatten(0, 1) for part in parts] for parts in (self.weights, self.biases)
        )
        return _StackedLayers(weights, biases)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(networks, rows, C) -> (networks, rows, channels of the output)"""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            states = batch_invariant_linear(states.relu() if index else states, weight, bias)
        return states


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def _aligned(width: int) -> int:
    return -(-width // CLASS_HEAD_ALIGNMENT) * CLASS_HEAD_ALIGNMENT
