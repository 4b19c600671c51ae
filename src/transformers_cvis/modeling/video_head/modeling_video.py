# SPDX-License-Identifier: Apache-2.0
"""Bases of the models that consist of a frame detector and a video head.

B videos, T frames, F frame queries per frame, Q video queries, L last layers of the frame decoder, C channels, K
classes, M objects of the labels, H x W pixels of the padded network input, h x w of the mask features.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ..docstrings import NO_STATE, document_forward
from ..frame_detector.modeling_frame_detector import FrameDetector
from ..layers.mask_logits import mask_logits
from ..losses import VideoMaskClassificationLoss, VideoTargets
from ..modeling_base import CvisPreTrainedModel
from ..outputs import FrameDetectorOutput, LayerPrediction, VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_model import DetectedFrames, VideoModelMixin
from .configuration_video import CvisVideoConfig
from .object_decoder import DecodedQueries, VideoHead, VideoStep


class CvisVideoModel(VideoModelMixin, CvisPreTrainedModel):
    """Base of the models that consist of a frame detector and a video head.

    Attributes:
        video_head_class (`type`): class of the head, built from the configuration.
        criterion_class (`type`): class of the video losses.
    """

    config_class = CvisVideoConfig
    detector: FrameDetector
    video_head: VideoHead
    video_head_class: type[VideoHead] = VideoHead
    criterion_class: type[VideoMaskClassificationLoss]

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__(config)
        config.share_labels()
        self.detector = self.build_detector(config)
        self.video_head = self.video_head_class(config)
        self.criterion = self.criterion_class(
            config.num_labels,
            name=config.model_type,
            similarity_weight=config.similarity_weight,
            **self.criterion_class.settings_of(config),
            **self.criterion_settings(config),
        )
        self.post_init()

    def frozen_modules(self) -> list[str]:
        """Return the detector if `config.freeze_detector` is set."""
        return ["detector"] if self.config.freeze_detector else []

    @staticmethod
    def build_detector(config: CvisVideoConfig) -> FrameDetector:
        """Build the system's frame detector."""
        return FrameDetector(config.detector_config)

    @staticmethod
    def criterion_settings(config: CvisVideoConfig) -> dict[str, Any]:
        """Return the arguments of the system's criterion beyond the common weights."""
        return {}

    def _compiled_parts(self) -> list[nn.Module]:
        return [self.detector, self.video_head]

    def detect_frames(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Detect the objects of single frames, with the mask features of the video head."""
        detected = self.detector(frames, output_mask_features=False, output_hidden_states=False, return_dict=True)
        return detected.frame_queries[-1], self.video_head.mask_projection(detected.fpn_features)

    def _detect_for_training(self, pixel_values_videos: torch.Tensor) -> tuple[FrameDetectorOutput, DetectedFrames]:
        """Run the detector with all predictions.

        No graph is built through a frozen detector; the mask projection belongs to the head and trains.

        Args:
            pixel_values_videos: `(B, T, 3, H, W)`.

        Returns:
            The output of the detector, and the frame queries of its last L layers as further videos, `(L * B, T, F, C)`
            with layer after layer, with mask features `(B, T, C, h, w)`.
        """
        batch_size, num_frames = pixel_values_videos.shape[:2]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_detector):
            detected = self.detector(
                pixel_values_videos.flatten(0, 1),
                num_query_layers=self.config.num_frame_query_layers,
                output_predictions=True,
                return_dict=True,
            )
        frame_queries = detected.frame_queries.unflatten(1, (batch_size, num_frames)).flatten(0, 1)
        mask_features = self.video_head.mask_projection(detected.fpn_features).unflatten(0, (batch_size, num_frames))
        return detected, DetectedFrames(frame_queries, mask_features)

    def _frame_losses(
        self, detected: FrameDetectorOutput, targets: VideoTargets
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Compute the losses of the frame detector, and the matches for the similarity loss.

        Returns:
            Weighted losses, none if the detector is frozen; and `(L, M, T)`, the frame query of each of M objects in
            each frame for the L last layers of the detector, -1 where an object is absent.
        """
        num_layers = self.config.num_frame_query_layers
        criterion, labels = self.detector.criterion, targets.frame_labels()
        if self.config.freeze_detector:
            losses = {}
            matched = criterion.match(detected.predictions[-num_layers:], detected.mask_features, labels)
        else:
            losses, matched = criterion(detected.predictions, detected.mask_features, labels)
        return losses, targets.frame_matches(matched[-num_layers:])

    def _layer_predictions(self, decoded: DecodedQueries) -> list[LayerPrediction]:
        """Return class logits `(L, B, Q, K + 1)` and mask embeddings `(L, B, Q, C)` of each object decoder layer."""
        queries = self._split_layers(decoded.normalised, dim=1)
        class_logits, mask_embeddings = self.video_head.class_predictor(queries), self.video_head.mask_embedder(queries)
        return [LayerPrediction(*layer) for layer in zip(class_logits, mask_embeddings, strict=True)]

    def _split_layers(self, states: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Split `(..., L * B, ...)` at `dim` into `(..., L, B, ...)`."""
        return states.unflatten(dim, (self.config.num_frame_query_layers, -1))

    def _predict_queries(self, video_queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict class logits `(B, Q, K + 1)` and mask embeddings `(B, Q, C)` from video queries `(B, Q, C)`."""
        return self.video_head.class_predictor(video_queries), self.video_head.mask_embedder(video_queries)

    def _predict_masks(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Compute the mask logits `(B, Q, T, h, w)` of a clip.

        Args:
            mask_embeddings: `(B, Q, C)`.
            mask_features: `(B, T, C, h, w)`.
        """
        return mask_logits(mask_embeddings, mask_features)

    def _similarity_embeddings(
        self, encoded_queries: torch.Tensor, video_queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the embeddings that the similarity loss compares.

        Args:
            encoded_queries: encoded frame queries `(B, T, F, C)`.
            video_queries: `(B, Q, C)`.

        Returns:
            Embeddings of both, in their shapes.
        """
        head = self.video_head
        return head.frame_similarity_projection(encoded_queries), head.video_similarity_projection(video_queries)

    def _make_output(
        self,
        detected: DetectedFrames,
        encoded_queries: torch.Tensor,
        decoded: DecodedQueries,
        output_embeddings: bool = False,
        output_hidden_states: bool = False,
        state: Any = None,
    ) -> VideoInstanceSegmentationOutput:
        """Build the output for one clip from the last decoder layer.

        Args:
            detected: output of the detector.
            encoded_queries: encoded frame queries `(B, T, F, C)`.
            decoded: output of the object decoder.
            output_embeddings: also fill in queries, mask features and similarity embeddings.
            output_hidden_states: also fill in the video queries of every layer.
            state: state for the next clip.
        """
        queries = decoded.normalised[-1]
        class_logits, mask_embeddings = self._predict_queries(queries)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=class_logits,
            masks_queries_logits=self._predict_masks(mask_embeddings, detected.mask_features),
            state=state,
        )
        if output_embeddings:
            output.frame_queries = detected.frame_queries[None]
            output.video_queries = queries
            output.mask_embeddings = mask_embeddings
            output.mask_features = detected.mask_features
            output.encoded_frame_queries = encoded_queries
            embeddings = self._similarity_embeddings(encoded_queries, queries)
            output.frame_similarity_embeddings, output.video_similarity_embeddings = embeddings
        if output_hidden_states:
            output.hidden_states = decoded.normalised.unbind(0)
        return output


class WholeVideoModel(CvisVideoModel):
    """Base of VITA and of the systems that extend it: video queries read the frame queries of the whole video."""

    criterion_class = VideoMaskClassificationLoss
    is_online = False

    @can_return_tuple
    @document_forward(
        state=NO_STATE,
        output_embeddings="queries, mask embeddings, mask features and similarity embeddings.",
        output_hidden_states="the normed video queries `(B, Q, C)` of every layer of the object decoder.",
    )
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        state: None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_embeddings: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        original_sizes: torch.Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        r"""Segment whole videos, or compute the losses if `labels` are given.

        Returns:
            [`VideoInstanceSegmentationOutput`], without a `state`.

        Raises:
            ValueError: An input has the wrong shape, type or range, or a `state` is given.

        Example:
        ```python
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from transformers_cvis import VitaConfig, VitaForVideoInstanceSegmentation
        >>> from transformers_cvis.modeling.frame_detector import FrameDetectorConfig

        >>> # A small model with random weights; `from_pretrained` loads a trained one.
        >>> backbone = ResNetConfig(
        ...     layer_type="basic", hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
        ... )
        >>> detector = FrameDetectorConfig(
        ...     backbone_config=backbone, feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=3
        ... )
        >>> config = VitaConfig(detector_config=detector, num_queries=10, encoder_layers=1, num_attention_heads=4)
        >>> model = VitaForVideoInstanceSegmentation(config).eval()

        >>> video = torch.randn(1, 2, 3, 64, 96)  # (B, T, 3, H, W)
        >>> with torch.no_grad():
        ...     output = model(video)
        >>> output.class_queries_logits.shape, output.masks_queries_logits.shape
        (torch.Size([1, 10, 3]), torch.Size([1, 10, 2, 16, 24]))

        ```
        """
        keeps_layers = hidden_states_requested(self.config, output_hidden_states, output_attentions)
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        self._check_state(state, len(pixel_values_videos))
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            return self._compute_loss(pixel_values_videos, labels)
        detected = self.detect(pixel_values_videos, pixel_mask)
        step = self._associate(detected.frame_queries, all_layers=keeps_layers)
        output = self._make_output(detected, *step, output_embeddings, keeps_layers)
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video given clip by clip; all clips are read before the first output.

        Until then the mask features of the video are kept in host memory. Every output repeats the class logits of the
        video.

        Args:
            clips: consecutive clips, `(1, T, 3, H, W)` each.

        Yields:
            One output per clip, in order.

        Raises:
            ValueError: the model is in training mode.
        """
        self._check_stream()
        frame_queries, mask_features = [], []
        for clip in clips:
            self.check_inputs(clip, None, None)
            detected = self.detect(clip.to(self.device, self.dtype))
            frame_queries.append(detected.frame_queries)
            mask_features.append(detected.mask_features.cpu())
        if not frame_queries:
            return
        encoded_queries, decoded = self._associate(torch.cat(frame_queries, dim=1))
        lengths = [features.shape[1] for features in mask_features]
        parts = zip(frame_queries, mask_features, encoded_queries.split(lengths, dim=1), strict=True)
        for queries, features, encoded in parts:
            part = DetectedFrames(queries, features.to(self.device))
            yield self.complete_output(self._make_output(part, encoded, decoded))

    def _associate(self, frame_queries: torch.Tensor, training: bool = False, all_layers: bool = False) -> VideoStep:
        """Let the learned video queries read the frame queries of whole videos.

        Args:
            frame_queries: `(B, T, F, C)`.
            training: return the decoded queries of all layers, for the losses.
            all_layers: return them in any case.
        """
        video_queries = self.video_head.initial_queries(len(frame_queries))
        return self.video_head(frame_queries, video_queries, training or all_layers)

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        detected, frames = self._detect_for_training(pixel_values_videos)
        loss_dict, frame_matches = self._frame_losses(detected, targets)
        encoded_queries, decoded = self._associate(frames.frame_queries, training=True)
        video_losses = self.criterion(
            self._layer_predictions(decoded),
            frames.mask_features,
            targets,
            frame_matches,
            self._split_layers(self.video_head.frame_similarity_projection(encoded_queries)),
            self._split_layers(self.video_head.video_similarity_projection(decoded.normalised[-1])),
        )
        loss_dict = {**loss_dict, **video_losses}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)
