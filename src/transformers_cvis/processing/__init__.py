"""Video in (decode, sample, resize, pad), tracks out (scores, labels, RLE masks, drawing)."""

from .drawing import contact_sheet, draw_tracks, track_colour
from .masks import segment_masks
from .segmentation import ClipSegmentation, VideoSegmentation, segment_stream, segment_video
from .tracks import Track, TrackAccumulator
from .video_processor import CvisVideoProcessor
from .video_reading import VideoFrames, is_list_of_videos, open_video
from .video_writing import VideoWriter, render_video
from .ytvis_results import tracks_to_ytvis_json, videos_to_ytvis_json

__all__ = [
    "ClipSegmentation",
    "CvisVideoProcessor",
    "Track",
    "TrackAccumulator",
    "VideoFrames",
    "VideoSegmentation",
    "VideoWriter",
    "contact_sheet",
    "draw_tracks",
    "is_list_of_videos",
    "open_video",
    "render_video",
    "segment_masks",
    "segment_stream",
    "segment_video",
    "track_colour",
    "tracks_to_ytvis_json",
    "videos_to_ytvis_json",
]
