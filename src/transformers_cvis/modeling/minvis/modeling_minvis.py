"""MinVIS: the frame detector alone, its queries matched from frame to frame (Huang et al., NeurIPS 2022).

B videos, T frames of a clip, Q queries, C channels, K classes.
"""

from dataclasses import dataclass

from torch import Tensor

from ..frame_detector.modeling_frame_detector import FrameDetector
from ..layers.query_matching import match_frame_queries
from ..losses import VideoTargets
from ..outputs import VideoInstanceSegmentationOutput
from ..video_model import VideoModelMixin
from .configuration_minvis import MinVisConfig


@dataclass(frozen=True)
class MinVisState:
    """What a clip hands to the next one; a state may be used more than once.

    Attributes:
        frame_queries (`torch.Tensor` of shape `(B, Q, C)`): queries of the last frame, in the order of the tracks.
    """

    frame_queries: Tensor


class MinVisForVideoInstanceSegmentation(VideoModelMixin, FrameDetector):
    """Segments frames one by one and tracks objects by the similarity of their queries, in videos of any length.

    It is the frame detector and nothing else: `from_pretrained` takes any Mask2Former checkpoint of the Hub or of a
    folder, and tracks its classes (`config.id2label`) without training on video. What its queries stand for is
    tracked: objects with an instance checkpoint, with a panoptic one regions of "stuff" too, with a semantic one a
    whole class at a time (the files of a checkpoint do not tell these apart).
    """

    config_class = MinVisConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    is_online = True

    def forward(
        self,
        pixel_values_videos: Tensor,
        pixel_mask: Tensor | None = None,
        state: MinVisState | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_embeddings: bool = False,
        original_sizes: Tensor | None = None,
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
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): height and width of the videos before the
                resize, as the video processor gives them; the output carries them to the post-processing.

        Returns:
            `class_queries_logits` are the mean over the frames of the clip.

        Raises:
            ValueError: when an input has the wrong shape, type or range, or `state` belongs to another batch.
        """
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            frame_labels = VideoTargets.from_labels(labels, self.config.num_labels).frame_labels()
            detected = super().forward(pixel_values_videos.flatten(0, 1), labels=frame_labels)
            return VideoInstanceSegmentationOutput(loss=detected.loss, loss_dict=detected.loss_dict)
        if state is not None and len(state.frame_queries) != len(pixel_values_videos):
            raise ValueError(
                f"`state` belongs to a batch of {len(state.frame_queries)} videos, but `pixel_values_videos` holds "
                f"{len(pixel_values_videos)}."
            )

        frame_queries, mask_features = self.detect(pixel_values_videos, pixel_mask)
        order = match_frame_queries(frame_queries, None if state is None else state.frame_queries)
        frame_queries = frame_queries.take_along_dim(order.unsqueeze(3), dim=2)  # (B, T, Q, C)
        mask_embeddings = self.model.transformer_module.decoder.mask_predictor.mask_embedder(frame_queries)
        masks = mask_embeddings @ mask_features.flatten(3)  # (B, T, Q, h * w)
        output = VideoInstanceSegmentationOutput(
            class_queries_logits=self.class_predictor(frame_queries).mean(dim=1),
            masks_queries_logits=masks.transpose(1, 2).unflatten(3, mask_features.shape[3:]),
            state=MinVisState(frame_queries[:, -1].clone()),  # not a view that holds on to the whole clip
        )
        if output_embeddings:
            output.frame_queries = frame_queries[None]
            output.mask_features = mask_features
        return self.complete_output(output, pixel_mask, original_sizes)

    def detect_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        detected = super().forward(frames)
        return detected.frame_queries[-1], detected.mask_features

    def compile_clip_step(self, **kwargs) -> None:
        """`torch.compile` the parts of the network in place, each as one graph; matching stays on the host.

        Args:
            kwargs: as of `torch.compile`; `fullgraph=True` unless given.
        """
        kwargs = {"fullgraph": True, **kwargs}
        self.model.pixel_level_module.compile(**kwargs)
        self.model.transformer_module.compile(**kwargs)


__all__ = ["MinVisForVideoInstanceSegmentation", "MinVisState"]
