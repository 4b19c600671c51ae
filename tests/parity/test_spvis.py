# SPDX-License-Identifier: Apache-2.0
"""SPVIS and DVIS against the research code: tracker, compensator and refiner alone, and the online network."""

import pytest
import torch

from tests.support.goldens import Case, assert_matches, load_case
from tests.support.video_models import assert_online_inference, network_input
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.released.spvis import infer_spvis_config
from transformers_cvis.modeling.spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from transformers_cvis.modeling.spvis.refiners import (
    JointRefiner,
    RefinedTracks,
    RefinementCompensator,
    TemporalRefiner,
)
from transformers_cvis.modeling.spvis.tracker import TrackedFrames, Tracker

TOLERANCE = 1e-8
# The research code computes sine position codes, or its outputs at inference, in float32.
SINGLE_PRECISION = 1e-5


def part_config(case: Case, **settings) -> SpvisConfig:
    sizes = case.config
    return SpvisConfig(
        hidden_dim=sizes["hidden_channel"],
        mask_feature_size=sizes["mask_dim"],
        num_attention_heads=sizes["num_head"],
        num_labels=sizes["class_num"],
        tracker_dim_feedforward=sizes["feedforward_channel"],
        tracker_layers=sizes["decoder_layer_num"],
        refiner_layers=sizes["decoder_layer_num"],
        **settings,
    )


def load_part(case: Case, module: torch.nn.Module, system: str, released_name: str, name: str) -> torch.nn.Module:
    """Return the recorded part of a network with its converted weights, in float64."""
    released = {f"{released_name}.{key}": value for key, value in case.state_dict().items()}
    converted, report = convert_state_dict(released, system)
    assert not report.unknown
    assert not report.ignored
    module.double().eval().load_state_dict({key.removeprefix(f"{name}."): value for key, value in converted.items()})
    return module


def tolerance_of(case: Case) -> float:
    return max(TOLERANCE, case.tolerance)


def queries_of(tensor: torch.Tensor) -> torch.Tensor:
    """Reorder (1, C, T, Q) of the research code to (1, T, Q, C)."""
    return tensor.permute(0, 2, 3, 1)


def mask_logits(embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return torch.einsum("btqc,btchw->bqthw", embeddings, features)


def tracker_of(case: Case, **settings) -> Tracker:
    system = "dvis" if settings["filter"] == "referring" else "spvis"
    width = case.keys.get("transformer_cross_attention_layers.0.feedforward.0.weight", [1])[0]
    config = part_config(case, filter_dim_feedforward=width, **settings)
    return load_part(case, Tracker(config), system, "tracker", "tracker")


def assert_tracked(tracker: Tracker, tracked: TrackedFrames, features: torch.Tensor, case: Case, run: str) -> None:
    expected = {name.removeprefix(f"{run}/"): value for name, value in case.outputs.items() if name.startswith(run)}
    tolerance = tolerance_of(case)
    assert_matches(tracked.order[0], expected["indices"], f"{run} assignment")
    assert_matches(tracked.queries[-1], queries_of(expected["pred_embds"]), f"{run} queries", tolerance)
    *auxiliary, last = tracker.class_predictor(tracked.queries)
    assert_matches(last, expected["pred_logits"], f"{run} class logits", tolerance)
    for layer, logits in enumerate(auxiliary):
        assert_matches(logits, expected[f"aux{layer}_logits"], f"{run} class logits of layer {layer}", tolerance)
    masks = mask_logits(tracker.mask_embedder(tracked.queries[-1]), features)
    assert_matches(masks, expected["pred_masks"], f"{run} masks", tolerance)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("spvis_tracker", {"filter": "disturbance", "filter_residual": "released", "alignment": "released"}),
        ("dvis_tracker", {"filter": "referring", "alignment": "released"}),
    ],
)
@torch.no_grad()
def test_tracker(name, settings):
    case = load_case(name)
    tracker = tracker_of(case, **settings)
    queries, features = queries_of(case.inputs["frame_embeds"]), case.inputs["mask_features"]
    start = case.config["frames"][0]
    first = tracker.track(queries[:, :start])
    assert_tracked(tracker, first, features[:, :start], case, "first")
    resumed = tracker.track(queries[:, start:], first.state)
    assert_tracked(tracker, resumed, features[:, start:], case, "resume")
    if "frame_forward" in case.outputs:
        encoded = tracker.layer_norm(tracker.encode_frames(queries[:, :start])[-1])
        assert_matches(encoded, queries_of(case.outputs["frame_forward"]), "frames alone", tolerance_of(case))


@torch.no_grad()
def test_released_assignment_has_no_effect_on_the_released_filter():
    case = load_case("spvis_tracker")
    released, corrected = (
        tracker_of(case, filter="disturbance", filter_residual="released", alignment=alignment)
        for alignment in ("released", "corrected")
    )
    queries = queries_of(case.inputs["frame_embeds"])
    effect = (released.track(queries).queries[-1] - corrected.track(queries).queries[-1]).abs().max()
    assert_matches(effect.reshape(1), case.outputs["matching_effect"], "effect of the assignment", tolerance_of(case))


@torch.no_grad()
def test_corrected_alignment_keeps_objects_in_their_place():
    case = load_case("dvis_tracker")
    queries = queries_of(case.inputs["frame_embeds"])
    similarities = []
    for alignment in ("released", "corrected"):
        tracked = tracker_of(case, filter="referring", alignment=alignment).track(queries)
        matched = queries.take_along_dim(tracked.order.unsqueeze(3), dim=2)
        similarities.append(torch.nn.functional.cosine_similarity(matched[:, 0], matched[:, 1], dim=-1).mean())
    assert similarities[1] > similarities[0]


@torch.no_grad()
def test_compensator():
    case = load_case("spvis_compensator")
    sizes = case.config
    config = SpvisConfig(
        hidden_dim=sizes["d_model"],
        num_attention_heads=sizes["num_heads"],
        tracker_dim_feedforward=sizes["d_ff"],
        compensator_repeats=sizes["num_repeats"],
    )
    compensator = RefinementCompensator(config)
    load_part(case, compensator, "spvis", "compensator", "refiner.compensator")
    refined = compensator(case.inputs["x"].transpose(0, 1)).transpose(0, 1)
    assert_matches(refined, case.outputs["y"], "compensated", TOLERANCE)


@torch.no_grad()
def test_temporal_refiner():
    case = load_case("spvis_temporal_refiner")
    refiner = load_part(case, TemporalRefiner(part_config(case)), "dvis", "refiner", "refiner")
    tracks, frame_queries = queries_of(case.inputs["instance_embeds"]), queries_of(case.inputs["frame_embeds"])
    num_frames, expected = tracks.shape[1], case.outputs
    for run, tolerance in (("eval", SINGLE_PRECISION), ("train", TOLERANCE)):
        refined: RefinedTracks = refiner.train(run == "train")(tracks, frame_queries)
        *auxiliary, last = refined.class_logits.unsqueeze(2).expand(-1, -1, num_frames, -1, -1)
        assert_matches(last, expected[f"{run}/pred_logits"], f"{run} class logits", tolerance)
        for layer, logits in enumerate(auxiliary):
            assert_matches(logits, expected[f"{run}/aux{layer}_logits"], f"{run} logits of layer {layer}", tolerance)
    assert_matches(refined.queries[-1], queries_of(expected["eval/pred_embds"]), "queries", TOLERANCE)
    masks = mask_logits(refined.mask_embeddings[-1], case.inputs["mask_features"])
    assert_matches(masks, expected["eval/pred_masks"], "masks", SINGLE_PRECISION)


@torch.no_grad()
def test_interaction_as_written():
    """The published interaction mixes up axes, so it needs equal numbers of frames, queries and channels.

    This follows its order of axes with the layers here: queries attend to frames across the batch, frame queries are
    also the attention mask, the channels of the convolution are the frames, and the layers after it read frames as
    channels.
    """
    case = load_case("spvis_interaction_literal")
    config = part_config(case, joint="interaction_only")
    refiner = load_part(case, JointRefiner(config), "spvis", "interaction", "refiner")
    hidden_states = case.inputs["instance_embeds"][0].permute(2, 1, 0)  # [queries, frames, channels]
    attention_mask = case.inputs["frame_embeds"][0].permute(2, 1, 0)  # [queries, frames, channels]
    memory = attention_mask.transpose(0, 1)
    for layer in refiner.layers:
        block = layer.cross_attn
        read = block.attention(hidden_states, memory, memory, attention_mask)
        hidden_states = block.layer_norm(hidden_states + read)
        for convolution in (layer.conv1, layer.conv2):
            hidden_states = torch.nn.Conv1d.forward(convolution, hidden_states).relu()
        hidden_states = layer.conv_layer_norm(hidden_states.transpose(1, 2))  # [queries, channels, frames]
        hidden_states = layer.feed_forward(layer.self_attn(hidden_states.transpose(0, 1))).transpose(0, 1)
        hidden_states = hidden_states.sigmoid()
    refined = refiner.predict(hidden_states.transpose(0, 1)[None, None])
    expected = case.outputs
    assert_matches(refined.queries[-1], queries_of(expected["eval/pred_embds"]), "queries", SINGLE_PRECISION)
    logits = refined.class_logits[-1].unsqueeze(1).expand_as(expected["eval/pred_logits"])
    assert_matches(logits, expected["eval/pred_logits"], "class logits", SINGLE_PRECISION)
    masks = mask_logits(refined.mask_embeddings[-1], case.inputs["mask_features"])
    assert_matches(masks, expected["eval/pred_masks"], "masks", SINGLE_PRECISION)


@torch.no_grad()
def test_online_network():
    case = load_case("spvis_online_inference")
    reference = case.state_dict()
    state_dict, report = convert_state_dict(reference, "spvis")
    assert not report.unknown
    config = infer_spvis_config(reference)
    assert (config.num_labels, config.tracker_layers) == (case.config["classes"], case.config["tracker_layers"])
    model = SpvisForVideoInstanceSegmentation(config).double().eval()
    model.load_state_dict(state_dict)

    frames, expected = case.inputs["frames"], case.outputs
    pixels = network_input(case, frames)
    detected = model.detect(pixels)
    assert_matches(detected.frame_queries, queries_of(expected["frame_embds"]), "frame queries", SINGLE_PRECISION)
    assert_online_inference(case, model, SINGLE_PRECISION)
