# SPDX-License-Identifier: Apache-2.0
"""A seeded generator of video instance segmentation data: textured shapes that move, overlap, leave and come back.

Every shape is a signed distance function of its own coordinates, in which it fits the unit disk or a little more. A
frame places it by an affine map; image and mask are both read from the signed distance, so masks are exact: a pixel
belongs to a shape if its centre lies inside, and to the nearest of the shapes that cover it.
"""

import colorsys
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import complete_folder, write_json
from ..logs import progress_bar
from ..messages import check_at_least
from ..processing import VideoWriter
from ..rle import encode_or_none
from ..ytvis_json import track_annotation

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LOCAL_EXTENT = 1.2  # every shape lies within [-1.2, 1.2]^2 of its own coordinates
TEXTURE_SIZE = 32  # texels a side, over [-1.2, 1.2]^2


# ---------------------------------------------------------------- shapes


def _polygon(vertices: Sequence[tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Signed distance (negative inside, even-odd rule) to a closed polygon with `vertices` (num_vertices, 2) as xy."""
    starts = np.asarray(vertices, dtype=np.float64)
    ends = np.roll(starts, -1, axis=0)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full(x.shape, np.inf)
        inside = np.zeros(x.shape, dtype=bool)
        for (start_x, start_y), (end_x, end_y) in zip(starts, ends, strict=True):
            edge_x, edge_y = end_x - start_x, end_y - start_y
            from_x, from_y = x - start_x, y - start_y
            along = np.clip((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
            nearest = np.minimum(nearest, (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2)
            if edge_y:
                # compared with the vertices themselves, so that neighbouring edges agree on a point level with one
                crosses = (y >= start_y) != (y >= end_y)
                inside ^= crosses & (from_x < from_y * (edge_x / edge_y))
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def _star_vertices(num_points: int, inner_radius: float) -> list[tuple[float, float]]:
    angles = np.arange(2 * num_points) * math.pi / num_points
    radii = np.where(np.arange(2 * num_points) % 2, inner_radius, 1.0)
    return list(zip(radii * np.sin(angles), -radii * np.cos(angles), strict=True))


def _heart_vertices(num_vertices: int = 28) -> list[tuple[float, float]]:
    t = np.arange(num_vertices) * 2 * math.pi / num_vertices
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip(x / 16, -(y + 2.5) / 16, strict=True))


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return half + [(-x, y) for x, y in reversed(half)]


SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": _polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": _polygon([(0, -1.1), (1.0, 0.7), (-1.0, 0.7)]),
    "star": _polygon(_star_vertices(5, 0.42)),
    "cross": _polygon(_mirrored([(0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1)])),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.26,
    "heart": _polygon(_heart_vertices()),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.55, y)),
    "arrow": _polygon([(0, -1.1), *_mirrored([(0.85, -0.1), (0.32, -0.1), (0.32, 1.0)])]),
    "hourglass": _polygon(_mirrored([(0.8, -1.0), (0.12, 0.0), (0.8, 1.0)])),
}


# ---------------------------------------------------------------- one video


@dataclass
class MovingShapesVideo:
    """One generated video with its ground truth.

    frames: uint8 RGB `(num_frames, height, width, 3)`. masks: bool `(num_instances, num_frames, height, width)`, the
    visible pixels of each instance; masks of one frame are disjoint. categories: one name per instance.
    """

    frames: np.ndarray
    masks: np.ndarray
    categories: list[str]


@dataclass
class _MovingShape:
    """A shape on its way: `placement(frame)` gives its affine map from own coordinates to pixels."""

    category: str
    texture: np.ndarray  # (TEXTURE_SIZE, TEXTURE_SIZE, 3) float, 0..255
    centres: np.ndarray  # (num_frames, 2) xy, pixels
    linear_maps: np.ndarray  # (num_frames, 2, 2) own coordinates -> pixels

    def footprint(self, frame: int, size: tuple[int, int]):
        """The window of the frame that can hold the shape, and in it own coordinates and signed distance in pixels."""
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
        return (slice(top, bottom), slice(left, right)), x, y, SHAPES[self.category](x, y) * pixels_per_unit

    def colours(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
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
        size: (height, width) in pixels.
        seed: a seed or a sequence of them, as `numpy.random.default_rng` takes.
        categories: names out of `SHAPES`, all of them if None.
        num_objects: fewest and most objects placed. An object that is never visible is left out of the result.
        object_size: smallest and largest diameter, as a share of the short side of the frame.
        typical_colours: share of the objects that wear the hue of their category, a value in 0..1; the others have any
            colour, and only their outline tells them apart. The lower, the more training it takes.
        background_images: paths; a background is one of them half of the time. None: procedural backgrounds only.
        stride: every so many frames of a video that is so many times as long: a lower frame rate.

    Raises:
        ValueError: an argument out of range or an unknown category.
    """
    categories = _check_arguments(num_frames, size, categories, num_objects, object_size, typical_colours, stride)
    rng = np.random.default_rng(seed)
    background, background_offsets = _background(rng, num_frames * stride, size, background_images)
    mean_colour = background.reshape(-1, 3).mean(0)
    shapes: list[_MovingShape] = []
    for _ in range(rng.integers(num_objects[0], num_objects[1] + 1)):
        repeat_class = shapes and rng.random() < 0.35  # instances of one class are the hard case of tracking
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
        for index, shape in enumerate(shapes):  # from the farthest to the nearest
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


def _check_arguments(num_frames, size, categories, num_objects, object_size, typical_colours, stride) -> list[str]:
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
        raise ValueError(f"categories is {categories}; give different names out of {list(SHAPES)}.")
    return categories


def _motion(rng: np.random.Generator, num_frames: int, size: tuple[int, int], object_size: tuple[float, float]):
    """Centres (num_frames, 2) xy and linear maps (num_frames, 2, 2) of one object."""
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
    else:  # straight on, reflected where half of it would be gone
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
    hue, saturation, value = rng.random(), rng.uniform(0.1, 1.0), rng.uniform(0.15, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def _typical_colour(rng: np.random.Generator, category: str) -> np.ndarray:
    """A strong colour around the hue of the category; the hues of all categories lie evenly on the circle."""
    hue = list(SHAPES).index(category) / len(SHAPES) + rng.normal(0, 0.01)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0))) * 255


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """(height, width, 1) float in 0..1, varying over about `cells` patches a side."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))[..., None].clip(0, 1)


def _texture(
    rng: np.random.Generator, background_colour: np.ndarray, category: str, typical_colours: float
) -> np.ndarray:
    """Two colours in one of five patterns, the first colour well away from the background's."""
    typical = rng.random() < typical_colours
    for _ in range(8):
        first = _typical_colour(rng, category) if typical else _colour(rng)
        if np.abs(first - background_colour).sum() > 150:
            break
    if typical:
        second = np.clip(first * rng.uniform(0.4, 1.6), 0, 255)  # lighter or darker, of the same hue
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
        share = _smooth_noise(rng, (TEXTURE_SIZE, TEXTURE_SIZE), rng.integers(3, 8))
    return first + share * (second - first)


def _background(rng: np.random.Generator, num_frames: int, size: tuple[int, int], images: Sequence[str | os.PathLike]):
    """A picture larger than the frame, float (height, width, 3), and per frame the top left corner (y, x) to cut at."""
    height, width = size
    full_height, full_width = int(height * 1.3) + 1, int(width * 1.3) + 1
    if images and rng.random() < 0.5:
        path = images[rng.integers(len(images))]
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
        noise = _smooth_noise(rng, (full_height, full_width), rng.integers(3, 24))
        picture += rng.uniform(0.1, 0.7) * noise * (third - picture)
        for _ in range(rng.integers(0, 6)):  # soft blobs: distractors without an outline
            centre_y, centre_x = rng.uniform(0, full_height), rng.uniform(0, full_width)
            spread = rng.uniform(0.08, 0.3) * height
            y, x = np.arange(full_height)[:, None] - centre_y, np.arange(full_width) - centre_x
            picture += 0.8 * np.exp(-(x**2 + y**2) / (2 * spread**2))[..., None] * (_colour(rng) - picture)
        picture += rng.normal(0, rng.uniform(0, 8), (full_height, full_width, 1))
    free = np.array([full_height - height, full_width - width])
    start, end = rng.random(2) * free, rng.random(2) * free
    share = np.linspace(0, 1, num_frames)[:, None]
    return picture, np.round(start + share * (end - start)).astype(np.int64)


# ---------------------------------------------------------------- a data set


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

    The folder gets `train.json`, `valid.json` and `JPEGImages/<video>/<00000>.jpg` (`file_names` are relative to
    `JPEGImages`), and with `write_mp4` also `videos/<video>.mp4`. It is written under a temporary name and renamed at
    the end, so a folder that exists is whole. Video n of a split is the same whatever the number of videos.

    Args:
        output_dir: must not exist yet, or be empty.
        num_frames: the length of every video, or (shortest, longest).
        size, categories, num_objects, object_size, typical_colours, stride: as for `generate_video`. Category ids are
            1, 2, ... in this order.
        background_dir: a folder of photographs (searched recursively) that half of the videos get as background.
        fps: frame rate of the mp4 files.

    Raises:
        FileExistsError: `output_dir` holds something already.
        FileNotFoundError: no picture in `background_dir`.
        ValueError: as `generate_video`.
    """
    output_dir = Path(output_dir).expanduser()
    lengths = (num_frames, num_frames) if isinstance(num_frames, int) else tuple(num_frames)
    if lengths[0] > lengths[1]:
        raise ValueError(f"num_frames is {lengths}; give (shortest, longest) with shortest <= longest.")
    categories = _check_arguments(lengths[0], size, categories, num_objects, object_size, typical_colours, stride)
    backgrounds = _find_images(background_dir)

    with complete_folder(output_dir) as folder:
        for split, (name, num_videos) in enumerate((("train", num_train_videos), ("valid", num_valid_videos))):
            annotation_file = _AnnotationFile(categories, {"generator": "moving_shapes", "split": name, "seed": seed})
            for index in progress_bar(range(num_videos), desc=f"moving shapes: {name}", disable=not progress):
                rng_key = (seed, split, index)
                length = int(np.random.default_rng((*rng_key, 0)).integers(lengths[0], lengths[1] + 1))
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
    """The content of a YouTube-VIS json, video by video."""

    def __init__(self, categories: list[str], info: dict):
        self.content = {
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
    if folder is None:
        return []
    images = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"No picture ({', '.join(IMAGE_SUFFIXES)}) in background_dir {folder}.")
    return images


def _write_frames(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.jpg", quality=92)


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
