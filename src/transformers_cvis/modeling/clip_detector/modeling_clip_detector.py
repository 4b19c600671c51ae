"""Video models whose queries read all frames of a clip at once: the frame detector with time as a third dimension.

B videos, T frames, Q queries, C channels, L positions of one level in one frame, H x W pixels of the padded network
input.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from ..frame_detector.modeling_frame_detector import FrameDetector, shrunk_mask_features
from ..layers.position_embedding import sine_frame_embedding
from ..layers.query_matching import match_window_queries
from ..losses import ClipMaskClassificationLoss, LayerPrediction, VideoTargets
from ..outputs import VideoInstanceSegmentationOutput
from ..video_head.object_decoder import mask_logits
from ..video_model import VideoModelMixin, repeat_border, videos_by_size
from .available_memory import available_memory
from .configuration_clip_detector import ClipDetectorConfig

logger = logging.get_logger(__name__)

# Share of the available memory that a clip may be estimated to take.
MEMORY_SHARE = 0.8


class ClipFeatures(NamedTuple):
    """What backbone and pixel decoder give for T frames."""

    levels: list[Tensor]  # coarse to fine, (B, T, C, height, width)
    level_mask_features: list[Tensor]  # at the size of each level, (B, T, L, mask channels)
    mask_features: Tensor  # (B, T, mask channels, H / 4, W / 4)

    @property
    def num_frames(self) -> int:
        return self.mask_features.shape[1]

    def frames(self, start: int, end: int) -> "ClipFeatures":
        levels, level_mask_features = ([part[:, start:end] for part in parts] for parts in self[:2])
        return ClipFeatures(levels, level_mask_features, self.mask_features[:, start:end])

    def copy(self) -> "ClipFeatures":
        """Without what else the tensors' memory holds."""
        levels, level_mask_features = ([part.clone() for part in parts] for parts in self[:2])
        return ClipFeatures(levels, level_mask_features, self.mask_features.clone())

    @staticmethod
    def join(parts: list["ClipFeatures"]) -> "ClipFeatures":
        """Parts that follow each other, as one."""
        if len(parts) == 1:
            return parts[0]
        levels, level_mask_features, mask_features = zip(*parts, strict=True)
        joined = [
            [torch.cat(part, dim=1) for part in zip(*lists, strict=True)] for lists in (levels, level_mask_features)
        ]
        return ClipFeatures(*joined, torch.cat(mask_features, dim=1))


class Window(NamedTuple):
    """What the queries say of a window of frames, in the order of the tracks."""

    class_logits: Tensor  # (B, Q, K + 1)
    queries: Tensor  # (B, Q, C)
    mask_embeddings: Tensor  # (B, Q, mask channels)
    mask_features: Tensor  # (B, T, mask channels, H / 4, W / 4), of the frames that no window before has answered

    @property
    def num_frames(self) -> int:
        return self.mask_features.shape[1]


class ClipDetector(VideoModelMixin, FrameDetector):
    """Base of Mask2Former-VIS and CRISP: the frame detector, whose queries see the frames of a clip as one image.

    Its weights are those of Mask2Former: `from_pretrained` takes any Mask2Former checkpoint.
    """

    config_class = ClipDetectorConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    is_online = False

    def __init__(self, config: ClipDetectorConfig):
        super().__init__(config)
        self.criterion = ClipMaskClassificationLoss(config.num_labels, **self.criterion_settings(config))

    @staticmethod
    def criterion_settings(config: ClipDetectorConfig) -> dict[str, float]:
        """Weights and points of the losses."""
        return {
            "class_weight": config.class_weight,
            "mask_weight": config.mask_weight,
            "dice_weight": config.dice_weight,
            "no_object_weight": config.no_object_weight,
            "num_points": config.train_num_points,
            "oversample_ratio": config.oversample_ratio,
            "importance_sample_ratio": config.importance_sample_ratio,
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        # Loaded parameters replace those of the new model, and all of them would train.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        """Say what does not train."""

    def forward(
        self,
        pixel_values_videos: Tensor,
        pixel_mask: Tensor | None = None,
        state: None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_embeddings: bool = False,
        original_sizes: Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): whole videos, normalised; H and W multiples
                of 32.
            pixel_mask (`torch.Tensor` of shape `(B, H, W)`, *optional*): 1 where a video is, 0 where it is padded. Used
                at inference, where each video of a batch gives what it gives alone.
            state: None; nothing is carried from clip to clip.
            labels (*optional*): per video `{"class_labels": (N,) long, "ids": (N, T) long and -1 where an object is
                absent, "masks": (N, T, H, W)}`; gives `loss` and `loss_dict` instead of predictions. The frames are one
                clip.
            output_embeddings (`bool`): also return the queries, mask embeddings and mask features; of a video in
                several windows the queries and mask embeddings of the last.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): height and width of the videos before the
                resize, as the video processor gives them; the output carries them to the post-processing.

        Returns:
            Where a video is longer than `config.max_clip_frames`, or memory lets less be one clip, windows of it are
            processed one after the other: `class_queries_logits` are their mean, weighted by their frames.

        Raises:
            ValueError: when an input has the wrong shape, type or range, or a `state` is given.
            MemoryError: when not even two frames fit.
        """
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        if state is not None:
            raise ValueError(
                f"{type(self).__name__} takes a whole video at once and has no `state`; use `.stream(...)` to hand it "
                "in parts."
            )
        if labels is not None:
            return self._compute_loss(pixel_values_videos.to(self.dtype), labels)
        height, width = pixel_values_videos.shape[-2:]
        outputs, order = [], []
        for (own_height, own_width), videos in videos_by_size(pixel_values_videos, pixel_mask).items():
            whole = (own_height, own_width) == (height, width) and len(videos) == len(pixel_values_videos)
            own = pixel_values_videos if whole else pixel_values_videos[videos, :, :, :own_height, :own_width]
            outputs.append(self._segment(own, output_embeddings))
            order += videos
        if len(outputs) == 1 and whole:
            output = outputs[0]
        else:
            back = torch.tensor(order, device=self.device).argsort()
            output = _batch(outputs, back, (height // 4, width // 4))
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """As `VideoModelMixin.stream`. The clips of a window (`config.max_clip_frames`, or the whole video) are read
        before the first output for it; every output has the class logits of its window, in the mean where a clip
        reaches into a second one."""
        self._check_stream()
        lengths, windows = deque(), deque()

        def noted() -> Iterator[Tensor]:
            for clip in clips:
                self.check_inputs(clip, None, None)
                lengths.append(clip.shape[1])
                yield clip

        for window in self._windows(noted()):
            windows.append(window)
            while lengths and lengths[0] <= sum(window.num_frames for window in windows):
                parts = [self._answer(part) for part in _take_frames(windows, lengths.popleft())]
                yield self.complete_output(_join(parts))

    def read_frames(self, pixel_values_videos: Tensor, feature_maps: list[Tensor] | None = None) -> ClipFeatures:
        """Frames (B, T, 3, H, W), each by itself -> features; from the maps of the backbone where they are there."""
        batch = pixel_values_videos.shape[:2]
        if feature_maps is None:
            levels, fpn_features = self.model.pixel_level_module(pixel_values_videos.flatten(0, 1))
        else:
            levels, fpn_features = self.model.pixel_level_module.decoder(feature_maps)
        project_masks = self.model.pixel_level_module.decoder.mask_projection
        shrunk = [shrunk_mask_features(fpn_features, project_masks, level.shape[-2:]) for level in levels]
        return ClipFeatures(
            [level.unflatten(0, batch) for level in levels],
            [features.flatten(2).transpose(1, 2).unflatten(0, batch) for features in shrunk],
            project_masks(fpn_features).unflatten(0, batch),
        )

    def clip_tokens(self, features: ClipFeatures) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level keys and values (B, T * L, C) and mask features (B, mask channels, T * L) of all frames."""
        batch_size, num_frames = features.mask_features.shape[:2]
        level_keys, level_values = self.model.transformer_module.read_levels(
            [level.flatten(0, 1) for level in features.levels]
        )
        values = [states.unflatten(0, (batch_size, num_frames)).flatten(1, 2) for states in level_values]
        frames = sine_frame_embedding(
            num_frames, values[0].shape[-1], device=values[0].device, dtype=values[0].dtype
        ).unsqueeze(1)
        keys = [(states.unflatten(0, (batch_size, num_frames)) + frames).flatten(1, 2) for states in level_keys]
        return keys, values, [part.flatten(1, 2).transpose(1, 2) for part in features.level_mask_features]

    def decode(self, features: ClipFeatures) -> tuple[list[Tensor], list[Tensor]]:
        """As `MaskedAttentionDecoder`, a clip in place of an image: normed queries and mask embeddings (B, Q, .)."""
        module = self.model.transformer_module
        queries = module.queries_features.weight.expand(len(features.mask_features), -1, -1)
        return module.decoder(queries, module.queries_embedder.weight, *self.clip_tokens(features))

    def classify(self, queries: Tensor) -> Tensor:
        """Normed queries of the last layer (B, Q, C) -> class logits (B, Q, K + 1) at inference."""
        return self.class_predictor(queries)

    def embed_masks(self, queries: Tensor) -> Tensor:
        """Normed queries of a layer (B, Q, C) -> mask embeddings (B, Q, mask channels)."""
        return self.model.transformer_module.decoder.mask_predictor.mask_embedder(queries)

    def predict_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """(B, Q, mask channels) and (B, T, mask channels, h, w) -> mask logits (B, Q, T, h, w)"""
        return mask_logits(mask_embeddings, mask_features)

    @property
    def group_widths(self) -> list[int]:
        """Number of queries of each group of queries that are independent of the others."""
        return [self.config.num_queries]

    def clip_memory(self, num_frames: int, height: int, width: int, batch_size: int = 1) -> int:
        """Bytes that a clip needs at inference at its peak, beside the weights and the pixel values: an estimate."""
        config = self.config
        mask_pixels, finest = height * width / 16, height * width / 64
        tokens = finest * (1 + 1 / 4 + 1 / 16)
        kept = tokens * (config.feature_size + config.mask_feature_size) + mask_pixels * config.mask_feature_size
        # Keys and values of all levels, at the finest also as projected, and the scores of three steps of attention.
        decoder = 2 * (tokens + finest) * config.hidden_dim + 3 * finest * sum(self.group_widths)
        # Features that were kept in parts take their place twice while they are joined, before the decoder begins.
        per_frame = kept + max(kept, decoder)
        # What the detector makes of a chunk: the maps of the backbone, and a few of the size of the mask features.
        channels = self.model.pixel_level_module.encoder.channels
        maps = sum(size / stride**2 for size, stride in zip(channels, config.feature_strides, strict=True))
        chunk = config.detector_chunk_size * height * width * (maps + 4 * config.feature_size / 16)
        masks = self._mask_memory(num_frames, height, width, batch_size)
        return int(self.dtype.itemsize * (batch_size * num_frames * per_frame + chunk)) + masks

    def _mask_memory(self, num_frames: int, height: int, width: int, batch_size: int) -> int:
        """Bytes of the mask logits of all queries."""
        return self.dtype.itemsize * batch_size * num_frames * sum(self.group_widths) * height * width // 16

    def compile_clip_step(self, **kwargs) -> None:
        """`torch.compile` the parts of the network in place, each as one graph; windows are joined on the host.

        Args:
            kwargs: as of `torch.compile`; `fullgraph=True` unless given.
        """
        kwargs = {"fullgraph": True, **kwargs}
        self.model.pixel_level_module.compile(**kwargs)
        self.model.transformer_module.decoder.compile(**kwargs)

    # Windows

    def _segment(self, pixel_values_videos: Tensor, output_embeddings: bool) -> VideoInstanceSegmentationOutput:
        """Whole videos of one size."""
        answers, mask_features = [], []
        for window in self._windows([pixel_values_videos], pixel_values_videos.shape[1]):
            answers.append(self._answer(window))
            if output_embeddings:
                mask_features.append(window.mask_features)
        output = _join(answers)
        if output_embeddings:
            output.video_queries, output.mask_embeddings = window.queries, window.mask_embeddings
            output.mask_features = torch.cat(mask_features, dim=1)
        return output

    def _windows(self, clips: Iterable[Tensor], num_frames: int | None = None) -> Iterator[Window]:
        """Decode consecutive clips (B, T, 3, H, W) of any length; each window follows the tracks of the one before.

        Args:
            num_frames: of all clips together, None where it is not known.
        """
        length, waiting, count, tracks = None, [], 0, None
        for clip in clips:
            batch_size, _, _, height, width = clip.shape
            if length is None:
                length = self._window_length(batch_size, height, width, num_frames)
                overlap = min(self.config.window_overlap, length // 2)
            for frames in clip.split(max(1, self.config.detector_chunk_size // batch_size), dim=1):
                waiting.append(self.read_frames(frames.to(self.device, self.dtype)))
                count += frames.shape[1]
                while count > length:
                    if tracks is None:
                        self._warn_of_windows(length, overlap, height, width)
                    features = ClipFeatures.join(waiting)
                    window = self._decode_window(features.frames(0, length), tracks, overlap)
                    waiting = [features.frames(length - overlap, count).copy()]
                    count -= length - overlap
                    tracks = window.queries, window.mask_embeddings
                    del features
                    yield window
                    del window
        if count:
            features = ClipFeatures.join(waiting)
            waiting.clear()
            yield self._decode_window(features, tracks, overlap)

    def _answer(self, window: Window) -> VideoInstanceSegmentationOutput:
        """What a window says of its frames."""
        return VideoInstanceSegmentationOutput(
            class_queries_logits=window.class_logits,
            masks_queries_logits=self.predict_masks(window.mask_embeddings, window.mask_features),
        )

    def _decode_window(self, features: ClipFeatures, tracks: tuple[Tensor, Tensor] | None, overlap: int) -> Window:
        """A window, whose first `overlap` frames are the last of the one before.

        Args:
            tracks: queries and mask embeddings of the window before, None for the first.
        """
        queries = self.decode(features)[0][-1]
        parts = (self.classify(queries), queries, self.embed_masks(queries))
        if tracks is None:
            return Window(*parts, features.mask_features)
        shared = features.level_mask_features[-1][:, :overlap].flatten(1, 2).transpose(1, 2)
        order = match_window_queries(queries, parts[2] @ shared, tracks[0], tracks[1] @ shared, self.group_widths)
        parts = (part.take_along_dim(order.unsqueeze(2), dim=1) for part in parts)
        return Window(*parts, features.mask_features[:, overlap:])

    def _window_length(self, batch_size: int, height: int, width: int, num_frames: int | None) -> int:
        """Frames that one window can have, by the configuration and by memory.

        Raises:
            MemoryError: when not even two frames fit.
        """
        longest, available = self.config.max_clip_frames, available_memory(self.device)
        if available is None:
            return longest
        fixed, with_one = (self.clip_memory(count, height, width, batch_size) for count in (0, 1))
        per_frame, advice = with_one - fixed, ""
        if num_frames is not None:  # the masks of all frames are returned at once
            fixed += self._mask_memory(num_frames, height, width, batch_size)
            advice = ", or use `.stream(...)`, which returns the masks part by part"
        wanted = longest if num_frames is None else min(longest, num_frames)
        fitting = int((MEMORY_SHARE * available - fixed) // per_frame)
        if fitting >= wanted:
            return longest
        least = min(2, wanted)
        if fitting < least:
            need = fixed + least * per_frame
            raise MemoryError(
                f"A clip of {least} frames of {height} x {width} needs about {_gigabytes(need)}, but "
                f"{_gigabytes(available)} are available on {self.device}. Use smaller frames or fewer videos at once, "
                f"lower `config.detector_chunk_size` ({self.config.detector_chunk_size}){advice}."
            )
        return fitting

    def _warn_of_windows(self, length: int, overlap: int, height: int, width: int) -> None:
        configured = self.config.max_clip_frames
        if length == configured:
            why = f"more than `config.max_clip_frames` ({configured}) frames"
            remedy = "Raise `config.max_clip_frames` to process more frames as one clip, as published."
        else:
            need = self.clip_memory(configured, height, width)
            why = (
                f"frames of {height} x {width}, of which only {length} fit into the available memory at once "
                f"({_gigabytes(need)} would hold `config.max_clip_frames` = {configured})"
            )
            remedy = "Smaller frames or a device with more memory allow longer clips."
        logger.warning_once(
            f"The video has {why}: it is processed in windows of {length} frames that share {overlap} "
            f"(`config.window_overlap`), and tracks are joined from window to window. {remedy}"
        )

    # Training

    def _compute_loss(
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        targets = self.video_targets(labels)
        predictions, features = self.predict_clips(pixel_values_videos)
        scored = predictions if self.config.use_auxiliary_loss else predictions[-1:]
        loss_dict = self.criterion(scored, features.mask_features, targets)
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def predict_clips(
        self, pixel_values_videos: Tensor, feature_maps: list[Tensor] | None = None
    ) -> tuple[list[LayerPrediction], ClipFeatures]:
        """Raw predictions of the learned queries and of every layer, as training scores them, and what they read.

        Args:
            feature_maps: of the backbone, for all B * T frames, where they are there already.
        """
        features = self.read_frames(pixel_values_videos, feature_maps)
        queries, mask_embeddings = self.decode(features)
        mask_embeddings.append(self.embed_masks(queries[-1]))
        predictions = [
            LayerPrediction(self.class_predictor(states), embeddings)
            for states, embeddings in zip(queries, mask_embeddings, strict=True)
        ]
        return predictions, features

    def video_targets(self, labels: list[dict[str, Tensor]]) -> VideoTargets:
        """Labels of the model's forward, prepared for the losses."""
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        if self.config.class_targets == "released":
            targets = targets.with_classes_of_last_frame(no_object=self.config.num_labels)
        return targets


def _join(answers: list[VideoInstanceSegmentationOutput]) -> VideoInstanceSegmentationOutput:
    """Answers for consecutive frames as one; class logits are the mean over the frames."""
    if len(answers) == 1:
        return answers[0]
    masks = torch.cat([answer.masks_queries_logits for answer in answers], dim=2)
    weighted = [answer.masks_queries_logits.shape[2] * answer.class_queries_logits for answer in answers]
    return VideoInstanceSegmentationOutput(
        class_queries_logits=sum(weighted) / masks.shape[2], masks_queries_logits=masks
    )


def _take_frames(windows: deque[Window], num_frames: int) -> list[Window]:
    """The first `num_frames` frames of consecutive windows, which lose them."""
    taken = []
    while num_frames:
        window = windows.popleft()
        count = min(num_frames, window.num_frames)
        taken.append(window._replace(mask_features=window.mask_features[:, :count]))
        if count < window.num_frames:
            windows.appendleft(window._replace(mask_features=window.mask_features[:, count:]))
        num_frames -= count
    return taken


def _batch(
    outputs: list[VideoInstanceSegmentationOutput], order: Tensor, mask_size: tuple[int, int]
) -> VideoInstanceSegmentationOutput:
    """Outputs of videos of different sizes as those of one batch, whose videos are put in `order`."""
    batched = VideoInstanceSegmentationOutput()
    for name in outputs[0].keys():
        parts = [output[name] for output in outputs]
        if name in ("masks_queries_logits", "mask_features"):
            parts = [repeat_border(part, mask_size) for part in parts]
        batched[name] = torch.cat(parts)[order]
    return batched


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


__all__ = ["ClipDetector", "ClipFeatures"]
