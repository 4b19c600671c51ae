# SPDX-License-Identifier: Apache-2.0
import copy

import pytest

from transformers_cvis.data import CLASS_MAPPINGS
from transformers_cvis.data.class_mapping import map_categories

# The published tables: ids of COCO's categories to ids of the classes, whose names follow.
COCO = {
    **{
        1: "person",
        2: "bicycle",
        3: "car",
        4: "motorcycle",
        5: "airplane",
        6: "bus",
        7: "train",
        8: "truck",
        9: "boat",
    },
    **{16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra"},
    **{25: "giraffe", 34: "frisbee", 35: "skis", 36: "snowboard", 41: "skateboard", 42: "surfboard"},
    43: "tennis racket",
}
YTVIS_2019 = (
    "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train horse "
    "turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant snowboard boat "
    "shark mouse frog eagle earless_seal tennis_racket"
)
YTVIS_2021 = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog giant_panda "
    "giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake snowboard "
    "squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
OVIS = (
    "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda Lizard Parrot Monkey Rabbit "
    "Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
)
PUBLISHED = {
    "ytvis2019": (
        YTVIS_2019,
        "1:1 2:21 3:6 4:21 5:28 7:17 8:29 9:34 17:14 18:8 19:18 21:15 22:32 23:20 24:30 25:22 35:33 36:33 41:5 42:27 "
        "43:40",
    ),
    "ytvis2021": (
        YTVIS_2021,
        "1:26 2:23 3:5 4:23 5:1 7:36 8:37 9:4 16:3 17:6 18:9 19:19 21:7 22:12 23:2 24:40 25:18 34:14 35:31 36:31 41:29 "
        "42:33 43:34",
    ),
    "ovis": (
        OVIS,
        "1:1 2:21 3:25 4:22 5:23 6:25 8:25 9:24 17:3 18:4 19:5 20:6 21:7 22:8 23:9 24:10 25:11",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_are_the_published_ones(name):
    classes, pairs = PUBLISHED[name]
    classes = classes.split()
    pairs = [map(int, pair.split(":")) for pair in pairs.split()]
    assert CLASS_MAPPINGS[name] == {COCO[coco_id]: classes[class_id - 1] for coco_id, class_id in pairs}
    assert CLASS_MAPPINGS["ytvis2022"] == CLASS_MAPPINGS["ytvis2021"]


@pytest.fixture
def content():
    return {
        "info": {},
        "videos": [{"id": 1}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "car"}, {"id": 4, "name": "truck"}],
        "annotations": [{"id": n, "category_id": category_id} for n, category_id in enumerate((9, 4, 2, 9, 4))],
    }


def test_categories_are_renamed_merged_and_dropped(content):
    before = copy.deepcopy(content)
    mapped = map_categories(content, {"car": "vehicle", "truck": "vehicle"})
    assert mapped["categories"] == [{"id": 2, "name": "vehicle"}]
    assert [(a["id"], a["category_id"]) for a in mapped["annotations"]] == [(1, 2), (2, 2), (4, 2)]
    assert mapped["videos"] == content["videos"]
    assert content == before
    swapped = map_categories(content, {"dog": "car", "car": "dog"}, labels=["dog", "car", "cat"])
    assert swapped["categories"] == [{"id": 2, "name": "dog"}, {"id": 9, "name": "car"}]
    assert [a["category_id"] for a in swapped["annotations"]] == [9, 2, 9]


def test_published_table_for_a_file_with_some_of_its_categories(content):
    mapped = map_categories(content, "ytvis2019")
    assert mapped["categories"] == [
        {"id": 2, "name": "sedan"},
        {"id": 4, "name": "truck"},
        {"id": 9, "name": "dog"},
    ]
    assert len(mapped["annotations"]) == 5


@pytest.mark.parametrize(
    ("class_mapping", "labels", "message"),
    [
        (
            "ytvis2020",
            None,
            "'ytvis2020' is not a class mapping. Did you mean 'ytvis20..'. Give one of ytvis2019, ytvis2021,",
        ),
        ({"xyzzy": "dog"}, None, "'xyzzy' is not a category of the file. Choose from .*dog"),
        ({"dgo": "dog"}, None, "'dgo' is not a category of the file. Did you mean 'dog'?"),
        ({"Dog": "dog"}, None, "'Dog' is not a category of the file. Did you mean 'dog'?"),
        (
            {"dog": "hund"},
            ["Hund", "Katze"],
            "from 'dog' to 'hund', which is not a label of the model. Did you mean 'Hund'",
        ),
        (
            "ovis",
            ["vehical", "dog"],
            "from 'car' to 'Vehical', which is not a label of the model. Did you mean 'vehical'",
        ),
        ({}, None, "class_mapping leaves nothing: it names no category, the file has car, truck, dog"),
    ],
)
def test_unknown_names(content, class_mapping, labels, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        map_categories(content, class_mapping, labels)


def test_a_table_that_fits_nothing_in_the_file(content):
    content["categories"] = [{"id": 1, "name": "cup"}]
    with pytest.raises(ValueError, match="leaves nothing: it names person, .*zebra.*, the file has cup"):
        map_categories(content, "ytvis2021")
