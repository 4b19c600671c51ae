# SPDX-License-Identifier: Apache-2.0
"""The output of video models keeps its score rule as an item among the tensors."""

import copy

import pytest
import torch
from accelerate.utils import convert_to_fp32, gather_object

from transformers_cvis.modeling.outputs import VideoInstanceSegmentationOutput

RULE = "mean_logits"


@pytest.fixture
def output() -> VideoInstanceSegmentationOutput:
    return VideoInstanceSegmentationOutput(
        class_queries_logits=torch.zeros(1, 2, 3, dtype=torch.bfloat16),
        masks_queries_logits=torch.zeros(1, 2, 1, 4, 4, dtype=torch.bfloat16),
        score_rule=RULE,
    )


def test_score_rule_is_the_last_item(output):
    assert list(output) == ["class_queries_logits", "masks_queries_logits", "score_rule"]
    assert output["score_rule"] == output[-1] == output.to_tuple()[-1] == RULE
    assert copy.deepcopy(output).score_rule == RULE


def test_score_rule_survives_casting_and_gathering(output):
    cast = convert_to_fp32(output)  # accelerate does this to outputs in mixed precision
    assert cast.class_queries_logits.dtype == torch.float32
    assert cast.score_rule == RULE
    assert [gathered.score_rule for gathered in gather_object([output])] == [RULE]


def test_compiled_forward_returns_the_score_rule():
    def forward(logits):
        return VideoInstanceSegmentationOutput(class_queries_logits=2 * logits, score_rule=RULE)

    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1, 2, 3)).score_rule == RULE
