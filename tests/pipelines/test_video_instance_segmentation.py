import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import transformers_cvis
from tests.support.helpers import save_tiny_genvis, tiny_genvis
from transformers_cvis.pipelines import VideoInstanceSegmentationPipeline, register_pipeline
from transformers_cvis.processing import CvisVideoProcessor, VideoWriter

TASK = "video-instance-segmentation"
LABELS = {"threshold": 0.0, "device": "cpu"}  # an untrained model is sure of nothing: show it all
SMALL = CvisVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_genvis(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def segment(model_folder):
    return pipeline(TASK, model=model_folder, **LABELS)


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (4, 30, 50, 3), dtype=np.uint8)


@pytest.fixture
def mp4(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        for frame in frames:
            writer.write(frame)
    return str(tmp_path / "a.mp4")


class TestCalls:
    def test_one_video(self, segment, mp4):
        result = segment(mp4)
        assert set(result) == {"tracks", "size", "num_frames", "fps"}
        assert (result["size"], result["num_frames"], result["fps"]) == ((30, 50), 4, 8)
        assert result["tracks"]
        for track in result["tracks"]:
            assert len(track.segmentations) == len(track.boxes) == 4
            assert track.label in segment.model.config.id2label.values()
        assert "Track(label=" in str(result) and len(str(result)) < 1000

    def test_lists_and_batch_size(self, segment, mp4, frames):
        for batch_size in (None, 1, 2):
            first, second = segment([mp4, frames[:3]], batch_size=batch_size)
            assert (first["num_frames"], second["num_frames"]) == (4, 3)
        assert segment([]) == []

    def test_batch_size_when_it_is_made(self, model_folder, mp4):
        results = pipeline(TASK, model=model_folder, batch_size=2, **LABELS)([mp4, mp4])
        assert [track.score for track in results[0]["tracks"]] == [track.score for track in results[1]["tracks"]]

    def test_frames_in_a_list_are_one_video(self, segment, frames, tmp_path):
        images = [Image.fromarray(frame) for frame in frames]
        paths = []
        for index, image in enumerate(images):
            paths.append(str(tmp_path / f"{index}.png"))
            image.save(paths[-1])
        sources = [frames, list(frames), images, paths, str(tmp_path), iter(frames), torch.from_numpy(frames)]
        results = [segment(source) for source in sources]
        scores = [[track.score for track in result["tracks"]] for result in results]
        assert all(other == scores[0] for other in scores) and scores[0]

    def test_parameters(self, segment, mp4):
        assert segment(mp4, fps=4)["fps"] == 4
        assert segment(mp4, stride=3)["num_frames"] == 2
        assert segment(mp4, max_frames=1)["num_frames"] == 1
        assert len(segment(mp4, threshold=None, top_k=7)["tracks"]) == 7
        assert len(segment(mp4, top_k=1)["tracks"]) == 1
        assert segment(mp4, threshold=1.0)["tracks"] == []
        assert segment(mp4, clip_length=3)["num_frames"] == 4

    def test_parameters_when_it_is_made(self, model_folder, mp4):
        segment = pipeline(TASK, model=model_folder, stride=2, top_k=1, **LABELS)
        assert segment(mp4)["num_frames"] == 2
        assert segment(mp4, stride=1)["num_frames"] == 4  # the call wins

    def test_progress(self, segment, mp4, capsys):
        segment(mp4)
        assert capsys.readouterr().err == ""
        segment(mp4, progress=True)
        assert "4/4" in capsys.readouterr().err
        segment(np.zeros((100, 8, 8, 3), np.uint8), clip_length=50)
        assert "100/100" in capsys.readouterr().err

    def test_online_equals_itself_whatever_the_source_length(self, segment, frames):
        # Online: the first frames of a video do not depend on the later ones.
        short = segment(frames[:2], threshold=None, top_k=60)["tracks"]
        long = segment(frames, threshold=None, top_k=60)["tracks"]
        masks = {(track.query_id, track.label_id): track.segmentations for track in long}
        for track in short:
            assert masks[(track.query_id, track.label_id)][:2] == track.segmentations


class TestModels:
    def test_dtype_and_device(self, model_folder, mp4):
        segment = pipeline(TASK, model=model_folder, dtype=torch.bfloat16, **LABELS)
        assert (segment.model.dtype, segment.device.type) == (torch.bfloat16, "cpu")
        assert all(math.isfinite(track.score) for track in segment(mp4)["tracks"])

    def test_model_object_with_the_processor_next_to_its_weights(self, model_folder, segment, mp4):
        model = type(segment.model).from_pretrained(model_folder)
        found = pipeline(TASK, model=model, **LABELS)
        assert found.video_processor.size == SMALL.size
        assert [t.score for t in found(mp4)["tracks"]] == [t.score for t in segment(mp4)["tracks"]]

    def test_model_object_without_a_processor(self, caplog):
        with caplog.at_level(logging.WARNING):
            segment = pipeline(TASK, model=tiny_genvis(), **LABELS)
        assert segment.video_processor.to_dict() == CvisVideoProcessor().to_dict()
        assert "No video_preprocessor_config.json was found next to the weights" in caplog.text
        assert pipeline(TASK, model=tiny_genvis(), video_processor=SMALL, **LABELS).video_processor is SMALL

    def test_hub_revision(self, loopback_hub, mp4):
        for seed, revision in ((0, "main"), (1, "task-1")):
            transformers_cvis.push_to_hub(tiny_genvis(seed), SMALL, "tester/tiny", revision=revision)
        scores = {}
        for revision in ("main", "task-1"):
            segment = pipeline(TASK, model="tester/tiny", revision=revision, **LABELS)
            assert segment.video_processor.size == SMALL.size
            scores[revision] = [track.score for track in segment(mp4)["tracks"]]
        assert scores["main"] != scores["task-1"]

    def test_without_a_model_the_embedded_one(self, model_folder, monkeypatch, mp4, caplog):
        module = "transformers_cvis.pipelines.video_instance_segmentation"
        monkeypatch.setattr(f"{module}.default_model_path", lambda: model_folder)
        segment = pipeline(TASK, **LABELS)
        assert f"No model was supplied, defaulted to {model_folder}" in caplog.text
        assert "the embedded GenVIS, which knows moving shapes only" in caplog.text
        assert segment(mp4)["tracks"]

    def test_save_and_load(self, segment, mp4, tmp_path):
        segment.save_pretrained(tmp_path / "saved")
        again = pipeline(TASK, model=str(tmp_path / "saved"), **LABELS)
        assert [track.score for track in again(mp4)["tracks"]] == [track.score for track in segment(mp4)["tracks"]]


class TestBadInput:
    @pytest.mark.parametrize("clip_length", [0, -3])
    def test_clip_length(self, segment, mp4, clip_length):
        with pytest.raises(ValueError, match=f"`clip_length` must be a whole number of at least 1, got {clip_length}"):
            segment(mp4, clip_length=clip_length)

    def test_unknown_parameter(self, segment, model_folder, mp4):
        with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
            segment(mp4, treshold=0.5)
        with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
            pipeline(TASK, model=model_folder, treshold=0.5)

    @pytest.mark.parametrize(
        "video, error, message",
        [
            ("no/such.mp4", FileNotFoundError, "There is no file or folder 'no/such.mp4'"),
            (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "holds no frame"),
            (np.full((2, 4, 4, 3), np.nan), ValueError, "holds NaN"),
            (np.zeros((2, 4, 4, 3), np.int64), ValueError, "has dtype int64"),
            ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], ValueError, "all frames of a video must"),
            (7, TypeError, "A video is a path"),
        ],
    )
    def test_videos(self, segment, video, error, message):
        with pytest.raises(error, match=message):
            segment(video)

    @pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 33, 17, 3), (2, 1, 40, 3)])
    def test_one_frame_one_pixel_odd_sizes(self, segment, shape):
        result = segment(np.full(shape, 128, np.uint8))
        assert result["size"] == shape[1:3] and result["num_frames"] == shape[0]

    def test_grey_and_rgba(self, segment, frames):
        grey = segment([frame[..., 0] for frame in frames])
        rgba = segment(np.concatenate([frames, frames[..., :1]], axis=-1))
        assert grey["num_frames"] == rgba["num_frames"] == 4


def test_registering_twice_is_silent(capsys):
    register_pipeline()
    assert capsys.readouterr().err == ""
    assert pipeline(TASK, model=tiny_genvis(), video_processor=SMALL).__class__ is VideoInstanceSegmentationPipeline
