# SPDX-License-Identifier: Apache-2.0
"""A model of two layers, its processor and its training summary, for tests of the Hub."""

import json

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_cvis.hub.push import HubMixin

SUMMARY = {
    "metrics": {"AP": 0.51239, "AP50": 0.75, "AP_large": -1.0},
    "dataset": "64 held-out videos of moving shapes",
    "command": "transformers-cvis train genvis_moving_shapes",
    "seed": 7,
    "steps": 400,
    "seconds": 1800,
    "hardware": "2 cores",
}


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_hub_test"
    width: int = 4


class TinyModel(HubMixin, PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.width, config.width)
        self.other = nn.Linear(config.width, config.width)
        self.post_init()


class TinyProcessor:
    def save_pretrained(self, folder):
        with open(f"{folder}/video_preprocessor_config.json", "w", encoding="utf-8") as file:
            json.dump({"size": 32}, file)


def tiny_model(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel(TinyConfig(id2label={0: "disk", 1: "star"}))


def assert_same_weights(first, second):
    weights, others = first.state_dict(), second.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
