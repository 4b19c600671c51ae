# SPDX-License-Identifier: Apache-2.0
import http.server
import io
import re
import threading
import types

import av
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_cvis.processing import open_video
from transformers_cvis.processing.video_reading import _upright, to_rgb_frame


def brightness(frames):
    return [round(float(frame.mean()) / 10) for frame in frames]


class TestVideoFiles:
    @pytest.mark.parametrize(
        ("name", "encoder"), [("a.mp4", "libx264"), ("a.mp4", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.gif", "gif")]
    )
    def test_formats(self, tmp_path, write_video, numbered_frames, name, encoder):
        path = write_video(tmp_path / name, numbered_frames(5), encoder=encoder)
        video = open_video(path)
        frames = list(video)
        assert (video.size, video.fps, video.name) == ((48, 64), 10, str(path))
        assert video.num_frames in (5, None)
        assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)
        assert len(frames) == 5
        assert np.abs([frame.mean() for frame in frames] - 10.0 * np.arange(5)).max() < 20  # a gif has 8 colours in red

    def test_can_be_read_again(self, tmp_path, write_video, numbered_frames):
        video = open_video(write_video(tmp_path / "a.mp4", numbered_frames(4)))
        assert brightness(video) == brightness(video) == [0, 1, 2, 3]

    def test_open_files_and_bytes(self, tmp_path, write_video, numbered_frames):
        path = write_video(tmp_path / "a.mp4", numbered_frames(4))
        content = path.read_bytes()
        with open(path, "rb") as file:
            for source in (content, bytearray(content), io.BytesIO(content), file):
                video = open_video(source)
                assert (video.num_frames, video.fps) == (4, 10)
                assert brightness(video) == brightness(video) == [0, 1, 2, 3]
            assert open_video(content, name="upload").name == "upload"
            assert video.name == str(path)
        with pytest.raises(ValueError, match="The video file cannot be opened as a video"):
            open_video(b"no video")
        (tmp_path / "a.txt").write_text("text")
        with (
            open(tmp_path / "a.txt") as file,
            pytest.raises(TypeError, match=r"a\.txt is a file that was opened as text: open it in binary mode"),
        ):
            open_video(file)

    def test_one_frame(self, tmp_path, write_video, numbered_frames):
        video = open_video(write_video(tmp_path / "a.mp4", numbered_frames(1)))
        assert (video.num_frames, brightness(video)) == (1, [0])

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_rotation_is_applied(self, tmp_path, write_video, rotation):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:24, :32] = 255  # the top left quarter is white
        video = open_video(write_video(tmp_path / "a.mp4", np.stack([frame] * 2), rotation=rotation))
        expected = np.rot90(frame, rotation // 90)  # both angles are counter-clockwise
        (first, _) = video
        assert video.size == expected.shape[:2]
        assert np.abs(first.astype(int) - expected).mean() < 5

    def test_rotation_of_a_decoded_frame(self):
        pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
        frame = types.SimpleNamespace(rotation=-90, to_ndarray=lambda format: pixels)
        assert np.array_equal(_upright(frame), np.rot90(pixels, -1))

    def test_real_footage(self, clips_folder):
        video = open_video(clips_folder / "videos" / "cups_b.mp4")
        assert (video.size, video.fps, video.num_frames) == ((288, 512), 15, 33)
        assert sum(1 for _ in video) == 33

    def test_url(self, tmp_path, write_video, numbered_frames):
        write_video(tmp_path / "a.mp4", numbered_frames(4))

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(tmp_path))

            def log_message(self, *arguments):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            assert brightness(open_video(f"{url}/a.mp4")) == [0, 1, 2, 3]
            with pytest.raises(ValueError, match=r"nothing\.mp4 cannot be opened as a video"):
                open_video(f"{url}/nothing.mp4")
            server.shutdown()


class TestSampling:
    @pytest.mark.parametrize(
        ("sampling", "expected", "fps"),
        [
            ({"stride": 3}, [0, 3, 6, 9], 10 / 3),
            ({"max_frames": 2}, [0, 1], 10),
            ({"stride": 4, "max_frames": 2}, [0, 4], 2.5),
            ({"fps": 5}, [0, 2, 4, 6, 8], 5),
            ({"fps": 3}, [0, 4, 7], 3),
            ({"fps": 30}, list(range(10)), 10),
        ],
    )
    def test_file(self, tmp_path, write_video, numbered_frames, sampling, expected, fps):
        video = open_video(write_video(tmp_path / "a.mp4", numbered_frames(10)), **sampling)
        assert brightness(video) == expected
        assert (video.num_frames, video.fps) == (len(expected), pytest.approx(fps))

    def test_array(self, numbered_frames):
        assert brightness(open_video(numbered_frames(10), stride=4)) == [0, 4, 8]

    def test_iterator_is_not_read_further_than_needed(self):
        taken = []

        def frames():
            for index in range(100):
                taken.append(index)
                yield np.zeros((4, 4, 3), np.uint8)

        assert len(list(open_video(frames(), max_frames=3))) == 3
        assert len(taken) == 3

    @pytest.mark.parametrize(
        ("sampling", "message"),
        [
            ({"stride": 0}, "`stride` must be a whole number of at least 1, got 0"),
            ({"stride": 1.5}, "`stride` must be a whole number of at least 1, got 1.5"),
            ({"max_frames": 0}, "`max_frames` must be a whole number of at least 1 or None, got 0"),
            ({"fps": 0}, "`fps` must be above 0, got 0"),
            ({"fps": 5}, "The array has no frame rate, so `fps=5` cannot be reached: use `stride`"),
            ({"fps": 5, "stride": 2}, "`fps` and `stride` both choose frames"),
        ],
    )
    def test_bad_values(self, numbered_frames, sampling, message):
        with pytest.raises(ValueError, match=message):
            open_video(numbered_frames(3), **sampling)


class TestImagesAndArrays:
    def test_folder_in_natural_order(self, tmp_path, numbered_frames):
        for index, frame in enumerate(numbered_frames(12)):
            Image.fromarray(frame).save(tmp_path / f"frame {index}.png")
        (tmp_path / "notes.txt").write_text("no image")
        assert brightness(open_video(tmp_path)) == list(range(12))

    def test_list_of_paths_keeps_its_order(self, tmp_path, numbered_frames):
        paths = []
        for index, frame in enumerate(numbered_frames(3)):
            paths.append(tmp_path / f"{index}.png")
            Image.fromarray(frame).save(paths[-1])
        assert brightness(open_video([str(paths[2]), paths[0]])) == [2, 0]

    def test_image_orientation_is_applied(self, tmp_path):
        image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6  # 90 degrees
        image.save(tmp_path / "0.jpg", exif=exif)
        assert open_video(tmp_path).size == (8, 4)

    @pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, list, iter, lambda video: [v for v in video[:]]])
    def test_arrays_lists_and_iterators(self, numbered_frames, make):
        video = open_video(make(numbered_frames(3)))
        assert (video.size, brightness(video)) == ((48, 64), [0, 1, 2])

    def test_channels_first(self):
        video = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
        assert np.array_equal(list(open_video(video.transpose(0, 3, 1, 2))), video)
        assert np.array_equal(list(open_video(torch.from_numpy(video).permute(0, 3, 1, 2))), video)

    def test_grey_and_rgba_become_rgb(self):
        grey = np.arange(10, dtype=np.uint8).reshape(2, 5)
        rgb = np.stack([grey] * 3, axis=-1)
        rgba = np.concatenate([rgb, np.full((2, 5, 1), 9, np.uint8)], axis=-1)
        for frame in (grey, grey[..., None], grey[None], rgba, rgba.transpose(2, 0, 1), Image.fromarray(rgba)):
            assert np.array_equal(to_rgb_frame(frame), rgb)
        assert np.array_equal(next(iter(open_video(grey[None]))), rgb)  # (num_frames, height, width)
        assert np.array_equal(to_rgb_frame(Image.fromarray(grey)), rgb)

    def test_float_frames(self):
        frame = np.linspace(0, 1, 12).reshape(2, 2, 3)
        expected = np.rint(frame * 255).astype(np.uint8)
        for array in (frame, frame.astype(np.float32), torch.from_numpy(frame)):
            assert np.array_equal(to_rgb_frame(array), expected)
        assert to_rgb_frame(torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16)).tolist() == [[[128] * 3] * 2] * 2

    @pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (1, 1)])
    def test_one_pixel_frames(self, shape):
        video = open_video(np.full((2, *shape), 7, np.uint8))
        assert (video.size, next(iter(video)).tolist()) == ((1, 1), [[[7, 7, 7]]])


class TestBadInput:
    def test_no_such_file(self):
        with pytest.raises(FileNotFoundError, match="No file or folder '/no/such.mp4' found"):
            open_video("/no/such.mp4")

    @pytest.mark.parametrize("content", [b"", b"this is text, not a video\n" * 50])
    def test_not_a_video(self, tmp_path, content):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mp4 cannot be opened as a video .*of another kind, damaged or trunc"):
            open_video(path)

    def test_truncated_before_its_index(self, tmp_path, write_video, numbered_frames):
        path = write_video(tmp_path / "a.mp4", numbered_frames(20))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"a\.mp4 cannot be opened as a video .*damaged or truncated"):
            open_video(path)

    def test_truncated_after_its_index_warns_and_counts(self, tmp_path, write_video, caplog):
        noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
        path = write_video(tmp_path / "a.mp4", noise, options={"movflags": "faststart"})
        assert len(list(open_video(path))) == 20
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert not caplog.records
        frames = list(open_video(path))
        assert f"a.mp4 is truncated or damaged: {len(frames)} of 20 frames could be" in caplog.text
        assert 0 < len(frames) < 20
        caplog.clear()
        list(open_video(path, max_frames=2))  # the missing part was not read
        assert not caplog.records

    def test_sound_only(self, tmp_path):
        path = tmp_path / "a.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            silence.sample_rate = 8000
            container.mux(stream.encode(silence))
        with pytest.raises(ValueError, match=r"a\.wav has no video stream"):
            open_video(path)

    @pytest.mark.parametrize("empty", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
    def test_zero_frames(self, empty):
        with pytest.raises(ValueError, match="holds no frame that can be read"):
            open_video(empty)

    def test_folder_without_images(self, tmp_path):
        with pytest.raises(ValueError, match="holds no image"):
            open_video(tmp_path)

    def test_missing_image_of_a_list(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no image '.*0.png' found"):
            open_video([tmp_path / "0.png"])

    def test_broken_image(self, tmp_path):
        (tmp_path / "0.png").write_bytes(b"\x89PNG nonsense")
        with pytest.raises(ValueError, match=r"0\.png' is not an image that can be read"):
            open_video(tmp_path)

    def test_frames_of_different_sizes(self):
        frames = [np.zeros((4, 6, 3), np.uint8)] * 3 + [np.zeros((5, 6, 3), np.uint8)]
        video = open_video(frames)
        with pytest.raises(ValueError, match=r"Frame 3 of .* is 6x5 pixels .* the first frame is 6x4 pixels"):
            list(video)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool])
    def test_wrong_dtype(self, dtype):
        with pytest.raises(ValueError, match=f"Frame 0 of The array has dtype {np.dtype(dtype)}: pixels are uint8"):
            open_video(np.zeros((2, 4, 4, 3), dtype))

    def test_wrong_range(self):
        with pytest.raises(ValueError, match=r"float pixels in 0\.\.255: pixels are float in 0\.\.1 or uint8"):
            open_video(np.linspace(0, 255, 2 * 48).reshape(1, 4, 8, 3))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, bad):
        frames = np.zeros((3, 4, 4, 3), np.float32)
        frames[1, 2, 2, 0] = bad
        with pytest.raises(ValueError, match="Frame 1 of The array holds NaN or infinite pixels"):
            list(open_video(frames))

    def test_wrong_shapes(self):
        for shape in ((48, 64, 3), (48, 64, 4), (3, 48, 64), (4, 48, 64)):
            message = rf"{re.escape(str(shape))} looks like one image.*use `image\[None\]` .* `frames\[..., None\]`"
            with pytest.raises(ValueError, match=message):
                open_video(np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=r"must be \(num_frames, height, width, 3\), got shape \(2, 2, 4, 4, 3\)"):
            open_video(np.zeros((2, 2, 4, 4, 3), np.uint8))
        with pytest.raises(ValueError, match=r"with 1, 3 or 4 channels, got shape \(8, 8, 5\)"):
            open_video(np.zeros((2, 8, 8, 5), np.uint8))
        with pytest.raises(ValueError, match=r"is empty: shape \(0, 8, 3\)"):
            open_video(np.zeros((2, 0, 8, 3), np.uint8))

    def test_deep_images(self):
        with pytest.raises(ValueError, match="image of mode 'I;16': convert it to 8-bit"):
            open_video([Image.fromarray(np.zeros((4, 4), np.uint16))])

    def test_wrong_type(self):
        with pytest.raises(TypeError, match="A video is a path, .* got int"):
            open_video(3)
        with pytest.raises(TypeError, match="Frame 0 of .* must be an image, an array or a tensor, got str"):
            open_video(iter(["x"]))

    def test_sampling_of_an_opened_video(self, numbered_frames):
        with pytest.raises(ValueError, match="An opened video keeps its"):
            open_video(open_video(numbered_frames(2)), stride=2)


class TestTorchcodec:
    """torchcodec decodes files where it is installed. (It needs FFmpeg's libraries, so it is not a dependency.)"""

    def test_reads_files_but_not_urls(self, tmp_path, write_video, numbered_frames, monkeypatch):
        frames = numbered_frames(6)
        opened = []

        class Decoder:
            def __init__(self, source, dimension_order):
                assert dimension_order == "NHWC"
                opened.append(source)

            def __len__(self):
                return len(frames)

            def get_frame_at(self, index):
                return types.SimpleNamespace(data=torch.from_numpy(frames[index]), pts_seconds=5 + index / 10)

        path = write_video(tmp_path / "a.mp4", frames)
        monkeypatch.setattr("transformers_cvis.processing.video_reading.VideoDecoder", Decoder)
        assert np.array_equal(list(open_video(path, fps=5)), frames[::2])
        assert opened == [str(path)]
        with pytest.raises(ValueError, match="cannot be opened as a video"):
            open_video("http://127.0.0.1:9/a.mp4")
        assert opened == [str(path)]

    def test_equals_pyav(self, tmp_path, write_video, numbered_frames, monkeypatch):
        pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed", exc_type=Exception)
        for rotation in (0, 90):
            path = write_video(tmp_path / f"{rotation}.mp4", numbered_frames(6), rotation=rotation)
            ours = list(open_video(path))
            with monkeypatch.context() as patch:
                patch.setattr("transformers_cvis.processing.video_reading.VideoDecoder", None)
                assert np.array_equal(ours, list(open_video(path)))
