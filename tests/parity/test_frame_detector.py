# SPDX-License-Identifier: Apache-2.0
"""The frame detector against Mask2Former, converted from the names of a released checkpoint."""

import pytest
import torch
from torch import nn

from tests.support.goldens import assert_matches, load_case
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.released.mask2former import infer_frame_detector_config
from transformers_cvis.modeling.frame_detector import FrameDetector


@pytest.fixture(scope="module")
def case():
    return load_case("m2f_frame_r50")


@pytest.fixture(scope="module")
def model(case):
    state_dict, report = convert_state_dict(case.state_dict(), "mask2former")
    assert not report.unknown
    model = FrameDetector(infer_frame_detector_config(case.state_dict())).double().eval()
    model.load_state_dict(state_dict)
    return model


@pytest.fixture(scope="module")
def pixel_values(case):
    mean, std = (
        torch.tensor(case.config[name], dtype=torch.float64)[:, None, None] for name in ("pixel_mean", "pixel_std")
    )
    pixels = (case.inputs["image"].double() - mean) / std
    divisor = case.config["padded_to_multiple_of"]
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, -width % divisor, 0, -height % divisor))


@pytest.fixture(scope="module")
def outputs(model, pixel_values):
    with torch.no_grad():
        return model(pixel_values, output_predictions=True)


def test_inferred_configuration(case, model):
    published = case.config
    assert model.config.num_labels == published["num_classes"]
    assert model.config.num_queries == published["num_queries"]
    assert model.config.hidden_dim == published["hidden_dim"]
    assert model.config.mask_feature_size == published["mask_dim"]
    assert model.config.decoder_layers == published["decoder_predictions"]
    assert model.config.encoder_layers == published["encoder_layers"]
    assert model.config.encoder_feedforward_dim == published["encoder_ffn"]
    assert model.config.dim_feedforward == published["decoder_ffn"]
    assert model.config.num_attention_heads == published["heads"]


@torch.no_grad()
def test_backbone(case, model, pixel_values):
    maps = model.model.pixel_level_module.encoder(pixel_values).feature_maps
    for name, feature_map in zip(("res2", "res3", "res4", "res5"), maps, strict=True):
        expected = case.outputs[f"{name}_slice"]
        step = feature_map.shape[1] // len(expected)
        assert_matches(feature_map[0, ::step], expected, name, case.tolerance)
        statistics = torch.stack([feature_map.mean(), feature_map.std()])
        assert_matches(statistics, case.outputs[f"{name}_stats"], name, case.tolerance)


@torch.no_grad()
def test_pixel_decoder(case, model, pixel_values, outputs):
    levels, _ = model.model.pixel_level_module(pixel_values)
    for index, level in enumerate(levels):
        assert_matches(level[0], case.outputs[f"pixel_decoder_level{index}"], f"level {index}", case.tolerance)
    expected = case.outputs["mask_features_slice"]
    step = outputs.mask_features.shape[1] // len(expected)
    assert_matches(outputs.mask_features[0, ::step], expected, "mask_features", case.tolerance)


def test_predictions(case, outputs):
    assert_matches(outputs.class_queries_logits[0], case.outputs["pred_logits"], "logits", case.tolerance)
    assert_matches(outputs.masks_queries_logits[0], case.outputs["pred_masks"], "masks", case.tolerance)
    *earlier, last = outputs.predictions
    assert_matches(last.class_logits[0], case.outputs["pred_logits"], "last", case.tolerance)
    expected_masks = case.outputs["aux_masks_slice"]
    step = outputs.masks_queries_logits.shape[1] // expected_masks.shape[1]
    masks = [
        torch.einsum("qc,chw->qhw", prediction.mask_embeddings[0, ::step], outputs.mask_features[0])
        for prediction in earlier
    ]
    logits = torch.stack([prediction.class_logits[0] for prediction in earlier])
    assert_matches(logits, case.outputs["aux_logits"], "earlier logits", case.tolerance)
    assert_matches(torch.stack(masks), expected_masks, "earlier masks", case.tolerance)


def test_instances(case, pixel_values, outputs):
    """Return the instances of image evaluation: top pairs of query and class, scored by mask quality as well."""
    scores = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    best = scores.flatten().topk(case.config["top_k"])
    queries, labels = best.indices // scores.shape[1], best.indices % scores.shape[1]
    height, width = case.inputs["image"].shape[-2:]
    logits = nn.functional.interpolate(
        outputs.masks_queries_logits, pixel_values.shape[-2:], mode="bilinear", align_corners=False
    )
    logits = nn.functional.interpolate(
        logits[..., :height, :width], case.config["output_size"], mode="bilinear", align_corners=False
    )
    masks = logits[0, queries] > 0
    inside = logits[0, queries].sigmoid() * masks
    quality = inside.sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores = best.values * quality

    expected = case.outputs
    order, expected_order = _order(scores, labels), _order(expected["instance_scores"], expected["instance_labels"])
    assert_matches(scores[order], expected["instance_scores"][expected_order], "scores", case.tolerance)
    assert_matches(labels[order], expected["instance_labels"][expected_order], "labels")
    assert_matches(masks.sum((1, 2))[order], expected["instance_mask_areas"][expected_order], "areas")
    place = torch.empty_like(order)
    place[expected_order] = order
    step = len(order) // len(expected["instance_masks_slice"])
    assert_matches(masks[place[::step]].to(torch.uint8), expected["instance_masks_slice"], "masks")


def _order(scores, labels):
    """Return indices sorted by label, then by score."""
    by_score = scores.argsort()
    return by_score[labels[by_score].argsort(stable=True)]
