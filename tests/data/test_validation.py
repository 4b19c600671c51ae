# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_cvis.data import validate_annotations, validate_ytvis


def change(section, position, **values):
    return lambda content: content[section][position].update(values)


def remove(section, position, key):
    return lambda content: content[section][position].pop(key)


def frame(key, position, number, value):
    """Put `value` at frame `number` of the annotation at `position`."""

    def spoil(content):
        content["annotations"][position][key][number] = value

    return spoil


def both(*spoils):
    def spoil(content):
        for one in spoils:
            one(content)

    return spoil


STRUCTURE = [
    (lambda c: c.pop("videos"), "^The top-level key 'videos' is missing or not a list; add it"),
    (lambda c: c.update(categories={}), "^The top-level key 'categories' is missing or not a list"),
    (lambda c: c.update(annotations={"1": 2}), "^'annotations' is a dict; make it a list"),
    (lambda c: c.update(videos=[], annotations=[]), "^'videos' is empty; add at least one video"),
    (lambda c: c.update(categories=[], annotations=[]), "^'categories' is empty"),
    (change("categories", 0, id=1), r"^categories\[1\] uses the category id 1 again; give every category its own id"),
    (change("categories", 0, name="ape"), "^category 1: the name 'ape' appears twice; merge the two or rename one"),
    (change("categories", 0, name=5), "^category 3: its name is 5; give a string"),
    (remove("categories", 1, "name"), r"^categories\[1\] has no 'name'; add it"),
    (remove("videos", 1, "id"), r"^videos\[1\] has no 'id'; add it"),
    (remove("videos", 1, "length"), r"^video 2: videos\[1\] has no 'length'; add it"),
    (change("videos", 1, id=1), r"^video 1: videos\[1\] uses the video id 1 again; give every video its own id"),
    (change("videos", 1, id="2"), r"^video 2: videos\[1\]: its id is '2'; give an integer"),
    (change("videos", 1, width=0), "^video 2: 'width' is 0; give a positive integer"),
    (change("videos", 1, length=4), "^video 2: 'length' is 4 but there are 3 file_names; make them agree"),
    (change("videos", 1, file_names="a.jpg"), "^video 2: 'file_names' is not a list of strings; give one"),
    (lambda c: c["annotations"].append(3), r"^annotations\[3\] is a int; an object is expected"),
    (remove("annotations", 2, "id"), r"^video 2: annotations\[2\] has no 'id'; add it"),
    (
        remove("annotations", 2, "segmentations"),
        r"^video 2, annotation 12: annotations\[2\] has no 'segmentations'; add it",
    ),
    (
        change("annotations", 2, id=10),
        r"^video 2, annotation 10: annotations\[2\] uses the annotation id 10 again; give every annotation its own id",
    ),
    (
        change("annotations", 2, video_id=9),
        "^video 9, annotation 12: video_id 9 is not in 'videos'; correct it or add the video",
    ),
    (
        change("annotations", 2, category_id=2),
        r"^video 2, annotation 12: category_id 2 is not in 'categories' \(1 \(ape\), 3 \(zebra\)\); correct it or add",
    ),
    (
        change("annotations", 2, segmentations=[None] * 4),
        "^video 2, annotation 12: the annotation is longer than its video: 4 segmentations for 3 frames",
    ),
    (change("annotations", 2, bboxes=[None]), "^video 2, annotation 12: the annotation is shorter .* 1 bboxes for 3"),
    (change("annotations", 2, bboxes=None), "^video 2, annotation 12: 'bboxes' is None; give a list with one entry"),
    (
        frame("bboxes", 0, 1, [1, 2, 3]),
        r"^video 1, annotation 10: frame 1: the box is \[1, 2, 3\]; give \[x, y, width, height\] or null",
    ),
    (frame("segmentations", 0, 1, "abc"), "^video 1, annotation 10: frame 1: the segmentation is 'abc'; give an RLE"),
    (frame("segmentations", 0, 1, [[1, 2, "3", 4, 5, 6]]), r"the segmentation is \[\[1, 2, '3', 4, 5, 6"),
    (frame("segmentations", 0, 1, {"size": [20, 30], "counts": [None]}), "frame 1: the RLE has no 'size' or no"),
    (frame("segmentations", 0, 1, {"size": [20, 30]}), "frame 1: the RLE has no 'size' or no 'counts'"),
    (
        frame("segmentations", 0, 1, {"size": [30, 20], "counts": "PP"}),
        r"frame 1: the RLE has the size \[30, 20\] but the video is \[20, 30\] \(height, width\) "
        r"\(height and width are swapped\); encode the mask at the size of the video",
    ),
    (
        frame("segmentations", 0, 1, {"size": [10, 15], "counts": "PP"}),
        r"the size \[10, 15\] but the video is \[20, 30\] \(height, width\); encode",
    ),
]

CONTENT = [
    (lambda c: c.pop("annotations"), "^The file has no annotations: it can be used for prediction"),
    (
        frame("segmentations", 0, 1, {"size": [20, 30], "counts": [5, 10]}),
        r"^video 1, annotation 10: frame 1: the RLE covers 15 pixels, its size \[20, 30\] asks for 600; encode",
    ),
    (frame("segmentations", 0, 1, {"size": [20, 30], "counts": "P"}), "frame 1: the RLE cannot be decoded"),
    (frame("segmentations", 0, 1, {"size": [20, 30], "counts": "ä!"}), "frame 1: the RLE cannot be decoded"),
    (
        frame("segmentations", 0, 1, [[1, 2, 3, 4]]),
        "^video 1, annotation 10: frame 1: a polygon of 4 values is dropped; give x and y of at least 3 points",
    ),
    (frame("segmentations", 0, 1, [[1, 2, 3, 4, 5, 6, 7]]), "frame 1: a polygon of 7 values is dropped"),
    (
        frame("bboxes", 0, 1, [10, 4, 9, 7]),
        r"^video 1, annotation 10: frame 1: the box \[10, 4, 9, 7\] is not the box of the mask, "
        r"\[4.0, 2.0, 9.0, 7.0\] \(x, y, width, height\); correct it",
    ),
    (frame("bboxes", 0, 1, None), "frame 1: there is a segmentation but no box, so the frame is dropped; give both"),
    (frame("segmentations", 0, 1, None), "frame 1: there is a box but no segmentation"),
    (
        frame("segmentations", 0, 1, {"size": [20, 30], "counts": [600]}),
        "frame 1: the mask is empty but has a box; give null for both",
    ),
]


def test_correct_file_has_no_problem(tiny_file):
    assert validate_ytvis(tiny_file.write(), tiny_file.images) == []


@pytest.mark.parametrize(("spoil", "message"), STRUCTURE + CONTENT)
def test_each_problem_is_named(tiny_file, spoil, message):
    problems = validate_ytvis(tiny_file.write(spoil), tiny_file.images)
    with pytest.raises(ValueError, match=message):
        raise ValueError(str(problems[0]))


def test_missing_frames(tiny_file):
    path = tiny_file.write()
    for number in (1, 2):
        (tiny_file.images / "v1" / f"{number:05d}.jpg").unlink()
    (problem,) = validate_ytvis(path, tiny_file.images)
    assert problem.video_id == 1
    assert problem.annotation_id is None
    assert "2 of 4 frames are missing, the first is" in problem.message
    assert "v1/00001.jpg" in problem.message
    assert validate_ytvis(path) == []


COCO = [
    (lambda c: c.update(images=None), "^The top-level key 'images' is missing or not a list; add it"),
    (lambda c: c.update(images=[], annotations=[]), "^'images' is empty; add at least one image"),
    (remove("images", 1, "file_name"), r"^image 8: images\[1\] has no 'file_name'; add it"),
    (change("images", 1, file_name=3), "^image 8: 'file_name' is 3; give a string"),
    (change("images", 1, height=0), "^image 8: 'height' is 0; give a positive integer"),
    (change("images", 1, id=7), r"^image 7: images\[1\] uses the image id 7 again; give every image its own id"),
    (
        remove("annotations", 3, "segmentation"),
        r"^image 8, annotation 103: annotations\[3\] has no 'segmentation'; add it",
    ),
    (
        change("annotations", 3, image_id=5),
        "^image 5, annotation 103: image_id 5 is not in 'images'; correct it or add the image",
    ),
    (
        change("annotations", 3, category_id=2),
        r"^image 8, annotation 103: category_id 2 is not in 'categories' \(1 \(person\), 3 \(car\), 43 \(ten",
    ),
    (
        change("annotations", 3, bbox=[1, 2]),
        r"^image 8, annotation 103: the box is \[1, 2\]; give \[x, y, width, height\] or null",
    ),
    (change("annotations", 3, segmentation="x"), "^image 8, annotation 103: the segmentation is 'x'; give an RLE"),
    (
        change("annotations", 2, segmentation={"size": [80, 60], "counts": "PP"}),
        r"^image 7, annotation 102: the RLE has the size \[80, 60\] but the image is \[60, 80\] \(height, width\) "
        r"\(height and width are swapped\); encode the mask at the size of the image",
    ),
    (lambda c: c.pop("annotations"), "^The file has no annotations"),
    (
        change("annotations", 3, segmentation=[]),
        "^image 8, annotation 103: there is a box but no segmentation, so the annotation is dropped; give both",
    ),
    (
        change("annotations", 3, segmentation=[[1, 2, 3, 4]]),
        "^image 8, annotation 103: a polygon of 4 values is dropped; give x and y of at least 3 points",
    ),
    (
        change("annotations", 3, bbox=[0, 0, 20, 20]),
        r"^image 8, annotation 103: the box \[0, 0, 20, 20\] is not the box of the mask, \[1.0, 0.0, 69.0, 50.0\]",
    ),
    (
        change("annotations", 1, segmentation={"size": [60, 80], "counts": [5]}),
        r"^image 7, annotation 101: the RLE covers 5 pixels, its size \[60, 80\] asks for 4800; encode the mask again",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), COCO)
def test_each_problem_of_a_coco_file_is_named(tiny_coco, spoil, message):
    problems = validate_annotations(tiny_coco.write(spoil), tiny_coco.images)
    with pytest.raises(ValueError, match=message):
        raise ValueError(str(problems[0]))


def test_the_format_is_told_by_its_sections(tiny_file, tiny_coco):
    assert validate_annotations(tiny_file.write(), tiny_file.images) == []
    assert validate_annotations(tiny_coco.write(), tiny_coco.images) == []
    (problem,) = validate_ytvis(tiny_coco.write())
    assert "'videos' is missing or not a list; add it. It has 'images', so it is of COCO format" in problem.message


def test_missing_images(tiny_coco):
    (tiny_coco.images / "8.png").unlink()
    (problem,) = validate_annotations(tiny_coco.write(), tiny_coco.images)
    assert (problem.image_id, problem.video_id, problem.annotation_id) == (8, None, None)
    assert "8.png is missing; add it or correct file_name or the image folder" in problem.message
    assert validate_annotations(tiny_coco.write()) == []


def test_several_problems_up_to_the_limit(tiny_file):
    spoil = both(
        change("annotations", 0, category_id=8),
        change("annotations", 1, id=10),
        frame("bboxes", 2, 0, [0, 0, 1, 1]),
        frame("bboxes", 2, 1, None),
    )
    path = tiny_file.write(spoil)
    places = [(problem.video_id, problem.annotation_id) for problem in validate_ytvis(path)]
    assert places == [(1, 10), (1, 10), (2, 12), (2, 12)]
    assert len(validate_ytvis(path, limit=3)) == 3


def test_files_without_annotations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="annotation file .* does not exist"):
        validate_ytvis(tmp_path / "data.json")
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="image folder .* does not exist"):
        validate_ytvis(tmp_path / "data.json", tmp_path / "images")
    (problem,) = validate_ytvis(tmp_path / "data.json")
    assert "is not valid json" in problem.message
    (tmp_path / "data.json").write_text("[]")
    (problem,) = validate_ytvis(tmp_path / "data.json")
    assert "holds a list at its top level" in problem.message


def test_generated_and_real_files_are_fine(shapes_dir, clips_folder):
    assert validate_ytvis(shapes_dir / "train.json", shapes_dir / "JPEGImages") == []
    for name in ("mini_vis", "mini_vis_permissive"):
        for split in ("train", "valid"):
            assert validate_ytvis(clips_folder / name / f"{split}.json", clips_folder / name / "JPEGImages") == []
