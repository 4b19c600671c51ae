"""What the models made of a frame detector and a video head share.

B videos, T frames, F frame queries per frame, C channels, H x W pixels of the padded network input.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..frame_detector.modeling_frame_detector import FrameDetector
from ..losses import LayerPrediction, VideoTargets
from ..modeling_base import CvisPreTrainedModel
from ..outputs import FrameDetectorOutput, VideoInstanceSegmentationOutput
from ..video_model import DetectedFrames, VideoModelMixin
from .configuration_video import CvisVideoConfig
from .object_decoder import DecodedQueries, VideoHead, mask_logits


class CvisVideoModel(VideoModelMixin, CvisPreTrainedModel):
    """Base of the models made of a frame detector and a video head.

    Attributes:
        video_head_class: the head, built from the configuration.
        criterion_class: the video losses.
    """

    config_class = CvisVideoConfig
    video_head_class: type[nn.Module] = VideoHead
    criterion_class: type[nn.Module]

    def __init__(self, config: CvisVideoConfig):
        super().__init__(config)
        config.share_labels()
        self.detector = self.build_detector(config)
        self.video_head = self.video_head_class(config)
        self.criterion = self.criterion_class(
            config.num_labels,
            name=config.model_type,
            similarity_weight=config.similarity_weight,
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            num_points=config.train_num_points,
            oversample_ratio=config.oversample_ratio,
            importance_sample_ratio=config.importance_sample_ratio,
            **self.criterion_settings(config),
        )
        self.post_init()

    def frozen_modules(self) -> list[str]:
        return ["detector"] if self.config.freeze_detector else []

    @staticmethod
    def build_detector(config: CvisVideoConfig) -> FrameDetector:
        """The system's frame detector."""
        return FrameDetector(config.detector_config)

    @staticmethod
    def criterion_settings(config: CvisVideoConfig) -> dict[str, Any]:
        """What the system's criterion takes beyond the common weights."""
        return {}

    def compile_clip_step(self, **kwargs) -> None:
        """`torch.compile` the detector and the video head in place, each as one graph.

        The memory of GenVIS grows from clip to clip: it is compiled for 0, 1 and any other number of clips.

        Args:
            kwargs: as of `torch.compile`; `fullgraph=True` unless given.
        """
        kwargs = {"fullgraph": True, **kwargs}
        self.detector.compile(**kwargs)
        self.video_head.compile(**kwargs)

    def detect_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        detected = self.detector(frames, output_mask_features=False)
        return detected.frame_queries[-1], self.video_head.mask_projection(detected.fpn_features)

    def detect_for_training(self, pixel_values_videos: Tensor) -> tuple[FrameDetectorOutput, DetectedFrames]:
        """All predictions of the detector, and the frame queries of its last layers as further videos (layer first).

        With a frozen detector no graph is built through it; the mask projection belongs to the head and trains.
        """
        batch_size, num_frames = pixel_values_videos.shape[:2]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_detector):
            detected = self.detector(
                pixel_values_videos.flatten(0, 1),
                num_query_layers=self.config.num_frame_query_layers,
                output_predictions=True,
            )
        frame_queries = detected.frame_queries.unflatten(1, (batch_size, num_frames)).flatten(0, 1)
        mask_features = self.video_head.mask_projection(detected.fpn_features).unflatten(0, (batch_size, num_frames))
        return detected, DetectedFrames(frame_queries, mask_features)

    def frame_losses(self, detected: FrameDetectorOutput, targets: VideoTargets) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the frame detector, none when it is frozen, and the matches that the similarity loss needs.

        Returns:
            Weighted losses; and `(L, M, T)`: the frame query of each of M objects in each frame, -1 where it is absent,
            for the L last layers of the detector.
        """
        num_layers = self.config.num_frame_query_layers
        criterion, labels = self.detector.criterion, targets.frame_labels()
        if self.config.freeze_detector:
            losses = {}
            matched = criterion.match(detected.predictions[-num_layers:], detected.mask_features, labels)
        else:
            losses, matched = criterion(detected.predictions, detected.mask_features, labels)
        return losses, targets.frame_matches(matched[-num_layers:])

    def layer_predictions(self, decoded: DecodedQueries) -> list[LayerPrediction]:
        """Per video decoder layer class logits `(L, B, Q, K + 1)` and mask embeddings `(L, B, Q, C)`."""
        queries = self.split_layers(decoded.normalised, dim=1)
        class_logits, mask_embeddings = self.video_head.class_predictor(queries), self.video_head.mask_embedder(queries)
        return [LayerPrediction(*layer) for layer in zip(class_logits, mask_embeddings, strict=True)]

    def split_layers(self, states: Tensor, dim: int = 0) -> Tensor:
        """`(..., L * B, ...)` at `dim` -> `(..., L, B, ...)`, L layers of the frame detector."""
        return states.unflatten(dim, (self.config.num_frame_query_layers, -1))

    def predict_queries(self, video_queries: Tensor) -> tuple[Tensor, Tensor]:
        """Video queries (B, Q, C) -> class logits (B, Q, K + 1) and mask embeddings (B, Q, C)."""
        return self.video_head.class_predictor(video_queries), self.video_head.mask_embedder(video_queries)

    def predict_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Mask embeddings (B, Q, C) and mask features (B, T, C, h, w) of one clip -> mask logits (B, Q, T, h, w)."""
        return mask_logits(mask_embeddings, mask_features)

    def similarity_embeddings(self, encoded_queries: Tensor, video_queries: Tensor) -> tuple[Tensor, Tensor]:
        """Of encoded frame queries (B, T, F, C) and of video queries (B, Q, C); what the similarity loss compares."""
        head = self.video_head
        return head.frame_similarity_projection(encoded_queries), head.video_similarity_projection(video_queries)

    def make_output(
        self,
        detected: DetectedFrames,
        encoded_queries: Tensor,
        decoded: DecodedQueries,
        output_embeddings: bool,
        state: Any = None,
    ) -> VideoInstanceSegmentationOutput:
        """Predictions of the last decoder layer for one clip."""
        queries = decoded.normalised[-1]
        class_logits, mask_embeddings = self.predict_queries(queries)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=class_logits,
            masks_queries_logits=self.predict_masks(mask_embeddings, detected.mask_features),
            state=state,
        )
        if output_embeddings:
            output.frame_queries = detected.frame_queries[None]
            output.video_queries = queries
            output.mask_embeddings = mask_embeddings
            output.mask_features = detected.mask_features
            output.encoded_frame_queries = encoded_queries
            embeddings = self.similarity_embeddings(encoded_queries, queries)
            output.frame_similarity_embeddings, output.video_similarity_embeddings = embeddings
        return output
