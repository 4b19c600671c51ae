# SPDX-License-Identifier: Apache-2.0
"""VITA against the research code, converted from the names of a released checkpoint."""

import pytest
import torch

from tests.support.goldens import assert_matches
from tests.support.video_models import assert_sampled, assert_tracks, assert_training_step, build, network_input


@pytest.mark.parametrize("name", ["vita_r50_eval_w0", "vita_r50_eval_w6"])
@torch.no_grad()
def test_evaluation(name):
    case, model = build(name, "vita")
    pixel_values = network_input(case, case.inputs["video"])
    output = model(pixel_values, output_embeddings=True)
    expected = case.outputs
    assert_sampled(output.frame_queries[-1, 0], expected["frame_queries"], 1, "frame queries", case)
    assert_sampled(output.encoded_frame_queries[0], expected["encoded_frame_queries"], 1, "encoded queries", case)
    assert_matches(output.class_queries_logits[0], expected["pred_logits"], "class logits", case.tolerance)
    assert_matches(output.mask_embeddings[0], expected["pred_mask_embed"], "mask embeddings", case.tolerance)
    assert_sampled(output.video_similarity_embeddings[0], expected["pred_cq_embed"], 0, "video similarity", case)
    assert_sampled(output.frame_similarity_embeddings[0], expected["pred_fq_embed"], 1, "frame similarity", case)
    assert_sampled(output.mask_features[0], expected["mask_features_slice"], 1, "mask features", case)
    assert_sampled(output.masks_queries_logits[0], expected["pred_masks_slice"], 0, "mask logits", case)
    assert_tracks(case, [output])

    streamed = list(model.stream(pixel_values.split(3, dim=1)))
    masks = torch.cat([clip.masks_queries_logits for clip in streamed], dim=2)
    assert_matches(masks, output.masks_queries_logits, "streamed mask logits", case.tolerance)
    assert_tracks(case, streamed)


def test_training_step():
    case, model = build("vita_r50_train", "vita")
    assert_training_step(case, model, "vita")
