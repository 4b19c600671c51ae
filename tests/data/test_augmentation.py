# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from transformers_cvis.data import (
    ClipAugmentation,
    LargeScaleJitter,
    PseudoVideoAugmentation,
    RandomCropPath,
    RandomRotation,
    evaluation_resize,
    mask2former_augmentation,
)
from transformers_cvis.data.augmentation import (
    Crop,
    FrameTransform,
    HorizontalFlip,
    Pad,
    Resize,
    Rotation,
    resize_short_side,
)


def draws(augmentation, height, width, num_frames, count=200):
    return [augmentation.draw(height, width, num_frames, np.random.default_rng(seed)) for seed in range(count)]


def steps_of(transform, kind):
    return [step for step in transform.steps if isinstance(step, kind)]


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((720, 1280), 360, 1333, (360, 640)),
        ((1280, 720), 360, 1333, (640, 360)),
        ((100, 151), 75, 1333, (75, 113)),  # int(113.25 + 0.5)
        ((100, 150), 75, 1333, (75, 113)),  # int(112.5 + 0.5): halves go up
        ((100, 400), 512, 768, (192, 768)),
        ((1, 1000), 96, 200, (1, 200)),
    ],
)
def test_resize_rule(size, short_side, max_size, expected):
    resize = resize_short_side(*size, short_side, max_size)
    assert (resize.height, resize.width) == expected


def test_masks_are_resized_as_pillow_does():
    rng = np.random.default_rng(0)
    for _ in range(200):
        old_height, old_width, height, width = (int(side) for side in rng.integers(1, 150, 4))
        mask = rng.random((old_height, old_width)) > 0.5
        resized = Resize(old_height, old_width, height, width).masks(mask[None])[0]
        pillow = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resized, np.asarray(pillow))


def test_images_are_resized_by_antialiased_bilinear():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    transform = FrameTransform((Resize(60, 90, 20, 30),), 20, 30)
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(transform.image(image), expected)


@pytest.mark.parametrize("seed", range(40))
def test_image_mask_and_box_go_the_same_way(seed):
    """Draw a rectangle and transform image, mask and box: all three still show the same rectangle."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(60, 140, 2))
    top, left = int(rng.integers(0, height - 40)), int(rng.integers(0, width - 40))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[top : top + 30, left : left + 36] = 255
    augmentation = ClipAugmentation(
        short_sides=(50, 75, 100), crop=RandomCropPath(probability=0.8, short_sides=(70, 90), window=(50, 80))
    )
    for transform in augmentation.draw(height, width, 4, rng):
        image = transform.image(Image.fromarray(pixels))
        mask = transform.masks(pixels[None, ..., 0] > 0)[0]
        (box,) = transform.boxes(np.array([[left, top, left + 36, top + 30]], dtype=float))
        assert image.shape == (transform.height, transform.width, 3)
        assert mask.shape == image.shape[:2]
        bright = image[..., 0] > 127
        assert (bright != mask).mean() < 0.05
        if mask.any():
            rows, columns = np.nonzero(mask)
            seen_box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, seen_box, atol=2.0)
        else:
            assert (box[2:] - box[:2]).min() < 2


def test_flip_mirrors_pixels_and_boxes():
    flip = HorizontalFlip(5)
    masks = np.arange(10).reshape(1, 2, 5)
    np.testing.assert_array_equal(flip.masks(masks)[0, 0], [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(flip.boxes(np.array([[0.0, 1, 2, 2]])), [[3, 1, 5, 2]])


def test_vita_defaults_are_the_published_ones():
    augmentation = ClipAugmentation()
    assert augmentation.short_sides == (288, 320, 352, 384, 416, 448, 480, 512)
    assert augmentation.max_size == 768
    assert augmentation.flip_probability == 0.5
    assert augmentation.crop == RandomCropPath(0.5, (400, 500, 600), 1333, (384, 600))
    clips = draws(augmentation, 720, 1280, 3, 400)
    cropped = [clip for clip in clips if steps_of(clip[0], Crop)]
    flipped = [clip for clip in clips if steps_of(clip[0], HorizontalFlip)]
    assert 160 < len(cropped) < 240
    assert 160 < len(flipped) < 240
    for clip in clips:
        assert len({(transform.height, transform.width) for transform in clip}) == 1  # one size per clip
        assert len({bool(steps_of(transform, HorizontalFlip)) for transform in clip}) == 1
        assert max(clip[0].height, clip[0].width) <= 768
        assert min(clip[0].height, clip[0].width) <= 512
    uncropped_sides = {min(clip[0].height, clip[0].width) for clip in clips if not steps_of(clip[0], Crop)}
    # at 16:9 the limit of 768 pixels cuts 448, 480 and 512 down to 432
    assert uncropped_sides == {288, 320, 352, 384, 416, 432}
    assert {steps_of(clip[0], Resize)[0].height for clip in cropped} == {400, 500, 600}
    for clip in cropped:
        assert len({(crop.height, crop.width) for t in clip for crop in steps_of(t, Crop)}) == 1
        (crop,) = steps_of(clip[0], Crop)
        assert 384 <= crop.height <= 600
        assert 384 <= crop.width <= 600


def test_crop_path_is_a_line_inside_the_frame_in_both_directions():
    path = RandomCropPath(window=(30, 50))
    directions = set()
    heights = set()
    for seed in range(300):
        crops = path.draw(60, 100, 5, np.random.default_rng(seed))
        corners = np.array([(crop.top, crop.left) for crop in crops])
        heights.add(crops[0].height)
        assert (corners >= 0).all()
        assert (corners[:, 0] + crops[0].height <= 60).all()
        assert (corners[:, 1] + crops[0].width <= 100).all()
        steps = np.diff(corners, axis=0)
        assert (steps >= 0).all() or (steps <= 0).all()  # always along one diagonal direction, never zigzag
        directions.add(int(np.sign(steps.sum())))
        # on a line: left is a linear function of top, up to rounding
        start, end = corners[0], corners[-1]
        length = np.linalg.norm(end - start)
        if length:
            offset = corners - start
            across = np.abs(offset[:, 0] * (end - start)[1] - offset[:, 1] * (end - start)[0]) / length
            assert across.max() <= 1.5
    assert directions >= {-1, 1}
    assert {min(heights), max(heights)} == {30, 50}  # both ends included


def test_crop_window_is_no_larger_than_the_frame():
    crops = RandomCropPath(window=(384, 600)).draw(400, 200, 2, np.random.default_rng(0))
    assert {crop.width for crop in crops} == {200}
    assert {crop.left for crop in crops} == {0}
    assert 384 <= crops[0].height <= 400


def test_other_presets():
    clips = draws(mask2former_augmentation(), 720, 1280, 2)
    assert {min(clip[0].height, clip[0].width) for clip in clips} == {360, 480}
    assert not any(steps_of(clip[0], Crop) for clip in clips)
    assert {bool(steps_of(clip[0], HorizontalFlip)) for clip in clips} == {True, False}
    clips = draws(evaluation_resize(448), 720, 1280, 2)
    assert {transform.steps for clip in clips for transform in clip} == {(Resize(720, 1280, 448, 796),)}


# Polygons


def star(rng, height, width, reach=1.3):
    """Return a concave polygon of 11 points around the middle of the frame, partly outside of it."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
    radii = rng.uniform(0.2, reach, 11)[:, None] * (width / 2, height / 2)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + (width / 2, height / 2)


def rasterised(points, height, width):
    return FrameTransform((), height, width).polygon_mask([points.ravel()])


@pytest.mark.parametrize("seed", range(20))
def test_clipped_polygon_keeps_its_part_in_the_window(seed):
    rng = np.random.default_rng(seed)
    points = star(rng, 80, 120)
    whole = rasterised(points + 100, 300, 300)  # far from any edge
    crop = Crop(int(rng.integers(0, 40)), int(rng.integers(0, 60)), 40, 60)
    clipped = crop.polygon(points)
    assert (clipped >= -1e-9).all()
    assert (clipped <= np.array([60, 40]) + 1e-9).all()
    expected = whole[100 + crop.top :, 100 + crop.left :][:40, :60]
    mask = FrameTransform((crop,), 40, 60).polygon_mask([points.ravel()])
    assert (mask != expected).sum() <= 8  # other corners move the rasterised outline by a pixel in places
    corners = np.array([[1.0, 1], [119, 1], [119, 79], [1, 79]])
    np.testing.assert_array_equal(Crop(0, 0, 80, 120).polygon(corners), corners)
    assert not len(Crop(0, 0, 80, 120).polygon(corners + 200))


def test_a_polygon_that_the_window_cuts_in_two():
    """Only the legs of a U are in the window: two parts with a gap between them."""
    legs = np.array([[10.0, 10], [20, 10], [20, 40], [60, 40], [60, 10], [70, 10], [70, 50], [10, 50]])
    mask = FrameTransform((Crop(0, 0, 30, 100),), 30, 100).polygon_mask([legs.ravel()])
    expected = np.zeros((30, 100), dtype=bool)
    expected[10:, 10:20] = expected[10:, 60:70] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("seed", range(30))
def test_polygon_and_mask_go_the_same_way(seed):
    """A polygon transformed and then rasterised covers the same pixels as its transformed mask."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(150, 300, 2))
    points = star(rng, height, width, reach=0.9)
    crop = RandomCropPath(probability=0.7, short_sides=(140, 180), window=(100, 150))
    augmentation = PseudoVideoAugmentation(ClipAugmentation((150, 200), crop=crop), RandomRotation(max_angle=25))
    if seed % 3 == 0:
        augmentation = LargeScaleJitter(size=160, scale=(0.5, 1.6))
    for transform in augmentation.draw(height, width, 3, rng):
        from_polygon = transform.polygon_mask([points.ravel().tolist()])
        from_mask = transform.masks(rasterised(points, height, width)[None])[0]
        assert from_polygon.shape == from_mask.shape == (transform.height, transform.width)
        outline = (np.diff(from_polygon, axis=0) != 0).sum() + (np.diff(from_polygon, axis=1) != 0).sum()
        assert (from_polygon != from_mask).sum() <= outline + 4
        (box,) = transform.boxes(np.concatenate([points.min(0), points.max(0)])[None])
        rows, columns = np.nonzero(from_polygon)
        if rows.size:  # a rotated box contains the box of the rotated mask
            assert (box[:2] <= [columns.min() + 1, rows.min() + 1]).all()
            assert (box[2:] >= [columns.max(), rows.max()]).all()


def test_an_object_of_several_polygons():
    squares = [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 30, 20, 30, 30, 20, 30]]
    mask = FrameTransform((HorizontalFlip(40),), 40, 40).polygon_mask(squares)
    expected = np.zeros((40, 40), dtype=bool)
    expected[:10, 30:] = expected[20:30, 10:20] = True
    np.testing.assert_array_equal(mask, expected)


# Images as clips


def test_rotation_is_counter_clockwise_and_around_its_centre():
    image = Image.new("RGB", (81, 61))
    image.paste((255, 255, 255), (60, 28, 66, 33))  # right of the centre
    rotation = Rotation(90.0, (40.5, 30.5))
    rows, columns = np.nonzero(np.asarray(rotation.image(image))[..., 0] > 127)
    assert rows.mean() < 15
    assert abs(columns.mean() - 40) < 1
    (box,) = rotation.boxes(np.array([[60.0, 28, 66, 33]]))
    np.testing.assert_allclose(box, [38, 5, 43, 11], atol=1e-9)
    np.testing.assert_allclose(rotation.polygon(np.array([[40.5, 30.5]])), [[40.5, 30.5]])
    corner = np.asarray(Rotation(10.0, (40.5, 30.5)).image(Image.new("RGB", (81, 61), "white")))[0, 0]
    assert (corner == 0).all()  # pixels from outside are black


def test_rotations_of_a_clip_turn_one_way_around_one_centre():
    directions, centres = set(), []
    for seed in range(200):
        rotations = RandomRotation().draw(200, 400, 5, np.random.default_rng(seed))
        angles = np.array([rotation.angle for rotation in rotations])
        assert np.abs(angles).max() <= 15
        assert len({rotation.centre for rotation in rotations}) == 1
        assert (np.diff(angles) > 0).all() or (np.diff(angles) < 0).all()
        directions.add(bool(angles[0] < angles[1]))
        centres.append(rotations[0].centre)
    assert directions == {True, False}
    centres = np.array(centres)
    assert (centres >= [160, 80]).all()
    assert (centres <= [240, 120]).all()
    assert (centres.min(0) < [165, 83]).all()
    assert (centres.max(0) > [235, 117]).all()


def test_rotation_comes_last_and_always():
    for clip in draws(PseudoVideoAugmentation(), 480, 640, 3, 50):
        for transform in clip:
            assert [isinstance(step, Rotation) for step in transform.steps].index(True) == len(transform.steps) - 1
    same = [
        ClipAugmentation().draw(480, 640, 3, np.random.default_rng(7)),
        PseudoVideoAugmentation().draw(480, 640, 3, np.random.default_rng(7)),
    ]
    assert [transform.steps for transform in same[0]] == [transform.steps[:-1] for transform in same[1]]


def test_large_scale_jitter():
    scales, offsets = [], []
    for (transform,) in draws(LargeScaleJitter(), 480, 640, 1, 400):
        assert (transform.height, transform.width) == (1024, 1024)
        (resize,), (crop,), (pad,) = (steps_of(transform, kind) for kind in (Resize, Crop, Pad))
        scales.append(resize.width / 1024)
        assert abs(resize.height / 480 - resize.width / 640) < 0.02  # the aspect is kept
        assert (crop.height, crop.width) == (min(1024, resize.height), min(1024, resize.width))
        free = resize.height - crop.height, resize.width - crop.width
        if free[0] > 50:  # both sides get the same share of the free range
            offsets.append((crop.top / free[0], crop.left / free[1]))
        assert (pad.height, pad.width) == (1024, 1024)
    assert 0.1 <= min(scales) < 0.15
    assert 1.95 < max(scales) <= 2.0
    offsets = np.array(offsets)
    np.testing.assert_allclose(offsets[:, 0], offsets[:, 1], atol=0.02)
    assert offsets.min() < 0.05
    assert offsets.max() > 0.95
    flipped = sum(bool(steps_of(transform, HorizontalFlip)) for (transform,) in draws(LargeScaleJitter(), 48, 64, 1))
    assert 70 < flipped < 130


def test_large_scale_jitter_pads_with_grey_below_and_right():
    augmentation = LargeScaleJitter(size=64, scale=(0.5, 0.5))
    (transform,) = augmentation.draw(60, 80, 1, np.random.default_rng(0))
    image = transform.image(Image.new("RGB", (80, 60), (200, 10, 10)))
    assert (image[:24, :32] == (200, 10, 10)).all()
    assert (image[24:] == 128).all()
    assert (image[:, 32:] == 128).all()
    masks = transform.masks(np.ones((2, 60, 80), dtype=bool))
    assert masks[:, :24, :32].all()
    assert masks.sum() == 2 * 24 * 32
    np.testing.assert_array_equal(transform.boxes(np.array([[0.0, 0, 80, 60]])), [[0, 0, 32, 24]])


def test_augmentation_from_plain_fields_as_in_a_recipe():
    fields = {"short_sides": [80, 96], "max_size": 200, "crop": {"short_sides": [100], "window": [64, 96]}}
    augmentation = ClipAugmentation(**fields)
    assert augmentation.crop == RandomCropPath(short_sides=[100], window=[64, 96])
    assert {min(c[0].height, c[0].width) for c in draws(augmentation, 96, 160, 1)} == {80, 96}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipAugmentation(short_sides=()), "short_sides is .*; give at least one positive number"),
        (lambda: ClipAugmentation(short_sides=(0,)), "give at least one positive number of pixels"),
        (lambda: ClipAugmentation(flip_probability=1.5), "flip_probability is 1.5; give a probability between 0 and 1"),
        (lambda: RandomCropPath(probability=-1), "probability is -1"),
        (lambda: RandomCropPath(window=(5, 3)), "1 <= smallest <= largest"),
        (lambda: RandomCropPath(short_sides=()), "short_sides"),
        (lambda: LargeScaleJitter(size=0), "`size` must be at least 1 pixel, got 0"),
        (lambda: LargeScaleJitter(scale=(0, 2)), r"scale is \(0, 2\); give .* 0 < smallest <= largest"),
        (lambda: LargeScaleJitter(flip_probability=-1), "flip_probability is -1"),
        (lambda: RandomRotation(max_angle=-15), "`max_angle` must be at least 0 degrees, got -15"),
        (lambda: RandomRotation(centre=(0.6, 0.4)), r"centre is \(0.6, 0.4\); give \(smallest, largest\)"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()
