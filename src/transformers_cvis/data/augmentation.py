# SPDX-License-Identifier: Apache-2.0
"""Clip-consistent augmentation: one draw per clip, applied to the images, masks and boxes of its frames.

Sizes and rules are those of the released training code of Mask2Former-VIS (Cheng et al., 2021) and of VITA and GenVIS
(Heo et al., 2022, 2023). Images are resized by Pillow's antialiased bilinear filter, masks by the nearest pixel.
Polygons stay coordinates until the last step, so that no step costs them precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .. import rle
from ..processing import resized_size, scaled_size

PADDING_VALUE = 128  # of each channel, as in the released COCO pre-training


def _nearest(old_size: int, size: int) -> np.ndarray:
    """The old pixel that Pillow's nearest filter takes for each new one; like Pillow it adds up the positions."""
    positions = np.full(size, old_size / size)
    positions[0] /= 2
    return np.minimum(np.cumsum(positions).astype(np.int64), old_size - 1)


@dataclass(frozen=True)
class Resize:
    """From (old_height, old_width) to (height, width)."""

    old_height: int
    old_width: int
    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        if image.size == (self.width, self.height):
            return image
        return image.resize((self.width, self.height), Image.Resampling.BILINEAR)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        if masks.shape[1:] == (self.height, self.width):
            return masks
        rows, columns = _nearest(self.old_height, self.height), _nearest(self.old_width, self.width)
        return masks[:, :, columns][:, rows]  # columns first: decoded RLEs lie column by column

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes * np.tile(self._scale, 2)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        return points * self._scale

    @property
    def _scale(self) -> np.ndarray:
        return np.array([self.width / self.old_width, self.height / self.old_height])


@dataclass(frozen=True)
class Crop:
    """The window of (height, width) whose first row and column are `top` and `left`."""

    top: int
    left: int
    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))

    def masks(self, masks: np.ndarray) -> np.ndarray:
        return masks[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes - np.array([self.left, self.top, self.left, self.top])

    def polygon(self, points: np.ndarray) -> np.ndarray:
        return _clip_polygon(points - np.array([self.left, self.top]), self.height, self.width)


def _clip_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of a polygon inside a frame, by Sutherland and Hodgman (1974): one edge of the frame after the other.

    Parts that fall apart stay joined by lines along the edge, which enclose nothing.
    """
    for axis, edge, inward in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        distance = inward * (points[:, axis] - edge)
        inside = distance >= 0
        crossing = inside != np.roll(inside, -1)
        if not crossing.any():
            if not inside.any():
                return points[:0]
            continue
        change = np.where(crossing, distance - np.roll(distance, -1), 1.0)
        crossings = points + (distance / change)[:, None] * (np.roll(points, -1, axis=0) - points)
        kept = np.stack([inside, crossing], axis=1)  # each point, and where the line that starts there meets the edge
        points = np.stack([points, crossings], axis=1)[kept]
    return points


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror a frame of `width` pixels left to right."""

    width: int

    def image(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        return masks[:, :, ::-1]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return np.stack([self.width - boxes[:, 2], boxes[:, 1], self.width - boxes[:, 0], boxes[:, 3]], axis=1)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        return np.stack([self.width - points[:, 0], points[:, 1]], axis=1)


@dataclass(frozen=True)
class Pad:
    """Grey below and right of the frame, up to (height, width)."""

    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        padded = Image.new("RGB", (self.width, self.height), (PADDING_VALUE,) * 3)
        padded.paste(image)
        return padded

    def masks(self, masks: np.ndarray) -> np.ndarray:
        return np.pad(masks, ((0, 0), (0, self.height - masks.shape[1]), (0, self.width - masks.shape[2])))

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes

    def polygon(self, points: np.ndarray) -> np.ndarray:
        return points


@dataclass(frozen=True)
class Rotation:
    """By `angle` degrees counter-clockwise around `centre`, x and y in pixels; the frame keeps its size, its corners
    turn black.
    """

    angle: float
    centre: tuple[float, float]

    def image(self, image: Image.Image) -> Image.Image:
        return image.rotate(self.angle, Image.Resampling.BILINEAR, center=self.centre)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        rotated = np.empty_like(masks)
        for mask, result in zip(masks, rotated, strict=True):
            image = Image.fromarray(mask.astype(np.uint8))
            result[:] = np.asarray(image.rotate(self.angle, Image.Resampling.NEAREST, center=self.centre))
        return rotated

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        corners = self.polygon(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        cosine, sine = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        return (points - self.centre) @ np.array([[cosine, -sine], [sine, cosine]]) + self.centre


Step = Resize | Crop | HorizontalFlip | Pad | Rotation


@dataclass(frozen=True)
class FrameTransform:
    """The steps that one frame of a clip goes through; `height` and `width` are those of the result."""

    steps: tuple[Step, ...]
    height: int
    width: int

    def image(self, image: Image.Image) -> np.ndarray:
        """RGB image -> uint8 (height, width, 3)."""
        for step in self.steps:
            image = step.image(image)
        return np.asarray(image)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """(num_masks, old height, old width) -> (num_masks, height, width)."""
        for step in self.steps:
            masks = step.masks(masks)
        return masks

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(num_boxes, 4) float, x1 y1 x2 y2 in pixels -> the same, clipped to the image."""
        for step in self.steps:
            boxes = step.boxes(boxes)
        return boxes.clip(0, np.array([self.width, self.height, self.width, self.height]))

    def polygon_mask(self, polygons: Sequence[Sequence[float]]) -> np.ndarray:
        """Polygons of one object, each x1, y1, x2, y2, ... in pixels -> bool (height, width)."""
        transformed = []
        for polygon in polygons:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
            for step in self.steps:
                points = step.polygon(points)
            if len(points) >= 3:
                transformed.append(points.ravel().tolist())
        if not transformed:
            return np.zeros((self.height, self.width), dtype=bool)
        return rle.decode(rle.from_polygons(transformed, (self.height, self.width)))


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a probability between 0 and 1.")


def _check_short_sides(short_sides: Sequence[int]) -> None:
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"short_sides is {short_sides}; give at least one positive number of pixels.")


@dataclass(frozen=True)
class RandomCropPath:
    """Crop a window that moves on a straight line through the clip, after a resize of its own."""

    probability: float = field(default=0.5, metadata={"help": "Probability that a clip is cropped, 0 to 1."})
    short_sides: tuple[int, ...] = field(
        default=(400, 500, 600),
        metadata={"help": "Short sides, in pixels, to one of which the clip is resized before the crop."},
    )
    max_size: int = field(default=1333, metadata={"help": "Limit of the long side in that resize, in pixels."})
    window: tuple[int, int] = field(
        default=(384, 600),
        metadata={
            "help": "Smallest and largest side of the window, in pixels: each side is an integer uniform in "
            "[min(side, smallest), min(side, largest)]."
        },
    )

    def __post_init__(self):
        _check_probability("probability", self.probability)
        _check_short_sides(self.short_sides)
        if not 1 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window is {self.window}; give (smallest, largest) with 1 <= smallest <= largest.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[Crop]:
        """One crop per frame, all of one size."""
        smallest, largest = self.window
        crop_height = int(rng.integers(min(height, smallest), min(height, largest) + 1))
        crop_width = int(rng.integers(min(width, smallest), min(width, largest) + 1))
        free = np.array([height - crop_height, width - crop_width])
        first = rng.integers(0, free + 1)
        second = rng.integers(first, free + 1)
        shares = np.sort(rng.random(num_frames))[:, None]
        if rng.random() < 0.5:
            shares = shares[::-1]
        corners = np.round(shares * first + (1 - shares) * second).astype(int)
        return [Crop(int(top), int(left), crop_height, crop_width) for top, left in corners]


@dataclass(frozen=True)
class ClipAugmentation:
    """Random crop path, then resize to a short side drawn per clip, then flip per clip. The defaults are VITA's and
    GenVIS's.
    """

    short_sides: tuple[int, ...] = field(
        default=(288, 320, 352, 384, 416, 448, 480, 512),
        metadata={"help": "Short sides, in pixels; a clip is resized to one of them."},
    )
    max_size: int = field(default=768, metadata={"help": "Limit of the long side in that resize, in pixels."})
    flip_probability: float = field(default=0.5, metadata={"help": "Probability that a clip is mirrored, 0 to 1."})
    crop: RandomCropPath | None = field(
        default=RandomCropPath(),
        metadata={"help": "Crop before the resize, a mapping of the fields below; null leaves the whole frame."},
    )

    def __post_init__(self):
        if isinstance(self.crop, Mapping):
            object.__setattr__(self, "crop", RandomCropPath(**self.crop))
        _check_probability("flip_probability", self.flip_probability)
        _check_short_sides(self.short_sides)

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """One transform per frame for a clip of frames of (height, width); all results have one size."""
        steps: list[list[Step]] = [[] for _ in range(num_frames)]
        if self.crop is not None and rng.random() < self.crop.probability:
            resize = resize_short_side(height, width, rng.choice(self.crop.short_sides), self.crop.max_size)
            crops = self.crop.draw(resize.height, resize.width, num_frames, rng)
            for frame_steps, crop in zip(steps, crops, strict=True):
                frame_steps += [resize, crop]
            height, width = crops[0].height, crops[0].width
        resize = resize_short_side(height, width, rng.choice(self.short_sides), self.max_size)
        flip = rng.random() < self.flip_probability
        for frame_steps in steps:
            frame_steps.append(resize)
            if flip:
                frame_steps.append(HorizontalFlip(resize.width))
        return [FrameTransform(tuple(frame_steps), resize.height, resize.width) for frame_steps in steps]


@dataclass(frozen=True)
class LargeScaleJitter:
    """Flip, resize by a scale drawn widely, crop and pad to a square: the augmentation of COCO pre-training (Ghiasi et
    al., "Simple Copy-Paste", 2021, as Mask2Former uses it).
    """

    size: int = field(
        default=1024, metadata={"help": "Side of the square that every frame is cropped and padded to, in pixels."}
    )
    scale: tuple[float, float] = field(
        default=(0.1, 2.0),
        metadata={
            "help": "Smallest and largest scale: the long side becomes `size` times a number uniform in between."
        },
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability that a clip is mirrored, 0 to 1."})

    def __post_init__(self):
        _check_probability("flip_probability", self.flip_probability)
        if self.size < 1:
            raise ValueError(f"size is {self.size}; give a positive number of pixels.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; give (smallest, largest) with 0 < smallest <= largest.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """One transform for a frame of (height, width), `num_frames` times."""
        flip = [HorizontalFlip(width)] if rng.random() < self.flip_probability else []
        scale = self.size * rng.uniform(*self.scale) / max(height, width)
        resize = Resize(height, width, *scaled_size(height, width, scale))
        crop_height, crop_width = min(resize.height, self.size), min(resize.width, self.size)
        share = rng.random()  # one for both sides, as released
        top, left = (round(share * free) for free in (resize.height - crop_height, resize.width - crop_width))
        steps = (*flip, resize, Crop(top, left, crop_height, crop_width), Pad(self.size, self.size))
        return [FrameTransform(steps, self.size, self.size)] * num_frames


@dataclass(frozen=True)
class RandomRotation:
    """Rotate the frames of a clip one way, each a little further."""

    max_angle: float = field(
        default=15.0,
        metadata={
            "help": "Largest angle, in degrees: the angles of a clip are sorted numbers uniform in "
            "[-max_angle, max_angle]."
        },
    )
    centre: tuple[float, float] = field(
        default=(0.4, 0.6),
        metadata={
            "help": "Smallest and largest x and y of the centre, relative to width and height; drawn once per clip."
        },
    )

    def __post_init__(self):
        if self.max_angle < 0:
            raise ValueError(f"max_angle is {self.max_angle}; give a number of degrees, 0 or more.")
        if not 0 <= self.centre[0] <= self.centre[1] <= 1:
            raise ValueError(f"centre is {self.centre}; give (smallest, largest) with 0 <= smallest <= largest <= 1.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[Rotation]:
        """One rotation per frame, around one centre."""
        angles = np.sort(rng.uniform(-self.max_angle, self.max_angle, num_frames))
        if rng.random() < 0.5:
            angles = angles[::-1]
        x, y = rng.uniform(*self.centre, 2) * (width, height)
        return [Rotation(float(angle), (float(x), float(y))) for angle in angles]


@dataclass(frozen=True)
class PseudoVideoAugmentation:
    """What makes a clip out of copies of one image: an augmentation, then a rotation of each frame. The defaults are
    VITA's and GenVIS's.

    Attributes:
        augmentation: drawn once per clip; its crop path moves the window from frame to frame.
        rotation: comes last, always.
    """

    augmentation: ClipAugmentation | LargeScaleJitter = ClipAugmentation()
    rotation: RandomRotation = RandomRotation()

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """One transform per frame for a clip of frames of (height, width); all results have one size."""
        transforms = self.augmentation.draw(height, width, num_frames, rng)
        height, width = transforms[0].height, transforms[0].width
        rotations = self.rotation.draw(height, width, num_frames, rng)
        return [
            FrameTransform((*transform.steps, rotation), height, width)
            for transform, rotation in zip(transforms, rotations, strict=True)
        ]


def mask2former_augmentation(
    short_sides: Sequence[int] = (360, 480), max_size: int = 1333, flip_probability: float = 0.5
) -> ClipAugmentation:
    """Training augmentation of Mask2Former-VIS and MinVIS: two short sides, flip."""
    return ClipAugmentation(tuple(short_sides), max_size, flip_probability, crop=None)


def evaluation_resize(short_side: int = 360, max_size: int = 1333) -> ClipAugmentation:
    """The resize at test time; nothing random."""
    return ClipAugmentation((short_side,), max_size, flip_probability=0.0, crop=None)


def resize_short_side(height: int, width: int, short_side: int, max_size: int) -> Resize:
    """Return the resize of a frame by its short side, the same as that of the video processor.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        short_side: length of the short side after the resize, pixels.
        max_size: limit of the long side; where the long side would exceed it, it decides instead.
    """
    return Resize(height, width, *resized_size(height, width, short_side, max_size))
