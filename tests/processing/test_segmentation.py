# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from transformers_cvis.processing import CvisVideoProcessor, segment_stream, segment_video

PROCESSOR = CvisVideoProcessor(do_resize=False)  # frames of 32 x 64 need no resizing


@pytest.fixture
def model(fake_model):
    """Return two queries over five frames: the first an object in frames 1 to 3, the second empty."""
    class_logits = torch.tensor([[0.2, 0.1, 0.7], [0.05, 0.05, 0.9]]).log().repeat(3, 1, 1)
    class_logits[1, 0] = torch.tensor([0.8, 0.1, 0.1]).log()
    mask_logits = torch.full((2, 5, 8, 16), -4.0)
    mask_logits[0, 1:4, 2:6, 3:8] = 4.0
    return fake_model(class_logits, mask_logits)


@pytest.fixture
def video(numbered_frames):
    return numbered_frames(5, 32, 64)


class TestWholeVideo:
    def test_evaluation_selection(self, model, video):
        result = segment_video(model, PROCESSOR, video, threshold=None, top_k=3)
        assert (result.size, result.num_frames, result.fps) == ((32, 64), 5, None)
        assert [(track.query_id, track.label_id) for track in result.tracks[:1]] == [(0, 0)]
        assert len(result.tracks) == 3
        assert [rle is not None for rle in result.tracks[0].segmentations] == [False, True, True, True, False]
        assert result.tracks[0].label == "class 0"
        assert 0.6 < result.tracks[0].score < 0.8

    def test_default_selection_is_for_display(self, model, video):
        (track,) = segment_video(model, PROCESSOR, video).tracks
        assert (track.query_id, track.num_frames_visible) == (0, 2)  # known from the second clip on: frames 2 and 3

    @pytest.mark.parametrize(("clip_length", "sizes"), [(None, [2, 4, 5]), (1, [1, 2, 3, 4, 5]), (3, [3, 5]), (9, [5])])
    def test_clips(self, model, video, clip_length, sizes):
        done = []
        segment_video(model, PROCESSOR, video, clip_length=clip_length, on_clip=done.append)
        assert done == sizes

    def test_offline_models_see_the_video_first(self, fake_model, model, video):
        offline = fake_model(model.class_logits[1:], model.mask_logits, is_online=False)
        (track,) = segment_video(offline, PROCESSOR, video).tracks
        assert track.num_frames_visible == 3

    def test_training_mode_is_restored(self, model, video):
        segment_video(model, PROCESSOR, video)
        assert model.training
        assert torch.is_grad_enabled()

    def test_sampling(self, model, video):
        assert segment_video(model, PROCESSOR, video, stride=2).num_frames == 3
        assert segment_video(model, PROCESSOR, video, max_frames=4).num_frames == 4

    def test_one_frame(self, model, video):
        assert segment_video(model, PROCESSOR, video[:1]).num_frames == 1

    def test_progress_bar(self, model, video, terminal):
        segment_video(model, PROCESSOR, video, progress=True)
        assert "5/5" in terminal.readouterr().err
        segment_video(model, PROCESSOR, video)
        assert terminal.readouterr().err == ""

    def test_no_progress_bar_outside_of_a_terminal(self, model, video, capsys):
        segment_video(model, PROCESSOR, video, progress=True)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("clip_length", [0, -1, 1.5, "2"])
    def test_bad_clip_length(self, model, video, clip_length):
        with pytest.raises(ValueError, match=f"`clip_length` must be a whole .* at least 1, got {clip_length!r}"):
            segment_video(model, PROCESSOR, video, clip_length=clip_length)

    def test_nan_in_the_middle(self, model, video):
        video = video / 255
        video[3, 0, 0, 0] = np.nan
        with pytest.raises(ValueError, match="Frame 3 of The array holds NaN"):
            segment_video(model, PROCESSOR, video)
        assert model.training


class TestStream:
    def test_clips_come_with_their_frames(self, model, video):
        clips = list(segment_stream(model, PROCESSOR, iter(video)))
        assert [clip.first_frame for clip in clips] == [0, 2, 4]
        assert [frame.mean() for clip in clips for frame in clip.frames] == [0, 10, 20, 30, 40]
        assert [len(clip.tracks) for clip in clips] == [0, 1, 0]
        assert len(clips[1].tracks[0].segmentations) == 2

    def test_answers_as_frames_come(self, model, video):
        taken = []
        frames = (taken.append(index) or frame for index, frame in enumerate(video))
        stream = segment_stream(model, PROCESSOR, frames, clip_length=1)
        next(stream)
        assert len(taken) == 1
        assert torch.is_grad_enabled()
        assert model.training

    def test_only_online_models(self, fake_model, model, video):
        offline = fake_model(model.class_logits, model.mask_logits, is_online=False)
        with pytest.raises(ValueError, match="FakeModel reads the whole video before its first answer.*segment_video"):
            segment_stream(offline, PROCESSOR, video)

    def test_bad_arguments_are_refused_before_the_first_clip(self, model, video):
        with pytest.raises(ValueError, match="`clip_length` must be"):
            segment_stream(model, PROCESSOR, video, clip_length=0)
        with pytest.raises(ValueError, match="`threshold` is a score in 0..1"):
            segment_stream(model, PROCESSOR, video, threshold=2)
