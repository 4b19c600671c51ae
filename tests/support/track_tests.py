# SPDX-License-Identifier: Apache-2.0
"""Common tests of all video models: from pixels to tracks by the calls of transformers."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from transformers_cvis.processing import CvisVideoProcessor, Track, segment_video

PROCESSOR = CvisVideoProcessor(size={"shortest_edge": 40, "longest_edge": 96})
UNNORMALIZED = CvisVideoProcessor(size={"shortest_edge": 64, "longest_edge": 96}, do_normalize=False)
SELECTIONS = ({"threshold": None, "top_k": 7}, {"threshold": 0.0, "top_k": None})


def noise_video(num_frames: int = 3, height: int = 50, width: int = 66, seed: int = 0) -> np.ndarray:
    """Return a video of random pixels, uint8 (T, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def assert_scores_are_class_probabilities(model) -> list[Track]:
    """Check the scores of tracks by clip length against a forward pass over the whole video; return the last tracks."""
    frames = torch.as_tensor(noise_video(5, 64, 96))
    expected = model(frames.permute(0, 3, 1, 2)[None] / 255).class_queries_logits[0].softmax(-1)[:, :-1]
    for clip_length in (1, 2, 5):
        found = segment_video(model, UNNORMALIZED, frames, clip_length=clip_length, threshold=None, top_k=15)
        for track in found.tracks:
            assert track.score == pytest.approx(expected[track.query_id, track.label_id].item(), abs=1e-4)
    return found.tracks


class TrackTests:
    """The three calls of transformers give the tracks of `segment_video`; `model()` makes a tiny model."""

    @pytest.mark.parametrize("selection", SELECTIONS, ids=["top_k", "threshold"])
    @torch.no_grad()
    def test_three_calls_equal_segment_video(self, selection):
        model = self.model()
        expected = segment_video(model, PROCESSOR, noise_video(), clip_length=3, **selection).tracks
        assert expected
        assert any(any(track.segmentations) for track in expected)

        inputs = PROCESSOR(noise_video(), return_tensors="pt")
        outputs = model(**inputs)
        names = {"id2label": model.config.id2label}
        for sizes in ({}, {"target_sizes": [(50, 66)]}, {"target_sizes": inputs["original_sizes"]}):
            (tracks,) = PROCESSOR.post_process_video_instance_segmentation(outputs, **sizes, **selection, **names)
            assert tracks == expected

    @torch.no_grad()
    def test_three_calls_for_videos_of_different_sizes(self):
        model, videos = self.model(), [noise_video(), noise_video(3, 60, 40, seed=1)]
        outputs = model(**PROCESSOR(videos, return_tensors="pt"))
        results = PROCESSOR.post_process_video_instance_segmentation(outputs, top_k=7, id2label=model.config.id2label)
        for video, tracks in zip(videos, results, strict=True):
            expected = segment_video(model, PROCESSOR, video, clip_length=3, threshold=None, top_k=7).tracks
            scores = [track.score for track in expected]
            assert [track.score for track in tracks] == pytest.approx(scores, rel=1e-3)
            sizes = {tuple(rle["size"]) for track in tracks for rle in track.segmentations if rle is not None}
            assert sizes == {video.shape[1:3]}

    @torch.no_grad()
    def test_outputs_of_clips_equal_segment_video(self):
        model, video = self.model(), noise_video(5)
        clips = (PROCESSOR.preprocess_clip(video[start : start + 2]) for start in (0, 2, 4))
        (tracks,) = PROCESSOR.post_process_video_instance_segmentation(
            model.stream(clips), [video.shape[1:3]], top_k=7, id2label=model.config.id2label
        )
        assert tracks == segment_video(model, PROCESSOR, video, clip_length=2, threshold=None, top_k=7).tracks

    @torch.no_grad()
    def test_score_rule_stays_with_the_output(self):
        model = self.model()
        output = model(**PROCESSOR(noise_video(), return_tensors="pt"))
        assert output.score_rule == model.score_rule
        again = pickle.loads(pickle.dumps(output))
        assert type(again) is type(output)
        mapped = pytree.tree_map_only(torch.Tensor, torch.clone, output)
        assert again.score_rule == mapped.score_rule == output.to_tuple()[-1] == model.score_rule
        assert again.input_sizes.tolist() == [[40, 53]]
        assert again.original_sizes.tolist() == [[50, 66]]
