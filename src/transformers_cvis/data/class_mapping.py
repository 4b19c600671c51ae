# SPDX-License-Identifier: Apache-2.0
"""Map the categories of one data set to the classes of another by name, and select what a task may see."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..messages import did_you_mean

_COCO_TO_YTVIS = {
    **{name: name for name in ("person", "airplane", "train", "truck", "boat", "skateboard", "surfboard", "snowboard")},
    **{name: name for name in ("cat", "dog", "horse", "cow", "elephant", "bear", "zebra", "giraffe")},
    "bicycle": "motorbike",
    "motorcycle": "motorbike",
    "skis": "snowboard",
    "tennis racket": "tennis_racket",
}
COCO_TO_YTVIS_2019 = {**_COCO_TO_YTVIS, "car": "sedan"}
COCO_TO_YTVIS_2021 = {**_COCO_TO_YTVIS, "car": "car", "bird": "bird", "frisbee": "flying_disc"}
COCO_TO_OVIS = {
    **{name: name.capitalize() for name in ("person", "bicycle", "motorcycle", "airplane", "boat")},
    **{name: name.capitalize() for name in ("cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra")},
    "giraffe": "Giraffe",
    **{name: "Vehical" for name in ("car", "bus", "truck")},  # the spelling of OVIS
}
CLASS_MAPPINGS = {
    "ytvis2019": COCO_TO_YTVIS_2019,
    "ytvis2021": COCO_TO_YTVIS_2021,
    "ytvis2022": COCO_TO_YTVIS_2021,  # has the same classes
    "ovis": COCO_TO_OVIS,
}
"""COCO category to class of a video data set, as used to train VITA and GenVIS (Heo et al., 2022, 2023)."""


@dataclass(frozen=True)
class ClassFilter:
    """Select the part of a data set that one task may see, where the data set also holds classes of other tasks."""

    keep: tuple[str, ...] = field(
        metadata={"help": "Classes whose labels are kept; objects of others stay in the picture, without a label."}
    )
    require: tuple[str, ...] = field(
        metadata={"help": "A video or image without an object of one of these classes is left out."}
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "A video or image with an object of one of these classes is left out."}
    )

    def apply(self, content: dict) -> dict:
        """Return annotations without the videos and labels that the task may not see.

        Args:
            content: YouTube-VIS json whose categories are classes. It is not changed. Crowd annotations do not count as
                objects.

        Raises:
            ValueError: no video is left.
        """
        name_of = {category["id"]: category["name"] for category in content["categories"]}
        shown: dict[int, set[str]] = {video["id"]: set() for video in content["videos"]}
        for annotation in content.get("annotations") or []:
            if not annotation.get("iscrowd"):
                shown[annotation["video_id"]].add(name_of[annotation["category_id"]])
        allowed = {
            video for video, names in shown.items() if names & set(self.require) and not names & set(self.exclude)
        }
        if not allowed:
            without = f" and none of {', '.join(self.exclude)}" if self.exclude else ""
            raise ValueError(f"no video shows one of the classes {', '.join(self.require)}{without}.")
        return {
            **content,
            "categories": [category for category in content["categories"] if category["name"] in self.keep],
            "videos": [video for video in content["videos"] if video["id"] in allowed],
            "annotations": [
                annotation
                for annotation in content["annotations"]
                if annotation["video_id"] in allowed and name_of[annotation["category_id"]] in self.keep
            ],
        }


def map_categories(
    content: dict, class_mapping: str | Mapping[str, str], labels: Collection[str] | None = None
) -> dict:
    """Replace categories by the classes that `class_mapping` gives them, and drop annotations of other categories.

    Args:
        content: content of an annotation file that has been checked. It is not changed.
        class_mapping: from category names to class names (several categories may become one class), or the name of one
            of `CLASS_MAPPINGS`. Those are for COCO and for files with some of its categories.
        labels: names of the allowed classes. None allows all.

    Raises:
        ValueError: the mapping has an unknown name, names a category that the file lacks, leads to a class that is not
            in `labels`, or leaves nothing. The message gives the nearest name.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    if isinstance(class_mapping, str):
        if class_mapping not in CLASS_MAPPINGS:
            raise ValueError(
                f"{class_mapping!r} is not a class mapping.{did_you_mean(class_mapping, CLASS_MAPPINGS)} Give one of "
                f"{', '.join(CLASS_MAPPINGS)}, or a mapping of names, such as {{person: human}}."
            )
        mapping: Mapping[str, str] = CLASS_MAPPINGS[class_mapping]
    else:
        mapping = class_mapping
        for name in mapping:
            if name not in names:
                raise ValueError(f"class_mapping: {name!r} is not a category of the file.{_hint(name, names)}")
    mapped = {name: mapping[name] for name in names if name in mapping}
    if not mapped:
        raise ValueError(
            f"class_mapping leaves nothing: it names {', '.join(mapping) or 'no category'}, the file has "
            f"{', '.join(names)}."
        )
    for name, label in mapped.items():
        if labels is not None and label not in labels:
            raise ValueError(
                f"class_mapping leads from {name!r} to {label!r}, which is not a label of the model."
                f"{_hint(label, labels)}"
            )

    new_ids: dict[str, int] = {}  # class name -> id of the first category that becomes this class
    for category in categories:
        if category["name"] in mapped:
            new_ids.setdefault(mapped[category["name"]], category["id"])
    id_after = {
        category["id"]: new_ids[mapped[category["name"]]] for category in categories if category["name"] in mapped
    }
    return {
        **content,
        "categories": [{"id": category_id, "name": label} for label, category_id in new_ids.items()],
        "annotations": [
            {**annotation, "category_id": id_after[annotation["category_id"]]}
            for annotation in content.get("annotations") or []
            if annotation["category_id"] in id_after
        ],
    }


def _hint(name: str, names: Collection[str]) -> str:
    """Return a hint at the nearest of `names`, or at all of them if none is near."""
    return did_you_mean(name, names) or f" Choose from {', '.join(map(str, names))}."
