# SPDX-License-Identifier: Apache-2.0
"""HVPL: hierarchical visual prompt learning for continual video instance segmentation (Dong et al., 2025)."""

from typing import Any

import torch
from torch import nn

from ..outputs import LayerPrediction
from ..tasks.adapters import TaskAdapterMixin
from ..tasks.queries import GroupLayout, calibrate_class_logits
from ..video_head.modeling_video import WholeVideoModel
from ..video_head.object_decoder import DecodedQueries, VideoStep
from .configuration_hvpl import HvplConfig
from .frame_detector import HvplFrameDetector
from .video_head import HvplVideoHead


class HvplForVideoInstanceSegmentation(TaskAdapterMixin, WholeVideoModel):
    """VITA that learns task by task: each later task adds prompts and heads at the frame stage and at the video stage.

    With labels the newest task is trained. Before `add_task` the whole model trains as VITA; after it only the newest
    prompts with their mask and class heads, and the no-object heads, which all tasks share. If a video shows more
    objects than a later task has prompts, those that fit worst are left out of the losses, but counted. Without labels
    all tasks predict, each its own classes (see `config.calibration_deltas`).
    """

    config_class = HvplConfig
    detector: HvplFrameDetector
    video_head: HvplVideoHead
    video_head_class = HvplVideoHead

    @staticmethod
    def build_detector(config: HvplConfig) -> HvplFrameDetector:
        """Build the frame detector with one group of queries per task."""
        return HvplFrameDetector(
            config.detector_config,
            config.task_class_counts,
            config.task_prompt_counts,
            config.deep_class_head,
            config.classification_loss,
        )

    @staticmethod
    def criterion_settings(config: HvplConfig) -> dict[str, Any]:
        """Return the kind of the classification loss."""
        return {"classification_loss": config.classification_loss}

    def task_stages(self) -> dict[str, nn.Module]:
        """Return the frame stage and the video stage, which both hold groups of task queries."""
        return {"detector": self.detector, "video_head": self.video_head}

    def evaluated_modules(self) -> list[str]:
        """Return the context encoder if later tasks train without stochastic depth (`config.freeze_drop_path`)."""
        return ["video_head.encoder"] if self.num_tasks > 1 and self.config.freeze_drop_path else []

    def _compiled_parts(self) -> list[nn.Module]:
        # The trees of the context encoder are built on the host and differ from video to video.
        return [self.detector]

    # Inference

    def _associate(self, frame_queries: torch.Tensor, training: bool = False, all_layers: bool = False) -> VideoStep:
        return self.video_head(frame_queries, newest_only=training, all_layers=training or all_layers)

    def _predict_queries(self, video_queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.video_head
        return self._calibrated_classes(video_queries, head), head.mask_embeddings(video_queries)

    def _predict_masks(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        return _layout(self.video_head).mask_logits(mask_embeddings, mask_features)

    def _similarity_embeddings(
        self, encoded_queries: torch.Tensor, video_queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.video_head
        return (
            _layout(self.detector).apply(head.frame_similarity_projection, encoded_queries),
            _layout(head).apply(head.video_similarity_projection, video_queries),
        )

    def classify_frame_queries(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Classify the objects of single frames.

        Args:
            frame_queries: `(..., F, C)`, those of all tasks.

        Returns:
            Calibrated class logits `(..., F, K + 1)`.
        """
        return self._calibrated_classes(frame_queries, self.detector)

    def _calibrated_classes(self, queries: torch.Tensor, stage: HvplFrameDetector | HvplVideoHead) -> torch.Tensor:
        layout, config = _layout(stage), self.config
        class_logits = stage.class_predictor(queries, layout)
        return calibrate_class_logits(class_logits, layout.widths, config.task_class_counts, config.calibration_deltas)

    # Training

    def projected_parameters(self) -> list[nn.Parameter]:
        """Return the newest frame prompts, whose gradients are kept orthogonal to the protected directions."""
        return [self.detector.task_queries[-1].features.weight]

    def prompt_features(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the prompts after the first self-attention of the frame decoder.

        Args:
            frames: `(N, 3, H, W)`, normalised.

        Returns:
            `(N, F, C)`, the queries of all groups after self-attention and its norm.
        """
        first_layer = self.detector.model.transformer_module.decoder.layers[0]
        outputs = []
        hook = first_layer.self_attn_layer_norm.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            self.detector(frames, output_mask_features=False, return_dict=True)
        finally:
            hook.remove()
        return _layout(self.detector).join(outputs)

    def _layer_predictions(self, decoded: DecodedQueries) -> list[LayerPrediction]:
        newest = self.video_head.groups()[-1]
        queries = self._split_layers(decoded.normalised, dim=1)
        parts = self.video_head.class_predictor(queries), newest.mask_embedder(queries)
        return [LayerPrediction(*layer) for layer in zip(*parts, strict=True)]


def _layout(stage: HvplFrameDetector | HvplVideoHead) -> GroupLayout:
    """Return the layout of the frame queries or video queries of all groups."""
    return GroupLayout([len(group.features) for group in stage.groups()])


__all__ = ["HvplForVideoInstanceSegmentation"]
