# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_cvis.processing import CvisVideoProcessor


def random_video(num_frames=3, height=45, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.fixture
def processor():
    return CvisVideoProcessor(size={"shortest_edge": 36, "longest_edge": 80})


class TestPreprocess:
    def test_defaults(self):
        processor = CvisVideoProcessor()
        assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (360, 1333)
        assert processor.size_divisor == 32
        assert processor.model_input_names == ["pixel_values_videos", "pixel_mask", "original_sizes"]

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((720, 1280), (360, 640)),
            ((1280, 720), (640, 360)),
            ((360, 480), (360, 480)),
            ((300, 3000), (133, 1333)),  # the long side decides
            ((1, 1), (360, 360)),
            ((1, 5000), (1, 1333)),
            ((333, 501), (360, 542)),  # 541.62 -> 542
        ],
    )
    def test_resized_size(self, size, expected):
        assert CvisVideoProcessor().resized_size(*size) == expected

    def test_values_and_padding(self, processor):
        video = random_video()
        batch = processor(video, return_tensors="pt")
        values, mask = batch["pixel_values_videos"], batch["pixel_mask"]
        assert values.shape == (1, 3, 3, 64, 64)
        assert values.dtype == torch.float32
        assert mask.shape == (1, 64, 64)
        assert mask.dtype == torch.long
        height, width = processor.resized_size(45, 70)
        assert (height, width) == (36, 56)
        assert mask[0, :height, :width].all()
        assert mask.sum() == height * width
        assert (values[..., height:, :] == 0).all()
        assert (values[..., width:] == 0).all()

        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        for frame, value in zip(video, values[0], strict=True):
            resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
            expected = ((resized / 255 - mean) / std).transpose(2, 0, 1)
            assert np.abs(value[:, :height, :width].numpy() - expected).max() < 1.1 / 255 / 0.224

    def test_batch_of_sizes(self, processor):
        videos = [random_video(2, 40, 40), random_video(2, 30, 60, seed=1)]
        batch = processor(videos, return_tensors="pt")
        assert batch["pixel_values_videos"].shape == (2, 2, 3, 64, 96)
        for index, video in enumerate(videos):
            alone = processor(video, return_tensors="pt")["pixel_values_videos"]
            height, width = processor.resized_size(*video.shape[1:3])
            assert torch.equal(
                batch["pixel_values_videos"][index, ..., :height, :width], alone[0, ..., :height, :width]
            )
            assert batch["pixel_mask"][index].sum() == height * width

    def test_clip_of_a_stream_is_the_same(self, processor):
        video = random_video()
        assert torch.equal(
            processor.preprocess_clip(list(video)), processor(video, return_tensors="pt")["pixel_values_videos"]
        )

    def test_call_arguments_override(self, processor):
        batch = processor(random_video(), size_divisor=8, do_normalize=False, return_tensors="pt")
        values = batch["pixel_values_videos"]
        assert values.shape[-2:] == (40, 56)
        assert values.min() >= 0
        assert values.max() <= 1
        values = processor(random_video(), do_resize=False, do_pad=False, return_tensors="pt")["pixel_values_videos"]
        assert values.shape[-2:] == (45, 70)

    def test_inputs_of_other_kinds(self, processor, tmp_path, write_video, numbered_frames):
        video = random_video()
        expected = processor(video, return_tensors="pt")["pixel_values_videos"]
        alternatives = [
            torch.from_numpy(video).permute(0, 3, 1, 2),
            [Image.fromarray(frame) for frame in video],
            list(video),
            [video],
            video[None],
            np.concatenate([video, video[..., :1]], axis=-1),  # RGBA
        ]
        for other in alternatives:
            assert torch.equal(processor(other, return_tensors="pt")["pixel_values_videos"], expected)
        floats = processor(video / 255, return_tensors="pt")["pixel_values_videos"]
        assert (floats - expected).abs().max() < 1.1 / 255 / 0.224
        grey = processor(video[..., :1], return_tensors="pt")["pixel_values_videos"]
        assert grey.shape == expected.shape

        assert processor([frame[..., 0] for frame in video], return_tensors="pt")["pixel_mask"].shape == (1, 64, 64)

        path = write_video(tmp_path / "a.mp4", numbered_frames(6))
        batch = processor(str(path), return_tensors="pt", return_metadata=True)
        assert batch["pixel_values_videos"].shape == (1, 6, 3, 64, 64)
        assert (batch["video_metadata"][0].fps, batch["video_metadata"][0].total_num_frames) == (10, 6)
        assert torch.equal(processor([path], return_tensors="pt")["pixel_values_videos"], batch["pixel_values_videos"])
        sampled = processor(str(path), return_tensors="pt", do_sample_frames=True, num_frames=2)
        assert sampled["pixel_values_videos"].shape[1] == 2

    @pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 3, 1, 1), (1, 7, 9, 3)])
    def test_odd_and_tiny_frames(self, processor, shape):
        values = processor(np.zeros(shape, np.uint8), return_tensors="pt")["pixel_values_videos"]
        assert values.shape[:3] == (1, shape[0], 3)
        assert values.shape[3] % 32 == values.shape[4] % 32 == 0

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            ([], "No video to prepare"),
            (np.zeros((0, 4, 6, 3), np.uint8), "Video 0 is empty"),
            ([np.zeros((4, 6, 3), np.uint8), np.zeros((5, 6, 3), np.uint8)], "Frame 1 of .* is 6x5 pix"),
            ([np.zeros((n, 4, 6, 3), np.uint8) for n in (3, 2)], "Videos of 2, 3 frames do not fit into a batch: give"),
            (np.zeros((2, 4, 4, 3), np.int32), "Video 0 has dtype .*int32: pixels are uint8 in 0..255 or float"),
            (np.full((2, 4, 4, 3), 7.0), "Video 0 holds float pixels in 7..7"),
            (np.full((2, 4, 4, 3), np.nan), "Video 0 holds NaN"),
        ],
    )
    def test_bad_pixels(self, processor, video, message):
        with pytest.raises(ValueError, match=message):
            processor(video, return_tensors="pt")

    def test_no_such_file(self, processor):
        with pytest.raises(FileNotFoundError, match="No file or folder '/no/such.mp4' found"):
            processor("/no/such.mp4", return_tensors="pt")


class TestSaving:
    def test_round_trip(self, tmp_path, processor):
        processor.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
        assert saved["video_processor_type"] == "CvisVideoProcessor"
        assert saved["size_divisor"] == 32
        loaded = CvisVideoProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.resized_size(45, 70) == (36, 56)
        assert CvisVideoProcessor.from_pretrained(tmp_path, size_divisor=64).size_divisor == 64


class TestPostProcess:
    def outputs(self, num_frames, seed):
        generator = torch.Generator().manual_seed(seed)
        return SimpleNamespace(
            class_queries_logits=torch.randn(2, 5, 4, generator=generator),
            masks_queries_logits=torch.randn(2, 5, num_frames, 16, 16, generator=generator),
        )

    def test_score_rule_of_the_model(self, processor):
        outputs, sizes = self.outputs(2, 0), [(45, 70), (30, 30)]
        videos = processor.post_process_video_instance_segmentation(outputs, sizes, top_k=3, score_rule="mean_logits")
        probabilities = outputs.class_queries_logits.softmax(-1)[..., :-1]
        for tracks, expected in zip(videos, probabilities.flatten(1).topk(3).values, strict=True):
            assert [track.score for track in tracks] == pytest.approx(expected.tolist())

    def test_one_output_and_consecutive_clips(self, processor):
        outputs = [self.outputs(2, 0), self.outputs(1, 1)]
        names = {0: "a", 1: "b", 2: "c"}
        videos = processor.post_process_video_instance_segmentation(
            outputs, target_sizes=[(45, 70), (30, 30)], top_k=4, id2label=names
        )
        assert [len(tracks) for tracks in videos] == [4, 4]
        for tracks, size in zip(videos, [[45, 70], [30, 30]], strict=True):
            for track in tracks:
                assert len(track.segmentations) == len(track.boxes) == 3
                assert track.label == names[track.label_id]
                assert all(rle["size"] == size for rle in track.segmentations if rle is not None)
        (first, _) = processor.post_process_video_instance_segmentation(outputs[0], target_sizes=[(45, 70), (30, 30)])
        assert len(first) == 10
        assert len(first[0].segmentations) == 2

    def test_number_of_sizes(self, processor):
        message = "must hold a height and a width for each video: got 1 for a batch of 2"
        for name in ("target_sizes", "input_sizes"):
            with pytest.raises(ValueError, match=f"`{name}` {message}"):
                processor.post_process_video_instance_segmentation(self.outputs(1, 0), **{name: [(45, 70)]})
        with pytest.raises(TypeError, match="Got Tensor in place of a model's output: .* `return_dict=True`"):
            processor.post_process_video_instance_segmentation(tuple(vars(self.outputs(1, 0)).values()))
        with pytest.raises(ValueError, match="No output to make tracks of"):
            processor.post_process_video_instance_segmentation([])

    def sizes_of_masks(self, videos):
        """Height and width of the masks of each video."""
        return [
            {tuple(rle["size"]) for track in tracks for rle in track.segmentations if rle is not None}
            for tracks in videos
        ]

    def test_sizes_that_the_output_carries(self, processor):
        outputs = self.outputs(1, 0)
        make_tracks = processor.post_process_video_instance_segmentation
        assert self.sizes_of_masks(make_tracks(outputs)) == [{(64, 64)}, {(64, 64)}]  # the padded network input
        outputs.input_sizes = torch.tensor([[36, 56], [36, 36]])
        assert self.sizes_of_masks(make_tracks(outputs)) == [{(36, 56)}, {(36, 36)}]
        outputs.original_sizes = torch.tensor([[45, 70], [30, 30]])
        assert self.sizes_of_masks(make_tracks(outputs)) == [{(45, 70)}, {(30, 30)}]
        assert make_tracks(outputs) == make_tracks(self.outputs(1, 0), target_sizes=[(45, 70), (30, 30)])
        for sizes in ([(90, 140), (20, 20)], torch.tensor([[90, 140], [20, 20]])):
            assert self.sizes_of_masks(make_tracks(outputs, target_sizes=sizes)) == [{(90, 140)}, {(20, 20)}]

    def test_rule_that_the_output_carries(self, processor):
        outputs = self.outputs(2, 0)
        make_tracks = processor.post_process_video_instance_segmentation
        assert make_tracks(outputs) == make_tracks(outputs, score_rule="max_times_quality")  # of models from outside
        by_quality = make_tracks(outputs)
        outputs.score_rule = "mean_logits"
        assert make_tracks(outputs) == make_tracks(self.outputs(2, 0), score_rule="mean_logits") != by_quality
        assert make_tracks(outputs, score_rule="max_times_quality") == by_quality
        outputs.score_rule = "best"
        with pytest.raises(
            ValueError, match="`score_rule` must be one of 'max_times_quality', 'mean_logits', got 'best'"
        ):
            make_tracks(outputs)
