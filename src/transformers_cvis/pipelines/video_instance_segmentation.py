"""The transformers pipeline for video instance segmentation, and its entry in the pipeline registry."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoVideoProcessor, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from ..assets import default_model_path
from ..hub.card import TASK
from ..modeling.auto import AutoModelForVideoInstanceSegmentation
from ..processing import (
    CvisVideoProcessor,
    VideoFrames,
    VideoSegmentation,
    is_list_of_videos,
    open_video,
    segment_video,
)

_READING_PARAMETERS = ("fps", "stride", "max_frames")
_SEGMENTATION_PARAMETERS = ("clip_length", "threshold", "top_k", "progress")
# What a video processor is made from; the second is that of an image model.
_PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
# Videos of at least this many frames, or of unknown length, get a progress bar unless `progress` says otherwise.
_LONG_VIDEO = 100

logger = logging.get_logger(__name__)


class VideoInstanceSegmentationPipeline(Pipeline):
    """Detects, segments and tracks the objects of videos.

    ```python
    from transformers import pipeline
    import transformers_cvis  # registers the task

    segment = pipeline("video-instance-segmentation", model="user/model", revision="main")
    result = segment("my.mp4", threshold=0.5)
    result["tracks"][0].label
    ```

    A Mask2Former checkpoint of the Hub works as it is: it becomes a MinVIS. Without `model` the small model that
    ships with the package is used. A model object may be given without
    `video_processor`: the one saved next to its weights is used, or else the default one.

    Each parameter can be given when the pipeline is made or when it is called:
        clip_length (`int`): frames that the model sees at once; 1 is online. By default the model's own.
        threshold (`float`, defaults to 0.3): least score of a track. `None` together with `top_k` selects as video
            benchmarks do.
        top_k (`int`): most tracks of a video.
        fps (`float`), stride (`int`), max_frames (`int`): which frames are read, see [`open_video`].
        progress (`bool`): show a progress bar; by default for videos of 100 frames and more.
    """

    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_processor = False
    # Loaded if it is there: a model object has no name to load it from, and then __init__ finds one.
    _load_video_processor = None

    def __init__(self, model, video_processor: CvisVideoProcessor | None = None, **kwargs):
        if not hasattr(model, "stream"):
            raise ValueError(
                f"{type(model).__name__} is no video instance segmentation model. The pipeline takes the models of "
                "transformers_cvis, and Mask2Former checkpoints by their name or folder."
            )
        model.check_trained()
        super().__init__(model=model, **kwargs)
        self.video_processor = video_processor if video_processor is not None else _find_video_processor(model)

    def __call__(self, videos: Any, batch_size: int | None = None, num_workers: int | None = None, **parameters):
        """Segment one video or a list of videos.

        Args:
            videos: Whatever [`open_video`] takes, or a list of such sources. (A list of images, of frames or of paths
                of images is one video.)
            batch_size, num_workers: Accepted as by every pipeline. Videos are streams of different lengths, so they
                run one after the other whatever is given.
            parameters: See the class.

        Returns:
            For each video a dict with `tracks` (`list[Track]`, best first), `size` (height, width), `num_frames` and
            `fps` (`None` if the source has no clock); a list of these for a list of videos.
        """
        if is_list_of_videos(videos):
            return [super(VideoInstanceSegmentationPipeline, self).__call__(_One(v), **parameters) for v in videos]
        return super().__call__(_One(videos), **parameters)

    def _sanitize_parameters(self, **parameters):
        unknown = set(parameters) - {*_READING_PARAMETERS, *_SEGMENTATION_PARAMETERS}
        if unknown:
            raise TypeError(
                f"Unknown parameter {', '.join(sorted(unknown))}; the pipeline knows "
                f"{', '.join(_READING_PARAMETERS + _SEGMENTATION_PARAMETERS)}."
            )
        reading = {name: parameters[name] for name in _READING_PARAMETERS if name in parameters}
        segmentation = {name: parameters[name] for name in _SEGMENTATION_PARAMETERS if name in parameters}
        return reading, segmentation, {}

    def preprocess(self, video: "_One", **reading) -> dict[str, VideoFrames]:
        return {"video": open_video(video.source, **reading)}

    def _forward(self, inputs: dict[str, VideoFrames], progress: bool | None = None, **parameters) -> VideoSegmentation:
        video = inputs["video"]
        if progress is None:
            progress = video.num_frames is None or video.num_frames >= _LONG_VIDEO
        return segment_video(self.model, self.video_processor, video, progress=progress, **parameters)

    def postprocess(self, segmentation: VideoSegmentation) -> dict[str, Any]:
        return vars(segmentation)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model and processor; `pipeline(TASK, model=save_directory)` loads them."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory)


class _One:
    """One video, wrapped so that the base class does not take a list or generator of frames for a list of inputs."""

    def __init__(self, source: Any):
        self.source = source


class _EmbeddedModel(dict):
    """The registry's default entry, `{"model": (folder, revision)}`; the folder is looked up when it is wanted."""

    def __getitem__(self, key: str) -> tuple[str, str]:
        folder = str(default_model_path())
        logger.warning("No model was given: using the embedded GenVIS, which knows moving shapes only.")
        return folder, super().__getitem__(key)


def register_pipeline() -> None:
    """Make `transformers.pipeline` know the task; without a model it uses the embedded one and says so in a warning."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=VideoInstanceSegmentationPipeline,
            pt_model=AutoModelForVideoInstanceSegmentation,
            default=_EmbeddedModel(model="main"),
            type="video",
        )


def _find_video_processor(model) -> CvisVideoProcessor:
    name = model.name_or_path
    if name and any((Path(name) / file).is_file() for file in _PROCESSOR_FILES):
        return AutoVideoProcessor.from_pretrained(name)
    if name and not Path(name).exists():
        try:
            return AutoVideoProcessor.from_pretrained(name, revision=getattr(model.config, "_commit_hash", None))
        except OSError:
            pass  # the repository has none
    processor = CvisVideoProcessor()
    logger.warning(
        "There is no %s next to the weights of the model: using the default CvisVideoProcessor (short side %d pixels). "
        "Give `video_processor` for another one.",
        _PROCESSOR_FILES[0],
        processor.size["shortest_edge"],
    )
    return processor
