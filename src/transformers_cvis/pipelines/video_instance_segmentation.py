# SPDX-License-Identifier: Apache-2.0
"""Pipeline for video instance segmentation, and its entry in the pipeline registry of transformers."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from ..assets import default_model_path
from ..hub.card import TASK
from ..modeling.auto import AutoModelForVideoInstanceSegmentation
from ..processing import (
    CvisVideoProcessor,
    PreparedVideo,
    VideoFrames,
    VideosDifferError,
    find_video_processor,
    gather_tracks,
    is_frame,
    is_list_of_videos,
    prepare_video,
)

# Videos of at least this many frames, or of unknown length, get a progress bar unless `progress` decides.
_LONG_VIDEO = 100

logger = logging.get_logger(__name__)


class _NotGiven:
    """Marker of a parameter that a call does not give; `None` is a value with a meaning."""

    def __repr__(self) -> str:
        return "<not given>"


_NOT_GIVEN: Any = _NotGiven()


class VideoInstanceSegmentationPipeline(Pipeline):
    """Pipeline that detects, segments and tracks the objects of videos.

    A Mask2Former checkpoint of the Hub becomes a MinVIS. Without `model` the small model that ships with the package
    is used. For a model object without `video_processor`, the processor saved with its weights is used, or else the
    default one. The parameters of a call (see [`VideoInstanceSegmentationPipeline.__call__`]) can also be given when
    the pipeline is made.

    Args:
        model (`PreTrainedModel`): a video instance segmentation model of this package.
        video_processor (`CvisVideoProcessor`, *optional*): the processor saved with the model.
        kwargs: as of every pipeline (`device`, `batch_size`, ...), and the parameters of a call.

    Raises:
        ValueError: the model is not a video instance segmentation model, or parts of it are untrained.

    Example:
    ```python
    >>> import transformers_cvis  # registers the task
    >>> from transformers import pipeline

    >>> segmenter = pipeline("video-instance-segmentation", model=str(transformers_cvis.default_model_path()))
    >>> result = segmenter(transformers_cvis.demo_video_path(), max_frames=2, threshold=0.5)
    >>> sorted(result), result["num_frames"]
    (['fps', 'num_frames', 'size', 'tracks'], 2)

    ```
    """

    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_processor = False
    # None loads it if it exists: a model object has no name to load it from, and then __init__ finds one.
    _load_video_processor = None

    def __init__(
        self, model: PreTrainedModel, video_processor: CvisVideoProcessor | None = None, **kwargs: Any
    ) -> None:
        if not hasattr(model, "stream"):
            raise ValueError(
                f"{type(model).__name__} is not a video instance segmentation model. The pipeline takes the models of "
                "transformers_cvis, and Mask2Former checkpoints by their name or folder."
            )
        model.check_trained()
        super().__init__(model=model, **kwargs)
        self.video_processor = video_processor if video_processor is not None else _processor_of(model)

    def __call__(
        self,
        inputs: Any,
        *,
        clip_length: int | None = _NOT_GIVEN,
        threshold: float | None = _NOT_GIVEN,
        top_k: int | None = _NOT_GIVEN,
        fps: float | None = _NOT_GIVEN,
        stride: int = _NOT_GIVEN,
        max_frames: int | None = _NOT_GIVEN,
        progress: bool | None = _NOT_GIVEN,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Segment one video, a list of videos, or a stream of videos.

        Args:
            inputs: one video in any form that [`open_video`] takes, or several of them.

                - A list of images, of frames or of paths of images is one video, and so is an iterator of frames.
                - Any other list, a column of a table (of `datasets`, pandas or NumPy) and an array with five axes are
                  several videos; all results come at once.
                - A PyTorch `Dataset`, such as `KeyDataset(table, "path")`, and a generator of videos or of their paths
                  are read one by one; the results come as an iterator.
            clip_length (`int`, *optional*): frames that the model sees at once; 1 is online. The model's own by
                default.
            threshold (`float`, *optional*, defaults to 0.3): least score of a track. `None` together with `top_k`
                selects as video benchmarks do.
            top_k (`int`, *optional*): largest number of tracks of a video.
            fps (`float`, *optional*): frames per second to read, for a source that has a clock.
            stride (`int`, *optional*, defaults to 1): read every `stride`-th frame.
            max_frames (`int`, *optional*): stop after this many frames that were read.
            progress (`bool`, *optional*): show a progress bar; by default for videos of 100 frames and more.
            batch_size (`int`, *optional*, defaults to 1): number of videos that run side by side. Neighbours of one
                size and one length make a batch; any other video runs alone, with one warning for all of them.
            num_workers (`int`, *optional*): accepted like by every pipeline, without effect: frames are read when the
                model needs them, so that videos of any length fit into memory.

        Returns:
            `dict`, or a `list` or an iterator of them for several videos: `tracks` (`list[Track]`, best first), `size`
            (height and width, in pixels), `num_frames`, and `fps` (`None` if the source has no clock).

        Raises:
            FileNotFoundError: a path does not exist.
            TypeError: an input is not a video, or a parameter is unknown.
            ValueError: a parameter is out of range, or a video cannot be read.
        """
        given: dict[str, Any] = {
            "clip_length": clip_length,
            "threshold": threshold,
            "top_k": top_k,
            "fps": fps,
            "stride": stride,
            "max_frames": max_frames,
            "progress": progress,
        }
        reading, segmentation, tracks = self._sanitize_parameters(**given)
        stages = (
            {**self._preprocess_params, **reading},
            {**self._forward_params, **segmentation},
            {**self._postprocess_params, **tracks},
        )
        videos, several = _videos_of(inputs)
        if not several:
            return self.run_single(videos, *stages)
        batch_size = self._batch_size if batch_size is None else batch_size
        results = self.get_iterator(videos, num_workers or 0, batch_size or 1, *stages)
        is_stream = isinstance(videos, (Dataset, Iterator)) or not isinstance(videos, Sized)
        return results if is_stream else list(results)

    def _sanitize_parameters(
        self,
        clip_length: int | None = _NOT_GIVEN,
        threshold: float | None = _NOT_GIVEN,
        top_k: int | None = _NOT_GIVEN,
        fps: float | None = _NOT_GIVEN,
        stride: int = _NOT_GIVEN,
        max_frames: int | None = _NOT_GIVEN,
        progress: bool | None = _NOT_GIVEN,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading = {"clip_length": clip_length, "fps": fps, "stride": stride, "max_frames": max_frames}
        segmentation = {"threshold": threshold, "top_k": top_k, "progress": progress}
        return _given(reading), _given(segmentation), {}

    def preprocess(
        self,
        video: Any,
        clip_length: int | None = None,
        fps: float | None = None,
        stride: int = 1,
        max_frames: int | None = None,
    ) -> dict[str, PreparedVideo]:
        """Open a video. Its frames are decoded, resized and normalised when `_forward` takes the next clip.

        Args:
            video: any source that [`open_video`] takes.
            clip_length (`int`, *optional*): as for a call.
            fps (`float`, *optional*): as for a call.
            stride (`int`, defaults to 1): as for a call.
            max_frames (`int`, *optional*): as for a call.

        Returns:
            `dict`: `video`, whose `clips()` are network inputs.

        Raises:
            FileNotFoundError: the path does not exist.
            TypeError: the source is not a video.
            ValueError: a parameter is out of range, or the video cannot be read.
        """
        if isinstance(video, Mapping):
            raise TypeError(
                f"Got a dict with {', '.join(map(repr, video)) or 'no keys'} instead of a video: give the column of "
                "the videos, `table['path']`, or `KeyDataset(table, 'path')` of `transformers.pipelines.pt_utils`."
            )
        reading: dict[str, Any] = {
            "clip_length": clip_length,
            "fps": fps,
            "stride": stride,
            "max_frames": max_frames,
        }
        return {"video": prepare_video(self.model, self.video_processor, video, **reading)}

    def _forward(
        self, model_inputs: dict[str, Any] | list[dict[str, Any]], progress: bool | None = None, **parameters: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Run the model over a prepared video, or over several of one size and length side by side.

        The masks of a clip become run lengths at once, so that the logits of only one clip are in memory.
        """
        batch = model_inputs if isinstance(model_inputs, list) else [model_inputs]
        videos = [inputs["video"] for inputs in batch]
        if progress is None:
            num_frames = videos[0].frames.num_frames
            progress = num_frames is None or num_frames >= _LONG_VIDEO
        try:
            gathered = gather_tracks(self.model, videos, progress=progress, **parameters)
        except VideosDifferError as error:
            logger.warning(f"{error} They are segmented one by one now.")
            gathered = [gather_tracks(self.model, [video], progress=progress, **parameters)[0] for video in videos]
        outputs = [{**inputs, "accumulator": accumulator} for inputs, accumulator in zip(batch, gathered, strict=True)]
        return outputs if isinstance(model_inputs, list) else outputs[0]

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Build the tracks of a video.

        Args:
            model_outputs (`dict`): `video`, and `accumulator` with the scores and run lengths of its clips.

        Returns:
            `dict`: `tracks`, `size`, `num_frames` and `fps`, as a call returns them.
        """
        frames, accumulator = model_outputs["video"].frames, model_outputs["accumulator"]
        return {
            "tracks": accumulator.tracks(),
            "size": frames.size,
            "num_frames": accumulator.num_frames,
            "fps": frames.fps,
        }

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> "_Results":
        """Segment videos one batch after the other, each on demand.

        Args:
            inputs (`Iterable`): videos.
            num_workers (`int`): without effect.
            batch_size (`int`): largest number of videos that run side by side.
            preprocess_params (`dict`): parameters of `preprocess`.
            forward_params (`dict`): parameters of `_forward`.
            postprocess_params (`dict`): parameters of `postprocess`.

        Returns:
            An iterator of results, with a length if the inputs have one.
        """

        def results() -> Iterator[dict[str, Any]]:
            prepared = (self.preprocess(video, **preprocess_params) for video in _items(inputs))
            for batch in _batches(prepared, batch_size):
                for outputs in self.forward(batch, **forward_params):
                    yield self.postprocess(outputs, **postprocess_params)

        return _Results(results(), len(inputs) if isinstance(inputs, Sized) else None)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor; `pipeline(TASK, model=save_directory)` loads them.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to.
            kwargs: as of the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory)


class _Results(Iterator[dict[str, Any]]):
    """Iterator over the results of several videos, each computed on demand."""

    def __init__(self, results: Iterator[dict[str, Any]], length: int | None) -> None:
        self._results = results
        self._length = length

    def __next__(self) -> dict[str, Any]:
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(
                "The results of a generator of videos come one by one, and their number is not known: loop over them, "
                "or give a list of paths, `list(videos)`, to get a list of results."
            )
        return self._length

    def __bool__(self) -> bool:
        return True


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not _NOT_GIVEN}


def _videos_of(inputs: Any) -> tuple[Any, bool]:
    """Return the inputs of a call, with an iterator unread, and whether they are several videos."""
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OU":
        inputs = inputs.tolist()  # of paths
    if isinstance(inputs, Dataset):
        return inputs, True
    if isinstance(inputs, (list, tuple, np.ndarray, torch.Tensor)):
        return inputs, is_list_of_videos(inputs)
    is_file = isinstance(inputs, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(inputs, "read")
    if is_file or isinstance(inputs, (VideoFrames, Mapping)) or not isinstance(inputs, Iterable):
        return inputs, False
    if isinstance(inputs, Sized) and not len(inputs):
        return [], True
    # The first item of a column, of a generator or of another collection decides.
    items = iter(inputs)
    try:
        first = next(items)
    except StopIteration:
        return items, False
    if items is inputs:
        inputs = itertools.chain([first], items)
    return inputs, not is_frame(first)


def _items(inputs: Iterable[Any]) -> Iterator[Any]:
    """Iterate a collection; a map-style `Dataset` has only a length and numbers."""
    if isinstance(inputs, Dataset) and isinstance(inputs, Sized):
        return (inputs[index] for index in range(len(inputs)))
    return iter(inputs)


def _batches(prepared: Iterator[dict[str, PreparedVideo]], batch_size: int) -> Iterator[list[dict[str, PreparedVideo]]]:
    """Group neighbouring videos that can run side by side; warn once if not every batch is as large as was asked."""
    batch: list[dict[str, PreparedVideo]] = []
    for inputs in prepared:
        if batch and not batch[0]["video"].can_batch_with(inputs["video"]):
            logger.warning_once(
                f"`batch_size={batch_size}`: only neighbouring videos of one size and one known number of frames run "
                "side by side; the others run alone."
            )
            yield batch
            batch = []
        batch.append(inputs)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


class _EmbeddedModel(dict):
    """Default entry of the registry, `{"model": (folder, revision)}`, which looks up the folder on access."""

    def __getitem__(self, key: str) -> tuple[str, str]:
        folder = str(default_model_path())
        logger.warning("No model was given: using the embedded GenVIS, which knows moving shapes only.")
        return folder, super().__getitem__(key)


def register_pipeline() -> None:
    """Register the task with `transformers.pipeline`; without a model it uses the embedded one, with a warning."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=VideoInstanceSegmentationPipeline,
            pt_model=AutoModelForVideoInstanceSegmentation,
            default=_EmbeddedModel(model="main"),
            type="video",
        )


def _processor_of(model: PreTrainedModel) -> CvisVideoProcessor:
    """Return the processor saved with a model's weights, or the default one with a warning."""
    processor = find_video_processor(model.name_or_path, getattr(model.config, "_commit_hash", None))
    if processor is None:
        processor = CvisVideoProcessor()
        logger.warning(
            "No video_preprocessor_config.json was found next to the weights of the model: using the default "
            f"CvisVideoProcessor (short side {processor.size['shortest_edge']} pixels). Give `video_processor` for "
            "another one."
        )
    return processor
