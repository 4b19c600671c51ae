# SPDX-License-Identifier: Apache-2.0
"""Tracks in the result format of the YouTube-VIS and OVIS test servers."""

from collections.abc import Mapping, Sequence

from .masks import empty_segmentation
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
