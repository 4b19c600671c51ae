# SPDX-License-Identifier: Apache-2.0
"""Conversion of tracks that a model found to YouTube-VIS JSON, in its two forms.

[`tracks_to_ytvis_json`] returns the results that test servers take: a list of tracks, with an empty mask in the frames
without the object. [`videos_to_ytvis_json`] returns a complete annotation file with videos and categories, and None in
those frames. The evaluation reads both.
"""

from collections.abc import Mapping, Sequence

from ..ytvis_json import track_annotation, track_result
from .segmentation import VideoSegmentation
from .tracks import Track


def tracks_to_ytvis_json(
    tracks: Sequence[Track], video_id: int, size: tuple[int, int], category_ids: Mapping[str, int] | None = None
) -> list[dict]:
    """Return the results of one video as `{"video_id", "category_id", "score", "segmentations"}`, ready for json.

    The servers want a compressed RLE for every frame, so absent frames are written as masks that are off everywhere.

    Args:
        tracks (`Sequence[Track]`): the tracks of the video.
        video_id (`int`): the video's id in the data set.
        size (`tuple[int, int]`): height and width of the video's frames.
        category_ids (`Mapping[str, int]`, *optional*): the data set's id of each label; by default `label_id + 1`.

    Raises:
        ValueError: a label is not in `category_ids`, or a mask has another size.
    """
    results = []
    for track in tracks:
        if category_ids is not None and track.label not in category_ids:
            raise ValueError(
                f"The label {track.label!r} is not a category of the data set, whose categories are "
                f"{', '.join(sorted(category_ids))}."
            )
        for segmentation in track.segmentations:
            if segmentation is not None and tuple(segmentation["size"]) != tuple(size):
                raise ValueError(f"{track} has masks of {tuple(segmentation['size'])} in a video of {tuple(size)}.")
        category_id = track.label_id + 1 if category_ids is None else category_ids[track.label]
        results.append(track_result(video_id, category_id, track.score, track.segmentations, size))
    return results


def videos_to_ytvis_json(
    segmentations: Sequence[tuple[int, str, VideoSegmentation]], id2label: Mapping[int, str]
) -> dict:
    """Return segmented videos as the content of one annotation file, whose annotations carry a score.

    Absent frames are None, as in the data sets. A frame is named by its source and number, `my.mp4#0`.

    Args:
        segmentations: id, source and tracks of each video.
        id2label: class names of the model; category ids are the label ids + 1.
    """
    videos: list[dict] = []
    annotations: list[dict] = []
    for video_id, source, segmentation in segmentations:
        height, width = segmentation.size
        video = {
            "id": video_id,
            "name": source,
            "fps": segmentation.fps,
            "height": height,
            "width": width,
            "length": segmentation.num_frames,
            "file_names": [f"{source}#{frame}" for frame in range(segmentation.num_frames)],
        }
        videos.append(video)
        for track in segmentation.tracks:
            score = round(track.score, 6)
            annotations.append(
                track_annotation(len(annotations) + 1, video, track.label_id + 1, track.segmentations, score)
            )
    categories = [{"id": label_id + 1, "name": id2label[label_id]} for label_id in sorted(id2label)]
    return {"videos": videos, "categories": categories, "annotations": annotations}
