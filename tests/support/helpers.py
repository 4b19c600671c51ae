# SPDX-License-Identifier: Apache-2.0
"""Tiny models, kernels and tree tables shared by tests of several folders."""

import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
from kernels import LocalLayerRepository

from transformers_cvis.data import SHAPES
from transformers_cvis.kernels import SpanningTrees
from transformers_cvis.modeling.crisp import CrispConfig, CrispForVideoInstanceSegmentation
from transformers_cvis.modeling.frame_detector import FrameDetectorConfig
from transformers_cvis.modeling.genvis import GenVisConfig, GenVisForVideoInstanceSegmentation
from transformers_cvis.modeling.hvpl.configuration_hvpl import HvplConfig
from transformers_cvis.modeling.hvpl.modeling_hvpl import HvplForVideoInstanceSegmentation
from transformers_cvis.modeling.task_clip_detector import (
    TaskClipDetectorConfig,
    TaskClipDetectorForVideoInstanceSegmentation,
)
from transformers_cvis.processing import CvisVideoProcessor

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "basic": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": STAGES,
    },
    "bottleneck": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 2, 1, 1],
        "out_features": STAGES,
    },
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 5,
        "out_features": STAGES,
    },
}


def tiny_detector_config(**changes) -> FrameDetectorConfig:
    """Return the configuration of a frame detector of a few thousand parameters."""
    return FrameDetectorConfig(
        **{
            "backbone_config": copy.deepcopy(BACKBONES["basic"]),
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 1,
            "dim_feedforward": 32,
            "decoder_layers": 3,
            "num_attention_heads": 2,
            "num_queries": 6,
            "train_num_points": 32,
            **changes,
        }
    )


VIDEO_HEAD_SIZES = {
    "num_queries": 5,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_frame_query_layers": 2,
    "dim_feedforward": 32,
    "num_attention_heads": 2,
    "train_num_points": 32,
}


def tiny_genvis(seed: int = 0, **changes) -> GenVisForVideoInstanceSegmentation:
    """Return a GenVIS with random weights for the categories of moving shapes."""
    torch.manual_seed(seed)
    config = GenVisConfig(
        **{
            "detector_config": tiny_detector_config().to_dict(),
            **VIDEO_HEAD_SIZES,
            "encoder_layers": 1,
            "id2label": dict(enumerate(SHAPES)),
            **changes,
        }
    )
    return GenVisForVideoInstanceSegmentation(config).eval()


def tiny_hvpl(seed: int = 0, **changes) -> HvplForVideoInstanceSegmentation:
    """Return an HVPL with random weights that has learnt its base."""
    torch.manual_seed(seed)
    config = HvplConfig(
        **{
            "detector_config": tiny_detector_config(),
            **VIDEO_HEAD_SIZES,
            "id2label": {0: "disk", 1: "star", 2: "ring"},
            **changes,
        }
    )
    return HvplForVideoInstanceSegmentation(config).eval()


def tiny_crisp(seed: int = 0, **changes) -> CrispForVideoInstanceSegmentation:
    """Return a CRISP with random weights, also in its text encoder, that has learnt its base."""
    torch.manual_seed(seed)
    config = CrispConfig.from_frame_detector(
        tiny_detector_config(num_queries=5),
        **{
            "id2label": {0: "disk", 1: "star", 2: "ring"},
            "text_encoder": "random",
            "text_hidden_size": 32,
            "num_prompts": 3,
            **changes,
        },
    )
    return CrispForVideoInstanceSegmentation(config).eval()


def tiny_task_clip_detector(seed: int = 0, **changes) -> TaskClipDetectorForVideoInstanceSegmentation:
    """Return a clip detector with random weights that has learnt its base."""
    torch.manual_seed(seed)
    config = TaskClipDetectorConfig.from_frame_detector(
        tiny_detector_config(num_queries=5),
        **{"id2label": {0: "disk", 1: "star", 2: "ring"}, "num_prompts": 3, **changes},
    )
    return TaskClipDetectorForVideoInstanceSegmentation(config).eval()


def save_tiny_genvis(folder: Path, seed: int = 0) -> str:
    """Save a tiny GenVIS and its video processor in a folder; return the name of the folder."""
    tiny_genvis(seed).save_pretrained(folder)
    CvisVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


def parent_table(trees: SpanningTrees, batch_size: int) -> torch.Tensor:
    """Return the next node on the path to the top left one, by node, `(B, N)`; -1 for the top left nodes."""
    parents = torch.full_like(trees.nodes, -1)
    inner = trees.parents >= 0
    ends = trees.nodes[inner] + trees.parents[inner]
    parents[trees.edges[inner]] = ends - trees.edges[inner]  # the end of the edge that is not the lower one
    parents = parents.view(batch_size, -1)
    starts = torch.arange(batch_size)[:, None] * parents.shape[1]
    return torch.where(parents >= 0, parents - starts, -1)


# Compute kernels

ATTENTION = "MultiScaleDeformableAttention"
KERNEL_LAYERS = """
from torch import nn

class MultiScaleDeformableAttention(nn.Module):
    {attributes}
    def forward(self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index, sampling_locations,
                attention_weights, im2col_step):
        return value.new_full((value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]), 42.0)
"""


# transformers 5.10 asks for kernels 0.12.
needs_kernel_repositories = pytest.mark.skipif(
    "package_name" in inspect.signature(LocalLayerRepository).parameters,
    reason="this version of `kernels` reads repositories of an older form",
)


def build_files(
    attributes: str = "has_backward = True", variant: str = "torch-universal", name: str = "cvis-test-kernel"
) -> dict[str, str]:
    """Return the files of a kernel repository by path: a deformable attention that returns 42. Names must be unique."""
    metadata = {
        "name": name,
        "id": f"{name}_1",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    return {
        f"build/{variant}/__init__.py": "from . import layers\n",
        f"build/{variant}/layers.py": KERNEL_LAYERS.format(attributes=attributes),
        f"build/{variant}/metadata.json": json.dumps(metadata),
    }


def local_mapping(folder: Path, files: dict[str, str]) -> dict:
    """Write the files and return the kernel mapping that uses them on a CPU."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {ATTENTION: {"cpu": LocalLayerRepository(folder, layer_name=ATTENTION)}}
