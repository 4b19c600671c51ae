# SPDX-License-Identifier: Apache-2.0
"""Digests of the samples of a data set, to compare samples exactly."""

import hashlib

import torch


def sample_digest(sample: dict) -> str:
    """Return video, frames and a hash of pixels and labels of a sample."""
    digest = hashlib.sha256()
    for tensor in (sample["pixel_values_videos"], *sample["labels"].values()):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return f"{sample['video_id']} {sample['frame_indices']} {digest.hexdigest()}"


class SampleDigests(torch.utils.data.Dataset):
    """Digests of the first `count` samples of `dataset`, for data loaders with workers."""

    def __init__(self, dataset: torch.utils.data.Dataset, count: int):
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> str:
        return sample_digest(self.dataset[number])
