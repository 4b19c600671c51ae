"""Clip-consistent augmentation: one draw per clip, applied to the images, masks and boxes of its frames.

Sizes and rules are those of the released training code of Mask2Former-VIS (Cheng et al., 2021) and of VITA and GenVIS
(Heo et al., 2022, 2023). Images are resized by Pillow's antialiased bilinear filter, masks by the nearest pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


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
        horizontal, vertical = self.width / self.old_width, self.height / self.old_height
        return boxes * np.array([horizontal, vertical, horizontal, vertical])


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


Step = Resize | Crop | HorizontalFlip


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


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a probability between 0 and 1.")


def _check_short_sides(short_sides: Sequence[int]) -> None:
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"short_sides is {short_sides}; give at least one positive number of pixels.")


@dataclass(frozen=True)
class RandomCropPath:
    """Crop a window that moves on a straight line through the clip, after a resize of its own.

    Attributes:
        probability: of doing it at all, per clip.
        short_sides: the short side (pixels) is resized to one of these before the crop.
        max_size: limit of the long side in that resize.
        window: each side of the window is an integer uniform in [min(side, window[0]), min(side, window[1])].
    """

    probability: float = 0.5
    short_sides: tuple[int, ...] = (400, 500, 600)
    max_size: int = 1333
    window: tuple[int, int] = (384, 600)

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

    Attributes:
        short_sides: pixels; one is drawn per clip.
        max_size: limit of the long side, pixels.
        flip_probability: of mirroring the clip.
        crop: None leaves the whole frame; a mapping is taken as the fields of `RandomCropPath`.
    """

    short_sides: tuple[int, ...] = (288, 320, 352, 384, 416, 448, 480, 512)
    max_size: int = 768
    flip_probability: float = 0.5
    crop: RandomCropPath | None = RandomCropPath()

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


def mask2former_augmentation(
    short_sides: Sequence[int] = (360, 480), max_size: int = 1333, flip_probability: float = 0.5
) -> ClipAugmentation:
    """Training augmentation of Mask2Former-VIS and MinVIS: two short sides, flip."""
    return ClipAugmentation(tuple(short_sides), max_size, flip_probability, crop=None)


def evaluation_resize(short_side: int = 360, max_size: int = 1333) -> ClipAugmentation:
    """The resize at test time; nothing random."""
    return ClipAugmentation((short_side,), max_size, flip_probability=0.0, crop=None)


def resize_short_side(height: int, width: int, short_side: int, max_size: int) -> Resize:
    """The resize that brings the short side to `short_side`, or the long side to `max_size` if it would exceed it."""
    scale = min(short_side / min(height, width), max_size / max(height, width))
    return Resize(height, width, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
