import numpy as np
import pytest
from PIL import Image

from transformers_cvis.data import ClipAugmentation, RandomCropPath, evaluation_resize, mask2former_augmentation
from transformers_cvis.data.augmentation import Crop, FrameTransform, HorizontalFlip, Resize, resize_short_side


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
    """Draw a rectangle, transform image, mask and box: all three still show one and the same rectangle."""
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
        assert image.shape == (transform.height, transform.width, 3) and mask.shape == image.shape[:2]
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
    assert augmentation.max_size == 768 and augmentation.flip_probability == 0.5
    assert augmentation.crop == RandomCropPath(0.5, (400, 500, 600), 1333, (384, 600))
    clips = draws(augmentation, 720, 1280, 3, 400)
    cropped = [clip for clip in clips if steps_of(clip[0], Crop)]
    flipped = [clip for clip in clips if steps_of(clip[0], HorizontalFlip)]
    assert 160 < len(cropped) < 240 and 160 < len(flipped) < 240
    for clip in clips:
        assert len({(transform.height, transform.width) for transform in clip}) == 1  # one size a clip
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
        assert 384 <= crop.height <= 600 and 384 <= crop.width <= 600


def test_crop_path_is_a_line_inside_the_frame_in_both_directions():
    path = RandomCropPath(window=(30, 50))
    directions = set()
    heights = set()
    for seed in range(300):
        crops = path.draw(60, 100, 5, np.random.default_rng(seed))
        corners = np.array([(crop.top, crop.left) for crop in crops])
        heights.add(crops[0].height)
        assert (corners >= 0).all()
        assert (corners[:, 0] + crops[0].height <= 60).all() and (corners[:, 1] + crops[0].width <= 100).all()
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
    assert {crop.width for crop in crops} == {200} and {crop.left for crop in crops} == {0}
    assert 384 <= crops[0].height <= 400


def test_other_presets():
    clips = draws(mask2former_augmentation(), 720, 1280, 2)
    assert {min(clip[0].height, clip[0].width) for clip in clips} == {360, 480}
    assert not any(steps_of(clip[0], Crop) for clip in clips)
    assert {bool(steps_of(clip[0], HorizontalFlip)) for clip in clips} == {True, False}
    clips = draws(evaluation_resize(448), 720, 1280, 2)
    assert {transform.steps for clip in clips for transform in clip} == {(Resize(720, 1280, 448, 796),)}


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
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()
