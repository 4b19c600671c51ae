# SPDX-License-Identifier: Apache-2.0
"""Convert folders of frames and masks, as DAVIS, YouTube-VOS and annotation tools have them, to YouTube-VIS json."""

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..logs import progress_bar
from ..rle import encode
from ..ytvis_json import track_annotation
from .moving_shapes import IMAGE_SUFFIXES

ID_MODES = ("P", "L", "1", "I", "I;16")  # Pillow's modes of PNGs with one number per pixel

Classes = dict[str, dict[int, str | None] | str]
"""Video name -> instance id -> class, None to leave the instance out; or video name -> one class for all instances."""


def read_mask_folders(
    frames_root: str | os.PathLike,
    masks_root: str | os.PathLike,
    class_file: str | os.PathLike | None = None,
    progress: bool = False,
) -> dict:
    """Read masks that are PNGs of instance ids, and return the content of a YouTube-VIS json.

    Both roots hold one folder per video, with the same name in both; the name may have several levels. The mask of a
    frame has the name and size of the frame. Its pixel values (the indices of a palette PNG) are instance ids, and 0 is
    background. A frame without a mask counts as not annotated and is left out.

    Args:
        frames_root: folder of the frames. `file_names` of the result are relative to it.
        masks_root: folder of the masks.
        class_file: file with the class of each id. Json has the form `{"video": {"1": "dog", "2": "person"}}`, or
            `{"video": "dog"}` for all instances of a video, or that of the `meta.json` of YouTube-VOS. Csv has the
            columns video, id, class. An id whose class is null or empty is left out. Without a file, the name of the
            video's folder gives the class of all its instances: `dog/0001` and `dog_0001` show dogs.
        progress: show a progress bar over the videos.

    Raises:
        FileNotFoundError: a folder, the class file or the frame of a mask is missing, or no mask is found.
        ValueError: a PNG does not hold ids or has another size than its frame, an id has no class, or the class file
            cannot be read. The message names the file.
    """
    frames_root, masks_root = Path(frames_root), Path(masks_root)
    for folder in (frames_root, masks_root):
        if not folder.is_dir():
            raise FileNotFoundError(f"The folder {folder} does not exist.")
    classes = None if class_file is None else read_class_file(class_file)
    videos: list[dict] = []
    tracks: list[tuple[dict, str, list[dict | None]]] = []  # (video, class, segmentations)
    without_class = []
    for name in progress_bar(_video_names(masks_root), desc="masks", unit="video", disable=not progress):
        video, segmentations, first_mask = _read_video(frames_root, masks_root, name, video_id=len(videos) + 1)
        videos.append(video)
        class_of_id = classes.get(name, {}) if classes is not None else _class_of_folder(name)
        for instance_id in sorted(segmentations):
            if not isinstance(class_of_id, str) and instance_id not in class_of_id:
                without_class.append(f"id {instance_id} of video {name} (first in {first_mask[instance_id]})")
                continue
            label = class_of_id if isinstance(class_of_id, str) else class_of_id[instance_id]
            if label is not None:
                tracks.append((video, label, segmentations[instance_id]))
    if without_class:
        more = f" and {len(without_class) - 5} more" if len(without_class) > 5 else ""
        raise ValueError(
            f"{class_file} has no class for {', '.join(without_class[:5])}{more}. Add a class, or the class null "
            "(empty in csv) to leave the instance out."
        )
    category_ids = {name: number for number, name in enumerate(sorted({label for _, label, _ in tracks}), start=1)}
    if not category_ids:
        raise ValueError(f"No instance in the masks of {masks_root} has a class; give at least one a class.")
    return {
        "videos": videos,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
        "annotations": [
            track_annotation(number, video, category_ids[label], segmentations)
            for number, (video, label, segmentations) in enumerate(tracks, start=1)
        ],
    }


def _video_names(masks_root: Path) -> list[str]:
    """List the folders with masks, relative to `masks_root`.

    Raises:
        FileNotFoundError: no mask is found.
        ValueError: masks lie directly in `masks_root`.
    """
    folders = {path.parent for path in masks_root.rglob("*.png")}
    if not folders:
        raise FileNotFoundError(
            f"No mask found in {masks_root}: expected a folder per video, with a PNG of instance ids per frame."
        )
    if masks_root in folders:
        raise ValueError(
            f"{masks_root} holds masks directly; expected a folder per video. Give the folder above it, or move the "
            "masks into a subfolder."
        )
    return sorted(folder.relative_to(masks_root).as_posix() for folder in folders)


def _read_video(
    frames_root: Path, masks_root: Path, name: str, video_id: int
) -> tuple[dict, dict[int, list[dict | None]], dict[int, str]]:
    """Read the masks of one video.

    Returns:
        The video's entry of 'videos', the RLEs of each instance by id (one per frame, or None), and the name of the
        first mask that shows each instance, by id.
    """
    if not (frames_root / name).is_dir():
        raise FileNotFoundError(f"Video {name} has masks in {masks_root / name} but no frames in {frames_root / name}.")
    frames = {path.stem: path for path in (frames_root / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    masks = sorted((masks_root / name).glob("*.png"))
    for mask_path in masks:
        if mask_path.stem not in frames:
            raise FileNotFoundError(f"The mask {mask_path} has no frame {mask_path.stem}.* in {frames_root / name}.")
    size = _image_size(frames[masks[0].stem])  # (width, height), as Pillow has it
    file_names = []
    segmentations: dict[int, list[dict | None]] = {}
    first_mask: dict[int, str] = {}
    for position, mask_path in enumerate(masks):
        frame_path = frames[mask_path.stem]
        frame_size = _image_size(frame_path)
        if frame_size != size:
            raise ValueError(
                f"The frame {frame_path} is {_text(frame_size)} (height x width), those before it are {_text(size)}; "
                "all frames of a video must have one size."
            )
        ids = _read_ids(mask_path)
        if ids.shape[::-1] != size:
            raise ValueError(
                f"The mask {mask_path} is {_text(ids.shape[::-1])} (height x width) but its frame {frame_path.name} is "
                f"{_text(size)}; save masks at the size of the frames, resized without interpolation."
            )
        file_names.append(frame_path.relative_to(frames_root).as_posix())
        for instance_id in np.unique(ids[ids != 0]).tolist():
            first_mask.setdefault(instance_id, mask_path.name)
            track = segmentations.setdefault(instance_id, [None] * len(masks))
            track[position] = encode(ids == instance_id)
    width, height = size
    video = {"id": video_id, "width": width, "height": height, "length": len(masks), "file_names": file_names}
    return video, segmentations, first_mask


def _text(size: tuple[int, ...]) -> str:
    """Format a (width, height) as height x width."""
    return f"{size[1]}x{size[0]}"


def _image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of a frame in pixels."""
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"The frame {path} is not a readable picture; replace it.") from error


def _read_ids(path: Path) -> np.ndarray:
    """Read the instance ids of a mask, int64 of shape `(height, width)`."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            ids = np.asarray(image) if mode in ID_MODES else None
    except OSError as error:
        raise ValueError(f"The mask {path} cannot be read ({error}); replace it.") from error
    if ids is None:
        raise ValueError(
            f"The mask {path} is a colour picture (mode {mode}); expected a palette or grey PNG whose pixel values "
            "are instance ids."
        )
    return ids.astype(np.int64)


def _class_of_folder(name: str) -> str:
    """Return the class that the name of a video's folder gives: "dog" for `dog/0001` and `dog_0001`."""
    top, nested, _ = name.partition("/")
    label = top if nested else re.sub(r"[-_ ]*\d+$", "", name)
    if not label:
        raise ValueError(f"The folder name of video {name} does not contain a class; give a class file.")
    return label


# Class files


def read_class_file(path: str | os.PathLike) -> Classes:
    """Read the `class_file` of [`read_mask_folders`].

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not have the expected form; the message names the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The class file {path} does not exist.")
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets write csv with a byte order mark
    if path.suffix.lower() == ".csv":
        return _read_class_csv(path, text)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"The class file {path} is not valid json ({error}); it must be json, or end in .csv."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("videos"), dict):  # YouTube-VOS
        content = {
            name: {number: _get(entry, "category") for number, entry in (_get(video, "objects") or {}).items()}
            for name, video in content["videos"].items()
        }
    if not isinstance(content, dict):
        raise ValueError(f'The class file {path} must look like {{"video": {{"1": "dog"}}}}.')
    classes: Classes = {}
    for name, entry in content.items():
        if not isinstance(entry, (str, dict)):
            raise ValueError(
                f"The class file {path}: video {name} has {entry!r:.60}; give a class, or a class per id as in "
                '{"1": "dog"}.'
            )
        classes[name] = entry if isinstance(entry, str) else _class_per_id(path, name, entry)
    return classes


def _get(value: Any, key: str) -> Any:
    """Return an entry of a mapping, None if `value` is not a mapping or lacks the key."""
    return value.get(key) if isinstance(value, Mapping) else None


def _read_class_csv(path: Path, text: str) -> Classes:
    """Read the classes from csv with the columns video, id, class."""
    rows = csv.DictReader(text.splitlines())
    missing = {"video", "id", "class"} - set(rows.fieldnames or ())
    if missing:
        raise ValueError(
            f"The class file {path} lacks the column {', '.join(sorted(missing))}; its first line must be "
            "video,id,class."
        )
    by_video: dict[str, dict] = {}
    for row in rows:
        by_video.setdefault(row["video"], {})[row["id"]] = row["class"] or None
    return {name: _class_per_id(path, name, entry) for name, entry in by_video.items()}


def _class_per_id(path: Path, video: str, entry: Mapping) -> dict[int, str | None]:
    """Check the classes of one video and return them by int ids."""
    classes = {}
    for number, label in entry.items():
        if not str(number).strip().isdigit():
            raise ValueError(f"The class file {path}: video {video} has the id {number!r}; give a whole number.")
        if label is not None and not (isinstance(label, str) and label):
            raise ValueError(
                f"The class file {path}: id {number} of video {video} has the class {label!r}; give a string."
            )
        classes[int(number)] = label
    return classes
