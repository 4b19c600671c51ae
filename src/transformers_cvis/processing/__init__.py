# SPDX-License-Identifier: Apache-2.0
"""Video in (decode, sample, resize, pad), tracks out (scores, labels, RLE masks, drawing)."""

from .drawing import contact_sheet, draw_tracks, track_colour
from .masks import segment_masks
from .protocols import VideoModel
from .segmentation import (
    ClipSegmentation,
    PreparedVideo,
    VideosDifferError,
    VideoSegmentation,
    gather_tracks,
    prepare_video,
    segment_stream,
    segment_video,
)
from .sizes import padded_size, resized_size, scaled_size
from .tracks import Track, TrackAccumulator
from .video_processor import PROCESSOR_FILES, CvisVideoProcessor, find_video_processor
from .video_reading import VideoFrames, is_frame, is_list_of_videos, open_video
from .video_writing import VideoWriter, render_video
from .ytvis_results import tracks_to_ytvis_json, videos_to_ytvis_json

__all__ = [
    "PROCESSOR_FILES",
    "ClipSegmentation",
    "CvisVideoProcessor",
    "PreparedVideo",
    "Track",
    "TrackAccumulator",
    "VideoFrames",
    "VideoModel",
    "VideoSegmentation",
    "VideoWriter",
    "VideosDifferError",
    "contact_sheet",
    "draw_tracks",
    "find_video_processor",
    "gather_tracks",
    "is_frame",
    "is_list_of_videos",
    "open_video",
    "padded_size",
    "prepare_video",
    "render_video",
    "resized_size",
    "scaled_size",
    "segment_masks",
    "segment_stream",
    "segment_video",
    "track_colour",
    "tracks_to_ytvis_json",
    "videos_to_ytvis_json",
]
