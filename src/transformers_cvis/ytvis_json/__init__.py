# SPDX-License-Identifier: Apache-2.0
"""YouTube-VIS json (and COCO json, its form for images): read, checked and written in one place for all rooms.

formats.py   the formats: sections, required keys, and what a problem is
rules.py     the rule of every field; a new rule goes there
reading.py   from a path to a content, and the error that lists its problems
writing.py   tracks as annotations of a data set, and as results for the test servers
"""

from .formats import COCO, FORMATS, GROUND_TRUTH, RESULTS, YTVIS, AnnotationFormat, Problem
from .reading import check_top_level, existing_file, read_annotation_json, read_json, refuse
from .rules import (
    annotation_messages,
    annotation_problems,
    category_problems,
    content_problems,
    entry_message,
    entry_problems,
    file_names_messages,
    holder_problems,
    mask_structure_message,
    reference_message,
    run_lengths_message,
    section_problems,
    structure_problems,
)
from .writing import track_annotation, track_result

__all__ = [
    "COCO",
    "FORMATS",
    "GROUND_TRUTH",
    "RESULTS",
    "YTVIS",
    "AnnotationFormat",
    "Problem",
    "annotation_messages",
    "annotation_problems",
    "category_problems",
    "check_top_level",
    "content_problems",
    "entry_message",
    "entry_problems",
    "existing_file",
    "file_names_messages",
    "holder_problems",
    "mask_structure_message",
    "read_annotation_json",
    "read_json",
    "reference_message",
    "refuse",
    "run_lengths_message",
    "section_problems",
    "structure_problems",
    "track_annotation",
    "track_result",
]
