# SPDX-License-Identifier: Apache-2.0
"""Clip-consistent augmentation: one draw per clip, applied to the images, masks and boxes of its frames.

Sizes and rules follow the released training code of Mask2Former-VIS (Cheng et al., 2021) and of VITA and GenVIS
(Heo et al., 2022, 2023). Images are resized with Pillow's antialiased bilinear filter, masks with the nearest pixel.
Polygons stay coordinates until the last step, so that no step costs them precision.

Each step of a transform has the same four methods:

- `image` takes and returns an RGB image;
- `masks` takes and returns bool masks of shape `(num_masks, height, width)`;
- `boxes` takes and returns float boxes of shape `(num_boxes, 4)`, as x1, y1, x2, y2 in pixels;
- `polygon` takes and returns the corners of a polygon, float of shape `(num_points, 2)`, as x, y in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .. import rle
from ..messages import check_at_least
from ..processing import resized_size, scaled_size

PADDING_VALUE = 128  # of each channel, as in the released COCO pre-training


def _nearest(old_size: int, size: int) -> np.ndarray:
    """Return the old pixel that Pillow's nearest filter reads for each new pixel, int64 of shape `(size,)`.

    The positions are summed up as Pillow does, so that rounding agrees.
    """
    positions = np.full(size, old_size / size)
    positions[0] /= 2
    return np.minimum(np.cumsum(positions).astype(np.int64), old_size - 1)


@dataclass(frozen=True)
class Resize:
    """Resize a frame from `(old_height, old_width)` to `(height, width)`."""

    old_height: int
    old_width: int
    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        """Resize with the antialiased bilinear filter."""
        if image.size == (self.width, self.height):
            return image
        return image.resize((self.width, self.height), Image.Resampling.BILINEAR)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Resize by picking the nearest pixels."""
        if masks.shape[1:] == (self.height, self.width):
            return masks
        rows, columns = _nearest(self.old_height, self.height), _nearest(self.old_width, self.width)
        return masks[:, :, columns][:, rows]  # columns first: decoded RLEs are column-major in memory

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Scale the corners."""
        return boxes * np.tile(self._scale, 2)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Scale the points."""
        return points * self._scale

    @property
    def _scale(self) -> np.ndarray:
        return np.array([self.width / self.old_width, self.height / self.old_height])


@dataclass(frozen=True)
class Crop:
    """Cut out a window of `(height, width)` that starts at row `top` and column `left`."""

    top: int
    left: int
    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        """Cut out the window."""
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Cut out the window."""
        return masks[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Move the corners to the coordinates of the window, without clipping."""
        return boxes - np.array([self.left, self.top, self.left, self.top])

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Move the points to the coordinates of the window and clip the polygon to it."""
        return _clip_polygon(points - np.array([self.left, self.top]), self.height, self.width)


def _clip_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip a polygon to a frame, one edge of the frame after the other (Sutherland and Hodgman, 1974).

    If the polygon falls into several parts, lines along the edge keep them joined; these lines enclose no area.
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
        kept = np.stack([inside, crossing], axis=1)  # each point, and where its line to the next point crosses the edge
        points = np.stack([points, crossings], axis=1)[kept]
    return points


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror a frame of `width` pixels left to right."""

    width: int

    def image(self, image: Image.Image) -> Image.Image:
        """Mirror the image."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Mirror the masks."""
        return masks[:, :, ::-1]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Mirror the boxes; left and right corners change places."""
        return np.stack([self.width - boxes[:, 2], boxes[:, 1], self.width - boxes[:, 0], boxes[:, 3]], axis=1)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Mirror the points."""
        return np.stack([self.width - points[:, 0], points[:, 1]], axis=1)


@dataclass(frozen=True)
class Pad:
    """Pad a frame below and on the right with grey, up to `(height, width)`."""

    height: int
    width: int

    def image(self, image: Image.Image) -> Image.Image:
        """Pad with `PADDING_VALUE`."""
        padded = Image.new("RGB", (self.width, self.height), (PADDING_VALUE,) * 3)
        padded.paste(image)
        return padded

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Pad with False."""
        return np.pad(masks, ((0, 0), (0, self.height - masks.shape[1]), (0, self.width - masks.shape[2])))

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return the boxes unchanged."""
        return boxes

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Return the points unchanged."""
        return points


@dataclass(frozen=True)
class Rotation:
    """Rotate a frame by `angle` degrees counter-clockwise around `centre`, x and y in pixels.

    The frame keeps its size; the areas without image content become black.
    """

    angle: float
    centre: tuple[float, float]

    def image(self, image: Image.Image) -> Image.Image:
        """Rotate with the bilinear filter."""
        return image.rotate(self.angle, Image.Resampling.BILINEAR, center=self.centre)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Rotate by picking the nearest pixels."""
        rotated = np.empty_like(masks)
        for mask, result in zip(masks, rotated, strict=True):
            image = Image.fromarray(mask.astype(np.uint8))
            result[:] = np.asarray(image.rotate(self.angle, Image.Resampling.NEAREST, center=self.centre))
        return rotated

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return the boxes around the rotated boxes."""
        corners = self.polygon(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """Rotate the points."""
        cosine, sine = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        return (points - self.centre) @ np.array([[cosine, -sine], [sine, cosine]]) + self.centre


Step = Resize | Crop | HorizontalFlip | Pad | Rotation


@dataclass(frozen=True)
class FrameTransform:
    """Steps for one frame of a clip, applied in order.

    Attributes:
        steps: the steps.
        height: height of the result in pixels.
        width: width of the result in pixels.
    """

    steps: tuple[Step, ...]
    height: int
    width: int

    def image(self, image: Image.Image) -> np.ndarray:
        """Transform an RGB image and return it as uint8 of shape `(height, width, 3)`."""
        for step in self.steps:
            image = step.image(image)
        return np.asarray(image)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Transform bool masks of the original frame; return them with shape `(num_masks, height, width)`."""
        for step in self.steps:
            masks = step.masks(masks)
        return masks

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Transform boxes and clip them to the image: float of shape `(num_boxes, 4)`, as x1, y1, x2, y2 in pixels."""
        for step in self.steps:
            boxes = step.boxes(boxes)
        return boxes.clip(0, np.array([self.width, self.height, self.width, self.height]))

    def polygon_mask(self, polygons: Sequence[Sequence[float]]) -> np.ndarray:
        """Transform the polygons of one object and draw them as a mask.

        Args:
            polygons: corners of each polygon in the original frame, `[x1, y1, x2, y2, ...]` in pixels.

        Returns:
            bool of shape `(height, width)`.
        """
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
    """Refuse a value outside 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a probability between 0 and 1.")


def _check_short_sides(short_sides: Sequence[int]) -> None:
    """Refuse an empty list and lengths below 1."""
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"short_sides is {short_sides}; give at least one positive number of pixels.")


@dataclass(frozen=True)
class RandomCropPath:
    """Resize a clip, then crop a window that moves on a straight line from frame to frame."""

    probability: float = field(default=0.5, metadata={"help": "Probability that a clip is cropped, 0 to 1."})
    short_sides: tuple[int, ...] = field(
        default=(400, 500, 600),
        metadata={"help": "Short sides in pixels; before the crop, the clip is resized to one of them."},
    )
    max_size: int = field(default=1333, metadata={"help": "Limit of the long side in that resize, in pixels."})
    window: tuple[int, int] = field(
        default=(384, 600),
        metadata={
            "help": "Smallest and largest side of the window in pixels; each side is an integer uniform in "
            "[min(side, smallest), min(side, largest)]."
        },
    )

    def __post_init__(self) -> None:
        _check_probability("probability", self.probability)
        _check_short_sides(self.short_sides)
        if not 1 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window is {self.window}; give (smallest, largest) with 1 <= smallest <= largest.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[Crop]:
        """Draw one crop per frame, all of one size."""
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
    """Random crop path, then a resize and a flip that are drawn once per clip.

    The defaults are those of VITA and GenVIS.
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

    def __post_init__(self) -> None:
        if isinstance(self.crop, Mapping):
            object.__setattr__(self, "crop", RandomCropPath(**self.crop))  # the class is frozen
        _check_probability("flip_probability", self.flip_probability)
        _check_short_sides(self.short_sides)

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """Draw one transform per frame for a clip of frames of `(height, width)`; all results have one size."""
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
    """Flip, resize by a scale from a wide range, then crop and pad to a square.

    This is the augmentation of COCO pre-training (Ghiasi et al., "Simple Copy-Paste", 2021), as Mask2Former uses it.
    """

    size: int = field(
        default=1024, metadata={"help": "Side of the square that every frame is cropped and padded to, in pixels."}
    )
    scale: tuple[float, float] = field(
        default=(0.1, 2.0),
        metadata={
            "help": "Smallest and largest scale; the long side becomes `size` times a number uniform between them."
        },
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability that a clip is mirrored, 0 to 1."})

    def __post_init__(self) -> None:
        _check_probability("flip_probability", self.flip_probability)
        check_at_least("size", self.size, 1, "pixel")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; give (smallest, largest) with 0 < smallest <= largest.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """Draw one transform for a frame of `(height, width)` and return it `num_frames` times."""
        flip: list[Step] = [HorizontalFlip(width)] if rng.random() < self.flip_probability else []
        scale = self.size * rng.uniform(*self.scale) / max(height, width)
        resize = Resize(height, width, *scaled_size(height, width, scale))
        crop_height, crop_width = min(resize.height, self.size), min(resize.width, self.size)
        share = rng.random()  # one for both sides, as in the released code
        top, left = (round(share * free) for free in (resize.height - crop_height, resize.width - crop_width))
        steps: tuple[Step, ...] = (*flip, resize, Crop(top, left, crop_height, crop_width), Pad(self.size, self.size))
        return [FrameTransform(steps, self.size, self.size)] * num_frames


@dataclass(frozen=True)
class RandomRotation:
    """Rotate the frames of a clip in one direction, each a little further than the one before."""

    max_angle: float = field(
        default=15.0,
        metadata={
            "help": "Largest angle in degrees; the angles of a clip are sorted numbers uniform in "
            "[-max_angle, max_angle]."
        },
    )
    centre: tuple[float, float] = field(
        default=(0.4, 0.6),
        metadata={
            "help": "Smallest and largest x and y of the centre, relative to width and height; drawn once per clip."
        },
    )

    def __post_init__(self) -> None:
        check_at_least("max_angle", self.max_angle, 0, "degrees")
        if not 0 <= self.centre[0] <= self.centre[1] <= 1:
            raise ValueError(f"centre is {self.centre}; give (smallest, largest) with 0 <= smallest <= largest <= 1.")

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[Rotation]:
        """Draw one rotation per frame, all around one centre."""
        angles = np.sort(rng.uniform(-self.max_angle, self.max_angle, num_frames))
        if rng.random() < 0.5:
            angles = angles[::-1]
        x, y = rng.uniform(*self.centre, 2) * (width, height)
        return [Rotation(float(angle), (float(x), float(y))) for angle in angles]


@dataclass(frozen=True)
class PseudoVideoAugmentation:
    """Turn copies of one image into a clip: an augmentation, then a rotation of each frame.

    The defaults are those of VITA and GenVIS.

    Attributes:
        augmentation: drawn once per clip; its crop path moves the window from frame to frame.
        rotation: rotates every clip, after the augmentation.
    """

    augmentation: ClipAugmentation | LargeScaleJitter = ClipAugmentation()
    rotation: RandomRotation = RandomRotation()

    def draw(self, height: int, width: int, num_frames: int, rng: np.random.Generator) -> list[FrameTransform]:
        """Draw one transform per frame for a clip of frames of `(height, width)`; all results have one size."""
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
    """Return the training augmentation of Mask2Former-VIS and MinVIS: a random resize and a random flip."""
    return ClipAugmentation(tuple(short_sides), max_size, flip_probability, crop=None)


def evaluation_resize(short_side: int = 360, max_size: int = 1333) -> ClipAugmentation:
    """Return the resize that is used at test time; nothing in it is random."""
    return ClipAugmentation((short_side,), max_size, flip_probability=0.0, crop=None)


def resize_short_side(height: int, width: int, short_side: int, max_size: int) -> Resize:
    """Return the resize of a frame by its short side, as the video processor computes it.

    Args:
        height: height of the frame in pixels.
        width: width of the frame in pixels.
        short_side: length of the short side after the resize, in pixels.
        max_size: limit of the long side in pixels; the short side becomes shorter where the long one would exceed it.
    """
    return Resize(height, width, *resized_size(height, width, short_side, max_size))
