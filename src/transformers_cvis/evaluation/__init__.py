# SPDX-License-Identifier: Apache-2.0
"""Evaluate results: video AP and AR on pycocotools, association, forgetting over tasks; predict and submit."""

from .association import AssociationResult, evaluate_association
from .continual_report import ContinualReport, TaskEvaluation, evaluate_after_task
from .forgetting import ForgettingRate, crisp_forgetting, hvpl_forgetting
from .ground_truth import GroundTruth, check_results, read_results
from .prediction import predict_dataset
from .submission import write_submission
from .video_ap import EvaluationResult, evaluate_ytvis

__all__ = [
    "AssociationResult",
    "ContinualReport",
    "EvaluationResult",
    "ForgettingRate",
    "GroundTruth",
    "TaskEvaluation",
    "check_results",
    "crisp_forgetting",
    "evaluate_after_task",
    "evaluate_association",
    "evaluate_ytvis",
    "hvpl_forgetting",
    "predict_dataset",
    "read_results",
    "write_submission",
]
