"""The README's python blocks run as they stand, in order; its command lines are ones that the program takes."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from transformers_cvis import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
MASK2FORMER = "facebook/mask2former-swin-tiny-coco-instance"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def mask2former_on_the_hub(loopback_hub):
    """A small Mask2Former with random weights, under the name which the README uses."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        dim_feedforward=32,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label={0: "person", 1: "dog"},
    )
    Mask2FormerForUniversalSegmentation(config).push_to_hub(MASK2FORMER)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).push_to_hub(MASK2FORMER)
    return loopback_hub


def test_python_examples_run(mask2former_on_the_hub, capsys):
    namespace = {"__name__": "readme"}
    np.random.seed(0)
    for number, block in enumerate(blocks("python")):
        try:
            exec(compile(block, f"README, python block {number}", "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"python block {number} of the README fails:\n{block}") from error
    assert "frames 4 and on" in capsys.readouterr().out
    branches = mask2former_on_the_hub.repos["model", "tester/shapes"].branches
    assert set(branches) == {"main", "task-1"}


def test_command_lines_are_understood():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("transformers-cvis ")]
    commands += [
        shlex.split(command) for command in re.findall(r"`(transformers-cvis [^`]+)`", README.replace("\n", " "))
    ]
    assert len(commands) >= 6
    for command in commands:
        cli.build_parser().parse_args(command[1:])


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [name for name in targets if "://" not in name and not (Path(__file__).parent.parent / name).exists()]
    assert not missing
