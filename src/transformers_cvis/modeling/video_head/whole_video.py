"""Video models that see a whole video at once: the detector its frames one by one, the head the queries of all of them.

B videos, T frames, F frame queries per frame, C channels, H x W pixels of the padded network input.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..losses import VideoMaskClassificationLoss, VideoTargets
from ..outputs import VideoInstanceSegmentationOutput
from ..video_model import DetectedFrames
from .modeling_video import CvisVideoModel
from .object_decoder import VideoStep


class WholeVideoModel(CvisVideoModel):
    """Base of VITA and of what extends it: one set of video queries reads the frame queries of the whole video."""

    criterion_class = VideoMaskClassificationLoss
    is_online = False

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
                absent, "masks": (N, T, H, W)}`; gives `loss` and `loss_dict` instead of predictions.
            output_embeddings (`bool`): also return queries, mask features and similarity embeddings.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): height and width of the videos before the
                resize, as the video processor gives them; the output carries them to the post-processing.

        Raises:
            ValueError: when an input has the wrong shape, type or range, or a `state` is given.
        """
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        if state is not None:
            raise ValueError(
                f"{type(self).__name__} takes a whole video at once and has no `state`; use `.stream(...)` to hand it "
                "in parts."
            )
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            return self._compute_loss(pixel_values_videos, labels)
        detected = self.detect(pixel_values_videos, pixel_mask)
        output = self.make_output(detected, *self._associate(detected.frame_queries), output_embeddings)
        return self.complete_output(output, pixel_mask, original_sizes)

    @torch.no_grad()
    def stream(self, clips: Iterable[Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """As `CvisVideoModel.stream`. All clips are read before the first output; until then the mask features of the
        video wait in host memory. Every output repeats the class logits of the video."""
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
        start = 0
        for features in mask_features:
            end = start + features.shape[1]
            part = DetectedFrames(frame_queries=None, mask_features=features.to(self.device))
            output = self.make_output(part, encoded_queries[:, start:end], decoded, output_embeddings=False)
            yield self.complete_output(output)
            start = end

    def _associate(self, frame_queries: Tensor, training: bool = False) -> VideoStep:
        """Frame queries (B, T, F, C) of whole videos, read by the learned video queries; in training all layers."""
        return self.video_head(frame_queries, self.video_head.initial_queries(len(frame_queries)), training)

    def _compute_loss(
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        detected, frames = self.detect_for_training(pixel_values_videos)
        loss_dict, frame_matches = self.frame_losses(detected, targets)
        encoded_queries, decoded = self._associate(frames.frame_queries, training=True)
        video_losses = self.criterion(
            self.layer_predictions(decoded),
            frames.mask_features,
            targets,
            frame_matches,
            self.split_layers(self.video_head.frame_similarity_projection(encoded_queries)),
            self.split_layers(self.video_head.video_similarity_projection(decoded.normalised[-1])),
        )
        loss_dict = {**loss_dict, **video_losses}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)
