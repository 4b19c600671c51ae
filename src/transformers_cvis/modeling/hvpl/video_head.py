# SPDX-License-Identifier: Apache-2.0
"""HVPL's video head: base queries and the video prompts of later tasks read the frame queries of their own task.

B videos, T frames, F frame queries and Q video queries of all groups, C channels.
"""

import torch
from torch import nn

from ..layers.query_groups import GroupParameters
from ..tasks.queries import GroupedQueries, GroupLayout, TaskClassPredictor, TaskQueryGroup
from ..video_head.object_decoder import DecodedQueries, VideoHead, VideoStep
from .configuration_hvpl import HvplConfig
from .context_encoder import ContextEncoder

FEED_FORWARD_RATIO = 4  # of the context encoder


class HvplVideoHead(VideoHead):
    """Video head with one group of queries per task, and the context encoder in place of the object encoder."""

    class_predictor: TaskClassPredictor

    def __init__(self, config: HvplConfig) -> None:
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
            )
        self.class_predictor = TaskClassPredictor(hidden_dim, config.task_class_counts, config.deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in config.task_prompt_counts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        detector, num_layers = self.config.detector_config, self.config.decoder_layers
        return TaskQueryGroup(
            num_prompts, num_layers, detector.hidden_dim, detector.mask_feature_size, token_positions=True
        )

    def add_task(self, num_classes: int, num_prompts: int) -> None:
        """Append a group that starts from the base, and a class head that starts from the no-object head.

        Args:
            num_classes: classes of the new task.
            num_prompts: its video prompts.
        """
        group = self._new_group(num_prompts).to(self.queries_features.weight)
        group.start_from(self.groups()[0])
        self.task_queries.append(group)
        self.class_predictor.add_task(num_classes)

    def remove_task(self) -> None:
        """Drop the last group and its class head."""
        del self.task_queries[-1]
        self.class_predictor.remove_task()

    def groups(self) -> list[GroupParameters]:
        """Return the groups of the base and of every later task, in order."""
        base = GroupParameters(
            self.queries_features.weight,
            [self.queries_embedder.weight] * len(self.decoder.layers),
            self.mask_embedder,
            self.frame_queries_embedder.weight,
        )
        return [base, *(queries.group() for queries in self.task_queries)]

    def encode_groups(self, frame_queries: torch.Tensor, layout: GroupLayout) -> torch.Tensor:
        """Exchange information between the frame queries of each task across frames.

        Args:
            frame_queries: `(B, T, F, C)`.
            layout: layout of their groups.

        Returns:
            `(B, T, F, C)`.
        """
        projected = layout.apply(self.input_projection, frame_queries)
        if self.config.encoder_slices == "joint":
            return self._encode(projected)
        return layout.apply(self._encode, projected)

    def _encode(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Encode one group `(B, T, P, C)`, or several of one width `(groups, B, T, P, C)`."""
        if self.config.encoder == "tree":
            return self.encoder(frame_queries)
        return self.encoder(frame_queries.flatten(0, -4)).unflatten(0, frame_queries.shape[:-3])

    def forward(self, frame_queries: torch.Tensor, newest_only: bool = False, all_layers: bool = False) -> VideoStep:
        """Let the video queries of each task read its frame queries.

        Args:
            frame_queries: `(B, T, F, C)`, those of whole videos and all tasks, task after task.
            newest_only: `frame_queries` are those of the newest task, and only its video queries run, as in training.
            all_layers: return the decoded queries of all layers.
        """
        groups = GroupedQueries(self.groups()[-1:] if newest_only else self.groups())
        encoded = self.encode_groups(frame_queries, groups.token_layout)
        return VideoStep(encoded, self._decode(encoded, groups, all_layers))

    def _decode(self, encoded: torch.Tensor, groups: GroupedQueries, all_layers: bool) -> DecodedQueries:
        tokens, token_positions = groups.token_layout.split(encoded), groups.token_positions
        if self.config.cross_tokens == "released" and len(groups.layout.widths) > 1:
            tokens, token_positions = self._released_tokens(encoded, groups)
        layers_of_runs = []
        for number, run in enumerate(groups.layout.runs):
            value = tokens[number]  # (B, T, P, C) for the first run, (groups, B, T, P, C) for others
            key = (value + token_positions[number]).flatten(-3, -2)
            value = value.flatten(-3, -2)
            hidden_states, states = groups.start(len(encoded))[number], []
            with run.batch_invariance():
                for layer, positions in zip(self.decoder.layers, groups.positions, strict=True):
                    hidden_states = layer(hidden_states, positions[number], key, value)
                    states.append(hidden_states)
            layers_of_runs.append(states)
        layers = [groups.layout.join(parts) for parts in zip(*layers_of_runs, strict=True)]  # (B, Q, C) each
        kept = torch.stack(layers if all_layers else layers[-1:])
        return DecodedQueries(normalised=self.decoder.layernorm(kept), last=layers[-1])

    def _released_tokens(
        self, encoded: torch.Tensor, groups: GroupedQueries
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return tokens and their positions, by run, as the released code reads them (`HvplConfig.cross_tokens`)."""
        repeated = [group.token_positions.repeat(encoded.shape[1], 1) for group in self.groups()]
        positions = torch.cat(repeated)[: groups.token_layout.num_queries]
        split = groups.token_layout.split
        return split(encoded[:, :1]), split(positions.expand(1, 1, -1, -1))

    def mask_embeddings(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute mask embeddings by the mask head of each task: `(B, Q, C)` to `(B, Q, mask channels)`."""
        return GroupedQueries(self.groups()).mask_embeddings(queries)
