import pytest
import torch
from conversion.detectron2_names import (
    RESNET_CHANNELS,
    SWIN_CHANNELS,
    mask2former_names,
    random_state_dict,
    resnet_names,
    swin_names,
)

from transformers_cvis.conversion import convert_checkpoint, convert_state_dict
from transformers_cvis.conversion.clip_configurations import infer_mask2former_vis_config
from transformers_cvis.conversion.configurations import infer_frame_detector_config
from transformers_cvis.modeling.frame_detector import FrameDetector
from transformers_cvis.modeling.mask2former_vis import Mask2FormerVisForVideoInstanceSegmentation
from transformers_cvis.modeling.minvis import MinVisForVideoInstanceSegmentation

STATE_DICTS = {
    "resnet": random_state_dict(resnet_names() | mask2former_names(RESNET_CHANNELS)),
    "swin": random_state_dict(swin_names() | mask2former_names(SWIN_CHANNELS)),
}


@pytest.fixture(params=STATE_DICTS)
def released(request):
    return dict(STATE_DICTS[request.param])


def test_every_name_has_its_place(released):
    converted, report = convert_state_dict(released, "mask2former")
    assert not report.unknown
    assert set(report.mapped) | set(report.ignored) == set(released)
    assert "criterion.empty_weight" in report.ignored
    model = FrameDetector(infer_frame_detector_config(released))
    model.load_state_dict(converted)


def test_inferred_sizes(released):
    config = infer_frame_detector_config(released)
    assert (config.num_labels, config.num_queries, config.hidden_dim, config.num_attention_heads) == (5, 6, 32, 2)
    assert (config.encoder_layers, config.decoder_layers) == (2, 4)
    assert (config.encoder_feedforward_dim, config.dim_feedforward) == (24, 24)
    assert config.backbone_config.depths in ([1, 2, 1, 1], (1, 2, 1, 1))
    if config.backbone_config.model_type == "swin":
        assert config.backbone_config.window_size == 3
        assert config.backbone_config.num_heads == [1, 2, 2, 4]


def test_packed_rows_are_split_in_order():
    released = STATE_DICTS["swin"]
    converted, report = convert_state_dict(released, "mask2former")
    name = "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight"
    parts = [converted[target] for target in report.mapped[name]]
    assert [target.split(".")[-2] for target in report.mapped[name]] == ["q_proj", "k_proj", "v_proj"]
    assert torch.equal(torch.cat(parts), released[name])
    name = "backbone.layers.1.blocks.0.attn.qkv.bias"
    assert torch.equal(torch.cat([converted[target] for target in report.mapped[name]]), released[name])
    cross = "sem_seg_head.predictor.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight"
    assert report.mapped[cross] == ("model.transformer_module.decoder.layers.1.cross_attn.in_proj_weight",)


def test_names_of_old_files():
    released = STATE_DICTS["resnet"]
    old = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): tensor
        for name, tensor in released.items()
    }
    converted, report = convert_state_dict(old, "mask2former")
    expected, _ = convert_state_dict(released, "mask2former")
    assert not report.unknown
    assert converted.keys() == expected.keys()


def test_unknown_names_are_reported():
    _, report = convert_state_dict({"sem_seg_head.predictor.surprise.weight": torch.zeros(1)}, "mask2former")
    assert report.unknown == ["sem_seg_head.predictor.surprise.weight"]
    assert "unknown sem_seg_head.predictor.surprise.weight" in str(report)


def test_unknown_system_is_an_error():
    with pytest.raises(ValueError, match="No name table for system 'masktrack'; there are .*mask2former"):
        convert_state_dict({}, "masktrack")


def test_mask2former_checkpoint_segments_videos(tmp_path, released):
    torch.save({"model": released}, tmp_path / "model.pth")
    labels = ["cat", "dog", "cow", "hen", "fox"]
    convert_checkpoint(tmp_path / "model.pth", tmp_path / "converted", "minvis", class_names=labels)
    model, info = MinVisForVideoInstanceSegmentation.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(model.config.id2label.values()) == labels
    head = next(tensor for name, tensor in model.state_dict().items() if name.endswith("class_predictor.weight"))
    assert torch.equal(head, released["sem_seg_head.predictor.class_embed.weight"])


def test_checkpoints_for_videos_have_the_same_names(released):
    converted, report = convert_state_dict(released, "mask2former_vis")
    assert not report.unknown
    config = infer_mask2former_vis_config(released, max_clip_frames=20)
    assert config.max_clip_frames == 20 and config.num_labels == 5
    model = Mask2FormerVisForVideoInstanceSegmentation(config)
    missing = model.load_state_dict(converted, strict=False).missing_keys
    assert all(".swin.layernorm." in name for name in missing)
    assert model.class_predictor.weight.equal(released["sem_seg_head.predictor.class_embed.weight"])
