# SPDX-License-Identifier: Apache-2.0
"""MinVIS: the frame detector alone, with queries matched from frame to frame (Huang et al., NeurIPS 2022).

B videos, T frames of a clip, Q queries, C channels, K classes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ..frame_detector.modeling_frame_detector import FrameDetector
from ..layers.mask_logits import mask_logits
from ..layers.query_matching import match_frame_queries
from ..losses import VideoTargets
from ..outputs import VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_model import VideoModelMixin
from .configuration_minvis import MinVisConfig


@dataclass(frozen=True)
class MinVisState:
    """State that a clip passes on to the next one; it can be used more than once.

    Attributes:
        frame_queries (`torch.Tensor` of shape `(B, Q, C)`): queries of the last frame, in the order of the tracks.
    """

    frame_queries: torch.Tensor

    @property
    def batch_size(self) -> int:
        """Number of videos."""
        return len(self.frame_queries)


class MinVisForVideoInstanceSegmentation(VideoModelMixin, FrameDetector):
    """Frame detector that tracks objects by the similarity of their queries, in videos of any length.

    `from_pretrained` loads any Mask2Former checkpoint from the Hub or from a folder and tracks its classes
    (`config.id2label`) without training on video. The checkpoint decides what is tracked: an instance checkpoint gives
    objects, a panoptic one objects and regions of "stuff", a semantic one whole classes. The files of a checkpoint do
    not tell which kind it is.
    """

    config: MinVisConfig
    config_class = MinVisConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    is_online = True
    state_class = MinVisState

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        state: MinVisState | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_embeddings: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        original_sizes: torch.Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): a clip of any length, normalised; H and W
                multiples of 32.
            pixel_mask (`torch.Tensor` of shape `(B, H, W)`, *optional*): 1 where a video is, 0 where it is padded. Used
                at inference, where each video of a batch gives what it gives alone.
            state (`MinVisState`, *optional*): `state` of the output for the clip before; None for the first clip.
            labels (*optional*): per video `{"class_labels": (N,) long, "ids": (N, T) long and -1 where an object is
                absent, "masks": (N, T, H, W)}`; gives `loss` and `loss_dict` instead of predictions. Every frame is an
                image of its own, with the objects visible there; published training has T = 1.
            output_embeddings (`bool`): also return the queries, in the order of the tracks, and mask features.
            output_hidden_states (`bool`, *optional*): also return `hidden_states`, the learned queries and those of
                every layer of the frame decoder, `(B, T, Q, C)`, in the order of the tracks.
            output_attentions (`bool`, *optional*): refused, see `hidden_states_requested`.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): height and width of the videos before the
                resize, as the video processor gives them; the output carries them to the post-processing.

        Returns:
            `class_queries_logits` are the mean over the frames of the clip.

        Raises:
            ValueError: when an input has the wrong shape, type or range, or `state` belongs to another batch.
        """
        keeps_layers = hidden_states_requested(self.config, output_hidden_states, output_attentions)
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        self._check_state(state, len(pixel_values_videos))
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            frame_labels = VideoTargets.from_labels(labels, self.config.num_labels).frame_labels()
            detected = super().forward(pixel_values_videos.flatten(0, 1), labels=frame_labels, return_dict=True)
            return VideoInstanceSegmentationOutput(loss=detected.loss, loss_dict=detected.loss_dict)

        frame_queries, mask_features, layers = self.detect(
            pixel_values_videos, pixel_mask, output_hidden_states=keeps_layers
        )
        order = match_frame_queries(frame_queries, None if state is None else state.frame_queries)
        frame_queries = frame_queries.take_along_dim(order.unsqueeze(3), dim=2)  # (B, T, Q, C)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=self.class_predictor(frame_queries).mean(dim=1),
            masks_queries_logits=mask_logits(self.embed_masks(frame_queries), mask_features),
            state=MinVisState(frame_queries[:, -1].clone()),  # a view would keep the whole clip in memory
        )
        if output_embeddings:
            output.frame_queries = frame_queries[None]
            output.mask_features = mask_features
        if layers is not None:
            output.hidden_states = layers.take_along_dim(order[:, :, None, :, None], dim=3).unbind(2)
        return self.complete_output(output, pixel_mask, original_sizes)

    def detect_frames(self, frames: torch.Tensor, output_hidden_states: bool = False) -> tuple[torch.Tensor, ...]:
        """Detect the objects of single frames, see `VideoModelMixin.detect_frames`.

        Args:
            frames: `(N, 3, H, W)`, normalised.
            output_hidden_states: also return the queries of all layers.
        """
        detected = super().forward(frames, output_hidden_states=output_hidden_states, return_dict=True)
        last = detected.frame_queries[-1], detected.mask_features
        return (*last, torch.stack(detected.hidden_states, dim=1)) if output_hidden_states else last

    def _compiled_parts(self) -> list[nn.Module]:
        return [self.model.pixel_level_module, self.model.transformer_module]


__all__ = ["MinVisForVideoInstanceSegmentation", "MinVisState"]
