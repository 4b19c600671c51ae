"""SPVIS: a frame detector, a tracker that corrects itself frame by frame, and offline a refinement of the whole video.

DVIS (Zhang et al., "DVIS: Decoupled Video Instance Segmentation Framework", ICCV 2023) is made of the same parts.

B videos, T frames of a clip, Q queries, C channels, K classes.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..frame_detector.modeling_frame_detector import FrameDetector
from ..losses import FramewiseTrackLoss, LayerPrediction, VideoTargets, VideoTrackLoss
from ..outputs import VideoInstanceSegmentationOutput
from ..video_model import DetectedFrames, VideoModelMixin
from .configuration_spvis import SpvisConfig
from .refiners import REFINERS
from .tracker import SpvisState, TrackedFrames, Tracker


class SpvisForVideoInstanceSegmentation(VideoModelMixin, FrameDetector):
    """Segments frames one by one and carries tracks from frame to frame, in videos of any length; with
    `config.refiner` it then refines the tracks of the whole video.

    It is the frame detector with a tracker beside it, so that `from_pretrained` takes a MinVIS or Mask2Former
    checkpoint, which is the first stage of training; the tracker is new then. Online training (`refiner=None`) trains
    the tracker, offline training the refiner.
    """

    config_class = SpvisConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)

    def __init__(self, config: SpvisConfig):
        super().__init__(config)
        self.tracker = Tracker(config)
        self.refiner = None if config.refiner is None else REFINERS[config.refiner](config)
        loss_class = FramewiseTrackLoss if config.refiner is None else VideoTrackLoss
        self.track_criterion = loss_class(
            config.num_labels,
            name=config.model_type,
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            num_points=config.train_num_points,
            oversample_ratio=config.oversample_ratio,
            importance_sample_ratio=config.importance_sample_ratio,
        )
        self.training_progress = 0.0
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        # Loaded parameters replace those of the new model, and all of them would train.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    @property
    def is_online(self) -> bool:
        return self.refiner is None

    @property
    def _tracker_trains(self) -> bool:
        return self.refiner is None or not self.config.freeze_tracker

    def _freeze(self) -> None:
        self.model.requires_grad_(not self.config.freeze_detector)
        self.class_predictor.requires_grad_(not self.config.freeze_detector)
        self.tracker.requires_grad_(self._tracker_trains)
        if self.refiner is not None:
            # Offline its predictions only guide the matching and are averaged with those of the refiner.
            self.tracker.class_predictor.requires_grad_(False)
            self.tracker.mask_embedder.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_detector:
            self.model.eval()
        return self

    def set_training_progress(self, progress: float) -> None:
        """Say how much of the training is done.

        In the first `config.guided_share` of it objects are matched to the predictions of the stage before, which is
        trained: those of the detector, in the order of the tracks, for the tracker, those of the tracker for the
        refiner. Later the model is matched by its own predictions.

        Args:
            progress: 0 at the beginning (where a new model is) to 1 at the end.

        Raises:
            ValueError: when it is not a share.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"`progress` is the share of the training that is done, in 0..1, got {progress}.")
        self.training_progress = progress

    def forward(
        self,
        pixel_values_videos: Tensor,
        pixel_mask: Tensor | None = None,
        state: SpvisState | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_embeddings: bool = False,
        original_sizes: Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): normalised; H and W multiples of 32.
                Online a clip of any length, offline whole videos.
            pixel_mask (`torch.Tensor` of shape `(B, H, W)`, *optional*): 1 where a video is, 0 where it is padded. Used
                at inference, where each video of a batch gives what it gives alone.
            state (`SpvisState`, *optional*): online, `state` of the output for the clip before; None for the
                first clip.
            labels (*optional*): per video `{"class_labels": (N,) long, "ids": (N, T) long and -1 where an object is
                absent, "masks": (N, T, H, W)}`; gives `loss` and `loss_dict` instead of predictions.
            output_embeddings (`bool`): also return queries and mask features.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): height and width of the videos before the
                resize, as the video processor gives them; the output carries them to the post-processing.

        Returns:
            `class_queries_logits` are the mean over the frames of the clip; offline, the logarithm of the larger of the
            refiner's and the tracker's probability for each class. Where these larger ones exceed 1 together, they are
            scaled to 1.

        Raises:
            ValueError: when an input has the wrong shape, type or range, or `state` belongs to another batch or is
                given to an offline model.
        """
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            return self._compute_loss(pixel_values_videos, labels)
        if state is not None and self.refiner is not None:
            raise ValueError(
                "An offline SPVIS takes a whole video at once and has no `state`; use `.stream(...)` to hand it in "
                "parts, or load it with `refiner=None` to run online."
            )
        if state is not None and len(state.tracks) != len(pixel_values_videos):
            raise ValueError(
                f"`state` belongs to a batch of {len(state.tracks)} videos, but `pixel_values_videos` holds "
                f"{len(pixel_values_videos)}."
            )
        detected = self.detect(pixel_values_videos, pixel_mask)
        tracked = self.tracker.track(detected.frame_queries, state)
        if self.refiner is not None:
            class_logits, mask_embeddings, queries = self._refine([tracked], [detected.frame_queries])
            output = self._make_output(detected, class_logits, mask_embeddings, queries, None, output_embeddings)
            return self.complete_output(output, pixel_mask, original_sizes)
        queries = tracked.queries[-1]
        class_logits = self.tracker.class_predictor(queries).mean(dim=1)
        mask_embeddings = self.tracker.mask_embedder(queries)
        output = self._make_output(detected, class_logits, mask_embeddings, queries, tracked.state, output_embeddings)
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """As `VideoModelMixin.stream`. Offline all clips are read before the first output; until then the mask features
        of the video wait in host memory, and every output repeats the class logits of the video."""
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
        class_logits, mask_embeddings, queries = self._refine(tracked, frame_queries)
        lengths = [features.shape[1] for features in mask_features]
        parts = zip(mask_features, mask_embeddings.split(lengths, dim=1), queries.split(lengths, dim=1), strict=True)
        for features, part_embeddings, part_queries in parts:
            part = DetectedFrames(frame_queries=None, mask_features=features.to(self.device))
            output = self._make_output(part, class_logits, part_embeddings, part_queries, None, output_embeddings=False)
            yield self.complete_output(output)

    def detect_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        detected = super().forward(frames)
        return detected.frame_queries[-1], detected.mask_features

    def _refine(self, tracked: list[TrackedFrames], frame_queries: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, Q, K + 1), mask embeddings and queries (B, T, Q, C) of videos seen in consecutive parts."""
        tracks = torch.cat([part.queries[-1] for part in tracked], dim=1)
        refined = self.refiner(tracks, self._encode_frames(torch.cat(frame_queries, dim=1)))
        online_logits = self.tracker.class_predictor(tracks).mean(dim=1)
        class_logits = join_class_logits(refined.class_logits[-1], online_logits)
        return class_logits, refined.mask_embeddings[-1], refined.queries[-1]

    def _encode_frames(self, frame_queries: Tensor) -> Tensor:
        return self.tracker.layer_norm(self.tracker.encode_frames(frame_queries)[-1])

    def _make_output(
        self,
        detected: DetectedFrames,
        class_logits: Tensor,
        mask_embeddings: Tensor,
        queries: Tensor,
        state: SpvisState | None,
        output_embeddings: bool,
    ) -> VideoInstanceSegmentationOutput:
        masks = mask_embeddings @ detected.mask_features.flatten(3)  # (B, T, Q, h * w)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=class_logits,
            masks_queries_logits=masks.transpose(1, 2).unflatten(3, detected.mask_features.shape[3:]),
            state=state,
        )
        if output_embeddings:
            output.frame_queries = queries[None]
            output.mask_features = detected.mask_features
        return output

    def _compute_loss(
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]]
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
        self, pixel_values_videos: Tensor, targets: VideoTargets
    ) -> tuple[dict[str, Tensor], DetectedFrames]:
        """Losses of the frame detector, none when it is frozen, and what it found."""
        if self.config.freeze_detector:
            with torch.no_grad():
                return {}, self.detect(pixel_values_videos)
        detected = super().forward(pixel_values_videos.flatten(0, 1), labels=targets.frame_labels())
        videos = pixel_values_videos.shape[:2]
        frames = DetectedFrames(
            detected.frame_queries[-1].unflatten(0, videos), detected.mask_features.unflatten(0, videos)
        )
        return detected.loss_dict, frames

    def _track_predictions(self, queries: Tensor) -> list[LayerPrediction]:
        """Per layer class logits (B, T, Q, K + 1) and mask embeddings (B, T, Q, C) of normalised tracks."""
        layers = zip(self.tracker.class_predictor(queries), self.tracker.mask_embedder(queries), strict=True)
        return [LayerPrediction(*layer) for layer in layers]

    @torch.no_grad()
    def _detector_prediction(self, frame_queries: Tensor) -> LayerPrediction:
        mask_embedder = self.model.transformer_module.decoder.mask_predictor.mask_embedder
        return LayerPrediction(self.class_predictor(frame_queries), mask_embedder(frame_queries))

    def compile_clip_step(self, **kwargs) -> None:
        """`torch.compile` the parts of the network in place, each as one graph; matching stays on the host.

        Args:
            kwargs: as of `torch.compile`; `fullgraph=True` unless given.
        """
        kwargs = {"fullgraph": True, **kwargs}
        parts: list[nn.Module] = [self.model.pixel_level_module, self.model.transformer_module, self.tracker]
        for part in parts if self.refiner is None else [*parts, self.refiner]:
            part.compile(**kwargs)


def join_class_logits(first: Tensor, second: Tensor) -> Tensor:
    """Logits whose probabilities are, class by class, the larger of those of two: (..., K + 1), no-object last.

    What the classes leave of 1 is no-object's; where they exceed 1 together, they are scaled to it.
    """
    precision = torch.promote_types(first.dtype, torch.float32)
    probabilities = torch.maximum(first.to(precision).softmax(dim=-1), second.to(precision).softmax(dim=-1))
    classes = probabilities[..., :-1]
    smallest = torch.finfo(torch.float16).tiny
    no_object = 1 - classes.sum(dim=-1, keepdim=True)
    return torch.cat([classes, no_object], dim=-1).clamp(min=smallest).log().to(first.dtype)


__all__ = ["SpvisForVideoInstanceSegmentation", "SpvisState"]
