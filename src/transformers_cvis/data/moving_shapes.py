# SPDX-License-Identifier: Apache-2.0
"""Generate video instance segmentation data from a seed: textured shapes that move, overlap, leave and come back.

An affine map places the local coordinates of a shape in each frame. Image and mask both follow from the signed distance
to its outline, so masks are exact: a pixel belongs to the nearest shape that covers its centre.
"""

import colorsys
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..files import complete_folder, write_json
from ..logs import progress_bar
from ..messages import check_at_least
from ..processing import VideoWriter
from ..rle import encode_or_none
from ..ytvis_json import track_annotation
from .shapes import LOCAL_EXTENT, SHAPES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEXTURE_SIZE = 32  # texels per side, over [-1.2, 1.2]^2


@dataclass
class MovingShapesVideo:
    """One generated video with its ground truth.

    Attributes:
        frames: RGB, uint8 of shape `(num_frames, height, width, 3)`.
        masks: visible pixels of each instance, bool of shape `(num_instances, num_frames, height, width)`. The masks of
            one frame are disjoint.
        categories: one name per instance.
    """

    frames: np.ndarray
    masks: np.ndarray
    categories: list[str]


class _Footprint(NamedTuple):
    """Window of a frame that can hold a shape, and the local coordinates of its pixels."""

    window: tuple[slice, slice]  # rows and columns of the frame
    x: np.ndarray  # (rows, columns) local coordinates
    y: np.ndarray  # (rows, columns) local coordinates
    distance: np.ndarray  # (rows, columns) signed distance in pixels


@dataclass
class _MovingShape:
    """A shape with its texture, and the affine map that places it in each frame."""

    category: str
    texture: np.ndarray  # (TEXTURE_SIZE, TEXTURE_SIZE, 3) float, 0..255
    centres: np.ndarray  # (num_frames, 2) xy, pixels
    linear_maps: np.ndarray  # (num_frames, 2, 2) local coordinates -> pixels

    def footprint(self, frame: int, size: tuple[int, int]) -> _Footprint | None:
        """Locate the shape in a frame of `size` (height, width); return None if it lies outside."""
        height, width = size
        linear, (centre_x, centre_y) = self.linear_maps[frame], self.centres[frame]
        reach_x, reach_y = np.abs(linear).sum(1) * LOCAL_EXTENT + 1
        left, right = max(0, int(centre_x - reach_x)), min(width, int(centre_x + reach_x) + 1)
        top, bottom = max(0, int(centre_y - reach_y)), min(height, int(centre_y + reach_y) + 1)
        if left >= right or top >= bottom:
            return None
        pixel_x = np.arange(left, right) + 0.5 - centre_x
        pixel_y = (np.arange(top, bottom) + 0.5 - centre_y)[:, None]
        inverse = np.linalg.inv(linear)
        x = inverse[0, 0] * pixel_x + inverse[0, 1] * pixel_y
        y = inverse[1, 0] * pixel_x + inverse[1, 1] * pixel_y
        pixels_per_unit = math.sqrt(abs(np.linalg.det(linear)))
        distance = SHAPES[self.category](x, y) * pixels_per_unit
        return _Footprint((slice(top, bottom), slice(left, right)), x, y, distance)

    def colours(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Look up the texture at local coordinates, float of shape `(rows, columns, 3)` in 0..255."""
        scale = TEXTURE_SIZE / (2 * LOCAL_EXTENT)
        columns = np.clip((x + LOCAL_EXTENT) * scale, 0, TEXTURE_SIZE - 1).astype(np.int64)
        rows = np.clip((y + LOCAL_EXTENT) * scale, 0, TEXTURE_SIZE - 1).astype(np.int64)
        return self.texture[rows, columns]


def generate_video(
    num_frames: int,
    size: tuple[int, int],
    seed: int | Sequence[int],
    categories: Sequence[str] | None = None,
    num_objects: tuple[int, int] = (1, 4),
    object_size: tuple[float, float] = (0.35, 0.75),
    typical_colours: float = 0.9,
    background_images: Sequence[str | os.PathLike] = (),
    stride: int = 1,
) -> MovingShapesVideo:
    """Draw one video. The result depends on nothing but the arguments.

    Args:
        num_frames: length of the video.
        size: height and width in pixels.
        seed: a seed or a sequence of seeds, as `numpy.random.default_rng` takes them.
        categories: names from `SHAPES`; None takes all.
        num_objects: fewest and most objects placed. An object that is never visible is left out of the result.
        object_size: smallest and largest diameter, as a share of the short side of the frame.
        typical_colours: share of the objects that have the hue of their category, in 0..1. The others have a random
            colour and differ only by their outline. A lower share needs more training.
        background_images: paths of pictures; half of the backgrounds are one of them, the others are procedural.
        stride: take every `stride`-th frame of a video that is `stride` times as long, which lowers the frame rate.

    Raises:
        ValueError: an argument is out of range, or a category is unknown.
    """
    categories = _check_arguments(num_frames, size, categories, num_objects, object_size, typical_colours, stride)
    rng = np.random.default_rng(seed)
    background, background_offsets = _background(rng, num_frames * stride, size, background_images)
    mean_colour = background.reshape(-1, 3).mean(0)
    shapes: list[_MovingShape] = []
    for _ in range(rng.integers(num_objects[0], num_objects[1] + 1)):
        repeat_class = bool(shapes) and rng.random() < 0.35  # several instances of one class are hard to track
        category = shapes[-1].category if repeat_class else categories[rng.integers(len(categories))]
        centres, linear_maps = _motion(rng, num_frames * stride, size, object_size)
        texture = _texture(rng, mean_colour, category, typical_colours)
        shapes.append(_MovingShape(category, texture, centres[::stride], linear_maps[::stride]))

    height, width = size
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    masks = np.zeros((len(shapes), num_frames, height, width), dtype=bool)
    for frame in range(num_frames):
        top, left = background_offsets[frame * stride]
        canvas = background[top : top + height, left : left + width].copy()
        for index, shape in enumerate(shapes):  # from back to front
            footprint = shape.footprint(frame, size)
            if footprint is None:
                continue
            window, x, y, distance = footprint
            coverage = np.clip(0.5 - distance, 0, 1)[..., None]  # share of the pixel that the shape covers
            canvas[window] += coverage * (shape.colours(x, y) - canvas[window])
            inside = distance < 0
            masks[:index, frame, window[0], window[1]] &= ~inside
            masks[index, frame, window[0], window[1]] = inside
        frames[frame] = np.clip(canvas + 0.5, 0, 255)
    seen = np.flatnonzero(masks.any((1, 2, 3)))
    return MovingShapesVideo(frames, masks[seen], [shapes[index].category for index in seen])


def _check_arguments(
    num_frames: int,
    size: tuple[int, int],
    categories: Sequence[str] | None,
    num_objects: tuple[int, int],
    object_size: tuple[float, float],
    typical_colours: float,
    stride: int,
) -> list[str]:
    """Check the arguments of [`generate_video`] and return the names of the categories."""
    check_at_least("stride", stride, 1)
    check_at_least("num_frames", num_frames, 1)
    if min(size) < 16:
        raise ValueError(f"size is {tuple(size)}; give (height, width) of at least 16 pixels each.")
    if not 1 <= num_objects[0] <= num_objects[1]:
        raise ValueError(f"num_objects is {tuple(num_objects)}; give (fewest, most) with 1 <= fewest <= most.")
    if not 0 < object_size[0] <= object_size[1]:
        raise ValueError(f"object_size is {tuple(object_size)}; give (smallest, largest) with 0 < smallest <= largest.")
    if not 0 <= typical_colours <= 1:
        raise ValueError(f"typical_colours is {typical_colours}; give a share between 0 and 1.")
    categories = list(SHAPES) if categories is None else list(categories)
    unknown = [name for name in categories if name not in SHAPES]
    if unknown or not categories or len(set(categories)) < len(categories):
        raise ValueError(f"categories is {categories}; give different names from {list(SHAPES)}.")
    return categories


def _motion(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int], object_size: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the motion of one object: centres `(num_frames, 2)` as x, y, and linear maps `(num_frames, 2, 2)`."""
    height, width = size
    time = np.arange(num_frames)
    radius = rng.uniform(*object_size) * min(size) / 2
    start = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
    if rng.random() < 0.3:  # an excursion over the nearest border and back
        distances = np.array([start[0], width - start[0], start[1], height - start[1]])
        axis, sign = divmod(int(distances.argmin()), 2)
        turn = start.copy()
        turn[axis] += (2 * sign - 1) * (distances.min() + 1.6 * radius)
        turn[1 - axis] += rng.uniform(-1, 1) * radius
        phase = rng.uniform(0, 1) + time / (max(num_frames, 12) * rng.uniform(0.6, 1.0))
        centres = start + np.sin(math.pi * phase)[:, None] ** 2 * (turn - start)
    else:  # a straight line, reflected where half of the object has left the frame
        angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.002, 0.04) * min(size)
        travelled = start + time[:, None] * speed * np.array([math.cos(angle), math.sin(angle)])
        span = np.array([width, height], dtype=np.float64)
        folded = np.mod(travelled, 2 * span)
        centres = np.minimum(folded, 2 * span - folded)

    scale = radius * (1 + rng.uniform(0, 0.25) * np.sin(rng.uniform(0, 2 * math.pi) + time * rng.uniform(0.05, 0.25)))
    rotation = rng.uniform(0, 2 * math.pi) + time * rng.uniform(-0.12, 0.12)
    stretch, shear = math.sqrt(rng.uniform(0.8, 1.25)), rng.uniform(-0.15, 0.15)
    shape_map = np.array([[stretch, shear], [0, 1 / stretch]])
    rotations = np.stack([np.cos(rotation), -np.sin(rotation), np.sin(rotation), np.cos(rotation)], -1)
    return centres, scale[:, None, None] * (rotations.reshape(-1, 2, 2) @ shape_map)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Draw any colour, float of shape `(3,)` in 0..255."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 1.0), rng.uniform(0.15, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def _typical_colour(rng: np.random.Generator, category: str) -> np.ndarray:
    """Draw a strong colour near the hue of the category; the categories divide the colour circle evenly."""
    hue = list(SHAPES).index(category) / len(SHAPES) + rng.normal(0, 0.01)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0))) * 255


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Draw noise that varies over about `cells` patches per side, float of shape `(height, width, 1)` in 0..1."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))[..., None].clip(0, 1)


def _texture(
    rng: np.random.Generator, background_colour: np.ndarray, category: str, typical_colours: float
) -> np.ndarray:
    """Draw a texture of two colours in one of five patterns; the first colour differs clearly from the background."""
    typical = rng.random() < typical_colours
    for _ in range(8):
        first = _typical_colour(rng, category) if typical else _colour(rng)
        if np.abs(first - background_colour).sum() > 150:
            break
    if typical:
        second = np.clip(first * rng.uniform(0.4, 1.6), 0, 255)  # lighter or darker, with the same hue
    else:
        second = np.clip(first + rng.uniform(-90, 90, 3), 0, 255)
    texel = np.arange(TEXTURE_SIZE)
    pattern = rng.integers(5)
    if pattern == 0:  # plain
        share = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE, 1))
    elif pattern == 1:  # stripes
        period = rng.integers(3, 9)
        share = np.broadcast_to((texel // period % 2)[None, :, None], (TEXTURE_SIZE, TEXTURE_SIZE, 1))
    elif pattern == 2:  # chequers
        cells = texel // rng.integers(4, 9)
        share = ((cells[:, None] + cells[None, :]) % 2)[..., None]
    elif pattern == 3:  # gradient
        share = np.broadcast_to((texel / (TEXTURE_SIZE - 1))[:, None, None], (TEXTURE_SIZE, TEXTURE_SIZE, 1))
    else:  # clouds
        share = _smooth_noise(rng, (TEXTURE_SIZE, TEXTURE_SIZE), int(rng.integers(3, 8)))
    return first + share * (second - first)


def _background(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int], images: Sequence[str | os.PathLike]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture that is larger than the frames, and the path of the window that the frames show.

    Returns:
        The picture, float of shape `(height, width, 3)`, and for each frame the top left corner of the window, int64 of
        shape `(num_frames, 2)` as y, x.
    """
    height, width = size
    full_height, full_width = int(height * 1.3) + 1, int(width * 1.3) + 1
    if images and rng.random() < 0.5:
        path = images[int(rng.integers(len(images)))]
        with Image.open(path) as photograph:
            scale = max(full_height / photograph.height, full_width / photograph.width)
            fitted = math.ceil(photograph.width * scale), math.ceil(photograph.height * scale)
            picture = np.asarray(photograph.convert("RGB").resize(fitted), dtype=np.float64)
        picture = picture[:full_height, :full_width]
    else:
        angle = rng.uniform(0, 2 * math.pi)
        down, right = np.linspace(-1, 1, full_height)[:, None], np.linspace(-1, 1, full_width)
        across = math.cos(angle) * right + math.sin(angle) * down
        first, second, third = _colour(rng), _colour(rng), _colour(rng)
        picture = first + (0.5 + 0.35 * across[..., None]) * (second - first)
        noise = _smooth_noise(rng, (full_height, full_width), int(rng.integers(3, 24)))
        picture += rng.uniform(0.1, 0.7) * noise * (third - picture)
        for _ in range(rng.integers(0, 6)):  # soft blobs as distractors without an outline
            centre_y, centre_x = rng.uniform(0, full_height), rng.uniform(0, full_width)
            spread = rng.uniform(0.08, 0.3) * height
            y, x = np.arange(full_height)[:, None] - centre_y, np.arange(full_width) - centre_x
            picture += 0.8 * np.exp(-(x**2 + y**2) / (2 * spread**2))[..., None] * (_colour(rng) - picture)
        picture += rng.normal(0, rng.uniform(0, 8), (full_height, full_width, 1))
    free = np.array([full_height - height, full_width - width])
    start, end = rng.random(2) * free, rng.random(2) * free
    share = np.linspace(0, 1, num_frames)[:, None]
    return picture, np.round(start + share * (end - start)).astype(np.int64)


def make_moving_shapes(
    output_dir: str | os.PathLike,
    num_train_videos: int = 200,
    num_valid_videos: int = 20,
    num_frames: int | tuple[int, int] = 16,
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
    categories: Sequence[str] | None = None,
    num_objects: tuple[int, int] = (1, 4),
    object_size: tuple[float, float] = (0.35, 0.75),
    typical_colours: float = 0.9,
    background_dir: str | os.PathLike | None = None,
    stride: int = 1,
    write_mp4: bool = False,
    fps: int = 12,
    progress: bool = False,
) -> Path:
    """Write a data set in the format of YouTube-VIS and return its folder.

    The folder holds `train.json`, `valid.json`, `JPEGImages/<video>/<00000>.jpg` (`file_names` are relative to
    `JPEGImages`), and with `write_mp4` also `videos/<video>.mp4`. It is written under a temporary name and renamed at
    the end, so it appears only when it is complete. Video n of a split does not depend on the number of videos.

    Args:
        output_dir: folder to write. It must not exist, or be empty.
        num_train_videos: number of videos of `train.json`.
        num_valid_videos: number of videos of `valid.json`.
        num_frames: length of every video, or shortest and longest length.
        size: height and width in pixels.
        seed: seed of the whole data set.
        categories: names from `SHAPES`; None takes all. Their ids are 1, 2, ... in this order.
        num_objects: fewest and most objects of a video.
        object_size: smallest and largest diameter, as a share of the short side of the frame.
        typical_colours: share of the objects that have the hue of their category, see [`generate_video`].
        background_dir: folder of photographs, searched recursively; half of the backgrounds are one of them.
        stride: step between the frames, see [`generate_video`].
        write_mp4: also write every video as mp4.
        fps: frame rate of the mp4 files.
        progress: show a progress bar over the videos.

    Raises:
        FileExistsError: `output_dir` exists and is not an empty folder.
        FileNotFoundError: `background_dir` holds no picture.
        ValueError: an argument is out of range, or a category is unknown.
    """
    output_dir = Path(output_dir).expanduser()
    shortest, longest = (num_frames, num_frames) if isinstance(num_frames, int) else num_frames
    if shortest > longest:
        raise ValueError(f"num_frames is {shortest, longest}; give (shortest, longest) with shortest <= longest.")
    categories = _check_arguments(shortest, size, categories, num_objects, object_size, typical_colours, stride)
    backgrounds = _find_images(background_dir)

    with complete_folder(output_dir) as folder:
        for split, (name, num_videos) in enumerate((("train", num_train_videos), ("valid", num_valid_videos))):
            annotation_file = _AnnotationFile(categories, {"generator": "moving_shapes", "split": name, "seed": seed})
            for index in progress_bar(range(num_videos), desc=f"moving shapes: {name}", disable=not progress):
                rng_key = (seed, split, index)
                length = int(np.random.default_rng((*rng_key, 0)).integers(shortest, longest + 1))
                video = generate_video(
                    length,
                    size,
                    (*rng_key, 1),
                    categories=categories,
                    num_objects=num_objects,
                    object_size=object_size,
                    typical_colours=typical_colours,
                    background_images=backgrounds,
                    stride=stride,
                )
                video_name = f"{name}_{index:05d}"
                _write_frames(video.frames, folder / "JPEGImages" / video_name)
                if write_mp4:
                    _write_mp4(video.frames, folder / "videos" / f"{video_name}.mp4", fps)
                annotation_file.add(video_name, video)
            write_json(folder / f"{name}.json", annotation_file.content)
    return output_dir


class _AnnotationFile:
    """Collects the content of a YouTube-VIS json, video by video."""

    def __init__(self, categories: list[str], info: dict) -> None:
        self.content: dict[str, Any] = {
            "info": info,
            "licenses": [],
            "videos": [],
            "categories": [
                {"id": index, "name": name, "supercategory": "shape"} for index, name in enumerate(categories, 1)
            ],
            "annotations": [],
        }
        self.category_ids = {name: index for index, name in enumerate(categories, 1)}

    def add(self, video_name: str, video: MovingShapesVideo) -> None:
        """Add one video and its annotations."""
        num_frames, height, width = video.frames.shape[:3]
        entry = {
            "id": len(self.content["videos"]) + 1,
            "width": width,
            "height": height,
            "length": num_frames,
            "file_names": [f"{video_name}/{frame:05d}.jpg" for frame in range(num_frames)],
        }
        self.content["videos"].append(entry)
        annotations = self.content["annotations"]
        for category, masks in zip(video.categories, video.masks, strict=True):
            segmentations = [encode_or_none(mask) for mask in masks]
            annotations.append(
                track_annotation(len(annotations) + 1, entry, self.category_ids[category], segmentations)
            )


def _find_images(folder: str | os.PathLike | None) -> list[Path]:
    """List the pictures below a folder."""
    if folder is None:
        return []
    images = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"No picture ({', '.join(IMAGE_SUFFIXES)}) found in background_dir {folder}.")
    return images


def _write_frames(frames: np.ndarray, folder: Path) -> None:
    """Write every frame as jpg."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.jpg", quality=92)


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write the frames as mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
