# SPDX-License-Identifier: Apache-2.0
"""HVPL's frame detector: base queries and the frame prompts of later tasks read the same features.

N images, F queries of all groups, C channels.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..frame_detector.configuration_frame_detector import FrameDetectorConfig
from ..frame_detector.modeling_frame_detector import FrameDetector, shrunk_mask_features
from ..layers.query_groups import GroupParameters
from ..outputs import FrameDetectorOutput
from ..tasks.queries import GroupedQueries, TaskClassPredictor, TaskQueryGroup


class HvplFrameDetector(FrameDetector):
    """Frame detector with one group of queries per task.

    Args:
        config: sizes of the detector.
        class_counts: number of classes of each task, the base first.
        prompt_counts: number of frame prompts of each later task.
        deep_class_head: build class heads of three layers instead of one.
        classification_loss: see `MaskClassificationLoss`.
    """

    class_predictor: TaskClassPredictor  # type: ignore[assignment]  # in place of the linear layer

    def __init__(
        self,
        config: FrameDetectorConfig,
        class_counts: Sequence[int],
        prompt_counts: Sequence[int],
        deep_class_head: bool = True,
        classification_loss: str = "ce",
    ) -> None:
        super().__init__(config)
        self.criterion.classification_loss = classification_loss
        self.class_predictor = TaskClassPredictor(config.hidden_dim, class_counts, deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in prompt_counts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        config = self.config
        return TaskQueryGroup(num_prompts, config.decoder_layers - 1, config.hidden_dim, config.mask_feature_size)

    def add_task(self, num_classes: int, num_prompts: int) -> None:
        """Append a group that starts from the base, and a class head that starts from the no-object head.

        Args:
            num_classes: classes of the new task.
            num_prompts: its frame prompts.
        """
        group = self._new_group(num_prompts).to(self.device, self.dtype)
        group.start_from(self.groups()[0])
        self.task_queries.append(group)
        self.class_predictor.add_task(num_classes)

    def remove_task(self) -> None:
        """Drop the last group and its class head."""
        del self.task_queries[-1]
        self.class_predictor.remove_task()

    def groups(self) -> list[GroupParameters]:
        """Return the groups of the base and of every later task, in order."""
        return [self.base_group(), *(queries.group() for queries in self.task_queries)]

    def predict(
        self,
        levels: list[torch.Tensor],
        fpn_features: torch.Tensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_query_layers: int = 1,
        output_predictions: bool = False,
        output_mask_features: bool = True,
        output_hidden_states: bool = False,
    ) -> FrameDetectorOutput:
        """Predict like the frame detector, with all groups; `frame_queries` holds their F queries, group after group.

        With predictions or labels, as in training, only the newest group runs, and F is the number of its queries.
        """
        predicts = output_predictions or labels is not None
        project_masks = self.model.pixel_level_module.decoder.mask_projection
        features = [shrunk_mask_features(fpn_features, project_masks, level.shape[-2:]) for level in levels]
        groups = GroupedQueries(self.groups()[-1:] if predicts else self.groups())
        queries, mask_embeddings = self.decode(levels, features, groups)
        frame_queries = torch.stack(queries[-num_query_layers:])
        mask_features = project_masks(fpn_features) if predicts or output_mask_features else None
        if predicts:
            mask_embeddings.append(groups.mask_embeddings(queries[-1]))
        return self._detector_output(
            queries, mask_embeddings, frame_queries, fpn_features, mask_features, labels, output_hidden_states
        )

    def decode(
        self, levels: list[torch.Tensor], level_mask_features: list[torch.Tensor], groups: GroupedQueries
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run the decoder on the queries of `groups`.

        Args:
            levels: maps of the pixel decoder, `(N, C, h, w)` each.
            level_mask_features: mask features at the size of each level, `(N, C, h, w)`.
            groups: the groups to run.

        Returns:
            Normalised queries `(N, F, C)` of every prediction, and mask embeddings `(N, F, mask channels)` of all but
            the last.
        """
        module = self.model.transformer_module
        level_keys, level_values = module.read_levels(levels)
        level_mask_features = [features.flatten(2) for features in level_mask_features]
        decoded = groups.decode(module.decoder, level_keys, level_values, level_mask_features)
        return decoded.queries, decoded.mask_embeddings
