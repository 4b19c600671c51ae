# SPDX-License-Identifier: Apache-2.0
import logging
import math

import av
import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import transformers_cvis
from tests.support.helpers import save_tiny_genvis, tiny_genvis
from transformers_cvis.pipelines import VideoInstanceSegmentationPipeline, register_pipeline
from transformers_cvis.processing import CvisVideoProcessor, VideoWriter, open_video

TASK = "video-instance-segmentation"
LABELS = {"threshold": 0.0, "device": "cpu"}  # scores of an untrained model are low, so show all tracks
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
        assert "Track(label=" in str(result)
        assert len(str(result)) < 1000

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
        assert all(other == scores[0] for other in scores)
        assert scores[0]

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
        assert segment(mp4, stride=1)["num_frames"] == 4  # the argument of the call takes precedence

    def test_progress(self, segment, mp4, terminal):
        segment(mp4)
        assert terminal.readouterr().err == ""
        segment(mp4, progress=True)
        assert "4/4" in terminal.readouterr().err
        segment(np.zeros((100, 8, 8, 3), np.uint8), clip_length=50)
        assert "100/100" in terminal.readouterr().err

    def test_online_equals_itself_whatever_the_source_length(self, segment, frames):
        # Online: the first frames of a video do not depend on the later ones.
        short = segment(frames[:2], threshold=None, top_k=60)["tracks"]
        long = segment(frames, threshold=None, top_k=60)["tracks"]
        masks = {(track.query_id, track.label_id): track.segmentations for track in long}
        for track in short:
            assert masks[(track.query_id, track.label_id)][:2] == track.segmentations


class TestManyVideos:
    """Columns give lists of results; data sets and generators stream through."""

    def test_columns(self, segment, mp4):
        paths = [mp4, mp4]
        columns = [
            datasets.Dataset.from_dict({"path": paths})["path"],
            np.array(paths),
            pandas.Series(paths),
            tuple(paths),
        ]
        for column in columns:
            results = segment(column, max_frames=1)
            assert isinstance(results, list)
            assert [result["num_frames"] for result in results] == [1, 1]
        assert segment(pandas.Series([], dtype=str)) == []

    def test_generators_are_read_as_results_are_taken(self, segment, mp4):
        taken = []
        results = segment((taken.append(number) or mp4 for number in range(3)), max_frames=2)
        assert taken == [0]  # the first item shows that these are paths, not frames
        assert next(results)["num_frames"] == 2
        assert taken == [0]
        assert [result["num_frames"] for result in results] == [2, 2]
        assert taken == [0, 1, 2]
        with pytest.raises(TypeError, match=r"come one by one, .* or give a list of paths, `list\(videos\)`"):
            len(segment(path for path in [mp4]))

    def test_generators_of_whole_videos(self, segment, frames):
        results = list(segment(iter([frames, list(frames[:2]), torch.from_numpy(frames[:1])])))
        assert [result["num_frames"] for result in results] == [4, 2, 1]

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_data_sets(self, segment, mp4, batch_size):
        table = datasets.Dataset.from_dict({"path": [mp4] * 3, "fps": [8] * 3})
        for dataset in (KeyDataset(table, "path"), Paths([mp4] * 3)):
            results = segment(dataset, batch_size=batch_size, max_frames=2)
            assert len(results) == 3
            assert iter(results) is results
            assert [result["num_frames"] for result in results] == [2, 2, 2]
        stream = segment(PathStream([mp4] * 3), batch_size=batch_size, max_frames=1)
        assert [result["num_frames"] for result in stream] == [1, 1, 1]

    def test_rows_in_place_of_videos(self, segment, mp4):
        table = datasets.Dataset.from_dict({"path": [mp4], "fps": [8]})
        message = r"Got a dict with 'path', 'fps' instead of a video: give the column .*`KeyDataset\(table, 'path'\)`"
        for rows in (table, table[0], [table[0]]):
            with pytest.raises(TypeError, match=message):
                segment(rows)


class Paths(Dataset):
    """Map-style data set without its own iterator."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.paths[index]


class PathStream(IterableDataset):
    def __init__(self, paths):
        self.paths = paths

    def __iter__(self):
        return iter(self.paths)


class TestBatches:
    @pytest.fixture
    def batch_sizes(self, segment, monkeypatch):
        """Record the number of videos of each forward pass."""
        sizes, forward = [], segment.model.forward
        monkeypatch.setattr(
            segment.model, "forward", lambda clip, **inputs: sizes.append(len(clip)) or forward(clip, **inputs)
        )
        logging.Logger.warning_once.cache_clear()
        return sizes

    def test_videos_of_one_size_run_side_by_side(self, segment, frames, batch_sizes, caplog):
        videos = [frames, frames[::-1], frames[:, ::-1]]
        alone = [segment(video, clip_length=2, top_k=3) for video in videos]
        del batch_sizes[:]
        together = segment(videos, batch_size=2, clip_length=2, top_k=3)
        assert batch_sizes == [2, 2, 1, 1]
        assert "batch_size" not in caplog.text
        for ours, theirs in zip(together, alone, strict=True):
            scores = [track.score for track in theirs["tracks"]]
            assert [track.score for track in ours["tracks"]] == pytest.approx(scores, rel=1e-4)
            assert (ours["num_frames"], ours["size"]) == (4, (30, 50))

    def test_other_videos_run_alone_with_one_warning(self, segment, frames, batch_sizes, caplog):
        videos = [frames, frames[:3], iter(frames), frames[:, :20], frames[:, :20]]
        results = segment(videos, batch_size=2)
        assert [result["num_frames"] for result in results] == [4, 3, 4, 4, 4]
        assert caplog.text.count("only neighbouring videos of one size and one known number of frames run side") == 1
        assert max(batch_sizes) == 2

    def test_a_file_with_fewer_frames_than_it_states(self, segment, frames, batch_sizes, caplog):
        """The batch fails while it runs, and its videos are segmented one by one."""
        whole, short = open_video(frames), open_video(frames[:3])
        short.num_frames = 4
        results = segment([whole, short], batch_size=2, clip_length=1)
        assert [result["num_frames"] for result in results] == [4, 3]
        assert "must have one number of frames, and these do not" in caplog.text
        assert batch_sizes == [2, 2, 2] + 7 * [1]


class TestStages:
    def test_each_stage_does_its_own_work(self, segment, frames, monkeypatch):
        taken, calls, forward = [], [], segment.model.forward

        def counting_forward(clip, **inputs):
            calls.append(len(taken))
            return forward(clip, **inputs)

        monkeypatch.setattr(segment.model, "forward", counting_forward)
        source = (taken.append(index) or frame for index, frame in enumerate(np.concatenate([frames, frames])))
        inputs = segment.preprocess(source, clip_length=2)
        assert taken == [0]
        assert not calls
        outputs = segment.forward(inputs, threshold=0.0)
        assert calls == [2, 4, 6, 8]  # frames are decoded as the model asks for the next clip
        monkeypatch.undo()
        monkeypatch.setattr(segment, "model", None)
        result = segment.postprocess(outputs)
        assert result["num_frames"] == 8
        assert result["tracks"]

    def test_a_video_is_opened_once(self, segment, mp4, monkeypatch):
        opened, open_container = [], av.open
        monkeypatch.setattr(av, "open", lambda file, *args, **kwargs: opened.append(file) or open_container(file))
        segment(mp4)
        assert opened == [mp4, mp4]  # once for the header, once for the frames


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
        ("video", "error", "message"),
        [
            ("no/such.mp4", FileNotFoundError, "No file or folder 'no/such.mp4' found"),
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
        assert result["size"] == shape[1:3]
        assert result["num_frames"] == shape[0]

    def test_grey_and_rgba(self, segment, frames):
        grey = segment([frame[..., 0] for frame in frames])
        rgba = segment(np.concatenate([frames, frames[..., :1]], axis=-1))
        assert grey["num_frames"] == rgba["num_frames"] == 4


def test_registering_twice_is_silent(capsys):
    register_pipeline()
    assert capsys.readouterr().err == ""
    assert pipeline(TASK, model=tiny_genvis(), video_processor=SMALL).__class__ is VideoInstanceSegmentationPipeline
