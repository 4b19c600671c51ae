# SPDX-License-Identifier: Apache-2.0
"""Folders of frames and of masks (as of DAVIS, YouTube-VOS and many annotation tools) as YouTube-VIS json."""

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..logs import progress_bar
from ..rle import encode
from ..ytvis_json import track_annotation
from .moving_shapes import IMAGE_SUFFIXES

ID_MODES = ("P", "L", "1", "I", "I;16")  # Pillow's names of PNGs with one number per pixel

Classes = dict[str, dict[int, str | None] | str]
"""By video: the class of each id, None to leave it out, or one class for all."""


def read_mask_folders(
    frames_root: str | os.PathLike,
    masks_root: str | os.PathLike,
    class_file: str | os.PathLike | None = None,
    progress: bool = False,
) -> dict:
    """Read masks that are PNGs of instance ids into the content of a YouTube-VIS json.

    Both roots hold one folder per video, of the same name (which may have several levels). The mask of a frame has the
    frame's name and size; its pixel values (of a palette PNG, the indices) are instance ids, 0 is background. A frame
    without a mask is taken for one that nobody annotated and left out.

    Args:
        frames_root: the folder that `file_names` of the result are relative to.
        masks_root: the folder of the masks.
        class_file: what the ids are. Either json, `{"video": {"1": "dog", "2": "person"}}` or `{"video": "dog"}` for
            all of a video, or the `meta.json` of YouTube-VOS; or csv with the columns video, id, class. An id whose
            class is null or empty is left out. Without a file a video's folder says the class of all that is in it:
            `dog/0001` and `dog_0001` are dogs.
        progress: show a progress bar over the videos.

    Raises:
        FileNotFoundError: a folder, the class file or the frame of a mask is missing, or there are no masks.
        ValueError: a PNG has no ids or another size than its frame, an id has no class, or the class file cannot be
            read. The message names the file.
    """
    frames_root, masks_root = Path(frames_root), Path(masks_root)
    for folder in (frames_root, masks_root):
        if not folder.is_dir():
            raise FileNotFoundError(f"The folder {folder} does not exist.")
    classes = None if class_file is None else read_class_file(class_file)
    videos, tracks, without_class = [], [], []  # tracks: video, class, segmentations
    for name in progress_bar(_video_names(masks_root), desc="masks", unit="video", disable=not progress):
        video, segmentations, first_mask = _read_video(frames_root, masks_root, name, video_id=len(videos) + 1)
        videos.append(video)
        class_of_id = classes.get(name, {}) if classes is not None else _class_of_folder(name)
        for instance_id in sorted(segmentations):
            if isinstance(class_of_id, str):
                tracks.append((video, class_of_id, segmentations[instance_id]))
            elif instance_id not in class_of_id:
                without_class.append(f"id {instance_id} of video {name} (first in {first_mask[instance_id]})")
            elif class_of_id[instance_id] is not None:
                tracks.append((video, class_of_id[instance_id], segmentations[instance_id]))
    if without_class:
        more = f" and {len(without_class) - 5} more" if len(without_class) > 5 else ""
        raise ValueError(
            f"{class_file} gives no class to {', '.join(without_class[:5])}{more}. Add it, or give it the class null "
            "(in csv an empty one) to leave it out."
        )
    category_ids = {name: number for number, name in enumerate(sorted({label for _, label, _ in tracks}), start=1)}
    if not category_ids:
        raise ValueError(f"The masks in {masks_root} hold no instance that has a class.")
    return {
        "videos": videos,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
        "annotations": [
            track_annotation(number, video, category_ids[label], segmentations)
            for number, (video, label, segmentations) in enumerate(tracks, start=1)
        ],
    }


def _video_names(masks_root: Path) -> list[str]:
    folders = {path.parent for path in masks_root.rglob("*.png")}
    if not folders:
        raise FileNotFoundError(
            f"There is no mask in {masks_root}: a folder per video is expected, with a PNG of instance ids per frame."
        )
    if masks_root in folders:
        raise ValueError(
            f"{masks_root} holds masks itself; a folder per video is expected there. Give the folder above it, or move "
            "the masks into a folder of their own."
        )
    return sorted(folder.relative_to(masks_root).as_posix() for folder in folders)


def _read_video(
    frames_root: Path, masks_root: Path, name: str, video_id: int
) -> tuple[dict, dict[int, list[dict | None]], dict[int, str]]:
    """An entry of 'videos', by id the RLEs of its frames, and by id the first mask that shows it."""
    if not (frames_root / name).is_dir():
        raise FileNotFoundError(f"Video {name} has masks in {masks_root / name} but no frames in {frames_root / name}.")
    frames = {path.stem: path for path in (frames_root / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    masks = sorted((masks_root / name).glob("*.png"))
    size, file_names = None, []  # size: (width, height), as Pillow has it
    segmentations: dict[int, list[dict | None]] = {}
    first_mask: dict[int, str] = {}
    for position, mask_path in enumerate(masks):
        frame_path = frames.get(mask_path.stem)
        if frame_path is None:
            raise FileNotFoundError(f"The mask {mask_path} has no frame {mask_path.stem}.* in {frames_root / name}.")
        frame_size = _image_size(frame_path)
        if size is not None and frame_size != size:
            raise ValueError(
                f"The frame {frame_path} is {_text(frame_size)} (height x width), those before it are {_text(size)}; "
                "all frames of a video must have one size."
            )
        size = frame_size
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


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"The frame {path} is no picture that can be read; replace it.") from error


def _read_ids(path: Path) -> np.ndarray:
    """Int (height, width)."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            ids = np.asarray(image) if mode in ID_MODES else None
    except OSError as error:
        raise ValueError(f"The mask {path} cannot be read ({error}); replace it.") from error
    if ids is None:
        raise ValueError(
            f"The mask {path} is a picture of colours (mode {mode}); a palette or grey PNG is expected, whose pixel "
            "values are instance ids."
        )
    return ids.astype(np.int64)


def _class_of_folder(name: str) -> str:
    top, nested, _ = name.partition("/")
    label = top if nested else re.sub(r"[-_ ]*\d+$", "", name)
    if not label:
        raise ValueError(f"The folder of video {name} does not say what it shows; give a class file.")
    return label


# ---------------------------------------------------------------- class files


def read_class_file(path: str | os.PathLike) -> Classes:
    """What `class_file` of `read_mask_folders` says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another form; the message says where.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The class file {path} does not exist.")
    text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write csv
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


def _get(value, key: str):
    return value.get(key) if isinstance(value, Mapping) else None


def _read_class_csv(path: Path, text: str) -> Classes:
    rows = csv.DictReader(text.splitlines())
    missing = {"video", "id", "class"} - set(rows.fieldnames or ())
    if missing:
        raise ValueError(
            f"The class file {path} has no column {', '.join(sorted(missing))}; its first line must be video,id,class."
        )
    by_video: dict[str, dict] = {}
    for row in rows:
        by_video.setdefault(row["video"], {})[row["id"]] = row["class"] or None
    return {name: _class_per_id(path, name, entry) for name, entry in by_video.items()}


def _class_per_id(path: Path, video: str, entry: Mapping) -> dict[int, str | None]:
    classes = {}
    for number, label in entry.items():
        if not str(number).strip().isdigit():
            raise ValueError(f"The class file {path}: video {video} has the id {number!r}; give a whole number.")
        if label is not None and not (isinstance(label, str) and label):
            raise ValueError(
                f"The class file {path}: id {number} of video {video} has the class {label!r}; give a text."
            )
        classes[int(number)] = label
    return classes
