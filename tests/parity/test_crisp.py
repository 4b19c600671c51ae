# SPDX-License-Identifier: Apache-2.0
"""CRISP against the research code."""

import pytest
import torch
from torch import nn

from tests.support.goldens import assert_matches, load_case
from tests.support.video_models import decoder_config
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.modeling.clip_detector import ClipFeatures
from transformers_cvis.modeling.crisp import CrispConfig, CrispForVideoInstanceSegmentation
from transformers_cvis.modeling.crisp.initialization import principal_rows
from transformers_cvis.modeling.crisp.losses import match_prompts
from transformers_cvis.modeling.mask2former_vis import Mask2FormerVisConfig
from transformers_cvis.modeling.tasks.queries import GroupedQueries
from transformers_cvis.processing import TrackAccumulator
from transformers_cvis.rle import decode

POSITION_CODES_IN_FLOAT32 = 1e-5  # by the reference
DECODER_CASES = ["crisp_decoder_base", "crisp_decoder_prompts"]
# The released code has these for later tasks.
SUPERVISION = {"crisp_decoder_base": "all", "crisp_decoder_prompts": "released"}


class DecoderCase:
    """Load a case of the decoder: the model with its weights, and recorded features instead of frames."""

    def __init__(self, name: str, monkeypatch):
        self.case = load_case(name)
        config = self.case.config
        self.model = CrispForVideoInstanceSegmentation(
            CrispConfig.from_frame_detector(
                decoder_config(config),
                id2label={index: f"class {index}" for index in range(sum(config["classes"]))},
                task_class_counts=config["classes"],
                task_prompt_counts=[config["num_prompts"]] * (len(config["classes"]) - 1),
                deep_class_head=config["deep_class_head"],
                deep_supervision=SUPERVISION[name],
            )
        ).double()
        released = {f"sem_seg_head.predictor.{key}": tensor for key, tensor in self.case.state_dict().items()}
        weights, report = convert_state_dict(released, "crisp")
        assert not report.unknown
        assert not report.ignored
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(name.startswith(("model.pixel_level_module", "class_tokens")) for name in missing), missing
        prompts = self.case.inputs["semantic_prompts"]
        monkeypatch.setattr(self.model, "semantic_prompts", lambda task: prompts)
        monkeypatch.setattr(self.model, "read_frames", lambda frames: self.features(*frames.shape[:2]))

    def features(self, num_clips: int, num_frames: int) -> ClipFeatures:
        shape, inputs = (num_clips, num_frames), self.case.inputs
        levels = [inputs[f"feat{level}"][: num_clips * num_frames] for level in range(3)]
        mask_features = inputs["mask_features"][: num_clips * num_frames]
        shrunk = [nn.functional.interpolate(mask_features, level.shape[-2:], mode="bilinear") for level in levels]
        return ClipFeatures(
            [level.unflatten(0, shape) for level in levels],
            [part.flatten(2).transpose(1, 2).unflatten(0, shape) for part in shrunk],
            mask_features.unflatten(0, shape),
        )

    def frames(self, num_clips: int) -> torch.Tensor:
        height, width = self.case.inputs["mask_features"].shape[-2:]
        return torch.zeros(num_clips, self.case.config["num_frames"], 3, 4 * height, 4 * width, dtype=torch.float64)

    def equal(self, actual, name):
        assert_matches(actual, self.case.outputs[name], name, POSITION_CODES_IN_FLOAT32)

    def masks(self, embeddings, num_clips: int):
        features = self.features(num_clips, self.case.config["num_frames"]).mask_features
        return torch.einsum("bqc,btchw->bqthw", embeddings, features)


@pytest.mark.parametrize("name", DECODER_CASES)
def test_training(name, monkeypatch):
    case = DecoderCase(name, monkeypatch)
    model, expected = case.model.train(), case.case.outputs
    recorded = []
    monkeypatch.setattr(model.criterion, "forward", lambda predictions, *rest: recorded.extend(predictions) or {})
    num_clips = len(expected["train/pred_logits"])
    frames = case.frames(num_clips)
    nothing = {
        "class_labels": torch.zeros(0, dtype=torch.long),
        "ids": torch.zeros(0, frames.shape[1], dtype=torch.long),
        "masks": torch.zeros(0, frames.shape[1], *frames.shape[-2:], dtype=torch.bool),
    }
    output = model(frames, labels=[nothing] * num_clips)

    *auxiliary, last = recorded
    case.equal(last.class_logits, "train/pred_logits")
    case.equal(case.masks(last.mask_embeddings, num_clips), "train/pred_masks")
    assert len(auxiliary) == sum(key.endswith("_logits") and "/aux" in key for key in expected)
    for index, prediction in enumerate(auxiliary):
        case.equal(prediction.class_logits, f"train/aux{index}_logits")
    if "train/aux0_masks" in expected:
        masks = case.masks(auxiliary[0].mask_embeddings, num_clips)
        case.equal(masks[:, : expected["train/aux0_masks"].shape[1]], "train/aux0_masks")
    matched = match_prompts(model.groups()[-1].features, case.case.inputs["semantic_prompts"])
    case.equal(matched, "train/matched_index")
    case.equal(case.case.inputs["semantic_prompts"][matched], "train/matched_prompts")

    losses = output.loss_dict
    case.equal(losses["loss_isc"] / model.config.lambda_isc, "train/loss_contrastive")
    names = {key.removeprefix("train/loss_") for key in expected if key.startswith("train/loss_orth")}
    assert {f"loss_{key.replace('orth', 'ic')}" for key in names} == set(losses) - {"loss_isc"}
    for key in names:
        case.equal(losses[f"loss_{key.replace('orth', 'ic')}"] / model.config.lambda_ic, f"train/loss_{key}")
    output.loss.backward()
    gradients = [key for key in expected if key.startswith("train/grad/")]
    assert gradients
    for key in gradients:
        released = {f"sem_seg_head.predictor.{key.removeprefix('train/grad/')}": expected[key]}
        ((parameter, gradient),) = convert_state_dict(released, "crisp")[0].items()
        assert_matches(model.get_parameter(parameter).grad, gradient, key, POSITION_CODES_IN_FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODER_CASES)
def test_inference(name, monkeypatch):
    case = DecoderCase(name, monkeypatch)
    model = case.model.eval()
    deltas = case.case.config.get("deltas", {"default": [0.0]})
    for kind, values in deltas.items():
        model.config.calibration_deltas = values
        output = model(case.frames(1))
        case.equal(output.class_queries_logits, "eval/pred_logits" + ("" if kind == "default" else f"_{kind}"))
        case.equal(output.masks_queries_logits, "eval/pred_masks")
    groups = GroupedQueries(model.groups())
    hidden_states, _, _ = model.decode_groups(case.features(1, case.case.config["num_frames"]), groups)
    case.equal(hidden_states[-1].transpose(0, 1), "eval/decoder_feat")


def test_initialisation_of_prompts():
    case = load_case("crisp_pca_init")
    for num_old, num_rows in case.config["cases"]:
        name = f"n{num_old}_c{num_rows}"
        old_queries, expected = case.inputs[f"{name}/old_queries"], case.outputs
        unit = principal_rows(old_queries, num_rows, "directions")
        assert_matches(unit, expected[f"{name}/paper_unit_rows"], name, 1e-8)
        assert_matches(
            principal_rows(old_queries, num_rows, "loadings"), expected[f"{name}/paper_loading_rows"], name, 1e-8
        )
        # The reference's choice is decided by rounding: each of its rows is one of the directions, up to sign.
        released = principal_rows(old_queries, num_rows, "released")
        assert torch.equal(released, -unit)
        length = expected[f"{name}/mean_old_norm"]
        assert_matches(released.norm(dim=1), length.expand(num_rows), name, 1e-8)
        directions = principal_rows(old_queries, num_old - 1, "directions") / length
        rows, picked = expected[f"{name}/reference_rows"] / length, expected[f"{name}/reference_selected"]
        for row, index in zip(rows, picked.tolist(), strict=True):
            if index < num_old - 1:  # the last has zero variance, so its direction is arbitrary
                assert_matches((directions[index] @ row).abs(), torch.tensor(1.0, dtype=torch.float64), name, 1e-8)


def test_selection_of_tracks():
    """Scores are class probabilities, for a whole video and clip by clip with the same class logits."""
    case = load_case("crisp_inference")
    config, expected = case.config, case.outputs
    logits, masks = case.inputs["pred_logits"], case.inputs["pred_masks"]
    for clip_length in (masks.shape[1], 1):
        accumulator = TrackAccumulator(
            original_size=tuple(config["output_size"]),
            input_size=tuple(config["image_size"]),
            top_k=config["top_k"],
            score_rule=Mask2FormerVisConfig().score_rule,
        )
        for clip in masks.split(clip_length, dim=1):
            accumulator.update(logits, clip)
        tracks = accumulator.tracks()
        scores = torch.tensor([track.score for track in tracks], dtype=torch.float64)
        assert_matches(scores, expected["scores"], "scores", case.tolerance)
        assert_matches(torch.tensor([track.label_id for track in tracks]), expected["labels"])
        assert_matches(torch.tensor([track.query_id for track in tracks]), expected["query_index"])
        for track, expected_masks in zip(tracks, expected["masks"].numpy(), strict=True):
            for segmentation, mask in zip(track.segmentations, expected_masks, strict=True):
                found = 0 * mask if segmentation is None else decode(segmentation)
                assert (found == mask).all()
