import os
import resource
import signal

import av
import numpy as np
import pytest
from PIL import Image

from transformers_cvis.processing import (
    Track,
    VideoSegmentation,
    VideoWriter,
    complete_file,
    complete_folder,
    empty_segmentation,
    open_video,
    render_video,
)


@pytest.fixture
def small_disk():
    """No file may pass 20 kB: the nearest thing to a full disk that needs no disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


class TestCompleteFile:
    def test_appears_when_complete(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with complete_file(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
        assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def test_vanishes_on_an_error(self, tmp_path):
        with pytest.raises(RuntimeError, match="stop"), complete_file(tmp_path / "a.txt") as file:
            file.write(b"half")
            raise RuntimeError("stop")
        assert os.listdir(tmp_path) == []

    def test_unwritable(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Cannot write '.*nowhere/a.txt': No such file or directory"):
            with complete_file(tmp_path / "nowhere" / "a.txt"):
                pass
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="Cannot write '.*file/a.txt'"):
            with complete_file(tmp_path / "file" / "a.txt"):
                pass
        with pytest.raises(IsADirectoryError, match="Cannot write '.*': it is a folder"), complete_file(tmp_path):
            pass

    def test_full_disk(self, tmp_path, small_disk):
        with pytest.raises(OSError, match="Cannot write '.*a.txt': File too large"):
            with complete_file(tmp_path / "a.txt") as file:
                file.write(bytes(50_000))
        assert os.listdir(tmp_path) == []


class TestCompleteFolder:
    def test_appears_when_complete(self, tmp_path):
        path = tmp_path / "new" / "out"
        with complete_folder(path) as folder:
            (folder / "a.txt").write_text("a")
            assert not (tmp_path / "new").exists()
        assert os.listdir(path) == ["a.txt"] and os.listdir(tmp_path) == ["new"]
        assert path.stat().st_mode & 0o777 == 0o755

    def test_takes_an_empty_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        with complete_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text("a")
        assert os.listdir(tmp_path / "out") == ["a.txt"]

    def test_vanishes_on_an_error(self, tmp_path):
        with pytest.raises(RuntimeError, match="stop"), complete_folder(tmp_path / "new" / "out") as folder:
            (folder / "a.txt").write_text("half")
            raise RuntimeError("stop")
        assert os.listdir(tmp_path) == []

    def test_refusals(self, tmp_path):
        (tmp_path / "a.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="exists and is not an empty folder"), complete_folder(tmp_path):
            pass
        with pytest.raises(FileExistsError, match="a.txt exists"), complete_folder(tmp_path / "a.txt"):
            pass
        with pytest.raises(OSError, match="Cannot write into the folder .*a.txt: Not a directory"):
            with complete_folder(tmp_path / "a.txt" / "out"):
                pass
        assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "precious"


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def noise(num_frames, height=64, width=96):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


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

    @pytest.mark.parametrize("size, padded", [((45, 63), (46, 64)), ((1, 1), (2, 2)), ((48, 63), (48, 64))])
    def test_odd_sizes_are_padded(self, tmp_path, size, padded):
        with VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(np.full((*size, 3), 200, np.uint8))
        video = open_video(tmp_path / "a.mp4")
        assert video.size == padded and video.fps == 25
        assert abs(next(iter(video)).mean() - 200) < 4

    def test_without_h264(self, tmp_path, monkeypatch, numbered_frames):
        monkeypatch.setattr("transformers_cvis.processing.video_writing.av.codecs_available", {"mpeg4"})
        with VideoWriter(tmp_path / "a.mp4", fps=29.97) as writer:
            writer.write(numbered_frames(1)[0])
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"
            assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=1e-3)

    def test_nothing_remains_of_a_failure(self, tmp_path):
        with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(noise(1)[0])
            raise RuntimeError("stop")
        with pytest.raises(ValueError, match=r"No frame was written to '.*a\.mp4'"), VideoWriter(tmp_path / "a.mp4"):
            pass
        with pytest.raises(ValueError, match=r"\(60, 96\) does not fit into a video of size \(64, 96\)"):
            with VideoWriter(tmp_path / "a.mp4") as writer:
                writer.write(noise(1)[0])
                writer.write(noise(1, height=60)[0])
        with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\), got float64 \(4, 4, 3\)"):
            with VideoWriter(tmp_path / "a.mp4") as writer:
                writer.write(np.zeros((4, 4, 3)))
        assert os.listdir(tmp_path) == []

    def test_full_disk(self, tmp_path, small_disk):
        for num_frames in (1, 40):  # found when the file is closed, and on the way
            with pytest.raises(OSError, match=r"Cannot write '.*a\.mp4': File too large"):
                with VideoWriter(tmp_path / "a.mp4") as writer:
                    for frame in noise(num_frames, 144, 256):
                        writer.write(frame)
            assert os.listdir(tmp_path) == []

    def test_unwritable(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"Cannot write '.*nowhere/a\.mp4': No such file or directory"):
            with VideoWriter(tmp_path / "nowhere" / "a.mp4"):
                pass

    def test_unknown_suffix(self):
        with pytest.raises(ValueError, match=r"Cannot write a video 'a\.avi': the name must end in \.mp4, "):
            VideoWriter("a.avi")


class TestRenderVideo:
    @pytest.fixture
    def segmentation(self):
        track = Track(0.9, 0, "dog", 3, [None, *[empty_segmentation((48, 64))] * 4], [None, *[(0, 0, 0, 0)] * 4])
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
