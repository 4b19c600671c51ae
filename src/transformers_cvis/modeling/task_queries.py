"""Groups of queries, one per task: the base queries, and the prompts that each later task added (HVPL, CRISP).

Groups share the frozen network and never attend to each other, so a new group changes nothing of what an older one
computes. At inference all groups run together: their states lie one behind the other in one tensor, the layers see all
of them at once, and self-attention runs once for all groups of one width.

N images or videos, F queries of all groups, S rows of the tensor that holds them, P queries of a group, C channels,
K classes of all tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frame_detector.masked_attention_decoder import MaskEmbedder, attend

# Matrix products compute the rows beyond a multiple of their kernel's height (4 in today's BLAS libraries) differently,
# with another rounding. With an aligned number of rows none of a group is among those, whatever groups follow.
ROW_ALIGNMENT = 8
FOREIGN_CLASS_LOGIT = -10.0


class TaskQueryGroup(nn.Module):
    """What a task adds at one level: prompts, their positions in every layer, and a mask head.

    Args:
        token_positions: also positions of the group's frame queries, where these are read (video level).
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
    def start_from(self, base: "QueryGroup") -> None:
        """Prompts and positions become the mean row of the base's, the mask head a copy of its mask head."""
        pairs = [(self.features, base.features), *zip(self.positions, base.positions, strict=True)]
        if self.token_positions is not None:
            pairs.append((self.token_positions, base.token_positions))
        for embedding, rows in pairs:
            embedding.weight.copy_(rows.mean(dim=0).expand_as(embedding.weight))
        self.mask_embedder.load_state_dict(base.mask_embedder.state_dict())

    def group(self) -> "QueryGroup":
        token_positions = None if self.token_positions is None else self.token_positions.weight
        positions = [embedding.weight for embedding in self.positions]
        return QueryGroup(self.features.weight, positions, self.mask_embedder, token_positions)


class TaskClassPredictor(nn.Module):
    """Class logits of all tasks: `heads[0]` is the no-object head, which tasks share, `heads[1 + t]` that of task t.

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
        no_object = self.heads[0]
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

    def forward(self, queries: Tensor) -> Tensor:
        """(..., C) -> raw class logits (..., K + 1), classes task after task, no-object last"""
        heads = [*self.heads[1:], self.heads[0]]
        layers = [_linear_layers(head) for head in heads]
        widths = [head_layers[-1].out_features for head_layers in layers]
        widest = _aligned(max(widths))
        rows = queries.reshape(-1, queries.shape[-1])
        states = F.pad(rows, (0, 0, 0, _aligned(len(rows)) - len(rows))).expand(len(heads), -1, -1)
        logits = _StackedLayers.of(layers, widest)(states)[:, : len(rows)]  # (heads, rows, widest)
        columns = [head * widest + column for head, width in enumerate(widths) for column in range(width)]
        columns = torch.tensor(columns, device=queries.device)
        return logits.transpose(0, 1).flatten(1).index_select(1, columns).unflatten(0, queries.shape[:-1])


@dataclass
class QueryGroup:
    """The parameters of one group at one level, whether of the base or of a later task."""

    features: Tensor  # (P, C)
    positions: list[Tensor]  # per decoder layer (P, C)
    mask_embedder: nn.Module
    token_positions: Tensor | None = None  # (frame queries of the group, C), video level only


class GroupLayout:
    """Where the queries of each group lie in a tensor `(N, S, C)`: one group behind the other, then padding.

    Runs are neighbouring groups of one width, which are computed as one batch; the first group is always a run of its
    own, since as the base it differs from the others in more than its width.

    Args:
        widths: queries of each group.
        alignment: S is the next multiple of it. 1 for no padding.
    """

    def __init__(self, widths: Sequence[int], alignment: int = ROW_ALIGNMENT):
        self.widths = list(widths)
        self.num_queries = sum(self.widths)
        self.num_rows = _aligned(self.num_queries, alignment)
        rest = [(width, len(list(same))) for width, same in groupby(self.widths[1:])]
        self.runs = [(self.widths[0], 1), *rest]  # queries of a group, groups

    def pad(self, states: Tensor) -> Tensor:
        """(..., F, C) -> (..., S, C) with zeros behind the groups"""
        return F.pad(states, (0, 0, 0, self.num_rows - self.num_queries))

    def by_run(self, states: Tensor) -> list[Tensor]:
        """(..., S, C) -> for each run (..., groups, queries of a group, C)"""
        sizes = [width * count for width, count in self.runs]
        parts = states[..., : self.num_queries, :].split(sizes, dim=-2)
        return [part.unflatten(-2, (count, width)) for part, (width, count) in zip(parts, self.runs, strict=True)]


class GroupedQueries:
    """The parameters of several groups side by side, ready for one pass of a decoder.

    Args:
        groups: the base first; or a single group of any task.
        alignment: of the [`GroupLayout`].
    """

    def __init__(self, groups: Sequence[QueryGroup], alignment: int = ROW_ALIGNMENT):
        self.layout = GroupLayout([len(group.features) for group in groups], alignment)
        self.features = self._join([group.features for group in groups])  # (S, C)
        self.positions = [self._join(layer) for layer in zip(*(group.positions for group in groups), strict=True)]
        heads = iter([_linear_layers(group.mask_embedder) for group in groups])
        self._mask_heads = [_StackedLayers.of([next(heads) for _ in range(count)]) for _, count in self.layout.runs]

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return self.layout.pad(torch.cat(list(parts)))

    def mask_embeddings(self, queries: Tensor) -> Tensor:
        """(N, S, C) -> (N, S, mask channels), each group by its own mask head"""
        parts = []
        for states, heads in zip(self.layout.by_run(queries), self._mask_heads, strict=True):
            states = states.transpose(0, 1)  # (groups, N, P, C)
            embeddings = heads(states.flatten(1, 2)).unflatten(1, states.shape[1:3])
            parts.append(embeddings.transpose(0, 1).flatten(1, 2))
        return self.layout.pad(torch.cat(parts, dim=1))


def attend_in_groups(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    token_layout: GroupLayout | None = None,
) -> Tensor:
    """The attention of every group for itself, all groups of a run as one batch.

    Args:
        attention: has `q_proj`, `k_proj`, `v_proj`, `out_proj` and `num_heads`.
        query: (N, S, C)
        key, value: (N, T, tokens, C), tokens by `token_layout` in each of T frames; a group reads its own in all.
        layout: of the queries.
        token_layout: of the tokens; by default that of the queries.

    Returns:
        (N, S, C)
    """
    token_layout = token_layout or layout
    query_runs = layout.by_run(attention.q_proj(query))
    key_runs, value_runs = token_layout.by_run(attention.k_proj(key)), token_layout.by_run(attention.v_proj(value))
    parts = []
    for queries, keys, values in zip(query_runs, key_runs, value_runs, strict=True):
        # queries (N, groups, P, C) -> (N * groups, P, C); tokens (N, T, groups, P, C) -> (N * groups, T * P, C)
        tokens = (part.transpose(1, 2).flatten(2, 3).flatten(0, 1) for part in (keys, values))
        attended = attend(queries.flatten(0, 1), *tokens, attention.num_heads)
        parts.append(attended.reshape(len(query), -1, attended.shape[-1]))
    return attention.out_proj(layout.pad(torch.cat(parts, dim=1)))


def calibrate_class_logits(
    class_logits: Tensor, group_widths: Sequence[int], class_counts: Sequence[int], deltas: Sequence[float]
) -> Tensor:
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

    def __init__(self, weights: list[Tensor], biases: list[Tensor]):
        self.weights, self.biases = weights, biases

    @classmethod
    def of(cls, networks: Sequence[list[nn.Linear]], output_width: int | None = None) -> "_StackedLayers":
        """Outputs of fewer than `output_width` channels are filled up with zeros."""
        weights, biases = [], []
        for layers in zip(*networks, strict=True):
            last = layers[0] is networks[0][-1] and output_width is not None
            width = output_width if last else layers[0].out_features
            weights.append(torch.stack([F.pad(layer.weight, (0, 0, 0, width - len(layer.weight))) for layer in layers]))
            biases.append(torch.stack([F.pad(layer.bias, (0, width - len(layer.bias))) for layer in layers]))
        return cls(weights, biases)

    def __call__(self, states: Tensor) -> Tensor:
        """(networks, rows, C) -> (networks, rows, channels of the output)"""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            states = torch.baddbmm(bias[:, None], states.relu() if index else states, weight.transpose(1, 2))
        return states


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def _aligned(width: int, alignment: int = ROW_ALIGNMENT) -> int:
    return -(-width // alignment) * alignment
