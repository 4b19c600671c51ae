# SPDX-License-Identifier: Apache-2.0
"""Command `transformers-cvis segment`."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from transformers_cvis_cli import CommandError, describe, print_error

from ..files import write_json
from ..processing import VideoSegmentation, open_video, render_video, segment_video
from ..processing.ytvis_results import videos_to_ytvis_json
from .common import check_new_files, load_model, writable_folder

logger = logging.get_logger(__name__)


def run_segment(options: argparse.Namespace) -> int:
    """Segment videos, print the tracks found, and write the results."""
    folder = writable_folder(options.out)
    json_path: Path | None = folder / "results.json"
    if options.json is not None:
        json_path = None if options.json == "-" else Path(options.json).expanduser()
        if json_path is not None:
            if json_path.suffix != ".json":
                raise CommandError(
                    f"--json {options.json}: the name of the file must end in .json, or be - to print it."
                )
            writable_folder(json_path.parent)
    names = output_names(options.videos)
    pictures = [] if options.no_video else [folder / f"{name}{suffix}" for name in names for suffix in (".mp4", ".png")]
    check_new_files([*pictures, *([json_path] if json_path else [])], options.overwrite)
    inputs = {Path(video).expanduser().resolve() for video in options.videos}
    if clash := [str(path) for path in pictures if path.resolve() in inputs]:
        raise CommandError(f"{clash[0]} is one of the videos and would be replaced: choose another --out.")

    sampling = {"stride": options.stride, "max_frames": options.max_frames}
    for video in options.videos:  # fail on a file that is not a video before the model is loaded
        open_video(video, **sampling)
    model, video_processor = load_model(options)

    results, failed = [], 0
    for video_id, (video, name) in enumerate(zip(options.videos, names, strict=True), start=1):
        started = time.perf_counter()
        try:
            segmentation = segment_video(
                model,
                video_processor,
                video,
                clip_length=options.clip_length,
                threshold=options.threshold,
                progress=True,
                **sampling,
            )
            if json_path is not None:
                print(track_table(video, segmentation, time.perf_counter() - started))
            if not options.no_video:
                logger.info(f"drawing {name}.mp4 and {name}.png")
                render_video(video, segmentation, folder / f"{name}.mp4", folder / f"{name}.png", **sampling)
        except (ValueError, OSError) as error:
            if options.debug or len(options.videos) == 1:
                raise
            print_error(f"{video}: {describe(error)}")
            failed += 1
            continue
        results.append((video_id, video, segmentation))

    content = videos_to_ytvis_json(results, model.config.id2label)
    if json_path is None:
        print(json.dumps(content))
    else:
        write_json(json_path, content)
        print(f"Results: {json_path}" + ("" if options.no_video else f", pictures and videos in {folder}{os.sep}"))
    return 1 if failed else 0


def output_names(videos: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each video: its own name, with a number if it repeats an earlier one."""
    names: list[str] = []
    for video in videos:
        path = Path(video.rstrip("/"))
        base = (path.name if path.is_dir() else path.stem) or "video"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def track_table(video: str, segmentation: VideoSegmentation, seconds: float) -> str:
    """Format the tracks of a video as a table, with the times of the first and last frame with a mask.

    Args:
        video: name of the video.
        segmentation: its tracks.
        seconds: time that the segmentation took.
    """
    height, width = segmentation.size
    speed = segmentation.num_frames / max(seconds, 1e-9)
    count = f"{len(segmentation.tracks)} track{'' if len(segmentation.tracks) == 1 else 's'}"
    lines = [
        f"{video}: {count} in {segmentation.num_frames} frames of {width}x{height} "
        f"({seconds:.1f} s, {speed:.1f} frames/s)"
    ]
    if not segmentation.tracks:
        return lines[0] + "\n  Nothing scored above the threshold: try a lower --threshold, or another --model."
    label_width = max(len("label"), *(len(track.label) for track in segmentation.tracks))
    lines.append(f"  {'track':>5}  {'label':<{label_width}}  score  frames  from - to")
    for number, track in enumerate(segmentation.tracks, start=1):
        visible = [index for index, mask in enumerate(track.segmentations) if mask is not None]
        span = f"{visible[0]} - {visible[-1]}"
        if segmentation.fps:
            span += f"  ({visible[0] / segmentation.fps:.1f} s - {visible[-1] / segmentation.fps:.1f} s)"
        lines.append(f"  {number:>5}  {track.label:<{label_width}}  {track.score:5.2f}  {len(visible):>6}  {span}")
    return "\n".join(lines)
