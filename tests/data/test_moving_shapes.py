# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import math
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from transformers_cvis.data import SHAPES, generate_video, make_moving_shapes, moving_shapes, validate_ytvis
from transformers_cvis.data.moving_shapes import TEXTURE_SIZE
from transformers_cvis.data.shapes import LOCAL_EXTENT, heart_vertices, star_vertices


def polygon_area(vertices):
    x, y = np.array(vertices).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


EXACT_AREAS = {
    "circle": math.pi * 0.81,
    "square": 2.56,
    "triangle": 1.8,
    "star": polygon_area(star_vertices(5, 0.42)),
    "cross": 4 * 0.6 - 0.36,
    "ring": math.pi * (1 - 0.48**2),
    "heart": polygon_area(heart_vertices()),
    "arrow": 0.85 * 1.0 + 0.64 * 1.1,
    "hourglass": 2 * (0.8 + 0.12),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_a_signed_distance_within_its_extent(name):
    axis = np.linspace(-1.5, 1.5, 601)
    x, y = np.meshgrid(axis, axis)
    distance = SHAPES[name](x, y)
    inside = distance < 0
    assert np.abs(np.stack([x, y])[:, inside]).max() <= LOCAL_EXTENT
    step = axis[1] - axis[0]
    assert np.abs(np.diff(distance, axis=0)).max() <= step * 1.001  # a distance changes no faster than the position
    if name in EXACT_AREAS:
        assert inside.sum() * step**2 == pytest.approx(EXACT_AREAS[name], rel=0.01)


def test_all_shapes_look_different():
    axis = np.linspace(-1.2, 1.2, 49)
    x, y = np.meshgrid(axis, axis)
    masks = np.stack([SHAPES[name](x, y) < 0 for name in SHAPES])
    intersections = (masks[:, None] & masks[None]).sum((2, 3))
    unions = (masks[:, None] | masks[None]).sum((2, 3))
    assert len(SHAPES) >= 8
    assert ((intersections / unions)[~np.eye(len(SHAPES), dtype=bool)] < 0.85).all()


def test_mask_area_follows_the_affine_map():
    texture = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE, 3))
    linear = 20 * np.array([[1.1, 0.2], [-0.4, 0.9]])
    shape = moving_shapes._MovingShape("triangle", texture, np.array([[60.3, 50.8]]), linear[None])
    window, _, _, distance = shape.footprint(0, (100, 120))
    assert (distance < 0).sum() == pytest.approx(1.8 * np.linalg.det(linear), rel=0.02)
    # the centroid of the triangle (0, -1.1), (1, 0.7), (-1, 0.7) is (0, 0.1)
    rows, columns = np.nonzero(distance < 0)
    centroid = np.array([columns.mean() + window[1].start + 0.5, rows.mean() + window[0].start + 0.5])
    np.testing.assert_allclose(centroid, [60.3, 50.8] + linear @ [0, 0.1], atol=0.2)


def test_masks_of_a_frame_are_disjoint_and_the_nearest_shape_wins(monkeypatch):
    centres = [np.full((1, 2), 32.0), np.full((1, 2), 40.0)]
    linear = np.full((1, 1, 1), 12.0) * np.eye(2)
    monkeypatch.setattr(moving_shapes, "_motion", lambda *_: (centres.pop(0), linear))
    video = generate_video(1, (64, 72), seed=0, categories=["square"], num_objects=(2, 2))
    far, near = video.masks[:, 0]
    assert not (far & near).any()
    side = 2 * 0.8 * 12
    assert near.sum() == pytest.approx(side**2, rel=0.1)
    assert far.sum() == pytest.approx(side**2 - (side - 8) ** 2, rel=0.1)
    assert near[40, 40]
    assert not far[40, 40]
    assert far[24, 24]


def test_image_shows_the_shape_inside_its_mask():
    for seed in range(5):
        video = generate_video(3, (64, 96), seed, num_objects=(1, 1), object_size=(0.5, 0.5))
        if not len(video.masks):
            continue
        for frame, mask in zip(video.frames.astype(int), video.masks[0], strict=True):
            inside = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            if inside.any() and (~mask).any():
                # the first texture colour is drawn well away from the background's mean
                difference = np.abs(frame[1:-1, 1:-1][inside].mean(0) - frame[~mask].mean(0)).sum()
                assert difference > 20


def test_objects_leave_and_reenter_and_classes_repeat():
    videos = [generate_video(24, (48, 80), seed) for seed in range(25)]
    visible = [mask.any((1, 2)) for video in videos for mask in video.masks]
    seen_frames = [np.flatnonzero(frames) for frames in visible]
    assert any(not frames[seen[0] : seen[-1]].all() for frames, seen in zip(visible, seen_frames, strict=True))
    assert any(seen[0] > 0 for seen in seen_frames)
    assert any(seen[-1] < 23 for seen in seen_frames)
    assert any(len(set(video.categories)) < len(video.categories) for video in videos)
    assert {name for video in videos for name in video.categories} == set(SHAPES)
    assert all(masks.any() for video in videos for masks in video.masks)


def test_a_stride_leaves_frames_out():
    fast, slow = (generate_video(n, (32, 48), 4, stride=stride) for n, stride in ((3, 4), (12, 1)))
    np.testing.assert_array_equal(fast.frames, slow.frames[::4])
    np.testing.assert_array_equal(fast.masks, slow.masks[:, ::4])


def test_same_seed_same_video_in_another_process():
    code = (
        "import hashlib; from transformers_cvis.data import generate_video; video = generate_video(4, (40, 56), 7);"
        "print(hashlib.sha256(video.frames.tobytes() + video.masks.tobytes()).hexdigest(), video.categories)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    video = generate_video(4, (40, 56), 7)
    digest = hashlib.sha256(video.frames.tobytes() + video.masks.tobytes()).hexdigest()
    assert output.strip() == f"{digest} {video.categories}"
    assert not np.array_equal(generate_video(4, (40, 56), 7).frames, generate_video(4, (40, 56), 8).frames)


def test_data_set_on_disk_equals_the_generated_one(shapes_dir):
    content = json.loads((shapes_dir / "train.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(SHAPES)
    assert len(content["videos"]) == 6
    assert len({video["length"] for video in content["videos"]}) > 1
    for name in ("train", "valid"):
        assert validate_ytvis(shapes_dir / f"{name}.json", shapes_dir / "JPEGImages") == []

    video = content["videos"][2]
    generated = generate_video(video["length"], (48, 64), (3, 0, 2, 1))
    annotations = [entry for entry in content["annotations"] if entry["video_id"] == video["id"]]
    assert len(annotations) == len(generated.masks)
    for annotation, masks in zip(annotations, generated.masks, strict=True):
        for rle, box, area, mask in zip(
            annotation["segmentations"], annotation["bboxes"], annotation["areas"], masks, strict=True
        ):
            assert (rle is None) == (box is None) == (area is None) == (not mask.any())
            if rle is not None:
                np.testing.assert_array_equal(mask_utils.decode(rle), mask)
                assert area == mask.sum()
    frame = np.asarray(Image.open(shapes_dir / "JPEGImages" / video["file_names"][0]), dtype=int)
    assert np.abs(frame - generated.frames[0]).mean() < 6


def test_data_set_is_repeatable_and_videos_do_not_depend_on_their_number(tmp_path):
    arguments = {"num_valid_videos": 1, "num_frames": 3, "size": (32, 48), "seed": 1, "categories": ["heart", "ring"]}
    one = make_moving_shapes(tmp_path / "one", num_train_videos=1, **arguments)
    two = make_moving_shapes(tmp_path / "two", num_train_videos=2, **arguments)
    frame = "JPEGImages/train_00000/00002.jpg"
    assert (one / frame).read_bytes() == (two / frame).read_bytes()
    assert (one / "valid.json").read_text() == (two / "valid.json").read_text()
    names = [category["name"] for category in json.loads((one / "train.json").read_text())["categories"]]
    assert names == ["heart", "ring"]


def test_photographs_become_backgrounds(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 90), (255, 0, 255)).save(tmp_path / "photos" / "a.png")
    paths = [tmp_path / "photos" / "a.png"]
    videos = [generate_video(1, (32, 48), seed, num_objects=(1, 1), background_images=paths) for seed in range(12)]
    pink = [(video.frames[0] == (255, 0, 255)).all(-1).mean() > 0.3 for video in videos]
    assert 0 < sum(pink) < 12
    make_moving_shapes(tmp_path / "data", 1, 0, 2, (32, 48), background_dir=tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match="No picture"):
        make_moving_shapes(tmp_path / "other", 1, 0, 2, (32, 48), background_dir=tmp_path / "data" / "JPEGImages" / "x")


def test_mp4_has_the_frames(tmp_path):
    folder = make_moving_shapes(tmp_path / "data", 1, 0, 5, (32, 48), seed=2, write_mp4=True, fps=10)
    with av.open(str(folder / "videos" / "train_00000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert len(frames) == 5
    generated = generate_video(5, (32, 48), (2, 0, 0, 1)).frames
    assert np.abs(np.stack(frames).astype(int) - generated).mean() < 12


def test_nothing_half_written_remains(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moving_shapes, "_write_frames", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_moving_shapes(tmp_path / "data", 1, 0, 2, (32, 48))
    assert list(tmp_path.iterdir()) == []


def test_existing_data_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder; give a new folder"):
        make_moving_shapes(tmp_path / "data", 1, 0, 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"stride": 0}, "`stride` must be at least 1, got 0"),
        ({"size": (8, 64)}, r"size is \(8, 64\); give \(height, width\) of at least 16"),
        ({"num_objects": (0, 2)}, "1 <= fewest <= most"),
        ({"object_size": (0.5, 0.2)}, "0 < smallest <= largest"),
        ({"categories": ["circle", "dog"]}, r"categories is \['circle', 'dog'\]; give different names from"),
        ({"categories": ["circle", "circle"]}, "give different names"),
        ({"categories": []}, "give different names"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_video(**{"num_frames": 2, "size": (32, 32), "seed": 0, **arguments})


def test_bad_lengths(tmp_path):
    with pytest.raises(ValueError, match="shortest <= longest"):
        make_moving_shapes(tmp_path / "data", num_frames=(5, 3))
    assert list(tmp_path.iterdir()) == []
