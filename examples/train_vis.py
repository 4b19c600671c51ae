# SPDX-License-Identifier: Apache-2.0
"""Train a small VITA, and from it an online GenVIS, on generated videos; then segment one of the videos.

Takes about a minute on a CPU: enough to see the losses fall, not to get a good model. For your own data, change DATA
and the file names in `overrides` (YouTube-VIS format; `transformers-cvis validate your.json` checks it), raise STEPS,
and choose another recipe (`transformers-cvis train --list`).

    python examples/train_vis.py                                             one CPU, or one GPU if there is one
    accelerate launch --multi_gpu examples/train_vis.py                      all GPUs of this machine
    torchrun --nproc_per_node 2 examples/train_vis.py                        two processes, on CPU too

The batch size of a recipe is the total over all processes, so these commands train the same. Started again, an
interrupted run resumes from its last checkpoint.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoVideoProcessor

from transformers_cvis import AutoModelForVideoInstanceSegmentation, make_moving_shapes, segment_video, train

DATA = Path("build/train_vis/data")
RUNS = Path("build/train_vis")
STEPS = 40


def main() -> None:
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process and not DATA.exists():
        make_moving_shapes(DATA, num_train_videos=40, num_valid_videos=2, num_frames=8, progress=True)
    state.wait_for_everyone()

    overrides = [f"max_steps={STEPS}", "learning_rate_schedule.warmup_steps=5", "log_every=10", "checkpoint_every=20"]
    for split in ("train", "valid"):
        overrides += [f"data.{split}.json={DATA / split}.json", f"data.{split}.images={DATA / 'JPEGImages'}"]
    train("vita_moving_shapes", RUNS / "vita", overrides=overrides)
    start = [f"model.init_from={RUNS / 'vita'}"]
    summary = train("genvis_moving_shapes", RUNS / "genvis", overrides=overrides + start)

    if state.is_main_process:
        print(f"{summary['steps']} steps, {summary['seconds']:.0f} s, AP {summary['metrics']['AP']:.3f}")
        model = AutoModelForVideoInstanceSegmentation.from_pretrained(RUNS / "genvis").eval()
        processor = AutoVideoProcessor.from_pretrained(RUNS / "genvis")
        video = next((DATA / "JPEGImages").iterdir())
        for track in segment_video(model, processor, video, threshold=None, top_k=3).tracks:
            print(f"{track.label:10} {track.score:.2f}")


if __name__ == "__main__":
    main()
