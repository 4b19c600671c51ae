# SPDX-License-Identifier: Apache-2.0
"""HVPL against the research code, converted from the names of a released checkpoint."""

import pytest
import torch
from torch import nn

from tests.support.goldens import assert_matches, load_case
from tests.support.helpers import tiny_detector_config
from tests.support.video_models import decoder_config
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.released.hvpl import RELEASED_HVPL, infer_hvpl_config
from transformers_cvis.modeling.hvpl.configuration_hvpl import HvplConfig
from transformers_cvis.modeling.hvpl.frame_detector import HvplFrameDetector
from transformers_cvis.modeling.hvpl.modeling_hvpl import HvplForVideoInstanceSegmentation
from transformers_cvis.modeling.hvpl.video_head import HvplVideoHead
from transformers_cvis.modeling.tasks.queries import GroupedQueries, calibrate_class_logits
from transformers_cvis.processing import TrackAccumulator
from transformers_cvis.rle import decode

POSITION_CODES_IN_FLOAT32 = 1e-5  # by the reference


def converted(case, released_prefix: str, prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights of a case of one module, under the names of that module in this package."""
    released = {released_prefix + name: tensor for name, tensor in case.state_dict().items()}
    state_dict, report = convert_state_dict(released, "hvpl")
    assert not report.unknown
    assert not report.ignored
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def load(module, weights: dict[str, torch.Tensor], also_has: tuple[str, ...] = ()):
    missing, unexpected = module.double().load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(also_has) for name in missing), missing
    return module.eval()


class FrameCase:
    def __init__(self, name: str):
        self.case = load_case(name)
        config = self.case.config
        self.class_counts = config["classes"]
        self.detector = HvplFrameDetector(
            decoder_config(config),
            config["classes"],
            [config["num_prompts"]] * (len(config["classes"]) - 1),
            config["deep_class_head"],
        )
        load(
            self.detector,
            converted(self.case, "sem_seg_head.predictor.", "detector."),
            also_has=("model.pixel_level_module", "criterion"),
        )
        self.mask_features = self.case.inputs["mask_features"]

    def decode(self, groups: GroupedQueries):
        levels = [self.case.inputs[f"feat{level}"] for level in range(3)]
        shrunk = [
            nn.functional.interpolate(self.mask_features, level.shape[-2:], mode="bilinear", align_corners=False)
            for level in levels
        ]
        return self.detector.decode(levels, shrunk, groups)

    def assert_equal(self, actual, name):
        assert_matches(actual, self.case.outputs[name], name, POSITION_CODES_IN_FLOAT32)

    def masks(self, embeddings):
        return torch.einsum("nqc,nchw->nqhw", embeddings, self.mask_features)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hvpl_frame_decoder_base", "hvpl_frame_decoder_prompts"])
def test_frame_decoder_in_training(name):
    case = FrameCase(name)
    groups = GroupedQueries(case.detector.groups()[-1:])
    queries, embeddings = case.decode(groups)
    kept = case.case.config["kept_layers_in_training"]
    case.assert_equal(torch.stack(queries[-kept:]), "train/frame_queries")
    case.assert_equal(case.detector.class_predictor(queries[-1]), "train/pred_logits")
    case.assert_equal(case.masks(groups.mask_embeddings(queries[-1])), "train/pred_masks")
    for index, states in enumerate(queries[:-1]):
        case.assert_equal(case.detector.class_predictor(states), f"train/aux{index}_logits")
    case.assert_equal(case.masks(embeddings[0]), "train/aux0_masks")


@torch.no_grad()
@pytest.mark.parametrize("name", ["hvpl_frame_decoder_base", "hvpl_frame_decoder_prompts"])
def test_frame_decoder_at_inference(name):
    case = FrameCase(name)
    groups = GroupedQueries(case.detector.groups())
    first_attention = case.detector.model.transformer_module.decoder.layers[0].self_attn_layer_norm
    attended = []
    first_attention.register_forward_hook(lambda *call: attended.append(call[-1]))
    queries = case.decode(groups)[0][-1]
    runs = case.case.config.get("deltas_by_run", {"eval": [0.0]})
    first_run = next(iter(runs))
    case.assert_equal(queries[None], f"{first_run}/frame_queries")
    case.assert_equal(case.masks(groups.mask_embeddings(queries)), f"{first_run}/pred_masks")
    if "layer0_after_self_attention" in {output.split("/")[-1] for output in case.case.outputs}:
        state = groups.layout.join(attended[: len(groups.layout.runs)]).transpose(0, 1)
        case.assert_equal(state, f"{first_run}/layer0_after_self_attention")
    for run, deltas in runs.items():
        logits = case.detector.class_predictor(queries)
        logits = calibrate_class_logits(logits, groups.layout.widths, case.class_counts, deltas)
        case.assert_equal(logits, f"{run}/pred_logits")


class VideoCase:
    def __init__(self, name: str, **settings):
        self.case = load_case(name)
        config = self.case.config
        self.config = HvplConfig(
            detector_config=tiny_detector_config(
                hidden_dim=config["hidden_dim"],
                feature_size=config["hidden_dim"],
                mask_feature_size=config["mask_dim"],
                num_queries=config["num_frame_queries"],
                num_attention_heads=config["heads"],
            ),
            num_queries=config["num_video_queries"],
            encoder_layers=config["context_layers"],
            decoder_layers=config["decoder_layers"],
            dim_feedforward=config["feedforward"],
            num_attention_heads=config["heads"],
            num_labels=sum(config["classes"]),
            task_class_counts=config["classes"],
            task_prompt_counts=[config["num_prompts"]] * (len(config["classes"]) - 1),
            deep_class_head=config["deep_class_head"],
            drop_path_rate=0.0,
            **{**RELEASED_HVPL, **settings},
        )
        self.head = load(HvplVideoHead(self.config), converted(self.case, "vita_module.", "video_head."))

    def frame_queries(self, run: str, num_frames: int):
        """Reshape (layers, clips x frames, F, C) to (layers x clips, frames, F, C)."""
        return self.case.inputs[f"{run}/frame_queries"].unflatten(1, (-1, num_frames)).flatten(0, 1)

    def assert_equal(self, actual, name):
        assert_matches(actual, self.case.outputs[name], name, self.case.tolerance)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hvpl_video_decoder_base", "hvpl_video_decoder_prompts"])
def test_video_decoder_in_training(name):
    case = VideoCase(name)
    inputs = case.frame_queries("train", case.case.config["num_frames_in_training"])
    num_layers = len(case.case.inputs["train/frame_queries"])
    _, decoded = case.head(inputs, newest_only=True, all_layers=True)
    queries = decoded.normalised.unflatten(1, (num_layers, -1))  # (D, L, B, Q, C)
    *auxiliary, last = case.head.class_predictor(queries)
    case.assert_equal(last, "train/pred_logits")
    for index, logits in enumerate(auxiliary):
        case.assert_equal(logits, f"train/aux{index}_logits")
    embeddings = GroupedQueries(case.head.groups()[-1:]).mask_embeddings(decoded.normalised[-1])
    case.assert_equal(embeddings.unflatten(0, (num_layers, -1)), "train/pred_mask_embed")


@torch.no_grad()
@pytest.mark.parametrize("name", ["hvpl_video_decoder_base", "hvpl_video_decoder_prompts"])
@pytest.mark.parametrize("run", ["eval_t1", "eval_t4"])
def test_video_decoder_at_inference(name, run):
    case = VideoCase(name)
    inputs = case.frame_queries(run, case.case.inputs[f"{run}/frame_queries"].shape[1])
    encoded, decoded = case.head(inputs)
    queries = decoded.normalised[-1]
    case.assert_equal(case.head.mask_embeddings(queries)[None], f"{run}/pred_mask_embed")
    case.assert_equal(case.head.frame_similarity_projection(encoded)[None], f"{run}/pred_fq_embed")
    case.assert_equal(case.head.video_similarity_projection(queries)[None], f"{run}/pred_cq_embed")
    raw = case.head.class_predictor(queries)[None]
    for kind, deltas in case.case.config.get("deltas", {"default": [0.0]}).items():
        widths = [len(group.features) for group in case.head.groups()]
        logits = calibrate_class_logits(raw, widths, case.config.task_class_counts, deltas)
        case.assert_equal(logits, f"{run}/pred_logits" + ("" if kind == "default" else f"_{kind}"))


@torch.no_grad()
def test_correct_tokens_equal_the_released_ones_for_one_frame_only():
    released = VideoCase("hvpl_video_decoder_prompts")
    correct = VideoCase("hvpl_video_decoder_prompts", cross_tokens="per_task")
    for run, same in (("eval_t1", True), ("eval_t4", False)):
        inputs = released.frame_queries(run, released.case.inputs[f"{run}/frame_queries"].shape[1])
        ours, theirs = (case.head(inputs).decoded.normalised for case in (correct, released))
        assert torch.allclose(ours, theirs, atol=1e-9) is same


@torch.no_grad()
def test_inference_of_the_whole_network():
    case = load_case("hvpl_inference")
    config, expected = case.config, case.outputs
    released = case.state_dict()
    model = HvplForVideoInstanceSegmentation(infer_hvpl_config(released, calibration_deltas=config["deltas"]))
    state_dict, report = convert_state_dict(released, "hvpl")
    assert not report.unknown
    assert model.config.task_class_counts == config["classes"]
    model.double().load_state_dict(state_dict)
    mean, std = (torch.tensor(config[name]).double()[:, None, None] for name in ("pixel_mean", "pixel_std"))
    frames = (case.inputs["frames"] - mean) / std
    input_size = tuple(frames.shape[-2:])
    frames = nn.functional.pad(frames, (0, -input_size[1] % 32, 0, -input_size[0] % 32))[None]
    output = model.eval()(frames, output_embeddings=True)

    def equal(actual, name):
        assert_matches(actual, expected[name], name, POSITION_CODES_IN_FLOAT32)

    equal(output.class_queries_logits[0], "video_logits")
    equal(output.mask_embeddings[0], "video_mask_embed")
    equal(model.classify_frame_queries(output.frame_queries[-1, 0]), "frame_logits")
    equal(output.masks_queries_logits[0].mean(dim=(2, 3)), "mask_logit_mean")

    accumulator = TrackAccumulator(
        original_size=tuple(config["output_size"]), input_size=input_size, top_k=config["top_k"]
    )
    accumulator.update(output.class_queries_logits[0], output.masks_queries_logits[0])
    tracks = sorted(accumulator.tracks(), key=lambda track: -track.score)
    equal(torch.tensor([track.score for track in tracks], dtype=torch.float64), "scores")
    assert [track.label_id for track in tracks] == expected["labels"].tolist()
    for track, masks in zip(tracks, expected["masks"].numpy(), strict=True):
        for segmentation, mask in zip(track.segmentations, masks, strict=True):
            ours = 0 * mask if segmentation is None else decode(segmentation)
            assert (ours == mask).mean() >= 0.999


def task_model(config: dict, video_decoder_layers: int) -> HvplForVideoInstanceSegmentation:
    """Build the model of a case before its last task."""
    *class_counts, _ = config["classes"]
    return HvplForVideoInstanceSegmentation(
        HvplConfig(
            detector_config=tiny_detector_config(
                hidden_dim=config["hidden_dim"],
                feature_size=config["hidden_dim"],
                mask_feature_size=config["hidden_dim"],
                num_queries=config["num_queries"],
                decoder_layers=config["frame_decoder_layers"] + 1,
            ),
            num_queries=config["num_video_queries"],
            encoder_layers=1,
            decoder_layers=video_decoder_layers,
            num_attention_heads=2,
            num_labels=sum(class_counts),
            task_class_counts=class_counts,
            task_prompt_counts=[config["num_prompts"]] * (len(class_counts) - 1),
            deep_class_head=config["deep_class_head"],
        )
    )


def test_a_new_task_starts_and_trains_as_in_the_reference():
    case = load_case("hvpl_task_init")
    config = case.config
    names = [f"new {index}" for index in range(config["classes"][-1])]
    before, _ = convert_state_dict(
        {name: tensor for name, tensor in case.state_dict().items() if name not in case.meta["changed"]}, "hvpl"
    )
    after, report = convert_state_dict(case.outputs, "hvpl")
    assert not report.unknown

    model = task_model(config, config["video_decoder_layers"]).double()
    present = model.state_dict()
    fitting = {name: tensor for name, tensor in before.items() if name in present}
    fitting = {name: tensor for name, tensor in fitting.items() if tensor.shape == present[name].shape}
    model.load_state_dict(fitting, strict=False)
    model.add_task(names, config["num_prompts"])
    for name, tensor in after.items():
        assert_matches(model.state_dict()[name], tensor, name, 1e-12)

    trainable = {name: torch.zeros(1) for name in case.meta["trainable_parameters"]}
    model = task_model(config, video_decoder_layers=3)
    model.add_task(names, config["num_prompts"])
    expected, _ = convert_state_dict(trainable, "hvpl")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(expected)
