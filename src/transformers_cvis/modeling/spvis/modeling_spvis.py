# SPDX-License-Identifier: Apache-2.0
"""SPVIS: a frame detector, a tracker that corrects itself frame by frame, and an offline refiner of whole videos.

DVIS (Zhang et al., "DVIS: Decoupled Video Instance Segmentation Framework", ICCV 2023) consists of the same parts.

B videos, T frames of a clip, Q queries, C channels, K classes.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...precision import at_least_float32_dtype
from ..docstrings import document_forward
from ..frame_detector.modeling_frame_detector import FrameDetector
from ..layers.mask_logits import mask_logits
from ..losses import FramewiseTrackLoss, VideoTargets, VideoTrackLoss
from ..outputs import LayerPrediction, VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_model import DetectedFrames, VideoModelMixin
from .configuration_spvis import SpvisConfig
from .refiners import REFINERS, Refiner
from .tracker import SpvisState, TrackedFrames, Tracker


class SpvisForVideoInstanceSegmentation(VideoModelMixin, FrameDetector):
    """SPVIS, which detects objects frame by frame and carries tracks from frame to frame, in videos of any length.

    With `config.refiner` the tracks of the whole video are then refined, offline.

    The model is a frame detector with a tracker, so `from_pretrained` accepts a MinVIS or Mask2Former checkpoint to
    start training from; the tracker is new then. Online training (`refiner=None`) trains the tracker, offline training
    the refiner.
    """

    config_class = SpvisConfig
    tracker: Tracker
    refiner: Refiner | None
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    state_class = SpvisState

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__(config)
        self.tracker = Tracker(config)
        self.refiner = None if config.refiner is None else REFINERS[config.refiner](config)
        loss_class = FramewiseTrackLoss if config.refiner is None else VideoTrackLoss
        self.track_criterion = loss_class(config.num_labels, name=config.model_type, **loss_class.settings_of(config))
        self.training_progress = 0.0
        self.post_init()

    @property
    def is_online(self) -> bool:
        """Whether the model has no refiner, so that a clip needs no later one."""
        return self.refiner is None

    @property
    def _tracker_trains(self) -> bool:
        return self.config.refiner is None or not self.config.freeze_tracker

    def frozen_modules(self) -> list[str]:
        """Return the frozen ones of detector and tracker; offline, the heads of the tracker in any case."""
        frozen = ["model", "class_predictor"] if self.config.freeze_detector else []
        if not self._tracker_trains:
            frozen.append("tracker")
        if self.config.refiner is not None:
            # Offline these heads only guide the matching, and their predictions are joined with the refiner's.
            frozen += ["tracker.class_predictor", "tracker.mask_embedder"]
        return frozen

    def evaluated_modules(self) -> list[str]:
        """Return the network of a frozen detector."""
        return ["model"] if self.config.freeze_detector else []

    def set_training_progress(self, progress: float) -> None:
        """Set how much of the training is done.

        In the first `config.guided_share` of the training, objects are matched to the predictions of the part before,
        which is trained already: the detector's, in the order of the tracks, for the tracker, and the tracker's for
        the refiner. After that, the model is matched by its own predictions.

        Args:
            progress: 0 at the beginning, as in a new model, to 1 at the end.

        Raises:
            ValueError: `progress` is not between 0 and 1.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"`progress` must be the share of the training that is done, in 0..1, got {progress}.")
        self.training_progress = progress

    @can_return_tuple
    @document_forward(
        pixel_values_videos="Online a clip of any length, offline whole videos.",
        state="Online, `state` of the output for the previous clip; None for the first clip, and offline.",
        output_embeddings="queries and mask features.",
        output_hidden_states="the normed tracks `(B, T, Q, C)` of every layer of the tracker, offline of the refiner.",
    )
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        state: SpvisState | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_embeddings: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        original_sizes: torch.Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        r"""Segment the next clip, offline whole videos, or compute the losses if `labels` are given.

        Returns:
            [`VideoInstanceSegmentationOutput`]. Online, `class_queries_logits` are the mean over the frames of the
            clip, and `state` belongs to the next call. Offline, they are for each class the logarithm of the larger of
            the refiner's and the tracker's probability; where these sum to more than 1, they are scaled to a sum of 1.

        Raises:
            ValueError: An input has the wrong shape, type or range, or `state` belongs to another batch or is given to
                an offline model.

        Example:
        ```python
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from transformers_cvis import SpvisConfig, SpvisForVideoInstanceSegmentation

        >>> # A small model with random weights; `from_pretrained` loads a trained one.
        >>> backbone = ResNetConfig(
        ...     layer_type="basic", hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
        ... )
        >>> config = SpvisConfig(
        ...     backbone_config=backbone, feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=3,
        ...     num_queries=10, tracker_layers=1,
        ... )
        >>> model = SpvisForVideoInstanceSegmentation(config).eval()

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
        tracked = self.tracker.track(detected.frame_queries, state)
        if self.refiner is not None:
            class_logits, mask_embeddings, layers = self._refine([tracked], [detected.frame_queries])
        else:
            layers = tracked.queries
            class_logits = self.tracker.class_predictor(layers[-1]).mean(dim=1)
            mask_embeddings = self.tracker.mask_embedder(layers[-1])
        output = self._make_output(detected.mask_features, class_logits, mask_embeddings)
        if self.is_online:
            output.state = tracked.state
        if output_embeddings:
            output.frame_queries = layers[-1:]
            output.mask_features = detected.mask_features
        if keeps_layers:
            output.hidden_states = layers.unbind(0)
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video clip by clip, see `VideoModelMixin.stream`; offline, all clips are read first.

        Until then the mask features of the video are kept in host memory. Every offline output repeats the class
        logits of the video.

        Args:
            clips: consecutive clips, `(1, T, 3, H, W)` each.

        Yields:
            One output per clip, in order.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.refiner is None:
            yield from super().stream(clips)
            return
        self._check_stream()
        tracked, frame_queries, mask_features, state = [], [], [], None
        for clip in clips:
            self.check_inputs(clip, None, None)
            detected = self.detect(clip.to(self.device, self.dtype))
            tracked.append(self.tracker.track(detected.frame_queries, state))
            frame_queries.append(detected.frame_queries)
            mask_features.append(detected.mask_features.cpu())
            state = tracked[-1].state
        if not tracked:
            return
        class_logits, mask_embeddings, _ = self._refine(tracked, frame_queries)
        lengths = [features.shape[1] for features in mask_features]
        for features, part_embeddings in zip(mask_features, mask_embeddings.split(lengths, dim=1), strict=True):
            yield self.complete_output(self._make_output(features.to(self.device), class_logits, part_embeddings))

    def detect_frames(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Detect the objects of single frames, see `VideoModelMixin.detect_frames`."""
        detected = super().forward(frames, output_hidden_states=False, return_dict=True)
        return detected.frame_queries[-1], detected.mask_features

    def _refine(
        self, tracked: list[TrackedFrames], frame_queries: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Refine the tracks of videos that were tracked in consecutive parts.

        Args:
            tracked: output of the tracker for each part.
            frame_queries: frame queries of each part, `(B, T, Q, C)`.

        Returns:
            Class logits `(B, Q, K + 1)`, mask embeddings `(B, T, Q, mask channels)` and the queries of every layer
            `(layers, B, T, Q, C)`.
        """
        tracks = torch.cat([part.queries[-1] for part in tracked], dim=1)
        refined = self.refiner(tracks, self._encode_frames(torch.cat(frame_queries, dim=1)))
        online_logits = self.tracker.class_predictor(tracks).mean(dim=1)
        class_logits = join_class_logits(refined.class_logits[-1], online_logits)
        return class_logits, refined.mask_embeddings[-1], refined.queries

    def _encode_frames(self, frame_queries: torch.Tensor) -> torch.Tensor:
        return self.tracker.layer_norm(self.tracker.encode_frames(frame_queries)[-1])

    @staticmethod
    def _make_output(
        mask_features: torch.Tensor, class_logits: torch.Tensor, mask_embeddings: torch.Tensor
    ) -> VideoInstanceSegmentationOutput:
        return VideoInstanceSegmentationOutput(
            class_queries_logits=class_logits, masks_queries_logits=mask_logits(mask_embeddings, mask_features)
        )

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        loss_dict, frames = self._detect_for_training(pixel_values_videos, targets)
        guided = self.training_progress < self.config.guided_share
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._tracker_trains):
            tracked = self.tracker.track(frames.frame_queries)
            encoded = None if self.refiner is None else self._encode_frames(frames.frame_queries)
        if self.refiner is None:
            predictions, guide = self._track_predictions(tracked.queries), None
            if guided:
                matched = frames.frame_queries.take_along_dim(tracked.order.unsqueeze(3), dim=2)
                guide = self._detector_prediction(matched)
        else:
            refined = self.refiner(tracked.queries[-1], encoded)
            predictions, guide = [LayerPrediction(*layer) for layer in zip(*refined[:2], strict=True)], None
            if guided:
                (online,) = self._track_predictions(tracked.queries[-1:])
                guide = LayerPrediction(online.class_logits.mean(dim=1), online.mask_embeddings)
        if self.config.class_targets == "released":
            targets = targets.with_classes_of_last_frame(no_object=self.config.num_labels)
        loss_dict = {**loss_dict, **self.track_criterion(predictions, frames.mask_features, targets, guide)}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def _detect_for_training(
        self, pixel_values_videos: torch.Tensor, targets: VideoTargets
    ) -> tuple[dict[str, torch.Tensor], DetectedFrames]:
        """Return the losses of the frame detector, none when it is frozen, and its output."""
        if self.config.freeze_detector:
            with torch.no_grad():
                return {}, self.detect(pixel_values_videos)
        detected = super().forward(pixel_values_videos.flatten(0, 1), labels=targets.frame_labels(), return_dict=True)
        videos = pixel_values_videos.shape[:2]
        frames = DetectedFrames(
            detected.frame_queries[-1].unflatten(0, videos), detected.mask_features.unflatten(0, videos)
        )
        return detected.loss_dict, frames

    def _track_predictions(self, queries: torch.Tensor) -> list[LayerPrediction]:
        """Predict from normalised tracks `(layers, B, T, Q, C)`.

        Returns:
            For each layer class logits `(B, T, Q, K + 1)` and mask embeddings `(B, T, Q, mask channels)`.
        """
        layers = zip(self.tracker.class_predictor(queries), self.tracker.mask_embedder(queries), strict=True)
        return [LayerPrediction(*layer) for layer in layers]

    @torch.no_grad()
    def _detector_prediction(self, frame_queries: torch.Tensor) -> LayerPrediction:
        return LayerPrediction(self.class_predictor(frame_queries), self.embed_masks(frame_queries))

    def _compiled_parts(self) -> list[nn.Module]:
        parts = [self.model.pixel_level_module, self.model.transformer_module, self.tracker]
        return parts if self.refiner is None else [*parts, self.refiner]


def join_class_logits(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Join two predictions: the probability of each class is the larger of the two.

    No-object gets the rest to 1. Where the classes add up to more than 1, they are scaled to 1.

    Args:
        first: class logits `(..., K + 1)`, no-object last.
        second: class logits of the same shape.

    Returns:
        Class logits of the same shape, in the dtype of `first`.
    """
    precision = at_least_float32_dtype(first.dtype)
    probabilities = torch.maximum(first.to(precision).softmax(dim=-1), second.to(precision).softmax(dim=-1))
    classes = probabilities[..., :-1]
    smallest = torch.finfo(torch.float16).tiny
    no_object = 1 - classes.sum(dim=-1, keepdim=True)
    return torch.cat([classes, no_object], dim=-1).clamp(min=smallest).log().to(first.dtype)


__all__ = ["SpvisForVideoInstanceSegmentation", "SpvisState"]
