# SPDX-License-Identifier: Apache-2.0
"""MinVIS against the research code: matching alone, and a whole network converted from released names."""

import torch

from tests.support.goldens import assert_matches, load_case
from tests.support.video_models import assert_online_inference, network_input
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.released.mask2former import infer_minvis_config
from transformers_cvis.modeling.minvis import MinVisForVideoInstanceSegmentation, match_frame_queries

# The research code computes its sine position codes in float32.
NETWORK_TOLERANCE = 1e-5


def test_matching():
    case = load_case("minvis_match")
    embeddings = case.inputs["embeddings"]  # [frames, queries, dim]
    order = match_frame_queries(embeddings[None])[0]
    assert_matches(order, case.outputs["permutation"], "permutation")
    logits = case.inputs["pred_logits"].take_along_dim(order[..., None], dim=1).mean(0)
    assert_matches(logits, case.outputs["video_logits"], "logits", case.tolerance)
    masks = case.inputs["pred_masks"].take_along_dim(order.T[..., None, None], dim=0)
    assert_matches(masks, case.outputs["video_masks"], "masks", case.tolerance)


def test_matching_clip_by_clip():
    case = load_case("minvis_match")
    embeddings, previous = case.inputs["embeddings"], None
    for start in range(0, len(embeddings), 3):
        clip = embeddings[None, start : start + 3]
        order = match_frame_queries(clip, previous)
        assert_matches(order[0], case.outputs["permutation"][start : start + 3], "permutation")
        previous = clip.take_along_dim(order[..., None], dim=2)[:, -1]


@torch.no_grad()
def test_whole_network():
    case = load_case("minvis_inference")
    reference = case.state_dict()
    state_dict, report = convert_state_dict(reference, "minvis")
    assert not report.unknown
    config = infer_minvis_config(reference)
    assert (config.num_labels, config.num_queries) == (case.config["classes"], case.config["num_queries"])
    model = MinVisForVideoInstanceSegmentation(config).double().eval()
    model.load_state_dict(state_dict)

    frames, expected = case.inputs["frames"], case.outputs
    pixels = network_input(case, frames)
    detected = model.detect(pixels)
    assert_matches(detected.frame_queries.permute(0, 3, 1, 2), expected["frame_embds"], "queries", NETWORK_TOLERANCE)
    assert_online_inference(case, model, NETWORK_TOLERANCE)
