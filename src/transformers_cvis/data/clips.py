# SPDX-License-Identifier: Apache-2.0
"""Sample clips from annotated videos and images, decode them with their targets, and batch them."""

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..messages import check_at_least
from ..processing import CvisVideoProcessor, padded_size
from ..rle import decode_all
from .augmentation import ClipAugmentation, FrameTransform, LargeScaleJitter, PseudoVideoAugmentation

SMALLEST_BOX_SIDE = 1e-5  # pixels; an instance whose box is smaller than this in a frame counts as absent there


def sample_clip_frames(length: int, num_frames: int, frame_range: int | None, rng: np.random.Generator) -> np.ndarray:
    """Sample the frames of a training clip: a reference frame, and others at most `frame_range` frames away from it.

    The other frames are drawn with replacement, so they may repeat. If no other frame is in range, the reference
    repeats. With `frame_range=None` the frames are consecutive and start anywhere in the video; a video that is too
    short gives all its frames, some of them repeated.

    Args:
        length: number of frames of the video.
        num_frames: number of frames of the clip.
        frame_range: largest distance to the reference frame; None takes consecutive frames.
        rng: source of the random numbers.

    Returns:
        Sorted frame numbers, int64 of shape `(num_frames,)`.
    """
    if frame_range is None:
        if length < num_frames:
            return np.sort(np.append(np.arange(length), rng.integers(length, size=num_frames - length)))
        return rng.integers(length - num_frames + 1) + np.arange(num_frames)
    reference = int(rng.integers(length))
    window = np.arange(max(0, reference - frame_range), min(length, reference + frame_range + 1))
    candidates = window[window != reference]
    if not candidates.size:
        candidates = np.array([reference])
    others = candidates[rng.integers(candidates.size, size=num_frames - 1)]
    return np.sort(np.append(others, reference))


class ClipDataset(Dataset):
    """Random training clips that depend on nothing but the seed and the sample number.

    The sample number counts over the whole training: epoch `number // len(dataset)` visits every video once, in its own
    order. A resumed training therefore continues exactly where it stopped, with any number of workers. Crowd
    annotations are dropped, and so are videos that have only crowd annotations or none.

    `dataset[number]` is a dict with

    - `pixel_values_videos`: RGB, uint8 of shape `(num_frames, 3, height, width)`;
    - `labels`: a dict with `class_labels`, int64 of shape `(num_instances,)`; `ids`, int64 of shape
      `(num_instances, num_frames)`, the number of the instance in frames that show it and -1 elsewhere; and `masks`,
      bool of shape `(num_instances, num_frames, height, width)`. Instances that no frame of the augmented clip shows
      are left out;
    - `video_id`: int, the id of the video or image;
    - `frame_indices`: list of int, the frame numbers;
    - `name`: str for messages, such as "video 7" or "image 7".

    Reading a sample raises `FileNotFoundError` for a missing frame, and `ValueError` for a frame that is broken or of
    another size and for a mask that cannot be decoded. The message names the video or image.

    Args:
        dataset: rows made by [`load_ytvis`] or [`load_coco`]. A clip of an image is `num_frames` copies of it, which
            [`PseudoVideoAugmentation`] makes different.
        num_frames: number of frames per clip.
        frame_range: largest distance of a frame to the reference frame; None takes consecutive frames.
        augmentation: drawn once per clip.
        seed: any non-negative integer.
        reverse_probability: share of the clips that run backwards.

    Raises:
        ValueError: an argument is out of range, or no video has annotations.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        num_frames: int,
        frame_range: int | None,
        augmentation: ClipAugmentation | LargeScaleJitter | PseudoVideoAugmentation,
        seed: int = 0,
        reverse_probability: float = 0.0,
    ) -> None:
        check_at_least("num_frames", num_frames, 1)
        if frame_range is not None:
            check_at_least("frame_range", frame_range, 0, "frames")
        if not 0 <= reverse_probability <= 1:
            raise ValueError(f"reverse_probability is {reverse_probability}; give a share in 0..1.")
        check_at_least("seed", seed, 0)
        self.table = dataset.with_format("arrow")
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.augmentation = augmentation
        self.seed = seed
        self.reverse_probability = reverse_probability
        self.rows = _rows_with_instances(dataset)
        if not len(self.rows):
            raise ValueError("No video or image of the data set has an annotation to train on (crowds do not count).")
        self._epoch_order: tuple[int, np.ndarray] = (-1, self.rows)

    def __len__(self) -> int:
        """Return the number of videos with annotations, which is the number of samples of an epoch."""
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        if number < 0:
            raise IndexError(f"Sample numbers start at 0, got {number}.")
        video = _Video(self.table, self._row_of_sample(number))
        rng = np.random.default_rng((self.seed, 1, number))
        frame_indices = sample_clip_frames(video.length, self.num_frames, self.frame_range, rng)
        if self.reverse_probability and rng.random() < self.reverse_probability:
            frame_indices = frame_indices[::-1]
        transforms = self.augmentation.draw(video.height, video.width, self.num_frames, rng)
        return video.clip(frame_indices, transforms)

    def _row_of_sample(self, number: int) -> int:
        """Return the row that a sample is drawn from; every epoch has its own order of the rows."""
        epoch, position = divmod(number, len(self.rows))
        if self._epoch_order[0] != epoch:
            self._epoch_order = epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(self.rows)
        return int(self._epoch_order[1][position])


class MixedClipDataset(Dataset):
    """Samples from several data sets; the source of every sample is drawn independently.

    The samples depend on nothing but the seed and the sample number.

    Args:
        sources: the data sets. Samples 0, 1, 2, ... of each are taken in this order.
        ratios: relative probability of each source.
        seed: any non-negative integer.

    Raises:
        ValueError: `ratios` does not hold one positive number per source.
    """

    BLOCK = 4096  # number of samples whose sources are drawn at once

    def __init__(self, sources: Sequence[ClipDataset], ratios: Sequence[float], seed: int = 0) -> None:
        if not sources or len(ratios) != len(sources) or min(ratios) <= 0:
            raise ValueError(f"{len(sources)} sources, ratios {list(ratios)}; give one positive ratio for each source.")
        self.sources = list(sources)
        self.probabilities = np.array(ratios) / np.sum(ratios)
        self.seed = seed
        self._taken = [np.zeros(len(sources), dtype=np.int64)]  # for each block, samples of each source before it

    def __len__(self) -> int:
        """Return the number of samples of an epoch, the sum over the sources."""
        return sum(len(source) for source in self.sources)

    def __getitem__(self, number: int) -> dict:
        if number < 0:
            raise IndexError(f"Sample numbers start at 0, got {number}.")
        block, position = divmod(number, self.BLOCK)
        while len(self._taken) <= block:
            drawn = self._draw(len(self._taken) - 1)
            self._taken.append(self._taken[-1] + np.bincount(drawn, minlength=len(self.sources)))
        drawn = self._draw(block)
        source = int(drawn[position])
        return self.sources[source][int(self._taken[block][source] + (drawn[:position] == source).sum())]

    def _draw(self, block: int) -> np.ndarray:
        """Draw the source of each sample of a block, int64 of shape `(BLOCK,)`."""
        rng = np.random.default_rng((self.seed, 2, block))
        return rng.choice(len(self.sources), size=self.BLOCK, p=self.probabilities)


class VideoDataset(Dataset):
    """Whole videos in their order, each as one clip of all its frames. A sample has the form of [`ClipDataset`].

    Args:
        dataset: rows made by [`load_ytvis`].
        resize: applied to every frame, usually `evaluation_resize(...)`.
    """

    def __init__(self, dataset: datasets.Dataset, resize: ClipAugmentation) -> None:
        self.table = dataset.with_format("arrow")
        self.resize = resize

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is out of range: the data set has {len(self)} videos.")
        video = _Video(self.table, index)
        transforms = self.resize.draw(video.height, video.width, video.length, np.random.default_rng(0))
        return video.clip(np.arange(video.length), transforms)


def _rows_with_instances(dataset: datasets.Dataset) -> np.ndarray:
    """Return the numbers of the rows with an annotation that is not a crowd and has a mask in some frame."""
    kept, first_row = [], 0
    for batch in dataset.select_columns("annotations").with_format("arrow").iter(1000):
        annotations = batch["annotations"].combine_chunks()
        instances = annotations.flatten()
        boxes = instances.field("boxes")
        instance_of_box = np.repeat(np.arange(len(instances)), boxes.value_lengths().to_numpy())
        has_box = np.zeros(len(instances), dtype=bool)
        has_box[instance_of_box[boxes.flatten().is_valid().to_numpy(zero_copy_only=False)]] = True
        counts = has_box & ~instances.field("iscrowd").to_numpy(zero_copy_only=False)
        row_of_instance = np.repeat(np.arange(len(batch)), annotations.value_lengths().to_numpy())
        kept.append(first_row + np.unique(row_of_instance[counts]))
        first_row += len(batch)
    return np.concatenate(kept)


class _Video:
    """One row of the table. Annotations stay in arrow; only the values that a clip needs become Python objects."""

    def __init__(self, table: datasets.Dataset, row: int) -> None:
        self.row = table[row]
        self.holder = "image" if "image_id" in table.column_names else "video"
        self.video_id = self.row[f"{self.holder}_id"][0].as_py()
        self.name = f"{self.holder} {self.video_id}"
        self.height = self.row["height"][0].as_py()
        self.width = self.row["width"][0].as_py()
        self.length = self.row["length"][0].as_py()

    def clip(self, frame_indices: np.ndarray, transforms: Sequence[FrameTransform]) -> dict:
        """Build the sample of these frames, which may repeat, each with its own transform."""
        images = {frame: self._image(frame) for frame in set(frame_indices.tolist())}
        frames = [
            transform.image(images[frame]) for frame, transform in zip(frame_indices.tolist(), transforms, strict=True)
        ]
        pixel_values = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
        return {
            "pixel_values_videos": pixel_values,
            "labels": self._labels(frame_indices, transforms),
            "video_id": self.video_id,
            "frame_indices": frame_indices.tolist(),
            "name": self.name,
        }

    def _image(self, frame: int) -> Image.Image:
        """Read a frame from its file as RGB.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is broken or of another size than the annotations.
        """
        path = self.row["file_names"][0][frame].as_py()
        where = f"{self.name}: {'frame ' if self.holder == 'video' else ''}{path}"
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where} does not exist.") from error
        except OSError as error:
            raise ValueError(f"{where} cannot be read ({error}); replace it.") from error
        if image.size != (self.width, self.height):
            raise ValueError(
                f"{where} is {image.height}x{image.width} (height x width) but the json gives "
                f"{self.height}x{self.width}; make them agree."
            )
        return image

    def _labels(self, frame_indices: np.ndarray, transforms: Sequence[FrameTransform]) -> dict:
        """Build the `labels` of a sample, see [`ClipDataset`]."""
        annotations = [item for item in self.row["annotations"][0] if not item["iscrowd"].as_py()]
        height, width = transforms[0].height, transforms[0].width
        masks = np.zeros((len(annotations), len(frame_indices), height, width), dtype=bool)
        for slot, (frame, transform) in enumerate(zip(frame_indices.tolist(), transforms, strict=True)):
            visible, boxes = [], []
            encoded = {}  # index of an instance whose mask is an RLE -> its counts
            for index, annotation in enumerate(annotations):
                box = annotation["boxes"][frame].as_py()
                if box is None:
                    continue
                visible.append(index)
                boxes.append(box)
                polygons = annotation["polygons"][frame].as_py()
                if polygons is None:
                    encoded[index] = annotation["segmentations"][frame].as_py()
                else:
                    masks[index, slot] = transform.polygon_mask(polygons)
            if encoded:
                masks[list(encoded), slot] = transform.masks(self._decode(list(encoded.values()), frame))
            if visible:
                starts, sides = np.hsplit(np.array(boxes), 2)
                corners = transform.boxes(np.concatenate([starts, starts + sides], axis=1))
                has_box = (corners[:, 2:] - corners[:, :2] > SMALLEST_BOX_SIDE).all(1)
                masks[visible, slot] &= has_box[:, None, None]

        present = np.asarray(masks.any((2, 3)))
        seen = np.asarray(present.any(1))
        ids = np.flatnonzero(seen)
        if ids.size:
            ids = ids - ids[0]
        classes = np.array([annotation["label"].as_py() for annotation in annotations], dtype=np.int64)[seen]
        return {
            "class_labels": torch.from_numpy(classes),
            "ids": torch.from_numpy(np.where(present[seen], ids[:, None], -1)),
            "masks": torch.from_numpy(masks[seen]),
        }

    def _decode(self, counts: list[str], frame: int) -> np.ndarray:
        """Decode compressed RLEs of one frame, bool of shape `(num_masks, height, width)`."""
        try:
            return decode_all([{"size": [self.height, self.width], "counts": count} for count in counts])
        except ValueError as error:
            of_frame = f" of frame {frame}" if self.holder == "video" else ""
            raise ValueError(
                f"{self.name}: a mask{of_frame} cannot be decoded ({error}); `transformers-cvis validate` names it."
            ) from error


def collate_clips(samples: Sequence[dict], video_processor: CvisVideoProcessor) -> dict:
    """Make a batch of clips: normalise them, and pad them on the right and at the bottom with zeros to one size.

    Args:
        samples: samples of [`ClipDataset`], all with the same number of frames.
        video_processor: the processor that is saved with the model. It gives the rescaling, mean, standard deviation
            and size divisor; frames keep the size that the augmentation gave them.

    Returns:
        `pixel_values_videos`, float32 of shape `(batch, num_frames, 3, height, width)`, and `labels`, a list of `batch`
        dicts with masks padded to the same size.

    Raises:
        ValueError: the clips have different lengths, or the mean of the processor is not in the range 0..1 of the
            rescaled pixels.
    """
    mean, std = _mean_and_std(video_processor)
    lengths = {len(sample["pixel_values_videos"]) for sample in samples}
    if len(lengths) != 1:
        raise ValueError(f"The clips of a batch have {sorted(lengths)} frames; they must have the same number.")
    sizes = np.array([sample["pixel_values_videos"].shape[-2:] for sample in samples])
    height, width = padded_size(sizes.max(0).tolist(), video_processor.size_divisor)
    divisor = 1 / video_processor.rescale_factor if video_processor.do_rescale else 1

    pixel_values = torch.zeros(len(samples), lengths.pop(), 3, height, width)
    labels = []
    for padded, sample in zip(pixel_values, samples, strict=True):
        clip = sample["pixel_values_videos"]
        clip_height, clip_width = clip.shape[-2:]
        padded[..., :clip_height, :clip_width] = (clip / divisor - mean) / std
        masks = sample["labels"]["masks"]
        padding = (0, width - clip_width, 0, height - clip_height)
        labels.append({**sample["labels"], "masks": torch.nn.functional.pad(masks, padding)})
    return {"pixel_values_videos": pixel_values, "labels": labels}


def _mean_and_std(video_processor: CvisVideoProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of shape `(1, 3, 1, 1)`; 0 and 1 for a processor that does not normalise."""
    if not video_processor.do_normalize:
        return torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    if video_processor.do_rescale and max(video_processor.image_mean) > 1:
        raise ValueError(
            f"The video processor has the `image_mean` {tuple(video_processor.image_mean)}: give it for pixels in "
            "0..1, divided by 255."
        )
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (video_processor.image_mean, video_processor.image_std)
    )
    return mean, std
