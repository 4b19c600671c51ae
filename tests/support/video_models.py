# SPDX-License-Identifier: Apache-2.0
"""Reference cases of whole video models: model, input, labels, comparison of training and evaluation."""

import torch
from torch import nn

from tests.support.goldens import Case, FixedPoints, assert_matches, load_case
from tests.support.helpers import tiny_detector_config
from transformers_cvis.conversion import CONVERSIONS, convert_state_dict
from transformers_cvis.modeling.frame_detector import FrameDetectorConfig
from transformers_cvis.modeling.genvis import GenVisForVideoInstanceSegmentation
from transformers_cvis.modeling.vita import VitaForVideoInstanceSegmentation
from transformers_cvis.processing import TrackAccumulator
from transformers_cvis.rle import decode

MODELS = {"vita": VitaForVideoInstanceSegmentation, "genvis": GenVisForVideoInstanceSegmentation}


def build(name: str, system: str, **settings) -> tuple[Case, torch.nn.Module]:
    """Return the case and the converted model, float64; settings that shapes do not tell are from the case."""
    case = load_case(name)
    config = case.config
    settings = {"encoder_window_size": config["encoder_window_size"], **settings}
    if "freeze_detector" in config:
        settings["freeze_detector"] = config["freeze_detector"]
        settings["num_frame_query_layers"] = config["frame_decoder_layers_used_L"]
    reference = case.state_dict()
    state_dict, report = convert_state_dict(reference, system)
    assert not report.unknown
    model = MODELS[system](CONVERSIONS[system].infer_config(reference, **settings)).double()
    model.load_state_dict(state_dict)
    return case, model.eval()


def network_input(case: Case, frames: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 frames (T, 3, H, W) and pad them to a multiple of 32: (1, T, 3, H, W)."""
    mean, std = (
        torch.tensor(case.config[name], dtype=torch.float64)[:, None, None] for name in ("pixel_mean", "pixel_std")
    )
    pixels = (frames.double() - mean) / std
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, -width % 32, 0, -height % 32))[None]


def decoder_config(sizes: dict) -> FrameDetectorConfig:
    """Return a frame detector with the sizes of a case that holds the decoder alone."""
    return tiny_detector_config(
        hidden_dim=sizes["hidden_dim"],
        feature_size=sizes["hidden_dim"],
        mask_feature_size=sizes["mask_dim"],
        num_queries=sizes["num_queries"],
        decoder_layers=sizes["decoder_layers"] + 1,
        num_attention_heads=sizes["heads"],
        dim_feedforward=sizes["feedforward"],
    )


def training_batch(case: Case) -> tuple[torch.Tensor, list[dict]]:
    """Return padded videos (B, T, 3, H, W) and labels of a training case."""
    pixels, labels = [], []
    for index in range(case.config["videos"]):
        part = {name: case.inputs[f"video{index}_{name}"] for name in ("frames", "labels", "ids", "masks")}
        pixels.append(network_input(case, part["frames"])[0])
        height, width = part["masks"].shape[-2:]
        masks = nn.functional.pad(part["masks"], (0, -width % 32, 0, -height % 32)).bool()
        labels.append({"class_labels": part["labels"], "ids": part["ids"], "masks": masks})
    height, width = (max(video.shape[axis] for video in pixels) for axis in (-2, -1))

    def pad(tensor):
        return nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))

    return torch.stack([pad(video) for video in pixels]), [{**label, "masks": pad(label["masks"])} for label in labels]


def assert_sampled(actual: torch.Tensor, expected: torch.Tensor, axis: int, name: str, case: Case) -> None:
    """Check `actual` against `expected`, which holds every n-th entry along `axis`."""
    step = -(-actual.shape[axis] // expected.shape[axis])
    index = torch.arange(0, actual.shape[axis], step)
    assert_matches(actual.index_select(axis, index), expected, name, case.tolerance)


def assert_tracks(case: Case, clips: list) -> None:
    """Compare final scores, labels and masks, from the outputs of consecutive clips of one video."""
    accumulator = TrackAccumulator(
        original_size=tuple(case.config["output_size"]),
        input_size=tuple(case.inputs["video"].shape[-2:]),
        top_k=case.config["top_k"],
    )
    for clip in clips:
        accumulator.update(clip.class_queries_logits[0], clip.masks_queries_logits[0])
    tracks = sorted(accumulator.tracks(), key=lambda track: (track.score, track.label_id))
    expected = case.outputs
    order = sorted(range(len(tracks)), key=lambda i: (expected["scores"][i].item(), expected["labels"][i].item()))
    scores = torch.tensor([track.score for track in tracks], dtype=torch.float64)
    assert_matches(scores, expected["scores"][order], "scores", case.tolerance)
    assert [track.label_id for track in tracks] == expected["labels"][order].tolist()
    for track, masks in zip(tracks, expected["masks"][order], strict=True):
        for segmentation, mask in zip(track.segmentations, masks, strict=True):
            if segmentation is None:
                assert not mask.any()
            else:
                assert (torch.from_numpy(decode(segmentation)) == mask).all()


def assert_online_inference(case: Case, model: torch.nn.Module, tolerance: float) -> None:
    """Compare mean class logits, masks and tracks of a model that averages class logits over frames."""
    expected = case.outputs
    pixels = network_input(case, case.inputs["frames"])
    outputs = list(model.stream(pixels.split(case.config["window"], dim=1)))
    num_frames = [output.masks_queries_logits.shape[2] for output in outputs]
    logits = sum(count * output.class_queries_logits[0] for count, output in zip(num_frames, outputs, strict=True))
    assert_matches(logits / sum(num_frames), expected["class_logits"], "class logits", tolerance)
    masks = torch.cat([output.masks_queries_logits[0] for output in outputs], dim=1)
    assert_matches(masks.mean((2, 3)), expected["mask_logits_mean"], "mask logits", tolerance)

    accumulator = TrackAccumulator(
        tuple(case.config["output_size"]),
        tuple(case.inputs["frames"].shape[-2:]),
        top_k=case.config["top_k"],
        score_rule=model.config.score_rule,
    )
    for output in outputs:
        accumulator.update(output.class_queries_logits[0], output.masks_queries_logits[0])
    tracks = accumulator.tracks()
    assert tracks == sorted(tracks, key=lambda track: -track.score)
    tracks.sort(key=lambda track: (-track.score, track.label_id))
    order = sorted(range(len(tracks)), key=lambda i: (-expected["scores"][i].item(), expected["labels"][i].item()))
    scores = torch.tensor([track.score for track in tracks], dtype=torch.float64)
    assert_matches(scores, expected["scores"][order], "scores", tolerance)
    assert [track.label_id for track in tracks] == expected["labels"][order].tolist()
    for track, masks in zip(tracks, expected["masks"][order], strict=True):
        found = [
            masks.new_zeros(masks.shape[1:]) if segmentation is None else torch.from_numpy(decode(segmentation))
            for segmentation in track.segmentations
        ]
        assert (torch.stack(found).to(masks.dtype) == masks).double().mean() > 0.999


def assert_training_step(case: Case, model: torch.nn.Module, system: str) -> None:
    """Compare every weighted loss, the norm of every gradient and the recorded slices of some."""
    points = FixedPoints(case.inputs["matcher_points"], case.inputs["loss_points"])
    model.criterion.point_sampler = model.detector.criterion.point_sampler = points
    pixel_values, labels = training_batch(case)
    output = model.train()(pixel_values, labels=labels)

    expected = {name.removeprefix("loss/"): loss for name, loss in case.outputs.items() if name.startswith("loss/")}
    total = expected.pop("total")
    assert set(output.loss_dict) == set(expected)
    for name, loss in expected.items():
        assert_matches(output.loss_dict[name].reshape(1), loss, name, case.tolerance)
    assert_matches(output.loss.reshape(1), total, "total", case.tolerance)

    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    _, report = convert_state_dict(case.state_dict(), system)
    compared = set()
    for reference_name, norm in case.meta["gradient_norms"].items():
        places = report.mapped[reference_name]
        gradient = torch.cat([gradients[place] for place in places])
        compared.update(places)
        scale = torch.tensor(norm, dtype=torch.float64)
        assert_matches(gradient.norm(), scale, f"norm of the gradient of {reference_name}", case.tolerance)
        recorded = case.outputs.get(f"grad/{reference_name}")
        if recorded is not None:
            assert_matches(gradient[: len(recorded)], recorded, f"gradient of {reference_name}", case.tolerance)
    assert compared == set(gradients)
