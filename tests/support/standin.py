# SPDX-License-Identifier: Apache-2.0
"""A tiny random model and data set for tests of the trainer; run as a program, it trains them.

python standin.py OUTPUT_DIR [key=value ...]    recipe overrides; the environment may set DROPOUT, SLEEP (s per sample)
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_cvis.modeling.outputs import FrameDetectorOutput
from transformers_cvis.training import checkpoint_files
from transformers_cvis.training.callbacks import with_model_callbacks
from transformers_cvis.training.recipe import Recipe
from transformers_cvis.training.trainer import Trainer

RECIPE = {
    "system": "vita",
    "data": {"train": [{"json": "-", "images": "-"}], "num_frames": 1, "frame_range": 1, "num_workers": 0},
    "optimizer": {"learning_rate": 1e-2},
    "learning_rate_schedule": {"milestones": [9], "warmup_steps": 2},
    "max_steps": 12,
    "batch_size": 4,
    "checkpoint_every": 3,
    "log_every": 2,
    "device": "cpu",
    "num_threads": 1,
    "trackers": ["jsonl"],
}


class StandInConfig(PreTrainedConfig):
    model_type = "training_stand_in"
    dropout: float = 0.5


class StandInModel(PreTrainedModel):
    """Regression with dropout, which uses torch's generator in every training step."""

    config_class = StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(config.dropout), nn.Linear(16, 1))
        self.post_init()

    def forward(self, inputs, labels):
        error = (self.layers(inputs).squeeze(-1) - labels).square()
        loss = error.mean()
        return FrameDetectorOutput(loss=loss, loss_dict={"loss_mask_0": loss * 0.25, "loss_mask_1": loss * 0.75})


class StandInDataset(Dataset):
    """Sample n holds random numbers that depend on n alone; sample `bad_sample` is not a number."""

    def __init__(self, bad_sample: int | None = None, sleep: float = 0.0):
        self.bad_sample, self.sleep = bad_sample, sleep

    def __getitem__(self, n: int) -> dict:
        time.sleep(self.sleep)
        generator = np.random.default_rng(n)
        inputs = torch.from_numpy(generator.standard_normal(8).astype(np.float32))
        if n == self.bad_sample:
            inputs[0] = float("nan")
        return {"inputs": inputs, "label": inputs.sum(), "name": f"video-{n}"}


def collate(samples: list[dict]) -> tuple[dict, list[str]]:
    inputs = {
        key: torch.stack([sample[name] for sample in samples])
        for key, name in [("inputs", "inputs"), ("labels", "label")]
    }
    return inputs, [sample["name"] for sample in samples]


def train_standin(
    output_dir, overrides=(), dataset=None, dropout=0.5, evaluate=None, resume="auto", scaler=None, callbacks=()
) -> tuple[StandInModel, dict]:
    recipe = Recipe.load(Recipe.from_dict(RECIPE), overrides)
    checkpoint = checkpoint_files.find_checkpoint(output_dir / "checkpoints", resume)
    torch.manual_seed(recipe.seed)
    model = StandInModel(StandInConfig(dropout=dropout))
    if checkpoint is not None:
        model = StandInModel.from_pretrained(checkpoint)
    callbacks = with_model_callbacks(model, callbacks)
    trainer = Trainer(recipe, output_dir, model, dataset or StandInDataset(), collate, evaluate, checkpoint, callbacks)
    if scaler is not None:
        trainer.accelerator.scaler = scaler
        trainer.prepared_optimizer = AcceleratedOptimizer(trainer.optimizer, device_placement=False, scaler=scaler)
    result = trainer.train()
    if trainer.accelerator.is_main_process:
        trainer.unwrapped_model.save_pretrained(output_dir)
    trainer.finish()
    return trainer.unwrapped_model, result


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_standin(
        Path(sys.argv[1]),
        sys.argv[2:],
        StandInDataset(sleep=float(os.environ.get("SLEEP", 0))),
        dropout=float(os.environ.get("DROPOUT", 0.5)),
    )
