"""HVPL's frame detector: base queries and the frame prompts of later tasks read the same features.

N images, F queries of all groups, S rows that hold them, C channels, L positions of one level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..frame_detector.configuration_frame_detector import FrameDetectorConfig
from ..frame_detector.masked_attention_decoder import MaskedAttentionDecoderLayer, inside_masks
from ..frame_detector.modeling_frame_detector import FrameDetector, shrunk_mask_features
from ..frame_detector.pixel_decoder import NUM_LEVELS
from ..outputs import FrameDetectorOutput
from ..task_queries import (
    GroupedQueries,
    GroupLayout,
    QueryGroup,
    TaskClassPredictor,
    TaskQueryGroup,
    attend_in_groups,
)


class HvplFrameDetector(FrameDetector):
    """The frame detector with one group of queries per task.

    Args:
        class_counts: classes of each task, the base first.
        prompt_counts: frame prompts of each later task.
        deep_class_head: class heads of three layers.
    """

    def __init__(
        self,
        config: FrameDetectorConfig,
        class_counts: Sequence[int],
        prompt_counts: Sequence[int],
        deep_class_head: bool = True,
    ):
        super().__init__(config)
        self.class_predictor = TaskClassPredictor(config.hidden_dim, class_counts, deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in prompt_counts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        config = self.config
        return TaskQueryGroup(num_prompts, config.decoder_layers - 1, config.hidden_dim, config.mask_feature_size)

    def add_task(self, num_classes: int, num_prompts: int) -> None:
        """Append a group, started from the base, and its class head, started from the no-object head."""
        group = self._new_group(num_prompts).to(self.device, self.dtype)
        group.start_from(self.groups()[0])
        self.task_queries.append(group)
        self.class_predictor.add_task(num_classes)

    def remove_task(self) -> None:
        """Drop the last group and its class head."""
        del self.task_queries[-1]
        self.class_predictor.remove_task()

    def groups(self) -> list[QueryGroup]:
        """The base, then every later task."""
        module = self.model.transformer_module
        base = QueryGroup(
            module.queries_features.weight,
            [module.queries_embedder.weight] * len(module.decoder.layers),
            module.decoder.mask_predictor.mask_embedder,
        )
        return [base, *(queries.group() for queries in self.task_queries)]

    def predict(
        self,
        levels: list[Tensor],
        fpn_features: Tensor,
        labels: list[dict[str, Tensor]] | None = None,
        num_query_layers: int = 1,
        output_predictions: bool = False,
        output_mask_features: bool = True,
    ) -> FrameDetectorOutput:
        """As that of the frame detector: all groups run, and `frame_queries` holds F queries, group after group.

        With predictions or labels, as in training, only the newest group runs: F is the number of its queries.
        """
        predicts = output_predictions or labels is not None
        project_masks = self.model.pixel_level_module.decoder.mask_projection
        features = [shrunk_mask_features(fpn_features, project_masks, level.shape[-2:]) for level in levels]
        groups = GroupedQueries(self.groups()[-1:], alignment=1) if predicts else GroupedQueries(self.groups())
        queries, mask_embeddings = self.decode(levels, features, groups)
        output = FrameDetectorOutput(frame_queries=torch.stack(queries[-num_query_layers:]), fpn_features=fpn_features)
        if predicts or output_mask_features:
            output.mask_features = project_masks(fpn_features)
        if not predicts:
            return output
        mask_embeddings.append(groups.mask_embeddings(queries[-1]))
        return self._add_predictions(output, queries, mask_embeddings, labels)

    def decode(
        self, levels: list[Tensor], level_mask_features: list[Tensor], groups: GroupedQueries
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `MaskedAttentionDecoder`, for the queries of `groups`: per prediction `(N, F, C)`, padding left out."""
        module = self.model.transformer_module
        decoder, layout = module.decoder, groups.layout
        level_keys, level_values = module.read_levels(levels)
        level_mask_features = [features.flatten(2) for features in level_mask_features]
        hidden_states = groups.features.expand(len(levels[0]), -1, -1)
        queries, mask_embeddings = [decoder.layernorm(hidden_states)], []
        for index, (layer, positions) in enumerate(zip(decoder.layers, groups.positions, strict=True)):
            level = index % NUM_LEVELS
            mask_embeddings.append(groups.mask_embeddings(queries[-1]))
            allowed = inside_masks(mask_embeddings[-1], level_mask_features[level])
            read = (positions, level_keys[level], level_values[level], allowed)
            if len(layout.widths) == 1 and layout.num_rows == layout.num_queries:
                hidden_states = layer(hidden_states, *read)
            else:
                hidden_states = _decode_in_groups(layer, hidden_states, *read, layout)
            queries.append(decoder.layernorm(hidden_states))
        return tuple([part[:, : layout.num_queries] for part in parts] for parts in (queries, mask_embeddings))


def _decode_in_groups(
    layer: MaskedAttentionDecoderLayer,
    hidden_states: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor,
    layout: GroupLayout,
) -> Tensor:
    """The layer at inference, with self-attention inside of each group only; cross-attention is per query anyway."""
    attended = layer.cross_attn(hidden_states + positions, keys, values, allowed)
    hidden_states = layer.cross_attn_layer_norm(hidden_states + attended)
    placed = (hidden_states + positions)[:, None]  # images have one frame
    attended = attend_in_groups(layer.self_attn, placed[:, 0], placed, hidden_states[:, None], layout)
    hidden_states = layer.self_attn_layer_norm(hidden_states + attended)
    return layer.final_layer_norm(hidden_states + layer.fc2(layer.activation(layer.fc1(hidden_states))))
