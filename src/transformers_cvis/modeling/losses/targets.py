# SPDX-License-Identifier: Apache-2.0
"""Labels of videos, prepared for matching and losses."""

from dataclasses import dataclass

import torch


@dataclass
class Targets:
    """Objects to match, concatenated problem after problem; a problem is an image, or a clip of a video."""

    class_labels: torch.Tensor
    """`(M,)` long."""
    masks: torch.Tensor
    """`(M, T, H, W)`, nonzero inside."""
    problem_index: torch.Tensor
    """`(M,)` long, ascending."""
    counts: list[int]
    """Number of objects of each problem."""

    @classmethod
    def from_frame_labels(cls, labels: list[dict], num_labels: int, like: torch.Tensor) -> "Targets":
        """Prepare the labels of images.

        Args:
            labels: Per image `{"class_labels": (M,) long, "masks": (M, H, W)}`.
            num_labels: Classes without no-object.
            like: Tensor whose device the targets move to.

        Raises:
            ValueError: Labels and masks of an image do not fit, or a class is not below `num_labels`.
        """
        _check_labels(labels, num_labels, mask_dimensions=3)
        counts = [len(label["class_labels"]) for label in labels]
        return cls(
            class_labels=torch.cat([label["class_labels"] for label in labels]).to(like.device),
            masks=torch.cat([label["masks"] for label in labels]).unsqueeze(1).to(like.device),
            problem_index=repeat_index(counts).to(like.device),
            counts=counts,
        )


class VideoTargets:
    """Labels of B videos of T frames, without the objects that no frame shows.

    Attributes:
        class_labels: `(M,)` long, objects concatenated video after video.
        ids: `(M, T)` long on the host, counted from the smallest id of each video, -1 where the object is absent.
        masks: `(M, T, H, W)`, nonzero inside.
        video_index: `(M,)` long on the host.
        num_videos: B.
        num_frames: T.
    """

    def __init__(
        self,
        class_labels: torch.Tensor,
        ids: torch.Tensor,
        masks: torch.Tensor,
        video_index: torch.Tensor,
        num_videos: int,
    ) -> None:
        self.class_labels = class_labels
        self.ids = ids
        self.masks = masks
        self.video_index = video_index
        self.num_videos = num_videos
        self.num_frames = ids.shape[1]
        self._frame_targets = self.pairs(ids != -1)  # in the order of `frame_labels`

    @classmethod
    def from_labels(cls, labels: list[dict], num_labels: int) -> "VideoTargets":
        """Prepare the labels that a model's forward takes.

        Args:
            labels: Per video `{"class_labels": (M,) long, "ids": (M, T) long, "masks": (M, T, H, W)}`; an id is -1 in
                frames where the object is absent.
            num_labels: Classes without no-object.

        Raises:
            ValueError: The parts of a video's labels do not fit, videos differ in length, or a class is not below
                `num_labels`.
        """
        _check_labels(labels, num_labels, mask_dimensions=4)
        for number, label in enumerate(labels):
            if tuple(label["ids"].shape) != tuple(label["masks"].shape[:2]):
                raise ValueError(
                    f"Labels of video {number}: `ids` must be (objects, frames) = {tuple(label['masks'].shape[:2])} "
                    f"as its masks are, got {tuple(label['ids'].shape)}."
                )
        lengths = sorted({label["ids"].shape[1] for label in labels})
        if len(lengths) > 1:
            raise ValueError(f"The videos of a batch must have one length; their labels have {lengths} frames.")

        counts = [len(label["class_labels"]) for label in labels]
        ids = torch.cat([label["ids"] for label in labels]).cpu()
        video_index = repeat_index(counts)
        kept = (ids != -1).any(dim=1).nonzero().squeeze(1)
        ids, video_index = ids[kept], video_index[kept]
        present = ids != -1
        largest = torch.iinfo(ids.dtype).max
        smallest = ids.new_full((len(labels),), largest)
        smallest.scatter_reduce_(0, video_index, ids.masked_fill(~present, largest).amin(1), "amin")
        ids = torch.where(present, ids - smallest[video_index].unsqueeze(1), -1)

        masks = torch.cat([label["masks"] for label in labels])
        class_labels = torch.cat([label["class_labels"] for label in labels]).to(masks.device)
        if len(kept) < len(masks):
            class_labels, masks = class_labels[kept.to(masks.device)], masks[kept.to(masks.device)]
        return cls(class_labels, ids, masks, video_index, num_videos=len(labels))

    def with_classes_of_last_frame(self, no_object: int) -> "VideoTargets":
        """Return the same objects, with the class `no_object` for those that the last frame does not show."""
        seen_last = (self.ids[:, -1] != -1).to(self.class_labels.device)
        class_labels = self.class_labels.where(seen_last, no_object)
        return VideoTargets(class_labels, self.ids, self.masks, self.video_index, self.num_videos)

    def frame_labels(self) -> list[dict]:
        """Return the labels of the B * T frames for the frame detector: in each frame the objects visible there."""
        frames = self.select(*self._frame_targets, num_clips=self.num_frames, device=self.masks.device)
        return [
            {"class_labels": class_labels, "masks": masks}
            for class_labels, masks in zip(
                frames.class_labels.split(frames.counts), frames.masks.squeeze(1).split(frames.counts), strict=True
            )
        ]

    def frame_matches(self, matched_queries: torch.Tensor) -> torch.Tensor:
        """Sort the queries matched to `frame_labels()` by object and frame.

        Args:
            matched_queries: `(L, objects of all frames)`.

        Returns:
            `(L, M, T)`, -1 where an object has no query.
        """
        objects, frames = (index.to(matched_queries.device) for index in self._frame_targets)
        matches = matched_queries.new_full((matched_queries.shape[0], *self.ids.shape), -1)
        matches[:, objects, frames] = matched_queries
        return matches

    def clip_ids(self, num_clips: int) -> torch.Tensor:
        """Return `ids` by clip, `(M, clips, W)` on the host.

        Raises:
            ValueError: The frames are not a whole number of clips.
        """
        if self.num_frames % num_clips:
            raise ValueError(
                f"Labels of {self.num_frames} frames cannot be split into {num_clips} clips of equal length: train "
                "with a number of frames that is a multiple of the clip length."
            )
        return self.ids.unflatten(1, (num_clips, -1))

    def pairs(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the objects and clips (or frames) where `chosen` `(M, clips)` is true, on the host.

        They are sorted by video, then clip, then object.
        """
        objects, clips = chosen.nonzero().unbind(1)
        order = (self.video_index[objects] * chosen.shape[1] + clips).argsort(stable=True)
        return objects[order], clips[order]

    def select(self, objects: torch.Tensor, clips: torch.Tensor, num_clips: int, device: torch.device) -> Targets:
        """Return the targets of `pairs` of objects and clips.

        Those of a clip are problem `video * num_clips + clip`.
        """
        problem_index = self.video_index[objects] * num_clips + clips
        objects, clips = objects.to(self.masks.device), clips.to(self.masks.device)
        return Targets(
            class_labels=self.class_labels[objects].to(device),
            masks=self.masks.unflatten(1, (num_clips, -1))[objects, clips].to(device),
            problem_index=problem_index.to(device),
            counts=torch.bincount(problem_index, minlength=self.num_videos * num_clips).tolist(),
        )


def _check_labels(labels: list[dict], num_labels: int, mask_dimensions: int) -> None:
    """Raise a ValueError if labels and masks do not fit, or a class is not below `num_labels`."""
    axes = "(objects, frames, height, width)" if mask_dimensions == 4 else "(objects, height, width)"
    for number, label in enumerate(labels):
        class_labels, masks = label["class_labels"], label["masks"]
        if masks.ndim != mask_dimensions or class_labels.ndim != 1 or len(masks) != len(class_labels):
            raise ValueError(
                f"Labels {number}: `class_labels` must be (objects,) and `masks` {axes}, got "
                f"{tuple(class_labels.shape)} and {tuple(masks.shape)}."
            )
    if labels:
        classes = torch.cat([label["class_labels"] for label in labels])
        if len(classes) and not 0 <= classes.min() <= classes.max() < num_labels:
            raise ValueError(
                f"Class labels must be in 0..{num_labels - 1} (num_labels={num_labels}), got "
                f"{sorted(set(classes.tolist()))}."
            )


def repeat_index(counts: list[int]) -> torch.Tensor:
    """Return 0 `counts[0]` times, then 1 `counts[1]` times, and so on; on the host."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
