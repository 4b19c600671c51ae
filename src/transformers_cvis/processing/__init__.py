"""Video in (decode, sample, resize, pad), tracks out (scores, labels, RLE masks, drawing)."""

from .masks import decode_segmentation, empty_segmentation, segment_masks
from .segmentation import ClipSegmentation, VideoSegmentation, segment_stream, segment_video
from .tracks import Track, TrackAccumulator
from .video_processor import CvisVideoProcessor
from .video_reading import VideoFrames, open_video

__all__ = [
    "ClipSegmentation",
    "CvisVideoProcessor",
    "Track",
    "TrackAccumulator",
    "VideoFrames",
    "VideoSegmentation",
    "decode_segmentation",
    "empty_segmentation",
    "open_video",
    "segment_masks",
    "segment_stream",
    "segment_video",
]
