# SPDX-License-Identifier: Apache-2.0
"""Classes of other tasks that a task may see."""

import pytest

from transformers_cvis.data import ClassFilter

CATEGORIES = ["dog", "car", "bird"]


def content(**classes_of_video) -> dict:
    """Build a data set: `video_1="dog car"` is video 1 with a dog and a car."""
    videos, annotations = [], []
    for key, names in classes_of_video.items():
        number = int(key.removeprefix("video_"))
        videos.append({"id": number})
        for name in names.split():
            crowd = name.endswith("s")
            category = CATEGORIES.index(name.removesuffix("s")) + 1
            annotations.append(
                {"id": len(annotations), "video_id": number, "category_id": category, "iscrowd": int(crowd)}
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)]
    return {"info": 1, "videos": videos, "categories": categories, "annotations": annotations}


def seen(filtered: dict) -> dict[int, list[str]]:
    names = {category["id"]: category["name"] for category in filtered["categories"]}
    return {
        video["id"]: [
            names[annotation["category_id"]]
            for annotation in filtered["annotations"]
            if annotation["video_id"] == video["id"]
        ]
        for video in filtered["videos"]
    }


VIDEOS = content(video_1="dog", video_2="dog car", video_3="car bird", video_4="car", video_5="", video_6="cars bird")


@pytest.mark.parametrize(
    ("keep", "exclude", "expected"),
    [
        # overlap: labels of the task alone, in all its videos
        (("car",), (), {2: ["car"], 3: ["car"], 4: ["car"]}),
        # disjoint: and no video with a class of a later task
        (("car",), ("bird",), {2: ["car"], 4: ["car"]}),
        # sequential: with the labels of earlier tasks
        (("dog", "car"), ("bird",), {2: ["dog", "car"], 4: ["car"]}),
    ],
)
def test_modes(keep, exclude, expected):
    filtered = ClassFilter(keep=keep, require=("car",), exclude=exclude).apply(VIDEOS)
    assert seen(filtered) == expected
    assert [category["name"] for category in filtered["categories"]] == list(keep)
    assert filtered["info"] == 1


def test_crowds_do_not_make_a_video_one_of_the_task():
    assert list(seen(ClassFilter(keep=("bird",), require=("bird",), exclude=("car",)).apply(VIDEOS))) == [6]


def test_a_class_in_no_video():
    with pytest.raises(ValueError, match="no video shows one of the classes dog and none of car, dog"):
        ClassFilter(keep=("dog",), require=("dog",), exclude=("car", "dog")).apply(VIDEOS)
    with pytest.raises(ValueError, match="no video shows one of the classes bird."):
        ClassFilter(keep=("bird",), require=("bird",)).apply(content(video_1="dog"))
