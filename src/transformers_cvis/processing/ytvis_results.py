"""Tracks in the result format of the YouTube-VIS and OVIS test servers."""

from collections.abc import Mapping, Sequence

from .masks import empty_segmentation
from .segmentation import VideoSegmentation
from .tracks import Track


def tracks_to_ytvis_json(
    tracks: Sequence[Track], video_id: int, size: tuple[int, int], category_ids: Mapping[str, int] | None = None
) -> list[dict]:
    """Results of one video as `{"video_id", "category_id", "score", "segmentations"}`, ready for `json.dump`.

    The servers want a compressed RLE for every frame, so absent frames are written as masks that are off everywhere.

    Args:
        tracks (`Sequence[Track]`): the tracks of the video.
        video_id (`int`): the video's id in the data set.
        size (`tuple[int, int]`): height and width of the video's frames.
        category_ids (`Mapping[str, int]`, *optional*): the data set's id of each label; by default `label_id + 1`.

    Raises:
        ValueError: a label that `category_ids` does not know, or a mask of another size.
    """
    absent = empty_segmentation(size)
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
        results.append(
            {
                "video_id": video_id,
                "category_id": track.label_id + 1 if category_ids is None else category_ids[track.label],
                "score": track.score,
                "segmentations": [absent if rle is None else rle for rle in track.segmentations],
            }
        )
    return results


def videos_to_ytvis_json(
    segmentations: Sequence[tuple[int, str, VideoSegmentation]], id2label: Mapping[int, str]
) -> dict:
    """Return segmented videos as one YouTube-VIS json, with a score in each annotation and None in absent frames.

    Args:
        segmentations: for each video its id, its source, and what was found in it.
        id2label: the class names of the model; category ids are the label ids + 1.
    """
    videos, annotations = [], []
    for video_id, source, segmentation in segmentations:
        height, width = segmentation.size
        shape = {"height": height, "width": width, "length": segmentation.num_frames}
        file_names = [f"{source}#{frame}" for frame in range(segmentation.num_frames)]
        videos.append({"id": video_id, "name": source, "fps": segmentation.fps, **shape, "file_names": file_names})
        for track in segmentation.tracks:
            boxes = [box and [box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in track.boxes]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video_id,
                    "category_id": track.label_id + 1,
                    "score": round(track.score, 6),
                    "iscrowd": 0,
                    **shape,
                    "segmentations": track.segmentations,
                    "bboxes": boxes,
                }
            )
    categories = [{"id": label_id + 1, "name": id2label[label_id]} for label_id in sorted(id2label)]
    return {"videos": videos, "categories": categories, "annotations": annotations}
