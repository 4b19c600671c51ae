# SPDX-License-Identifier: Apache-2.0
"""GenVIS against the research code, converted from the names of a released checkpoint."""

import pytest
import torch

from tests.support.goldens import assert_matches, load_case
from tests.support.video_models import assert_sampled, assert_tracks, assert_training_step, build, network_input


@pytest.mark.parametrize("name", ["genvis_r50_online", "genvis_r50_semi"])
@torch.no_grad()
def test_evaluation(name):
    case, model = build(name, "genvis")
    expected, seen = case.outputs, {"decoder_input": [], "memory_read": [], "memory_weights": []}
    model.video_head.decoder.register_forward_pre_hook(lambda _, inputs: seen["decoder_input"].append(inputs[0][0]))

    def record_read(module, inputs, read):
        seen["memory_read"].append(read.read[0])
        seen["memory_weights"].append(read.weights[0])

    model.video_head.memory_attention.register_forward_hook(record_read)
    clips = network_input(case, case.inputs["video"]).split(case.config["frames_per_clip"], dim=1)
    assert [clip.shape[1] for clip in clips] == case.config["clip_lengths"]
    state, outputs = None, []
    for clip in clips:
        outputs.append(model(clip, state=state, output_embeddings=True))
        state = outputs[-1].state

    def of_clips(name):
        return torch.stack([getattr(output, name)[0] for output in outputs])

    assert_matches(of_clips("class_queries_logits"), expected["pred_logits"], "class logits", case.tolerance)
    assert_sampled(of_clips("mask_embeddings"), expected["pred_mask_embed_slice"], 1, "mask embeddings", case)
    leaving = torch.stack([output.state.video_queries[0] for output in outputs])
    assert_sampled(leaving, expected["out_queries_slice"], 1, "queries for the next clip", case)
    assert_sampled(torch.stack(seen["decoder_input"]), expected["decoder_input_slice"], 1, "decoder input", case)
    assert_sampled(torch.stack(seen["memory_read"]), expected["memory_read_slice"], 1, "memory read", case)
    assert_sampled(state.memory.keys[0].transpose(0, 1), expected["memory_k_slice"], 1, "memory keys", case)
    assert_sampled(state.memory.values[0].transpose(0, 1), expected["memory_v_slice"], 1, "memory values", case)
    for index, weights in enumerate(seen["memory_weights"][1:], start=1):
        assert_matches(weights, expected[f"memory_weights_clip{index}"], f"weights of clip {index}", case.tolerance)
    features = torch.cat([output.mask_features[0] for output in outputs])
    assert_sampled(features, expected["mask_features_slice"], 1, "mask features", case)
    masks = torch.cat([output.masks_queries_logits[0] for output in outputs], dim=1)
    assert_sampled(masks, expected["pred_masks_slice"], 0, "mask logits", case)
    assert_tracks(case, outputs)


def test_training_step():
    clip_length = load_case("genvis_r50_train").config["frames_per_clip"]
    case, model = build("genvis_r50_train", "genvis", clip_length=clip_length, uvla="released")
    assert_training_step(case, model, "genvis")
