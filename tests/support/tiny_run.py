# SPDX-License-Identifier: Apache-2.0
"""Recipes that train real models of a few thousand parameters on generated videos; run as a program, it trains them.

python tiny_run.py DATA_FOLDER SYSTEM OUTPUT_DIR [key=value ...]
"""

import importlib
import os
import sys

import torch

from tests.support.helpers import VIDEO_HEAD_SIZES, tiny_detector_config
from transformers_cvis.modeling.losses import MaskClassificationLoss, select_uncertain_points
from transformers_cvis.training import Recipe, train


class FixedPoints:
    """Same points for every mask, so that losses do not depend on the distribution of samples over processes."""

    def __init__(self, num_points: int = 48):
        generator = torch.Generator().manual_seed(0)
        self.points = torch.rand(num_points, 2, generator=generator)

    def matching_points(self, num_problems, like):
        return self.points.to(like).expand(num_problems, -1, -1)

    @torch.no_grad()
    def loss_points(self, mask_logits):
        num_masks, num_sets = mask_logits.shape[:2]
        points = self.points.to(mask_logits)
        candidates, extra = points.expand(num_masks, -1, -1), points[:8].expand(num_masks, num_sets, -1, -1)
        return select_uncertain_points(mask_logits, candidates, extra, 24)


def with_fixed_points(build_model):
    """Return a `build_model` whose models use `FixedPoints` in their losses."""

    def build(recipe, names):
        model = build_model(recipe, names)
        for module in model.modules():
            if isinstance(module, MaskClassificationLoss):
                module.point_sampler = FixedPoints()
        return model

    return build


def tiny_recipe(data_folder, system: str = "vita", **changes) -> Recipe:
    """Return a recipe of any system; SPVIS is offline, from scratch, and trains refiner and tracker together."""
    detector_config = {
        name: getattr(tiny_detector_config(), name)
        for name in (
            *("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "encoder_layers"),
            *("dim_feedforward", "decoder_layers", "num_attention_heads", "num_queries", "train_num_points"),
        )
    }
    detector_config["backbone_config"] = tiny_detector_config().backbone_config.to_dict()
    spvis_config = {
        **{"tracker_layers": 2, "tracker_dim_feedforward": 32, "filter_dim_feedforward": 32},
        **{"refiner": "spvis", "refiner_layers": 2, "freeze_tracker": False},
    }
    head_config = {**VIDEO_HEAD_SIZES, "detector_config": detector_config, "num_queries": 6, "encoder_layers": 1}
    crisp_config = {"text_encoder": "random", "text_hidden_size": 32}
    configs = {
        **{"minvis": detector_config, "mask2former_vis": detector_config, "task_clip_detector": detector_config},
        **{"spvis": {**detector_config, **spvis_config}, "crisp": {**detector_config, **crisp_config}},
    }
    values = {
        "system": system,
        "model": {"config": configs.get(system, head_config)},
        "data": {
            "train": {"json": f"{data_folder}/train.json", "images": f"{data_folder}/JPEGImages"},
            "num_frames": 2,
            "frame_range": 3,
            "augmentation": {"short_sides": [64], "max_size": 96, "crop": None},
            "num_workers": 0,
        },
        "optimizer": {"learning_rate": 1e-3, "max_gradient_norm": 1.0},
        "max_steps": 6,
        "batch_size": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "device": "cpu",
        "num_threads": 1,
        "trackers": ["jsonl"],
        "evaluation": {"short_side": 64, "max_size": 96, "clip_length": 1},
    }
    return Recipe.from_dict({**values, **changes})


if __name__ == "__main__":
    data_folder, system, output_dir, *overrides = sys.argv[1:]
    if "FIXED_POINTS" in os.environ:
        train_module = importlib.import_module("transformers_cvis.training.train")
        train_module.build_model = with_fixed_points(train_module.build_model)
    train(tiny_recipe(data_folder, system), output_dir, overrides=overrides)
