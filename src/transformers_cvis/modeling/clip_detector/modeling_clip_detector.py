# SPDX-License-Identifier: Apache-2.0
"""Clip detector: the frame detector with time as a third dimension. Its queries read all frames of a clip at once.

B videos, T frames, Q queries, C channels, S positions of one level in one frame, H x W pixels of the padded network
input.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...geometry import MASK_STRIDE
from ..docstrings import NO_STATE, document_forward
from ..frame_detector.modeling_frame_detector import FrameDetector, shrunk_mask_features
from ..layers.mask_logits import mask_logits
from ..layers.position_embedding import sine_frame_embedding
from ..losses import ClipMaskClassificationLoss, VideoTargets
from ..outputs import LayerPrediction, VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_model import VideoModelMixin, videos_by_size
from .configuration_clip_detector import ClipDetectorConfig
from .windows import ClipFeatures, Window, WindowedDecoder, answer_clips, batch_outputs, join_answers


class ClipDetector(VideoModelMixin, FrameDetector):
    """Frame detector whose queries read the frames of a clip like one image; base of Mask2Former-VIS and CRISP.

    Its weights are those of Mask2Former: `from_pretrained` loads any Mask2Former checkpoint.
    """

    config: ClipDetectorConfig
    config_class = ClipDetectorConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    is_online = False

    def __init__(self, config: ClipDetectorConfig) -> None:
        super().__init__(config)
        settings = ClipMaskClassificationLoss.settings_of(config)
        self.criterion = ClipMaskClassificationLoss(config.num_labels, **settings)

    @can_return_tuple
    @document_forward(
        pixel_values_videos="Whole videos.",
        state=NO_STATE,
        labels="The frames of a video are one clip.",
        output_embeddings="queries, mask embeddings and mask features. Of a video in several windows, queries and mask "
        "embeddings are those of the last.",
        output_hidden_states="the normed learned queries `(B, Q, C)` and those of every decoder layer. Of a video in "
        "several windows, they are those of the last.",
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

        A video that is longer than `config.max_clip_frames`, or too long for the available memory, is processed in
        windows.

        Returns:
            [`VideoInstanceSegmentationOutput`], without a `state`. `class_queries_logits` of a video in several windows
            are their mean, weighted by their frames.

        Raises:
            ValueError: An input has the wrong shape, type or range, or a `state` is given.
            MemoryError: The memory is not enough for two frames.

        Example:
        ```python
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from transformers_cvis import Mask2FormerVisConfig, Mask2FormerVisForVideoInstanceSegmentation

        >>> # A small model with random weights; `from_pretrained` loads a trained one.
        >>> backbone = ResNetConfig(
        ...     layer_type="basic", hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
        ... )
        >>> config = Mask2FormerVisConfig(
        ...     backbone_config=backbone, feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=3,
        ...     num_queries=10,
        ... )
        >>> model = Mask2FormerVisForVideoInstanceSegmentation(config).eval()

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
        if labels is not None:
            return self._compute_loss(pixel_values_videos.to(self.dtype), labels)
        height, width = pixel_values_videos.shape[-2:]
        outputs, order = [], []
        for (own_height, own_width), videos in videos_by_size(pixel_values_videos, pixel_mask).items():
            whole = (own_height, own_width) == (height, width) and len(videos) == len(pixel_values_videos)
            own = pixel_values_videos if whole else pixel_values_videos[videos, :, :, :own_height, :own_width]
            outputs.append(self._segment(own, output_embeddings, keeps_layers))
            order += videos
        if len(outputs) == 1 and whole:
            output = outputs[0]
        else:
            back = torch.tensor(order, device=self.device).argsort()
            output = batch_outputs(outputs, back, (height // MASK_STRIDE, width // MASK_STRIDE))
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video clip by clip, see `VideoModelMixin.stream`.

        All clips of a window (`config.max_clip_frames`, or the whole video) are read before its first output. Every
        output has the class logits of its window; a clip that spans two windows has their mean, weighted by frames.

        Args:
            clips: see `VideoModelMixin.stream`.

        Yields:
            One output per clip, in order.

        Raises:
            ValueError: the model is in training mode, or a clip has the wrong shape, type or range.
            MemoryError: not even two frames fit into the available memory.
        """
        self._check_stream()
        lengths: deque[int] = deque()

        def checked() -> Iterator[torch.Tensor]:
            for clip in clips:
                self.check_inputs(clip, None, None)
                lengths.append(clip.shape[1])
                yield clip

        # Not a loop, because its variable would keep the masks of the previous clip in memory.
        windows = WindowedDecoder(self).decode(checked())
        yield from map(self.complete_output, answer_clips(windows, lengths, self._answer))

    def read_frames(
        self, pixel_values_videos: torch.Tensor, feature_maps: list[torch.Tensor] | None = None
    ) -> ClipFeatures:
        """Compute the features of each frame.

        Args:
            pixel_values_videos: `(B, T, 3, H, W)`, normalised.
            feature_maps: maps of the backbone for all B * T frames, if they are computed already.
        """
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

    def clip_tokens(self, features: ClipFeatures) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Compute what queries read of a clip.

        Args:
            features: features of all frames of the clip.

        Returns:
            Three lists with an entry per level: keys `(B, T * S, C)`, values `(B, T * S, C)` and mask features
            `(B, mask channels, T * S)`.
        """
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

    def decode(self, features: ClipFeatures) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decode the queries of a clip, see `MaskedAttentionDecoder.forward`.

        Args:
            features: features of all frames of the clip.

        Returns:
            The normed queries `(B, Q, C)` of each prediction, learned queries first; and the mask embeddings
            `(B, Q, mask channels)` of all predictions but the last.
        """
        module = self.model.transformer_module
        queries = module.queries_features.weight.expand(len(features.mask_features), -1, -1)
        return module.decoder(queries, module.queries_embedder.weight, *self.clip_tokens(features))

    def classify(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute the class logits `(B, Q, K + 1)` of inference from normed queries `(B, Q, C)` of the last layer."""
        return self.class_predictor(queries)

    def _predict_masks(self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Compute mask logits `(B, Q, T, h, w)`.

        Args:
            mask_embeddings: `(B, Q, mask channels)`.
            mask_features: `(B, T, mask channels, h, w)`.
        """
        return mask_logits(mask_embeddings, mask_features)

    @property
    def group_widths(self) -> list[int]:
        """Number of queries of each query group."""
        return [self.config.num_queries]

    def clip_memory(self, num_frames: int, height: int, width: int, batch_size: int = 1) -> int:
        """Estimate the peak memory of a clip at inference, in bytes, without the weights and the pixel values.

        Args:
            num_frames: frames of the clip.
            height: height of the padded frames, in pixels.
            width: width of the padded frames, in pixels.
            batch_size: videos that are decoded at once.
        """
        config = self.config
        mask_pixels, finest = height * width / 16, height * width / 64
        tokens = finest * (1 + 1 / 4 + 1 / 16)
        kept = tokens * (config.feature_size + config.mask_feature_size) + mask_pixels * config.mask_feature_size
        # Keys and values of all levels, the projected ones of the finest level, and three tensors of attention scores.
        decoder = 2 * (tokens + finest) * config.hidden_dim + 3 * finest * sum(self.group_widths)
        # Joining the parts of the features needs their memory twice, before the decoder runs.
        per_frame = kept + max(kept, decoder)
        # Maps of the detector for one chunk: those of the backbone, and about four of the size of the mask features.
        channels = self.model.pixel_level_module.encoder.channels
        maps = sum(size / stride**2 for size, stride in zip(channels, config.feature_strides, strict=True))
        chunk = config.detector_chunk_size * height * width * (maps + 4 * config.feature_size / 16)
        masks = self.mask_memory(num_frames, height, width, batch_size)
        return int(self.dtype.itemsize * (batch_size * num_frames * per_frame + chunk)) + masks

    def mask_memory(self, num_frames: int, height: int, width: int, batch_size: int) -> int:
        """Return the size of the mask logits of all queries, in bytes; arguments as in `clip_memory`."""
        num_pixels = height * width // MASK_STRIDE**2
        return self.dtype.itemsize * batch_size * num_frames * sum(self.group_widths) * num_pixels

    def _compiled_parts(self) -> list[nn.Module]:
        # Windows are joined outside these parts, on the host.
        return [self.model.pixel_level_module, self.model.transformer_module.decoder]

    # Windows

    def _segment(
        self, pixel_values_videos: torch.Tensor, output_embeddings: bool, output_hidden_states: bool
    ) -> VideoInstanceSegmentationOutput:
        """Segment whole videos of one size."""
        answers, mask_features = [], []
        decoder = WindowedDecoder(self, pixel_values_videos.shape[1], output_hidden_states)
        for window in decoder.decode([pixel_values_videos]):
            answers.append(self._answer(window))
            if output_embeddings:
                mask_features.append(window.mask_features)
        output = join_answers(answers)
        if output_embeddings:
            output.video_queries, output.mask_embeddings = window.queries, window.mask_embeddings
            output.mask_features = torch.cat(mask_features, dim=1)
        output.hidden_states = window.hidden_states
        return output

    def _answer(self, window: Window) -> VideoInstanceSegmentationOutput:
        """Build the output for the frames of a window."""
        return VideoInstanceSegmentationOutput(
            class_queries_logits=window.class_logits,
            masks_queries_logits=self._predict_masks(window.mask_embeddings, window.mask_features),
        )

    # Training

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        """Compute the losses of clips `(B, T, 3, H, W)`."""
        targets = self.video_targets(labels)
        predictions, features = self.predict_clips(pixel_values_videos)
        scored = predictions if self.config.use_auxiliary_loss else predictions[-1:]
        loss_dict = self.criterion(scored, features.mask_features, targets)
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def predict_clips(
        self, pixel_values_videos: torch.Tensor, feature_maps: list[torch.Tensor] | None = None
    ) -> tuple[list[LayerPrediction], ClipFeatures]:
        """Compute the uncalibrated predictions that training scores.

        Args:
            pixel_values_videos: `(B, T, 3, H, W)`, normalised.
            feature_maps: maps of the backbone for all B * T frames, if they are computed already.

        Returns:
            The predictions of the learned queries and of every layer, and the features of the frames.
        """
        features = self.read_frames(pixel_values_videos, feature_maps)
        queries, mask_embeddings = self.decode(features)
        mask_embeddings.append(self.embed_masks(queries[-1]))
        predictions = [
            LayerPrediction(self.class_predictor(states), embeddings)
            for states, embeddings in zip(queries, mask_embeddings, strict=True)
        ]
        return predictions, features

    def video_targets(self, labels: list[dict[str, torch.Tensor]]) -> VideoTargets:
        """Convert the labels of `forward` to targets of the losses."""
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        if self.config.class_targets == "released":
            targets = targets.with_classes_of_last_frame(no_object=self.config.num_labels)
        return targets


__all__ = ["ClipDetector"]
