# SPDX-License-Identifier: Apache-2.0
import os

import av
import numpy as np
import pytest
from PIL import Image

from transformers_cvis.processing import (
    Track,
    VideoSegmentation,
    VideoWriter,
    open_video,
    render_video,
)
from transformers_cvis.rle import empty


def noise(num_frames, height=64, width=96):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write(path, frames):
    with VideoWriter(path) as writer:
        for frame in frames:
            writer.write(frame)


class TestVideoWriter:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
    def test_round_trip(self, tmp_path, numbered_frames, suffix):
        path = tmp_path / f"a{suffix}"
        with VideoWriter(path, fps=12) as writer:
            for frame in numbered_frames(6):
                writer.write(frame)
        video = open_video(path)
        means = [frame.mean() for frame in video]
        assert (video.fps, video.size) == (pytest.approx(12), (48, 64))
        assert np.abs(np.array(means) - 10 * np.arange(6)).max() < 3
        assert os.listdir(tmp_path) == [path.name]

    @pytest.mark.parametrize(("size", "padded"), [((45, 63), (46, 64)), ((1, 1), (2, 2)), ((48, 63), (48, 64))])
    def test_odd_sizes_are_padded(self, tmp_path, size, padded):
        with VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(np.full((*size, 3), 200, np.uint8))
        video = open_video(tmp_path / "a.mp4")
        assert video.size == padded
        assert video.fps == 25
        assert abs(next(iter(video)).mean() - 200) < 4

    def test_without_h264(self, tmp_path, monkeypatch, numbered_frames):
        monkeypatch.setattr("transformers_cvis.processing.video_writing.av.codecs_available", {"mpeg4"})
        with VideoWriter(tmp_path / "a.mp4", fps=29.97) as writer:
            writer.write(numbered_frames(1)[0])
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"
            assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=1e-3)

    def test_nothing_remains_of_a_failure(self, tmp_path):
        def frames_until_an_error():
            yield noise(1)[0]
            raise RuntimeError("stop")

        path = tmp_path / "a.mp4"
        with pytest.raises(RuntimeError, match="stop"):
            write(path, frames_until_an_error())
        with pytest.raises(ValueError, match=r"No frame was written to '.*a\.mp4'"):
            write(path, [])
        with pytest.raises(ValueError, match=r"\(60, 96\) does not fit into a video of size \(64, 96\)"):
            write(path, [noise(1)[0], noise(1, height=60)[0]])
        with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\), got float64 \(4, 4, 3\)"):
            write(path, [np.zeros((4, 4, 3))])
        assert os.listdir(tmp_path) == []

    def test_full_disk(self, tmp_path, small_disk):
        for num_frames in (1, 40):  # found when the file is closed, and while writing
            with pytest.raises(OSError, match=r"Cannot write '.*a\.mp4': File too large"):
                write(tmp_path / "a.mp4", noise(num_frames, 144, 256))
            assert os.listdir(tmp_path) == []

    def test_unwritable(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"Cannot write '.*nowhere/a\.mp4': No such file or directory"):
            write(tmp_path / "nowhere" / "a.mp4", [])

    def test_unknown_suffix(self):
        with pytest.raises(ValueError, match=r"Cannot write a video 'a\.avi': the name must end in \.mp4, "):
            VideoWriter("a.avi")


class TestRenderVideo:
    @pytest.fixture
    def segmentation(self):
        track = Track(0.9, 0, "dog", 3, [None, *[empty((48, 64))] * 4], [None, *[(0, 0, 0, 0)] * 4])
        return VideoSegmentation([track], (48, 64), 5, 10.0)

    def test_video_and_contact_sheet(self, tmp_path, numbered_frames, segmentation):
        source = numbered_frames(5)
        render_video(source, segmentation, tmp_path / "a.mp4", tmp_path / "a.png", num_tiles=3)
        video = open_video(tmp_path / "a.mp4")
        assert (len(list(video)), video.fps) == (5, 10)
        with Image.open(tmp_path / "a.png") as sheet:
            assert sheet.width == 6 + 2 * (128 + 6)  # three tiles in two columns, twice enlarged
        render_video(source, segmentation, contact_sheet_path=tmp_path / "b.png")
        assert sorted(os.listdir(tmp_path)) == ["a.mp4", "a.png", "b.png"]

    def test_another_video(self, tmp_path, numbered_frames, segmentation):
        with pytest.raises(ValueError, match="The array has more than the 5 segmented frames"):
            render_video(numbered_frames(6), segmentation, tmp_path / "a.mp4")
        assert os.listdir(tmp_path) == []
