# SPDX-License-Identifier: Apache-2.0
"""Time of HVPL's inference against the number of tasks that it has learnt: 0 to 10, each with 10 prompts per level.

HVPL with a ResNet-50 as published: 256 channels, 100 base queries at each level, 9 layers of the frame decoder, 6 of
the context encoder, 3 of the video decoder; 20 base classes and 5 a task; clips of 384 x 640. Measured is what has to
do with tasks: frame decoder, video head, class heads and masks, of the features of a clip. Backbone and pixel decoder,
which do not change with tasks and take most of the time, run in the row `whole_model_1_task` only. One thread.

Rows `inference_N_tasks`: with N tasks (ours) and with none (peer). `inference_per_10_prompts`: with the first one.
"""

import torch
from _harness import compare, main

from transformers_cvis import HvplConfig, HvplForVideoInstanceSegmentation
from transformers_cvis.modeling.video_model import DetectedFrames

HEIGHT, WIDTH, NUM_PROMPTS, NUM_CLASSES, MOST_TASKS = 384, 640, 10, 5, 10


def rows(quick: bool):
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


def whole_model(base, with_task, num_frames: int, repeats: int) -> dict:
    video = torch.randn(1, num_frames, 3, HEIGHT, WIDTH)
    return compare(
        "whole_model_1_task",
        ours=lambda: with_task(video),
        peer=lambda: base(video),
        repeats=repeats,
        note=f"{num_frames} frames, from pixels to masks",
    )


class ClipFeatures:
    """What the pixel decoder hands over: levels of strides 32, 16 and 8, and the features that masks are made of."""

    def __init__(self, num_frames: int):
        torch.manual_seed(0)
        *self.levels, self.mask_features = (
            torch.randn(num_frames, 256, HEIGHT // stride, WIDTH // stride).contiguous(
                memory_format=torch.channels_last
            )
            for stride in (32, 16, 8, 4)
        )

    def segment(self, model: HvplForVideoInstanceSegmentation):
        """Class logits and mask logits of the clip."""
        detected = model.detector.predict(self.levels, self.mask_features, output_mask_features=False)
        frame_queries = detected.frame_queries[-1][None]
        frames = DetectedFrames(frame_queries, model.video_head.mask_projection(self.mask_features)[None])
        return model._make_output(frames, *model.video_head(frame_queries), output_embeddings=False)


def hvpl() -> HvplForVideoInstanceSegmentation:
    torch.manual_seed(0)
    return HvplForVideoInstanceSegmentation(HvplConfig(id2label={index: f"base {index}" for index in range(20)})).eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("Inference of HVPL with 0 to 10 tasks", rows)
