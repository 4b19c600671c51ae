# SPDX-License-Identifier: Apache-2.0
"""The frame detector; its numbers at full size are pinned in tests/parity."""

import copy
import json
from collections import defaultdict

import pytest
import torch
from torch import nn

from tests.support.helpers import BACKBONES, build_files, local_mapping, needs_kernel_repositories, tiny_detector_config
from tests.support.tiny_detector import frame_labels, frames, tiny_model
from transformers_cvis.modeling.frame_detector import FrameDetector
from transformers_cvis.modeling.frame_detector.masked_attention_decoder import inside_masks
from transformers_cvis.modeling.frame_detector.modeling_frame_detector import shrunk_mask_features

# Outputs


@torch.no_grad()
def test_outputs_are_made_where_they_are_asked_for():
    model = tiny_model()
    output = model(frames(), num_query_layers=2)
    assert output.frame_queries.shape == (2, 2, 6, 32)
    assert output.fpn_features.shape == output.mask_features.shape == (2, 32, 16, 24)
    assert output.predictions is None
    assert output.class_queries_logits is None
    assert output.masks_queries_logits is None
    assert model(frames(), output_mask_features=False).mask_features is None
    asked = model(frames(), output_predictions=True)
    assert asked.class_queries_logits.shape == (2, 6, 5)
    assert asked.masks_queries_logits.shape == (2, 6, 16, 24)
    assert len(asked.predictions) == model.config.decoder_layers
    assert torch.equal(asked.frame_queries[-1], output.frame_queries[-1])
    training = model.train()(frames(), output_predictions=True)
    assert training.masks_queries_logits is None
    assert len(training.predictions) == model.config.decoder_layers


@torch.no_grad()
def test_hidden_states_are_the_queries_of_every_layer():
    model = tiny_model()
    output = model(frames(), num_query_layers=2, output_hidden_states=True)
    assert model(frames()).hidden_states is None
    assert len(output.hidden_states) == model.config.decoder_layers
    assert torch.equal(torch.stack(output.hidden_states[-2:]), output.frame_queries)
    learned = model.model.transformer_module.decoder.layernorm(model.model.transformer_module.queries_features.weight)
    torch.testing.assert_close(output.hidden_states[0], learned.expand(2, -1, -1))
    with pytest.raises(ValueError, match="`output_attentions=True` is not supported"):
        model(frames(), output_attentions=True)


@torch.no_grad()
def test_tuple_instead_of_an_output():
    model = tiny_model()
    expected = model(frames(), output_predictions=True)
    found = model(frames(), output_predictions=True, return_dict=False)
    assert type(found) is tuple
    assert len(found) == len(expected.to_tuple())
    assert torch.equal(found[0], expected.class_queries_logits)


@torch.no_grad()
def test_the_backbone_keeps_its_own_attention(tmp_path):
    model = tiny_model(backbone_config=BACKBONES["swin"])
    model.save_pretrained(tmp_path)
    expected = model(frames()).frame_queries

    def implementations(model):
        return model.config._attn_implementation, model.config.backbone_config._attn_implementation

    own = implementations(model)[1]
    for name in ("eager", "sdpa"):
        loaded = FrameDetector.from_pretrained(tmp_path, attn_implementation=name)
        assert implementations(loaded) == (name, own)
        torch.testing.assert_close(loaded(frames()).frame_queries, expected, rtol=1e-4, atol=1e-4)
        model.set_attn_implementation(name)
        assert implementations(model) == (name, own)
    both = {"": "sdpa", "backbone_config": "eager"}
    assert implementations(FrameDetector.from_pretrained(tmp_path, attn_implementation=both)) == ("sdpa", "eager")
    model.set_attn_implementation(both)
    assert implementations(model) == ("sdpa", "eager")
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        FrameDetector.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@torch.no_grad()
def test_shrunk_features_and_shrunk_logits_give_equal_masks():
    projection = torch.nn.Conv2d(8, 8, 1).double()
    features, embeddings = torch.randn(1, 8, 32, 48).double(), torch.randn(1, 5, 8).double()
    logits = torch.einsum("nqc,nchw->nqhw", embeddings, projection(features))
    for size in ((4, 6), (8, 12), (16, 24)):
        expected = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        shrunk = shrunk_mask_features(features, projection, size)
        torch.testing.assert_close(torch.einsum("nqc,nchw->nqhw", embeddings, shrunk), expected)


def test_query_with_an_empty_mask_looks_everywhere():
    features = torch.tensor([[[1.0, -2.0, 3.0]]])  # (1 image, 1 channel, 3 positions)
    allowed = inside_masks(torch.tensor([[[1.0], [-1.0], [0.0]]]), features)
    assert allowed.tolist() == [[[True, False, True], [False, True, False], [True, True, True]]]
    assert inside_masks(torch.tensor([[[-1.0]]]), features.abs()).all()


@torch.no_grad()
def test_frames_of_a_batch_are_independent():
    model = tiny_model().double()
    together = model(frames(3, dtype=torch.float64), output_predictions=True)
    alone = model(frames(3, dtype=torch.float64)[1:2], output_predictions=True)
    torch.testing.assert_close(together.class_queries_logits[1:2], alone.class_queries_logits)
    torch.testing.assert_close(together.masks_queries_logits[1:2], alone.masks_queries_logits)


@pytest.mark.parametrize("backbone", ["basic", "swin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(backbone, dtype):
    model = tiny_model(backbone_config=BACKBONES[backbone])
    expected = model(frames(), output_predictions=True)
    half = copy.deepcopy(model).to(dtype)(frames(), output_predictions=True)
    for output in (half, _under_autocast(model, dtype)):
        assert output.class_queries_logits.isfinite().all()
        assert output.masks_queries_logits.isfinite().all()
        error = (output.fpn_features.float() - expected.fpn_features).abs().mean()
        assert error < 0.05 * expected.fpn_features.abs().mean()
    assert half.masks_queries_logits.dtype == dtype


def _under_autocast(model, dtype):
    with torch.autocast("cpu", dtype=dtype):
        return model(frames(), output_predictions=True)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_pixel_decoder_keeps_the_dtype_of_its_weights_under_autocast(weights, checkpointing):
    """This also holds where checkpointing repeats the forward pass; later layers run in half precision again."""
    model = tiny_model().to(weights).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    seen = defaultdict(set)

    def note(name):
        return lambda module, inputs, output: seen[name].update((inputs[0].dtype, output.dtype))

    decoder = model.model.pixel_level_module.decoder
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.GroupNorm)):
            module.register_forward_hook(note(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(frames(), labels=frame_labels())
    output.loss.backward()
    inside = {name for name in seen if name.startswith("model.pixel_level_module.decoder.")}
    layers = [module for module in decoder.modules() if not list(module.children()) and list(module.parameters())]
    assert len(inside) == len(layers)
    assert {dtype for name in inside for dtype in seen[name]} == {weights}
    assert torch.bfloat16 in seen["class_predictor"]
    gradients = [parameter.grad for parameter in decoder.parameters()]
    assert all(gradient.dtype == weights and gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_compiles_without_graph_break():
    model = tiny_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected, actual = model(frames(), output_predictions=True), compiled(frames(), output_predictions=True)
    torch.testing.assert_close(actual.masks_queries_logits, expected.masks_queries_logits, rtol=1e-4, atol=1e-4)


def test_trains_after_inference_mode():
    """Tensors cached at inference must work with autograd."""
    model = tiny_model()
    with torch.inference_mode():
        model(frames())
    output = model.train()(frames())
    output.frame_queries.sum().backward()
    assert model.model.transformer_module.level_embed.weight.grad is not None


# Training


def test_losses_and_gradients():
    model = tiny_model().train()
    output = model(frames(), labels=frame_labels())
    kinds, last = ("loss_ce", "loss_mask", "loss_dice"), model.config.decoder_layers - 1
    expected = {f"{kind}{suffix}" for kind in kinds for suffix in ["", *(f"_{index}" for index in range(last))]}
    assert set(output.loss_dict) == expected
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert set(tiny_model(use_auxiliary_loss=False)(frames(), labels=frame_labels()).loss_dict) == set(kinds)


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model(frames(), labels=frame_labels()).loss.backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, msg=name)


def test_initialisation():
    torch.manual_seed(0)
    model = FrameDetector(tiny_detector_config(hidden_dim=64, feature_size=64, mask_feature_size=64, num_queries=100))
    decoder, transformer = model.model.pixel_level_module.decoder, model.model.transformer_module
    for embedding in (transformer.queries_features.weight, transformer.queries_embedder.weight):
        assert abs(embedding.mean()) < 0.05
        assert abs(embedding.std() - 1) < 0.05
    attention = decoder.encoder.layers[0].self_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.bias.any()
    offsets = attention.sampling_offsets.bias.view(2, 3, 4, 2)  # [heads, levels, points, xy]
    steps = torch.arange(1.0, 5)
    torch.testing.assert_close(offsets[0, 1], torch.stack((steps, torch.zeros(4)), -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(offsets[1, 2], torch.stack((-steps, torch.zeros(4)), -1), atol=1e-6, rtol=0)

    def bound(tensor):  # the largest entry tells the range of a uniform initialisation
        return tensor.abs().max().item()

    layer = transformer.decoder.layers[0]
    packed = (6 / (64 + 3 * 64)) ** 0.5
    assert bound(layer.cross_attn.in_proj_weight) == pytest.approx(packed, rel=0.02)
    assert bound(layer.self_attn.q_proj.weight) == pytest.approx(packed, rel=0.02)
    assert bound(layer.cross_attn.out_proj.weight) == pytest.approx((6 / 128) ** 0.5, rel=0.02)
    assert bound(layer.fc1.weight) == pytest.approx((6 / 96) ** 0.5, rel=0.02)
    assert bound(model.class_predictor.weight) == pytest.approx(1 / 8, rel=0.05)
    assert bound(decoder.layer_1[0].weight) == pytest.approx((3 / (64 * 9)) ** 0.5, rel=0.02)
    assert not decoder.mask_projection.bias.any()
    # Xavier of a 1x1 convolution from 16 channels to 64.
    assert bound(decoder.input_projections[0][0].weight) == pytest.approx((6 / 80) ** 0.5, rel=0.02)


# Saving, kernels


@torch.no_grad()
def test_saved_model_is_the_same_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "cvis_frame_detector"
    loaded, info = FrameDetector.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(frames()).frame_queries, model(frames()).frame_queries)


def test_kernels_on_and_off(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = FrameDetector.from_pretrained(tmp_path, use_kernels=True)
    assert model.use_kernels
    layers = [name for name, _ in model.named_modules() if name.endswith("self_attn.attention")]
    assert set(model.kernel_report()) == set(layers)
    model.train().eval()
    model.set_use_kernels(False)
    assert not model.use_kernels
    with pytest.raises(ValueError, match="pass `mapping` instead of `kernel_config`"):
        model.set_use_kernels(True, kernel_config=object())


@needs_kernel_repositories
def test_kernels_follow_the_model_to_its_mode_and_device(tmp_path):
    model = tiny_model()
    model.set_use_kernels(mapping=local_mapping(tmp_path, build_files(name="cvis-detector-kernel")), strict=True)
    for moved in (model, model.train(), model.eval(), model.double().float()):
        assert all(path.startswith("Hub kernel") for path in moved.kernel_report().values())
    assert not torch.equal(model(frames()).mask_features, tiny_model()(frames()).mask_features)

    model.set_use_kernels(strict=False)
    model.to("meta")  # a device that lacks a kernel
    assert all(path.startswith("PyTorch (") for path in model.kernel_report().values())
    model.to_empty(device="cpu")
    assert all(path.startswith("Hub kernel") for path in model.kernel_report().values())


# Bad input


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(3, 64, 64), r"must have the shape \(frames, 3, height, width\), got \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"must have the shape \(frames, 3, height, width\), got \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 60, 64), "must be multiples of 32, got 60 x 64. Pad"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "must be normalised floats, got torch.uint8"),
    ],
)
def test_bad_frames(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(pixel_values)


def test_bad_number_of_query_layers():
    with pytest.raises(ValueError, match="`num_query_layers` must be 1 to 3, got 4"):
        tiny_model()(frames(), num_query_layers=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, r"`feature_size` must be a multiple of `num_attention_heads` \(5\), got 32"),
        ({"hidden_dim": 34}, "`hidden_dim` must be a multiple of 4"),
        ({"feature_size": 48}, "`feature_size` must be a multiple of 32"),
        ({"decoder_layers": 1}, "`decoder_layers` must be at least 2, got 1"),
        ({"pre_norm": True}, "`pre_norm=True` is not supported"),
        ({"common_stride": 8}, r"got \[4, 8, 16, 32\] and 8"),
    ],
)
def test_bad_configuration(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_detector_config(**changes)


def test_backbone_with_too_few_maps():
    backbone = {**BACKBONES["basic"], "out_features": ["stage3", "stage4"]}
    with pytest.raises(ValueError, match=r"must return four maps .*got \['stage3', 'stage4'\]"):
        tiny_model(backbone_config=backbone)
