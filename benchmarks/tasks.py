# SPDX-License-Identifier: Apache-2.0
"""Time of HVPL's inference by number of learnt tasks: 0 to 10, each with 10 prompts per stage.

HVPL with a ResNet-50 as published: 256 channels, 100 base queries at each stage, 9 layers of the frame decoder, 6 of
the context encoder, 3 of the video decoder; 20 base classes and 5 per task; clips of 384 x 640. One thread. Times the
parts that depend on the tasks: frame decoder, video head, class heads and masks, from the features of a clip. Backbone
and pixel decoder do not depend on the tasks and take most of the time; they run in the row `whole_model_1_task` only.

Rows `inference_N_tasks`: with N tasks (ours) and without tasks (peer). `inference_per_10_prompts`: with one task.
"""

from collections.abc import Iterator

import torch
from _harness import compare, main

from transformers_cvis import HvplConfig, HvplForVideoInstanceSegmentation
from transformers_cvis.modeling.outputs import VideoInstanceSegmentationOutput

HEIGHT, WIDTH, NUM_PROMPTS, NUM_CLASSES, MOST_TASKS = 384, 640, 10, 5, 10


def rows(quick: bool) -> Iterator[dict]:
    num_frames, repeats = (1, 2) if quick else (5, 7)
    features, note = ClipFeatures(num_frames), f"{num_frames} frames, without backbone and pixel decoder"
    base, growing = hvpl(), hvpl()
    with torch.inference_mode():
        for num_tasks in range(1, MOST_TASKS + 1):
            growing.add_task([f"class {num_tasks}.{number}" for number in range(NUM_CLASSES)], NUM_PROMPTS)
            if quick and num_tasks not in (1, MOST_TASKS):
                continue
            result = compare(
                f"inference_{num_tasks}_tasks",
                ours=lambda: features.segment(growing),
                peer=lambda: features.segment(base),
                repeats=repeats,
                note=note,
            )
            if num_tasks == 1:
                yield {**result, "name": "inference_per_10_prompts"}
                yield whole_model(base, growing, num_frames, repeats)
            yield result


def whole_model(base: "HvplOnFeatures", with_task: "HvplOnFeatures", num_frames: int, repeats: int) -> dict:
    """Time the models from pixels to masks."""
    video = torch.randn(1, num_frames, 3, HEIGHT, WIDTH)
    return compare(
        "whole_model_1_task",
        ours=lambda: with_task(video),
        peer=lambda: base(video),
        repeats=repeats,
        note=f"{num_frames} frames, from pixels to masks",
    )


class ClipFeatures:
    """Output of the pixel decoder for a clip: levels of strides 32, 16 and 8, and the mask features of stride 4."""

    def __init__(self, num_frames: int) -> None:
        torch.manual_seed(0)
        *self.levels, self.mask_features = (
            torch.randn(num_frames, 256, HEIGHT // stride, WIDTH // stride).contiguous(
                memory_format=torch.channels_last
            )
            for stride in (32, 16, 8, 4)
        )
        self.video = torch.zeros(1, num_frames, 3, HEIGHT, WIDTH)

    def segment(self, model: "HvplOnFeatures") -> VideoInstanceSegmentationOutput:
        """Return class logits and mask logits of the clip."""
        model.features = self
        try:
            return model(self.video)
        finally:
            model.features = None


class HvplOnFeatures(HvplForVideoInstanceSegmentation):
    """HVPL whose detector can start from given features of a clip, so that backbone and pixel decoder do not run.

    Attributes:
        features: features to start from; None to start from pixels.
    """

    features: ClipFeatures | None = None

    def detect_frames(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.features is None:
            return super().detect_frames(frames)
        levels, mask_features = self.features.levels, self.features.mask_features
        detected = self.detector.predict(levels, mask_features, output_mask_features=False)
        return detected.frame_queries[-1], self.video_head.mask_projection(mask_features)


def hvpl() -> HvplOnFeatures:
    """Build a base with 20 classes."""
    torch.manual_seed(0)
    return HvplOnFeatures(HvplConfig(id2label={index: f"base {index}" for index in range(20)})).eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("Inference of HVPL with 0 to 10 tasks", rows)
