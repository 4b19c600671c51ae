# SPDX-License-Identifier: Apache-2.0
"""Mask2Former checkpoints in the format of transformers segment videos without conversion."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoModel,
    AutoVideoProcessor,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
    pipeline,
)

import transformers_cvis_cli as cli
from tests.support.tiny_mask2former import tiny_mask2former
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CvisVideoProcessor,
    FrameDetector,
    GenVisConfig,
    MinVisForVideoInstanceSegmentation,
    SpvisForVideoInstanceSegmentation,
)
from transformers_cvis.modeling.genvis import GenVisForVideoInstanceSegmentation
from transformers_cvis.processing import VideoWriter

TASK = "video-instance-segmentation"
REPO = "facebook/mask2former-swin-tiny-coco-instance"
LABELS = {0: "person", 1: "bicycle", 2: "hair drier"}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": SwinConfig(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=STAGES),
}
# The saved image processor of these checkpoints, with a mean and std that differ from the defaults.
IMAGE_PROCESSOR = {
    "_max_size": 1333,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "ignore_index": 255,
    "image_mean": [0.5, 0.45, 0.4],
    "image_processor_type": "Mask2FormerImageProcessor",
    "image_std": [0.2, 0.25, 0.3],
    "num_labels": 80,
    "reduce_labels": False,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 1333, "shortest_edge": 800},
    "size_divisor": 32,
}
# Keys that older versions of transformers wrote.
OLD_KEYS = {
    "backbone": None,
    "backbone_kwargs": None,
    "num_hidden_layers": 4,
    "torch_dtype": "float32",
    "transformers_version": "4.26.0.dev0",
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
}


@pytest.fixture(scope="module", params=list(BACKBONES))
def checkpoint(request, tmp_path_factory):
    """Return the model of transformers with random weights, and the folder of its files."""
    torch.manual_seed(0)
    names = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    model = tiny_mask2former(BACKBONES[request.param], decoder_layers=4, num_queries=8, **names).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, **OLD_KEYS}))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
    return model, folder


@pytest.fixture
def repository(checkpoint, loopback_hub):
    """Return the same model and the name of its repository."""
    api = HfApi()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=checkpoint[1])
    return checkpoint[0], REPO


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)


@torch.no_grad()
def assert_same_network(model, theirs):
    """Compare in double precision: random weights give mask logits so near zero that rounding moves attention masks."""
    model, theirs = (copy.deepcopy(network).double() for network in (model, theirs))
    pixel_values = torch.randn(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, expected = model(pixel_values), theirs(pixel_values[:, 0])
    torch.testing.assert_close(ours.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.masks_queries_logits[:, :, 0], expected.masks_queries_logits, rtol=0, atol=1e-9)


def test_folder_loads_with_nothing_missing(checkpoint, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers_cvis"), "propagate", True)
    theirs, folder = checkpoint
    model, info = MinVisForVideoInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.config.id2label == LABELS
    assert not model.training
    assert_same_network(model, theirs)
    assert "has no field `backbone`" not in caplog.text


def test_repository_loads_through_every_class(repository):
    theirs, name = repository
    for loader in (MinVisForVideoInstanceSegmentation, AutoModelForVideoInstanceSegmentation):
        model = loader.from_pretrained(name)
        assert type(model) is MinVisForVideoInstanceSegmentation
        assert_same_network(model, theirs)
    assert type(AutoModel.from_pretrained(name)).__name__ == "Mask2FormerModel"  # transformers' mapping is untouched


def test_revisions(checkpoint, repository):
    theirs, name = repository
    other = Mask2FormerForUniversalSegmentation(theirs.config).eval()
    other.push_to_hub(name, revision="other")
    assert_same_network(AutoModelForVideoInstanceSegmentation.from_pretrained(name, revision="other"), other)
    segment = pipeline(TASK, model=name, revision="other")
    assert_same_network(segment.model, other)
    assert list(segment.video_processor.image_mean) == IMAGE_PROCESSOR["image_mean"]


def test_video_processor_takes_mean_and_std_and_the_size_of_videos(repository):
    processor = AutoVideoProcessor.from_pretrained(repository[1])
    expected = CvisVideoProcessor(image_mean=IMAGE_PROCESSOR["image_mean"], image_std=IMAGE_PROCESSOR["image_std"])
    assert type(processor) is CvisVideoProcessor
    assert processor.to_dict() == expected.to_dict()
    assert processor.size["shortest_edge"] == 360
    assert AutoVideoProcessor.from_pretrained(repository[1], size={"shortest_edge": 64}).size["shortest_edge"] == 64


def test_pipeline_tracks_the_classes_of_the_checkpoint(repository, frames):
    segment = pipeline(TASK, model=repository[1], threshold=None, top_k=5)
    segment.video_processor.size["shortest_edge"] = 64
    result = segment(frames)
    assert len(result["tracks"]) == 5
    assert result["num_frames"] == 3
    assert {track.label for track in result["tracks"]} <= set(LABELS.values())
    assert [track.score for track in result["tracks"]] == sorted((t.score for t in result["tracks"]), reverse=True)


def test_pipeline_of_a_model_object_finds_mean_and_std(checkpoint, repository):
    for name in (checkpoint[1], repository[1]):
        model = MinVisForVideoInstanceSegmentation.from_pretrained(name)
        assert list(pipeline(TASK, model=model).video_processor.image_std) == IMAGE_PROCESSOR["image_std"]


def test_saved_again_it_is_a_minvis(checkpoint, tmp_path, frames):
    theirs, folder = checkpoint
    segment = pipeline(TASK, model=str(folder))
    segment.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["score_rule"]) == ("minvis", "mean_logits")
    again = pipeline(TASK, model=str(tmp_path))
    assert_same_network(again.model, theirs)
    assert again.video_processor.to_dict() == segment.video_processor.to_dict()


def test_frame_detector_of_this_package_loads(checkpoint, tmp_path):
    theirs, folder = checkpoint
    FrameDetector.from_pretrained(folder).save_pretrained(tmp_path)
    assert_same_network(MinVisForVideoInstanceSegmentation.from_pretrained(tmp_path), theirs)


def test_command_line(repository, frames, tmp_path, capsys):
    with VideoWriter(tmp_path / "my.mp4", fps=5) as writer:
        for frame in frames:
            writer.write(frame)
    arguments = ["segment", tmp_path / "my.mp4", "--model", REPO, "--threshold", 0, "--out", tmp_path / "out"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert "in 3 frames of 60x40" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [category["name"] for category in results["categories"]] == list(LABELS.values())
    assert (tmp_path / "out" / "my.mp4").is_file()


class TestStartOfSpvis:
    """SPVIS started from them has a random tracker and refiner, and reports it."""

    @pytest.fixture
    def propagated(self, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers_cvis"), "propagate", True)

    @pytest.mark.parametrize(("refiner", "parts"), [(None, "tracker"), ("spvis", "tracker, refiner")])
    def test_new_weights_are_named_and_the_pipeline_refuses_them(
        self, checkpoint, tmp_path, caplog, propagated, refiner, parts
    ):
        model = SpvisForVideoInstanceSegmentation.from_pretrained(checkpoint[1], refiner=refiner)
        assert f"{checkpoint[1]} has no weights for {parts} of this SpvisForVideoInstanceSegm" in caplog.text
        refusal = rf"for inference: {parts} hold random values, because {checkpoint[1]} has no weights for them"
        with pytest.raises(ValueError, match=refusal):
            pipeline(TASK, model=model)
        model.save_pretrained(tmp_path)  # as after a training
        caplog.clear()
        assert pipeline(TASK, model=str(tmp_path)).model.is_online == (refiner is None)
        assert "has no weights" not in caplog.text

    def test_missing_weights_of_a_configured_part_are_refused(self, checkpoint, tmp_path, frames, capsys):
        model = SpvisForVideoInstanceSegmentation.from_pretrained(checkpoint[1], refiner="spvis")
        for name in ("model.safetensors", "preprocessor_config.json"):
            shutil.copy(checkpoint[1] / name, tmp_path)
        model.config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="tracker, refiner hold random values"):
            pipeline(TASK, model=str(tmp_path))
        with VideoWriter(tmp_path / "my.mp4", fps=5) as writer:
            writer.write(frames[0])
        arguments = ["segment", tmp_path / "my.mp4", "--model", tmp_path, "--out", tmp_path / "out"]
        assert cli.main([str(argument) for argument in arguments]) == 1
        assert "error: This SpvisForVideoInstanceSegmentation cannot be used for inference" in capsys.readouterr().err


@pytest.fixture(scope="module")
def maskformer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maskformer")
    backbone = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=STAGES)
    config = MaskFormerConfig(backbone_config=backbone, fpn_feature_size=32, mask_feature_size=32)
    for name, size in {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 1}.items():
        setattr(config.decoder_config, name, size)
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    return str(folder)


class TestOthers:
    """Checkpoints that are not Mask2Former's are refused by name."""

    def test_by_class(self, maskformer):
        refusal = "is a 'maskformer' model. A 'minvis' model loads its own checkpoints, or starts from one of "
        with pytest.raises(ValueError, match=f"{refusal}mask2former"):
            MinVisForVideoInstanceSegmentation.from_pretrained(maskformer)

    def test_by_pipeline(self, maskformer):
        with pytest.raises(ValueError, match="MaskFormerForInstanceSegmentation is not a video instance segmentation"):
            pipeline(TASK, model=maskformer, video_processor=CvisVideoProcessor())

    def test_by_command_line(self, maskformer, frames, tmp_path, capsys):
        with VideoWriter(tmp_path / "my.mp4", fps=5) as writer:
            writer.write(frames[0])
        assert (
            cli.main(["segment", str(tmp_path / "my.mp4"), "--model", maskformer, "--out", str(tmp_path / "out")]) == 1
        )
        assert "is a 'maskformer' model, not a video instance segmentation model" in capsys.readouterr().err

    def test_a_model_with_a_video_head(self, checkpoint, tmp_path):
        detector = MinVisForVideoInstanceSegmentation.from_pretrained(checkpoint[1]).config.to_dict()
        del detector["model_type"]
        config = GenVisConfig(detector_config=detector, num_queries=4, dim_feedforward=32, num_frame_query_layers=1)
        GenVisForVideoInstanceSegmentation(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is a 'genvis' model"):
            MinVisForVideoInstanceSegmentation.from_pretrained(tmp_path)

    def test_other_classes_than_the_checkpoint(self, checkpoint):
        with pytest.raises(ValueError, match=r"class_predictor.weight: checkpoint \(4, 32\), model \(3, 32\)"):
            MinVisForVideoInstanceSegmentation.from_pretrained(checkpoint[1], id2label={0: "a", 1: "b"})
