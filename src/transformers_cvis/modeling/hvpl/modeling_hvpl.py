# SPDX-License-Identifier: Apache-2.0
"""HVPL: hierarchical visual prompt learning for continual video instance segmentation (Dong et al., 2025)."""

from typing import Any

from torch import Tensor, nn

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

    With labels the newest task is trained: before `add_task` the whole model as VITA, after it the newest prompts with
    their mask heads and class heads, and the no-object heads, which all tasks share. Where a video shows more objects
    than a later task has prompts, those that fit worst are left out of the losses, but counted. Without labels all
    tasks predict, each its own classes (`config.calibration_deltas`).
    """

    config_class = HvplConfig
    video_head_class = HvplVideoHead

    @staticmethod
    def build_detector(config: HvplConfig) -> HvplFrameDetector:
        return HvplFrameDetector(
            config.detector_config,
            config.task_class_counts,
            config.task_prompt_counts,
            config.deep_class_head,
            config.classification_loss,
        )

    @staticmethod
    def criterion_settings(config: HvplConfig) -> dict[str, Any]:
        return {"classification_loss": config.classification_loss}

    def task_stages(self) -> dict[str, nn.Module]:
        return {"detector": self.detector, "video_head": self.video_head}

    def evaluated_modules(self) -> list[str]:
        return ["video_head.encoder"] if self.num_tasks > 1 and self.config.freeze_drop_path else []

    def _compiled_parts(self) -> list[nn.Module]:
        # The trees of the context encoder are made on the host, and every video has others.
        return [self.detector]

    # Inference

    def _associate(self, frame_queries: Tensor, training: bool = False, all_layers: bool = False) -> VideoStep:
        return self.video_head(frame_queries, newest_only=training, all_layers=training or all_layers)

    def _predict_queries(self, video_queries: Tensor) -> tuple[Tensor, Tensor]:
        head = self.video_head
        return self._calibrated_classes(video_queries, head), head.mask_embeddings(video_queries)

    def _predict_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        return _layout(self.video_head).mask_logits(mask_embeddings, mask_features)

    def _similarity_embeddings(self, encoded_queries: Tensor, video_queries: Tensor) -> tuple[Tensor, Tensor]:
        head = self.video_head
        return (
            _layout(self.detector).apply(head.frame_similarity_projection, encoded_queries),
            _layout(head).apply(head.video_similarity_projection, video_queries),
        )

    def classify_frame_queries(self, frame_queries: Tensor) -> Tensor:
        """Frame queries (..., F, C) of all tasks -> calibrated class logits (..., F, K + 1) of single frames."""
        return self._calibrated_classes(frame_queries, self.detector)

    def _calibrated_classes(self, queries: Tensor, stage: nn.Module) -> Tensor:
        layout, config = _layout(stage), self.config
        class_logits = stage.class_predictor(queries, layout)
        return calibrate_class_logits(class_logits, layout.widths, config.task_class_counts, config.calibration_deltas)

    # Training

    def projected_parameters(self) -> list[nn.Parameter]:
        """What the orthogonal gradient correction keeps clear of protected directions: the newest frame prompts."""
        return [self.detector.task_queries[-1].features.weight]

    def prompt_features(self, frames: Tensor) -> Tensor:
        """What prompts become in the first layer of the frame decoder, where they meet each other.

        Args:
            frames: `(N, 3, H, W)`, normalised.

        Returns:
            `(N, F, C)`: the queries of all groups after the first self-attention.
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


def _layout(stage: nn.Module) -> GroupLayout:
    return GroupLayout([len(group.features) for group in stage.groups()])


__all__ = ["HvplForVideoInstanceSegmentation"]
