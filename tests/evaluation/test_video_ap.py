# SPDX-License-Identifier: Apache-2.0
"""The evaluator on known cases, against the per-frame formula, and on input that does not fit."""

import copy
import json
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis.evaluation import evaluate_ytvis

HEIGHT, WIDTH, LENGTH = 24, 32, 4


def rle(x, y, width, height, size=(HEIGHT, WIDTH)):
    """Return a rectangle as compressed RLE with text counts."""
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = mask_utils.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def track(video_id=1, category_id=1, x=2, y=2, width=10, height=10, **more):
    segmentations = [rle(x + frame, y, width, height) for frame in range(LENGTH)]
    return {"video_id": video_id, "category_id": category_id, "segmentations": segmentations, **more}


@pytest.fixture
def ground_truth():
    return {
        "videos": [{"id": number, "height": HEIGHT, "width": WIDTH, "length": LENGTH} for number in (1, 2)],
        "categories": [{"id": 1, "name": "fish"}, {"id": 5, "name": "zebra"}, {"id": 7, "name": "owl"}],
        "annotations": [
            track(1, 1, id=1, iscrowd=0),
            track(1, 1, x=14, id=2, iscrowd=0),
            track(2, 5, id=3, iscrowd=0),
        ],
    }


@pytest.fixture
def results(ground_truth):
    return [{**annotation, "score": 0.9} for annotation in copy.deepcopy(ground_truth["annotations"])]


def test_perfect_results(ground_truth, results):
    result = evaluate_ytvis(ground_truth, results)
    assert result.summary["AP"] == pytest.approx(1)
    assert result.summary["AR100"] == pytest.approx(1)
    assert result.summary["AR1"] == pytest.approx(0.75)  # one of the two fish
    assert result.summary["AP_small"] == pytest.approx(1)
    assert result.summary["AP_large"] == -1
    assert result.per_category[5]["AP"] == pytest.approx(1)
    assert result.per_category[7]["AP"] == -1


def test_no_results(ground_truth):
    result = evaluate_ytvis(ground_truth, [])
    assert result.summary["AP"] == 0
    assert result.summary["AR100"] == 0


def test_numbers_of_some_categories_equal_the_full_evaluation(ground_truth, results):
    result = evaluate_ytvis(ground_truth, results[:2])
    assert result.summary["AP"] == pytest.approx(0.5)
    assert result.summarize([1])["AP"] == pytest.approx(1)
    assert result.summarize([5])["AP"] == 0
    assert result.summarize([1, 5, 7]) == result.summary
    assert result.summarize([5]) == result.per_category[5]


def test_the_table_names_categories_and_shows_what_cannot_be_measured(ground_truth, results):
    table = str(evaluate_ytvis(ground_truth, results))
    assert "zebra" in table
    assert "AP_small" in table
    assert table.splitlines()[3].split() == ["owl", "-", "-", "-", "-"]


def test_a_file_gives_the_same_as_its_content(ground_truth, results, tmp_path):
    for name, content in (("gt.json", ground_truth), ("results.json", results)):
        (tmp_path / name).write_text(json.dumps(content))
    assert evaluate_ytvis(tmp_path / "gt.json", str(tmp_path / "results.json")).summary["AP"] == pytest.approx(1)


def test_results_may_be_a_json_with_categories(ground_truth, results):
    with_categories = {"categories": ground_truth["categories"], "annotations": results}
    assert evaluate_ytvis(ground_truth, with_categories).summary["AP"] == pytest.approx(1)


@pytest.mark.parametrize("form", ["uncompressed", "bytes", "polygon", "tuple size"])
def test_every_form_of_a_mask_counts_the_same(ground_truth, results, form):
    def convert(mask):
        if form == "bytes":
            return {**mask, "counts": mask["counts"].encode()}
        if form == "tuple size":
            return {**mask, "size": tuple(mask["size"])}
        pixels = mask_utils.decode(mask)
        if form == "uncompressed":
            flat = np.concatenate(([0], pixels.ravel(order="F"), [2])).astype(int)
            changes = np.flatnonzero(np.diff(flat))
            return {**mask, "counts": np.diff(np.concatenate(([0], changes))).tolist()}
        x, y, width, height = mask_utils.toBbox(mask).tolist()
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    expected = evaluate_ytvis(ground_truth, results)
    for annotation in ground_truth["annotations"]:
        annotation["segmentations"] = [convert(mask) for mask in annotation["segmentations"]]
    actual = evaluate_ytvis(ground_truth, results)
    assert actual.summary == pytest.approx(expected.summary, abs=1e-12)


def test_iou_is_the_ratio_of_sums_over_frames(ground_truth):
    """Compare random masks, absent on either side in some frames, with intersections and unions of pixels."""
    random = np.random.default_rng(0)
    length = 70
    ground_truth["videos"][0]["length"] = length

    def masks(absent):
        pixels = random.random((length, HEIGHT, WIDTH)) < random.uniform(0.2, 0.8)
        pixels[random.random(length) < 0.3] = False
        encoded = [mask_utils.encode(np.asfortranarray(frame.astype(np.uint8))) for frame in pixels]
        return pixels, [absent if not frame.any() else mask for frame, mask in zip(pixels, encoded, strict=True)]

    annotated, found = [masks(None) for _ in range(3)], [masks(rle(0, 0, 0, 0)) for _ in range(40)]
    ground_truth["annotations"] = [
        {"id": number + 1, "video_id": 1, "category_id": 1, "iscrowd": number % 2, "segmentations": rles}
        for number, (_, rles) in enumerate(annotated)
    ]
    results = [
        {"video_id": 1, "category_id": 1, "score": 1 - number / 100, "segmentations": rles}
        for number, (_, rles) in enumerate(found)
    ]
    expected = [[(one & other).sum() / (one | other).sum() for other, _ in annotated] for one, _ in found]
    np.testing.assert_array_equal(evaluate_ytvis(ground_truth, results).ious[1, 1], expected)


def test_memory_is_that_of_one_video():
    """Five times as many videos need little more memory, and less than the mask pixels of one video."""
    height, width, length, num_tracks = 240, 320, 120, 6
    moving = [rle(10 + frame, 20, 60, 80, (height, width)) for frame in range(length)]

    def peak(num_videos):
        tracks = [
            {"id": number + 1, "video_id": number // num_tracks, "category_id": 1, "segmentations": moving}
            for number in range(num_videos * num_tracks)
        ]
        videos = [{"id": n, "height": height, "width": width, "length": length} for n in range(num_videos)]
        truth = {"videos": videos, "categories": [{"id": 1, "name": "fish"}], "annotations": tracks}
        results = [{**track, "score": 0.5} for track in tracks]
        tracemalloc.start()
        evaluate_ytvis(truth, results)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # first use imports and caches
    few, many = peak(8), peak(40)
    assert many < 1.5 * few
    assert many < length * num_tracks * height * width


def test_annotated_areas_decide_the_size_class(ground_truth, results):
    for annotation in ground_truth["annotations"]:
        annotation["areas"] = [300**2, None, 0, 300**2]
    result = evaluate_ytvis(ground_truth, results)
    assert result.summary["AP_small"] == -1
    assert result.summary["AP_large"] == pytest.approx(1)


def test_a_crowd_is_neither_missed_nor_found(ground_truth, results):
    ground_truth["annotations"][1]["iscrowd"] = 1
    for chosen in (results, [results[0], results[2]], [*results, {**results[1], "score": 0.95}]):
        assert evaluate_ytvis(ground_truth, chosen).summary["AP"] == pytest.approx(1)


def test_ids_may_start_at_zero(ground_truth, results):
    for annotation in ground_truth["annotations"]:
        annotation["id"] -= 1
    assert evaluate_ytvis(ground_truth, results).summary["AP"] == pytest.approx(1)


def test_nothing_is_printed(ground_truth, results, capsys):
    evaluate_ytvis(ground_truth, results)
    assert capsys.readouterr().out == ""


def test_inputs_are_left_as_they_are(ground_truth, results):
    before = copy.deepcopy((ground_truth, results))
    evaluate_ytvis(ground_truth, results)
    assert (ground_truth, results) == before


def change(entry, **values):
    entry.update(values)


BAD_GROUND_TRUTH = {
    "annotations that the server keeps": (lambda g: g.pop("annotations"), "has no annotations.*write_submission"),
    "empty annotations": (lambda g: g["annotations"].clear(), "has no annotations"),
    "missing video id": (
        lambda g: g["videos"][1].pop("id"),
        r"(?s)The ground truth breaks .*videos\[1\] has no 'id'",
    ),
    "missing annotation id": (
        lambda g: g["annotations"][2].pop("id"),
        r"video 2: annotations\[2\] has no 'id'; add it",
    ),
    "text as id": (lambda g: change(g["categories"][0], id="1"), r"categories\[0\]: its id is '1'; give an integer"),
    "duplicate video id": (lambda g: change(g["videos"][1], id=1), r"videos\[1\] uses the video id 1 again"),
    "duplicate annotation id": (
        lambda g: change(g["annotations"][0], id=2),
        r"annotations\[1\] uses the annotation id 2 again",
    ),
    "duplicate category name": (lambda g: change(g["categories"][2], name="fish"), "name 'fish' appears twice"),
    "nameless category": (lambda g: g["categories"][2].pop("name"), r"categories\[2\] has no 'name'; add it"),
    "video without length": (lambda g: g["videos"][0].pop("length"), r"video 1: videos\[0\] has no 'length'"),
    "unknown video": (
        lambda g: change(g["annotations"][0], video_id=9),
        "annotation 1: video_id 9 is not in 'videos'",
    ),
    "out-of-range category": (
        lambda g: change(g["annotations"][0], category_id=6),
        r"category_id 6 is not .*5 \(zebra\)",
    ),
    "longer than its video": (
        lambda g: g["annotations"][1]["segmentations"].append(None),
        "video 1, annotation 2: the annotation is longer than its video: 5 segmentations for 4 frames",
    ),
    "mask of another size": (
        lambda g: change(g["annotations"][0]["segmentations"][3], size=[HEIGHT, 99]),
        r"video 1, annotation 1: frame 3: the RLE has the size \[24, 99\] but the video is \[24, 32\]",
    ),
    "run lengths of another size": (
        lambda g: change(g["annotations"][0]["segmentations"][0], counts=[5, 6]),
        r"annotation 1, frame 0: the RLE covers 11 pixels, its size \[24, 32\] asks for 768",
    ),
    "no mask": (
        lambda g: change(g["annotations"][0], segmentations=[3] * 4),
        "frame 0: the segmentation is 3; give an RLE",
    ),
    "no videos": (lambda g: g.pop("videos"), "The top-level key 'videos' is missing or not a list; add it"),
}


@pytest.mark.parametrize("name", BAD_GROUND_TRUTH)
def test_bad_ground_truth_is_refused(ground_truth, results, name):
    spoil, message = BAD_GROUND_TRUTH[name]
    spoil(ground_truth)
    with pytest.raises(ValueError, match=message):
        evaluate_ytvis(ground_truth, results)


BAD_RESULTS = {
    "unknown video": (
        lambda r: change(r[1], video_id=3),
        "Results: track 1, video 3: video_id 3 is not in 'videos'",
    ),
    "out-of-range category": (
        lambda r: change(r[0], category_id=2),
        r"track 0, .*category_id 2 is not .*1 \(fish\), 5",
    ),
    "no category": (lambda r: r[0].pop("category_id"), "track 0 has no 'category_id'"),
    "too few frames": (
        lambda r: r[2]["segmentations"].pop(),
        "track 2, video 2: the annotation is shorter",
    ),
    "mask of another size": (
        lambda r: change(r[2], segmentations=[rle(0, 0, 2, 2, (WIDTH, HEIGHT))] * 4),
        r"track 2, video 2: frame 0: the RLE has the size \[32, 24\] but the video is \[24, 32\].*swapped\); encode",
    ),
    "masks are not a list": (
        lambda r: change(r[0], segmentations=None),
        "track 0, video 1: 'segmentations' is None",
    ),
    "no score": (lambda r: r[0].pop("score"), "track 0 has no 'score'; add it"),
    "score not a number": (lambda r: change(r[0], score=float("nan")), "the score is nan; give a finite number"),
    "no object": (lambda r: r.append("track"), "track 3 is a str"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused(ground_truth, results, name):
    spoil, message = BAD_RESULTS[name]
    spoil(results)
    with pytest.raises(ValueError, match=message):
        evaluate_ytvis(ground_truth, results)


def test_categories_that_differ_by_name_are_refused(ground_truth, results):
    categories = [{"id": 1, "name": "zebra"}, {"id": 5, "name": "fish"}]
    with pytest.raises(ValueError, match="Category 1 is 'zebra' in the results but 'fish' in the ground truth"):
        evaluate_ytvis(ground_truth, {"categories": categories, "annotations": results})


def named(ground_truth, results, names):
    """Return results with videos of these file names, and with those of the ground truth."""
    for video, folder in zip(ground_truth["videos"], ("cat", "dog"), strict=True):
        video["file_names"] = [f"{folder}/{frame:05}.jpg" for frame in range(LENGTH)]
    videos = [
        {**video, "file_names": [name.format(frame) for frame in range(LENGTH)]}
        for video, name in zip(ground_truth["videos"], names, strict=True)
    ]
    return {"videos": videos, "categories": ground_truth["categories"], "annotations": results}


@pytest.mark.parametrize(
    "names",
    [
        ("cat/{:05}.jpg", "dog/{:05}.jpg"),
        ("valid/JPEGImages/cat/{:05}.png", "/data/dog/{:05}.png"),  # another root and form
        ("{:05}.jpg", "{:05}.jpg"),
        ("videos/cat.mp4#{}", "frames/dog#{}"),  # as written by `transformers-cvis segment`
        ("first.mp4#{}", "second.mp4#{}"),
    ],
)
def test_results_may_include_their_videos(ground_truth, results, names):
    assert evaluate_ytvis(ground_truth, named(ground_truth, results, names)).summary["AP"] == pytest.approx(1)
    without_names = {**named(ground_truth, results, names), "videos": [{"id": 1, "height": HEIGHT}, {"id": 9}]}
    assert evaluate_ytvis(ground_truth, without_names).summary["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat.jpg#{}", "cat.jpg#{}"), "video 2 is 'cat.jpg', .* If they are the same videos, remove 'videos' from"),
        (
            ("cat/{:05}.jpg", "cow/{:05}.jpg"),
            "video 2 is 'cow/00000.jpg', but the ground truth's video 2 is 'dog/00000.j",
        ),
        (
            ("cat/1{:04}.jpg", "dog/{:05}.jpg"),
            "video 1 is 'cat/10000.jpg', but the ground truth's video 1 is 'cat/00000",
        ),
        (
            ("dog.mp4#{}", "cat.mp4#{}"),
            "video 1 is 'dog.mp4', but the ground truth's video 1 is 'cat/00000.jpg'. Segment",
        ),
    ],
)
def test_results_of_other_videos_are_refused(ground_truth, results, names, message):
    with pytest.raises(ValueError, match=f"Results: {message}"):
        evaluate_ytvis(ground_truth, named(ground_truth, results, names))


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (
            [{"id": 2, "length": 3}],
            r"Results: video 2 has length 3, but the ground truth's video 2 has 4\. Segment the",
        ),
        (
            [{"id": 1, "height": 1}],
            "Results: video 1 has height 1, but the ground truth's video 1 has 24.* in the order",
        ),
        ([{"id": 1, "width": 1}], "Results: video 1 has width 1, but .* has 32"),
        ([{"name": "cat"}], r"Results: videos\[0\] has no 'id'; add it"),
        ({"id": 1}, "Results: 'videos' is a dict; make it a list"),
    ],
)
def test_videos_that_are_not_the_same_are_refused(ground_truth, results, videos, message):
    content = {"videos": videos, "categories": ground_truth["categories"], "annotations": results}
    with pytest.raises(ValueError, match=message):
        evaluate_ytvis(ground_truth, content)


def test_results_that_are_not_a_list_are_refused(ground_truth):
    with pytest.raises(ValueError, match="neither a list of tracks nor an object"):
        evaluate_ytvis(ground_truth, {"tracks": []})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="The annotation file .*absent.json does not exist"):
        evaluate_ytvis(tmp_path / "absent.json", [])
    (tmp_path / "broken.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match="broken.json.* is not valid json .*is the file whole"):
        evaluate_ytvis(tmp_path / "broken.json", [])
