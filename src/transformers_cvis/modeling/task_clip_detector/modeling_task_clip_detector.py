# SPDX-License-Identifier: Apache-2.0
"""Mask2Former-VIS that learns task by task, with prompts or by training all weights.

B videos, T frames, Q queries of all groups, P queries of a group, C channels, K classes of all tasks.
"""

import torch
from torch import nn

from ..clip_detector.modeling_clip_detector import ClipDetector, ClipFeatures
from ..layers.query_groups import GroupParameters
from ..outputs import LayerPrediction, VideoInstanceSegmentationOutput
from ..tasks.adapters import TaskAdapterMixin
from ..tasks.queries import (
    DecodedGroups,
    GroupedQueries,
    GroupLayout,
    TaskClassPredictor,
    TaskQueryGroup,
    calibrate_class_logits,
)
from .configuration_task_clip_detector import TaskClipDetectorConfig


class TaskClipDetectorForVideoInstanceSegmentation(TaskAdapterMixin, ClipDetector):
    """Mask2Former-VIS that learns task by task; the model of ECLIPSE, fine-tuning, MiB, CoMFormer and POD.

    With prompts, as in ECLIPSE, each later task adds prompts, a mask head and a class head. It trains these and the
    no-object head, which all tasks share. Without prompts (`num_prompts=0`), as in fine-tuning, MiB, CoMFormer and
    POD, a later task adds class heads and trains all weights. At inference all tasks predict, each its own classes
    (`config.calibration_deltas`).
    """

    config: TaskClipDetectorConfig
    config_class = TaskClipDetectorConfig
    fewest_prompts = 0

    def __init__(self, config: TaskClipDetectorConfig) -> None:
        super().__init__(config)
        config.share_labels()
        self._build_tasks()
        self.post_init()

    # Tasks

    def _build_tasks(self) -> None:
        """Build the parts that grow with the tasks."""
        config = self.config
        self.class_predictor = TaskClassPredictor(config.hidden_dim, config.task_class_counts, config.deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in config.task_prompt_counts if count)

    def task_stages(self) -> dict[str, nn.Module]:
        """Return the only stage of a clip detector, the model itself."""
        return {"": self}

    def add_task(self, class_names: list[str], num_prompts: int | None = None) -> None:
        """Add a task and train its new parts from now on, see [`TaskLearningMixin.add_task`].

        Args:
            class_names: Names of the classes of the task, new to the model.
            num_prompts: Number of prompts, `config.num_prompts` by default; 0 for a task that trains all weights.

        Raises:
            ValueError: The task cannot have as many prompts, or a class is known already.
        """
        if num_prompts is None:
            num_prompts = self.config.num_prompts
            num_prompts = len(class_names) if num_prompts == "classes" else num_prompts
        self.config.check_num_prompts(num_prompts)
        super().add_task(class_names, num_prompts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        config = self.config
        return TaskQueryGroup(num_prompts, config.decoder_layers - 1, config.hidden_dim, config.mask_feature_size)

    def _add_groups(self, num_classes: int, num_prompts: int) -> None:
        """Add a class head, and prompts with their mask head if the task has prompts."""
        self.class_predictor.add_task(num_classes, fresh=num_prompts == 0)
        if num_prompts:
            group = self._new_group(num_prompts).to(self.device, self.dtype)
            group.start_from(self.groups()[0])
            self.task_queries.append(group)

    def _remove_groups(self) -> None:
        """Remove the parts of the newest task."""
        self.class_predictor.remove_task()
        if self.learns_by_prompts:
            del self.task_queries[-1]

    def groups(self) -> list[GroupParameters]:
        """Return the query group of the base, then those of all later tasks with prompts."""
        return [self.base_group(), *(queries.group() for queries in self.task_queries)]

    @property
    def group_widths(self) -> list[int]:
        """Number of queries of the base, then of each later task with prompts."""
        return [self.config.num_queries, *(len(group.features.weight) for group in self.task_queries)]

    # Inference

    def decode(self, features: ClipFeatures) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decode the queries of all groups, see `ClipDetector.decode`; groups do not attend to each other."""
        if not self.task_queries:
            return super().decode(features)
        decoded = self.decode_groups(features, GroupedQueries(self.groups()))
        return decoded.queries, decoded.mask_embeddings

    def decode_groups(
        self, features: ClipFeatures, groups: GroupedQueries, value_residual: torch.Tensor | None = None
    ) -> DecodedGroups:
        """Run query groups through the decoder independently, see [`GroupedQueries.decode`].

        Args:
            features: features of all frames of the clip.
            groups: the query groups to decode.
            value_residual: added to the values of self-attention.
        """
        return groups.decode(self.model.transformer_module.decoder, *self.clip_tokens(features), value_residual)

    def classify(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute class logits `(B, Q, K + 1)` of all tasks, calibrated between tasks if the model has prompts."""
        class_logits = self.class_predictor(queries, GroupLayout(self.group_widths))
        if not self.learns_by_prompts:
            return class_logits
        config = self.config
        return calibrate_class_logits(
            class_logits, self.group_widths, config.task_class_counts, config.calibration_deltas
        )

    def embed_masks(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute mask embeddings `(B, Q, mask channels)`, with the mask head of each group."""
        if not self.task_queries:
            return super().embed_masks(queries)
        return GroupedQueries(self.groups()).mask_embeddings(queries)

    def _predict_masks(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Compute mask logits `(B, Q, T, h, w)` group by group."""
        return GroupLayout(self.group_widths).mask_logits(mask_embeddings, mask_features)

    # Training

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        """Compute the losses of the newest task on clips `(B, T, 3, H, W)`."""
        targets = self.video_targets(labels)
        features = self.read_frames(pixel_values_videos)
        predictions, _ = self._predict_newest(features)
        loss_dict = self.criterion(self._scored(predictions), features.mask_features, targets)
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def _predict_newest(
        self, features: ClipFeatures, value_residual: torch.Tensor | None = None
    ) -> tuple[list[LayerPrediction], list[torch.Tensor]]:
        """Predict with the newest group.

        Args:
            features: features of all frames of the clip.
            value_residual: added to the values of self-attention.

        Returns:
            The predictions of every layer, and the hidden states `(B, P, C)` of every layer.
        """
        groups = GroupedQueries(self.groups()[-1:])
        hidden_states, queries, mask_embeddings = self.decode_groups(features, groups, value_residual)
        mask_embeddings.append(groups.mask_embeddings(queries[-1]))
        predictions = [
            LayerPrediction(self.class_predictor(states), embeddings)
            for states, embeddings in zip(queries, mask_embeddings, strict=True)
        ]
        return predictions, hidden_states

    def _scored(self, predictions: list[LayerPrediction]) -> list[LayerPrediction]:
        """Return the predictions that the losses score."""
        return predictions if self.config.use_auxiliary_loss else predictions[-1:]


__all__ = ["TaskClipDetectorForVideoInstanceSegmentation"]
