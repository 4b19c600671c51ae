# SPDX-License-Identifier: Apache-2.0
"""Post-processing of a model's outputs into tracks, a part of the video processor."""

from collections.abc import Sequence
from typing import Any

import torch

from ..geometry import MASK_STRIDE
from .tracks import Track, TrackAccumulator, clip_predictions


class TrackPostProcessing:
    """Mixin that makes tracks of outputs. It must precede the base class of a video processor."""

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the network input, without padding, of a video of `height` x `width` pixels."""
        raise NotImplementedError

    def post_process_video_instance_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float | None = None,
        top_k: int | None = 10,
        id2label: dict[int, str] | None = None,
        input_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        score_rule: str | None = None,
    ) -> list[list[Track]]:
        """Make tracks of a model's output for a batch of videos, or of its outputs for their consecutive clips.

        With the same `threshold` and `top_k` the tracks are those of [`segment_video`], for every model of the package.
        What the call needs travels with the output: the rule by which the model scores tracks, and the sizes of the
        videos if the model was called with everything that the processor returned.

        Args:
            outputs ([`VideoInstanceSegmentationOutput`], or an iterable of them): one output, or those of consecutive
                clips such as `model.stream(clips)`, whose first one carries the rule and the sizes. Masks are
                compressed as the outputs come, so that a video may be of any length.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*): height and
                width of the masks for each video, in pixels. By default the original sizes of the videos, if the
                output carries them; otherwise those of the network input without its padding; and those of the padded
                network input where the output carries neither.
            threshold (`float`, *optional*): least score of a track, in 0..1. With a threshold a query gives one track
                at most (see [`TrackAccumulator`]); [`segment_video`] uses 0.3 by default.
            top_k (`int`, *optional*, defaults to 10): largest number of (query, label) pairs that become tracks.
            id2label (`dict[int, str]`, *optional*): the model's `config.id2label`; without it labels are numbers.
            input_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*): height and
                width of each network input without its padding. By default those that the output carries, otherwise
                those that this processor gives to videos of the original or target sizes.
            score_rule (`str`, *optional*): `"max_times_quality"` or `"mean_logits"`, in place of the rule that the
                output carries. A model from outside the package that states none is scored by `"max_times_quality"`.

        Returns:
            `list[list[Track]]`: for each video its tracks, best first.

        Raises:
            TypeError: an output is not that of a model, but for example a tuple.
            ValueError: the sizes are not one for each video, `threshold` and `top_k` are both None, an argument is out
                of range, or the outputs are empty.

        Example:
        ```python
        >>> import torch
        >>> import transformers_cvis
        >>> from transformers import AutoVideoProcessor

        >>> folder = transformers_cvis.default_model_path()
        >>> processor = AutoVideoProcessor.from_pretrained(folder)
        >>> model = transformers_cvis.AutoModelForVideoInstanceSegmentation.from_pretrained(folder)

        >>> frames = list(transformers_cvis.open_video(transformers_cvis.demo_video_path(), max_frames=2))
        >>> inputs = processor(frames, return_tensors="pt")
        >>> with torch.no_grad():
        ...     outputs = model(**inputs)
        >>> (tracks,) = processor.post_process_video_instance_segmentation(
        ...     outputs, threshold=0.3, id2label=model.config.id2label
        ... )
        >>> [len(track.segmentations) for track in tracks] == [2] * len(tracks)
        True

        ```
        """
        if hasattr(outputs, "class_queries_logits"):
            outputs = [outputs]
        accumulators: list[TrackAccumulator] = []
        for output in outputs:
            if not hasattr(output, "class_queries_logits"):
                raise TypeError(
                    f"Got {type(output).__name__} in place of a model's output: give what the model returns with "
                    "`return_dict=True`, or an iterable of such outputs."
                )
            if not accumulators:
                accumulators = [
                    TrackAccumulator(
                        target_size, input_size, id2label, threshold=threshold, top_k=top_k, score_rule=score_rule
                    )
                    for target_size, input_size in self._sizes_of_tracks(output, target_sizes, input_sizes)
                ]
            for video, accumulator in enumerate(accumulators):
                accumulator.update(*clip_predictions(output, video))
        if not accumulators:
            raise ValueError("No output to make tracks of: the list is empty. Give at least one.")
        return [accumulator.tracks() for accumulator in accumulators]

    def _sizes_of_tracks(
        self, output: Any, target_sizes: Any, input_sizes: Any
    ) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return for each video the size of its masks and that of its network input without padding."""
        batch_size = len(output.class_queries_logits)
        original_sizes = _sizes(getattr(output, "original_sizes", None), "original_sizes", batch_size)
        target_sizes = _sizes(target_sizes, "target_sizes", batch_size) or original_sizes
        if input_sizes is None:
            input_sizes = getattr(output, "input_sizes", None)
        input_sizes = _sizes(input_sizes, "input_sizes", batch_size)
        if input_sizes is None:
            sources = original_sizes or target_sizes
            if sources is not None:
                input_sizes = [self.resized_size(*size) for size in sources]
            else:
                height, width = output.masks_queries_logits.shape[-2:]
                input_sizes = [(MASK_STRIDE * height, MASK_STRIDE * width)] * batch_size
        return list(zip(target_sizes or input_sizes, input_sizes, strict=True))


def _sizes(sizes: Any, name: str, batch_size: int) -> list[tuple[int, int]] | None:
    """Return height and width of each video as integers, from a list or a tensor."""
    if sizes is None:
        return None
    sizes = [(int(height), int(width)) for height, width in sizes]
    if len(sizes) != batch_size:
        raise ValueError(
            f"`{name}` must hold a height and a width for each video: got {len(sizes)} for a batch of {batch_size}."
        )
    return sizes
