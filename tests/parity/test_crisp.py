"""CRISP against the research code."""

import torch
from parity.goldens import assert_matches, load_case

from transformers_cvis.modeling.mask2former_vis import Mask2FormerVisConfig
from transformers_cvis.processing import TrackAccumulator
from transformers_cvis.processing.masks import decode_segmentation


def test_selection_of_tracks():
    """Scores are class probabilities, whether the video comes at once or clip by clip with the same class logits."""
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
        assert_matches(torch.tensor([track.score for track in tracks], dtype=torch.float64), expected["scores"])
        assert_matches(torch.tensor([track.label_id for track in tracks]), expected["labels"])
        assert_matches(torch.tensor([track.query_id for track in tracks]), expected["query_index"])
        for track, expected_masks in zip(tracks, expected["masks"].numpy(), strict=True):
            for segmentation, mask in zip(track.segmentations, expected_masks, strict=True):
                found = 0 * mask if segmentation is None else decode_segmentation(segmentation)
                assert (found == mask).all()
