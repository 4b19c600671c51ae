# SPDX-License-Identifier: Apache-2.0
"""Reading, checking and writing of YouTube-VIS JSON and of COCO JSON, its form for images, for the whole package.

formats.py   the formats: sections and required keys; the `Problem` of a file
rules.py     the rules of every field; a new rule goes there
reading.py   reading of files, and the error that lists their problems
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
