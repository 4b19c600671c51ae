"""HVPL's video head: base queries and the video prompts of later tasks read frame queries of their own task.

B videos, T frames, F frame queries and Q video queries of all groups, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..task_queries import (
    GroupedQueries,
    GroupLayout,
    QueryGroup,
    TaskClassPredictor,
    TaskQueryGroup,
    attend_in_groups,
)
from ..video_decoder import DecodedQueries, ObjectDecoderLayer, VideoHead, VideoStep
from .context_encoder import ContextEncoder

FEED_FORWARD_RATIO = 4  # of the context encoder


class HvplVideoHead(VideoHead):
    """The video head with one group of queries per task, and the context encoder in place of the object encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        detector = config.detector_config
        hidden_dim = detector.hidden_dim
        if config.encoder == "tree":
            self.encoder = ContextEncoder(
                config.encoder_layers,
                hidden_dim,
                FEED_FORWARD_RATIO * hidden_dim,
                config.drop_path_rate,
                config.scan_axes,
                config.encoder_slices,
            )
        self.class_predictor = TaskClassPredictor(hidden_dim, config.task_class_counts, config.deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in config.task_prompt_counts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        detector, num_layers = self.config.detector_config, self.config.decoder_layers
        return TaskQueryGroup(
            num_prompts, num_layers, detector.hidden_dim, detector.mask_feature_size, token_positions=True
        )

    def add_task(self, num_classes: int, num_prompts: int) -> None:
        """Append a group, started from the base, and its class head, started from the no-object head."""
        group = self._new_group(num_prompts).to(self.queries_features.weight)
        group.start_from(self.groups()[0])
        self.task_queries.append(group)
        self.class_predictor.add_task(num_classes)

    def remove_task(self) -> None:
        """Drop the last group and its class head."""
        del self.task_queries[-1]
        self.class_predictor.remove_task()

    def groups(self) -> list[QueryGroup]:
        """The base, then every later task."""
        base = QueryGroup(
            self.queries_features.weight,
            [self.queries_embedder.weight] * len(self.decoder.layers),
            self.mask_embedder,
            self.frame_queries_embedder.weight,
        )
        return [base, *(queries.group() for queries in self.task_queries)]

    def encode_groups(self, frame_queries: Tensor, groups: Sequence[QueryGroup]) -> Tensor:
        """Frame queries of `groups`, (B, T, F, C) -> (B, T, F, C), informed by those of their task in other frames."""
        layout = GroupLayout([len(group.token_positions) for group in groups])
        projected = self.input_projection(layout.pad(frame_queries))  # (B, T, rows, C)
        config = self.config
        if config.encoder == "tree" and (config.scan_axes == "released" or config.encoder_slices == "joint"):
            return self.encoder(projected[:, :, : layout.num_queries], layout.widths)
        # Groups of one width are further videos of one batch: what is computed for the base does not even change shape.
        parts = []
        for run in layout.by_run(projected):
            encoded = self.encoder(run.transpose(1, 2).flatten(0, 1))  # (B * groups, T, queries of a group, C)
            parts.append(encoded.unflatten(0, (len(run), -1)).transpose(1, 2).flatten(2, 3))
        return torch.cat(parts, dim=2)

    def forward(self, frame_queries: Tensor, newest_only: bool = False, all_layers: bool = False) -> VideoStep:
        """Frame queries of whole videos, read by the video queries of their task.

        Args:
            frame_queries: (B, T, F, C), those of all tasks, one task behind the other.
            newest_only: `frame_queries` are those of the newest task, and only its video queries run, as in training.
            all_layers: decoded queries of all layers.
        """
        groups = self.groups()[-1:] if newest_only else self.groups()
        encoded = self.encode_groups(frame_queries, groups)
        if newest_only:
            return VideoStep(encoded, self._decode_one_group(encoded, groups[0], all_layers))
        return VideoStep(encoded, self._decode_groups(encoded, groups, all_layers))

    def _decode_one_group(self, encoded: Tensor, group: QueryGroup, all_layers: bool) -> DecodedQueries:
        key, value = (encoded + group.token_positions).flatten(1, 2), encoded.flatten(1, 2)  # (B, T * F, C)
        hidden_states, layers = group.features.expand(len(encoded), -1, -1), []
        for layer, positions in zip(self.decoder.layers, group.positions, strict=True):
            hidden_states = layer(hidden_states, positions, key, value)
            layers.append(hidden_states)
        kept = torch.stack(layers if all_layers else layers[-1:])
        return DecodedQueries(normalised=self.decoder.layernorm(kept), last=hidden_states)

    def _decode_groups(self, encoded: Tensor, groups: Sequence[QueryGroup], all_layers: bool) -> DecodedQueries:
        queries = GroupedQueries(groups)
        tokens = GroupLayout([len(group.token_positions) for group in groups])
        token_positions = torch.cat([group.token_positions for group in groups])
        if self.config.cross_tokens == "released" and len(groups) > 1:
            num_frames = encoded.shape[1]
            encoded = encoded[:, :1]
            token_positions = torch.cat([group.token_positions.repeat(num_frames, 1) for group in groups])
            token_positions = token_positions[: tokens.num_queries]
        value = tokens.pad(encoded)  # (B, T, rows, C)
        key = value + tokens.pad(token_positions)
        hidden_states, layers = queries.features.expand(len(encoded), -1, -1), []
        for layer, positions in zip(self.decoder.layers, queries.positions, strict=True):
            hidden_states = _decode_in_groups(layer, hidden_states, positions, key, value, queries.layout, tokens)
            layers.append(hidden_states)
        kept = torch.stack(layers if all_layers else layers[-1:])
        num_queries = queries.layout.num_queries
        return DecodedQueries(self.decoder.layernorm(kept)[:, :, :num_queries], hidden_states[:, :num_queries])

    def mask_embeddings(self, queries: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, mask channels), each task by its own mask head"""
        return GroupedQueries(self.groups(), alignment=1).mask_embeddings(queries)


def _decode_in_groups(
    layer: ObjectDecoderLayer,
    hidden_states: Tensor,
    positions: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    tokens: GroupLayout,
) -> Tensor:
    """The layer at inference: each group reads its own tokens and itself."""
    attended = attend_in_groups(layer.cross_attn, hidden_states + positions, key, value, layout, tokens)
    hidden_states = layer.cross_attn_layer_norm(hidden_states + attended)
    placed = hidden_states + positions
    attended = attend_in_groups(layer.self_attn, placed, placed[:, None], hidden_states[:, None], layout)
    hidden_states = layer.self_attn_layer_norm(hidden_states + attended)
    return layer.final_layer_norm(hidden_states + layer.feed_forward(hidden_states))
