"""What the video models share: reading pixels through the frame detector, checking inputs, streaming.

B videos, T frames, F frame queries per frame, C channels, H x W pixels of the padded network input.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_cvis import CvisVideoConfig
from .frame_detector.modeling_frame_detector import FrameDetector
from .losses import LayerPrediction, VideoTargets
from .modeling_cvis import CvisPreTrainedModel
from .outputs import FrameDetectorOutput, VideoInstanceSegmentationOutput
from .video_decoder import DecodedQueries, VideoHead, mask_logits

SIZE_DIVISOR = 32


class DetectedFrames(NamedTuple):
    """What a video head reads of a batch of clips."""

    frame_queries: Tensor  # (B, T, F, C), in training (layers * B, T, F, C)
    mask_features: Tensor  # (B, T, C, H / 4, W / 4)


class CvisVideoModel(CvisPreTrainedModel):
    """Base of the models made of a frame detector and a video head.

    Attributes:
        is_online (`bool`): whether a clip is answered without its future, so that a stream of clips never has to end.
        video_head_class: the head, built from the configuration.
        criterion_class: the video losses.
    """

    config_class = CvisVideoConfig
    is_online: bool
    video_head_class: type[nn.Module] = VideoHead
    criterion_class: type[nn.Module]

    def __init__(self, config: CvisVideoConfig):
        super().__init__(config)
        config.share_labels()
        self.detector = FrameDetector(config.detector_config)
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
        self._freeze()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        # Loaded parameters replace those of the new model, and all of them would train.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        self.detector.requires_grad_(not self.config.freeze_detector)

    @staticmethod
    def criterion_settings(config: CvisVideoConfig) -> dict[str, Any]:
        """What the system's criterion takes beyond the common weights."""
        return {}

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_detector:
            # Frozen means that the statistics stay, too; stochastic depth goes on.
            for module in self.detector.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def compile_clip_step(self, **kwargs) -> None:
        """`torch.compile` the detector and the video head in place, each as one graph.

        The memory of GenVIS grows from clip to clip: it is compiled for 0, 1 and any other number of clips.

        Args:
            kwargs: as of `torch.compile`; `fullgraph=True` unless given.
        """
        kwargs = {"fullgraph": True, **kwargs}
        self.detector.compile(**kwargs)
        self.video_head.compile(**kwargs)

    def stream(self, clips: Iterable[Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video clip by clip.

        Args:
            clips: the video's consecutive clips, each of shape (1, T, 3, H, W); T may differ from clip to clip. They
                are moved to the device and dtype of the model.

        Yields:
            One output per clip, in order. The class score of a video's query is the maximum over its outputs.

        Raises:
            ValueError: when the model is in training mode.
        """
        raise NotImplementedError

    def _check_stream(self) -> None:
        if self.training:
            raise ValueError(f"{type(self).__name__} is in training mode; call `.eval()` before `.stream(...)`.")

    def check_inputs(self, pixel_values_videos: Tensor, pixel_mask: Tensor | None, labels: list[dict] | None) -> None:
        """Raise a ValueError which names what does not fit, before any work is done."""
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != 3:
            raise ValueError(
                "`pixel_values_videos` must have the shape (batch_size, num_frames, 3, height, width), got "
                f"{tuple(pixel_values_videos.shape)}."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if not pixel_values_videos.is_floating_point():
            raise ValueError(
                f"`pixel_values_videos` must be normalised floats, got {pixel_values_videos.dtype}; use the model's "
                "video processor."
            )
        if num_frames == 0:
            raise ValueError("`pixel_values_videos` has no frames; a clip needs at least 1.")
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR or not height or not width:
            raise ValueError(
                f"Height and width of `pixel_values_videos` must be multiples of {SIZE_DIVISOR}, got {height} x "
                f"{width}; the model's video processor pads to them."
            )
        if pixel_mask is not None and tuple(pixel_mask.shape) != (batch_size, height, width):
            raise ValueError(
                f"`pixel_mask` must have the shape {(batch_size, height, width)} (batch_size, height, width), got "
                f"{tuple(pixel_mask.shape)}."
            )
        if not torch.compiler.is_compiling() and not torch.isfinite(pixel_values_videos).all():
            raise ValueError("`pixel_values_videos` holds NaN or infinite values; check decoding and normalisation.")
        if labels is not None:
            self._check_labels(labels, batch_size, num_frames, height, width)

    def _check_labels(self, labels: list[dict], batch_size: int, num_frames: int, height: int, width: int) -> None:
        if len(labels) != batch_size:
            raise ValueError(f"`labels` must hold one dict per video: got {len(labels)} for {batch_size} videos.")
        for index, label in enumerate(labels):
            missing = {"class_labels", "ids", "masks"} - set(label)
            if missing:
                raise ValueError(f"`labels[{index}]` lacks {sorted(missing)}.")
            num_objects = len(label["class_labels"])
            expected = {"ids": (num_objects, num_frames), "masks": (num_objects, num_frames, height, width)}
            for name, shape in expected.items():
                if tuple(label[name].shape) != shape:
                    raise ValueError(
                        f"`labels[{index}]['{name}']` must have the shape {shape}, got {tuple(label[name].shape)}."
                    )
            unknown = [int(c) for c in label["class_labels"].unique() if not 0 <= c < self.config.num_labels]
            if unknown:
                raise ValueError(
                    f"`labels[{index}]['class_labels']` holds {unknown}, but the model knows the "
                    f"{self.config.num_labels} classes 0..{self.config.num_labels - 1} (`config.id2label`)."
                )
            if num_objects > self.config.num_queries:
                raise ValueError(
                    f"`labels[{index}]` has {num_objects} objects, but the model has only {self.config.num_queries} "
                    "video queries (`config.num_queries`)."
                )

    def detect(self, pixel_values_videos: Tensor, pixel_mask: Tensor | None = None) -> DetectedFrames:
        """Frame queries of the last layer and mask features of a batch of clips, at inference.

        Videos which `pixel_mask` (B, H, W; 1 where the video is) shows to be smaller than the batch run at the size
        they have alone. The border of their mask features is repeated over the rest, so that upsampling and cropping
        gives the very masks that the video gives alone.
        """
        height, width = pixel_values_videos.shape[-2:]
        videos_of_size = defaultdict(list)
        for video, size in enumerate(_own_sizes(pixel_values_videos, pixel_mask)):
            videos_of_size[size].append(video)
        if list(videos_of_size) == [(height, width)]:
            return self._detect_size(pixel_values_videos)
        frame_queries, mask_features, order = [], [], []
        for (own_height, own_width), videos in videos_of_size.items():
            detected = self._detect_size(pixel_values_videos[videos, :, :, :own_height, :own_width])
            right, bottom = (width - own_width) // 4, (height - own_height) // 4
            padded = F.pad(detected.mask_features.flatten(0, 1), (0, right, 0, bottom), mode="replicate")
            mask_features.append(padded.unflatten(0, detected.mask_features.shape[:2]))
            frame_queries.append(detected.frame_queries)
            order += videos
        back = torch.tensor(order, device=self.device).argsort()
        return DetectedFrames(torch.cat(frame_queries)[back], torch.cat(mask_features)[back])

    def _detect_size(self, pixel_values_videos: Tensor) -> DetectedFrames:
        batch_size, num_frames = pixel_values_videos.shape[:2]
        frame_queries, mask_features = [], []
        for frames in pixel_values_videos.flatten(0, 1).split(self.config.detector_chunk_size):
            detected = self.detector(frames)
            frame_queries.append(detected.frame_queries[-1])
            mask_features.append(self.video_head.mask_projection(detected.fpn_features))
        return DetectedFrames(
            torch.cat(frame_queries).unflatten(0, (batch_size, num_frames)),
            torch.cat(mask_features).unflatten(0, (batch_size, num_frames)),
        )

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

    def make_output(
        self,
        detected: DetectedFrames,
        encoded_queries: Tensor,
        decoded: DecodedQueries,
        output_embeddings: bool,
        state: Any = None,
    ) -> VideoInstanceSegmentationOutput:
        """Predictions of the last decoder layer for one clip."""
        head = self.video_head
        queries = decoded.normalised[-1]
        mask_embeddings = head.mask_embedder(queries)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=head.class_predictor(queries),
            masks_queries_logits=mask_logits(mask_embeddings, detected.mask_features),
            state=state,
        )
        if output_embeddings:
            output.frame_queries = detected.frame_queries[None]
            output.video_queries = queries
            output.mask_embeddings = mask_embeddings
            output.mask_features = detected.mask_features
            output.encoded_frame_queries = encoded_queries
            output.frame_similarity_embeddings = head.frame_similarity_projection(encoded_queries)
            output.video_similarity_embeddings = head.video_similarity_projection(queries)
        return output


def _own_sizes(pixel_values_videos: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each video alone, padded to the size divisor."""
    batch_size, _, _, height, width = pixel_values_videos.shape
    if pixel_mask is None:
        return [(height, width)] * batch_size
    heights = pixel_mask.any(dim=2).sum(dim=1).tolist()
    widths = pixel_mask.any(dim=1).sum(dim=1).tolist()
    if min(heights) == 0 or min(widths) == 0:
        raise ValueError("`pixel_mask` marks a video without any valid pixel.")
    return [
        (-(-own_height // SIZE_DIVISOR) * SIZE_DIVISOR, -(-own_width // SIZE_DIVISOR) * SIZE_DIVISOR)
        for own_height, own_width in zip(heights, widths, strict=True)
    ]
