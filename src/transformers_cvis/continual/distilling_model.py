# SPDX-License-Identifier: Apache-2.0
"""Class-incremental methods without prompts: fine-tuning, MiB, CoMFormer and the POD loss of PLOP, on a clip detector.

The queries of the model serve all tasks, and its class heads grow (`add_task(class_names, num_prompts=0)`). The methods
differ in the losses of later tasks, for which the model before the task is the teacher.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..messages import check_at_least, check_choice
from ..modeling.clip_detector.configuration_clip_detector import ClipDetectorConfig
from ..modeling.clip_detector.modeling_clip_detector import ClipDetector
from ..modeling.layers.mask_logits import mask_logits
from ..modeling.losses import (
    IncrementalClipLoss,
    class_distillation_loss,
    mask_distillation_loss,
    pooled_distillation_loss,
    pseudo_labels,
)
from ..modeling.outputs import LayerPrediction, VideoInstanceSegmentationOutput
from ..precision import at_least_float32


@dataclass
class DistillationSettings:
    """Losses of later tasks for methods that compare the model with its state before the task, the teacher."""

    classification: Literal["ce", "unbiased", "focal"] = field(
        default="ce",
        metadata={
            "help": "Classification loss: 'ce' is cross entropy, 'unbiased' lets no-object also stand for old classes "
            "(MiB), 'focal' gives no-object the same weight as classes (CoMFormer)."
        },
    )
    focal_alpha: float = field(default=5.0, metadata={"help": "Factor on the 'focal' loss."})
    focal_gamma: float = field(default=1.0, metadata={"help": "Exponent of the 'focal' loss."})
    distillation_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the distance between the class scores of each query and those of the teacher; 0 "
            "leaves it out."
        },
    )
    distillation: Literal["unbiased", "plain", "squared"] = field(
        default="unbiased",
        metadata={
            "help": "Distance between class scores: Kullback-Leibler divergence, 'unbiased' (MiB) or 'plain', or the "
            "'squared' difference."
        },
    )
    reweight: bool = field(
        default=False, metadata={"help": "Weight queries by the teacher's probability of an object (CoMFormer)."}
    )
    alpha: float = field(
        default=1.0, metadata={"help": "Factor on the class logits of the teacher, an inverse temperature."}
    )
    mask_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the distance between the masks of all queries and those of the teacher; 0 leaves it out."
        },
    )
    every_layer: bool = field(
        default=False,
        metadata={"help": "Compare classes and masks after every decoder layer; false compares the last layer."},
    )
    pod_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the distance between pooled feature maps of backbone and pixel decoder, multiplied by "
            "the square root of the share of new classes; 0 leaves it out."
        },
    )
    pod_cells: Literal["rows_and_columns", "released"] = field(
        default="rows_and_columns",
        metadata={
            "help": "Cells over which these maps are pooled: 'rows_and_columns' divides height and width, 'released' "
            "uses the width for both, like the released code."
        },
    )
    pseudo_labels: bool = field(
        default=False,
        metadata={"help": "Add labels for objects that the teacher finds in unlabelled regions (CoMFormer)."},
    )
    pseudo_threshold: float = field(
        default=0.0, metadata={"help": "Smallest class probability of an object to label, 0 to 1."}
    )

    def __post_init__(self) -> None:
        for name in ("distillation_weight", "mask_weight", "pod_weight", "focal_alpha", "focal_gamma"):
            check_at_least(name, getattr(self, name), 0)
        if self.alpha <= 0:
            raise ValueError(f"`alpha` must be above 0, got {self.alpha}.")
        if not 0 <= self.pseudo_threshold <= 1:
            raise ValueError(f"`pseudo_threshold` must be a probability from 0 to 1, got {self.pseudo_threshold}.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "DistillationSettings":
        """Return the losses of a method.

        Args:
            name: name of the method: finetune, mib, comformer or pod.
            changes: fields that differ from the method's.

        Raises:
            ValueError: if the name is unknown.
        """
        check_choice("preset", name, PRESETS)
        return cls(**{**PRESETS[name], **changes})


PRESETS: dict[str, dict] = {
    "finetune": {},
    "mib": {"classification": "unbiased", "distillation_weight": 10.0},
    "comformer": {
        "classification": "focal",
        "distillation_weight": 10.0,
        "reweight": True,
        "pseudo_labels": True,
    },
    "pod": {"pod_weight": 0.01, "pseudo_labels": True},
}
"""Losses of each method by name.

The authors of CRISP did not publish the weights with which they ran MiB and CoMFormer on videos; these weights come
from the papers and scripts of the methods, for images. The weight of POD has not been tuned.

A preset defines losses only. The CoMFormer scripts for images train later tasks at half the learning rate of the base;
set this in the schedule (`increment.optimizer.learning_rate`). Weight alignment (`WA_STEP` of the released wrapper,
which rescales the class rows of new classes in training) is not available, because it needs linear heads.
"""


class DistillingModel(nn.Module):
    """A student and its frozen teacher, the model before the task, trained as one model.

    With labels the model returns the losses of the task, without labels the predictions of the student. Only the
    student is saved.

    Args:
        student: clip detector to which the task was added without prompts.
        teacher: clip detector before the task.
        settings: losses of the task.

    Raises:
        ValueError: if the student has prompts, or its classes do not begin with the teacher's.
    """

    def __init__(self, student: ClipDetector, teacher: ClipDetector, settings: DistillationSettings) -> None:
        super().__init__()
        config = student.config
        if sum(student.group_widths) != sum(teacher.group_widths):
            raise ValueError(
                "Student and teacher must have the same queries, got "
                f"{sum(student.group_widths)} and {sum(teacher.group_widths)}. Add the task without prompts."
            )
        old, new = (list(model.config.id2label.values()) for model in (teacher, student))
        if old != new[: len(old)] or len(new) == len(old):
            raise ValueError(
                f"The classes of the student must be those of the teacher ({', '.join(old)}) followed by new ones, got "
                f"{', '.join(new)}."
            )
        self.student, self.settings = student, settings
        self.teacher = teacher.requires_grad_(False)
        self.criterion = IncrementalClipLoss(
            config.num_labels,
            teacher.config.num_labels,
            unbiased=settings.classification == "unbiased",
            focal=(settings.focal_alpha, settings.focal_gamma) if settings.classification == "focal" else None,
            **IncrementalClipLoss.settings_of(config),
        )
        self.train(student.training)

    @classmethod
    def add_task(cls, model: ClipDetector, class_names: list[str], settings: DistillationSettings) -> "DistillingModel":
        """Add new classes to a model, with a copy of its current state as the teacher.

        Args:
            model: the model, which becomes the student.
            class_names: names of the new classes.
            settings: losses of the task.
        """
        teacher = copy.deepcopy(model)
        model.add_task(class_names, 0)
        return cls(model, teacher, settings)

    def train(self, mode: bool = True) -> "DistillingModel":
        """Set the mode of the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the student with [`PreTrainedModel.save_pretrained`]."""
        self.student.save_pretrained(*args, **kwargs)

    @property
    def config(self) -> ClipDetectorConfig:
        """Configuration of the student."""
        return self.student.config

    def forward(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]] | None = None, **inputs: Any
    ) -> VideoInstanceSegmentationOutput:
        """Compute the losses of the task, or the predictions of the student.

        Args:
            pixel_values_videos: clips, as for the student.
            labels: objects of each clip, as for the student; None returns the predictions.
            inputs: further arguments of the student, used without labels.

        Returns:
            The output of the student, or an output with `loss` and `loss_dict`: the losses of mask classification,
            `loss_class_distillation` and `loss_mask_distillation` (with the suffix `_0`, ... for earlier layers), and
            `loss_pod`.
        """
        student, settings = self.student, self.settings
        if labels is None:
            return student(pixel_values_videos, **inputs)
        student.check_inputs(pixel_values_videos, None, labels)
        pixel_values_videos = pixel_values_videos.to(student.dtype)
        maps, old_maps, old_predictions, old_features = None, None, None, None
        if self._needs_teacher:
            with torch.no_grad():
                old_maps = self._maps(self.teacher, pixel_values_videos)
                old_predictions, old_features = self.teacher.predict_clips(pixel_values_videos, old_maps)
        if settings.pod_weight > 0:
            maps = self._maps(student, pixel_values_videos)
        predictions, features = student.predict_clips(pixel_values_videos, maps)

        if settings.pseudo_labels:
            masks = mask_logits(old_predictions[-1].mask_embeddings, old_features.mask_features)
            labels = [
                pseudo_labels(at_least_float32(logits), at_least_float32(clip), label, settings.pseudo_threshold)
                for logits, clip, label in zip(old_predictions[-1].class_logits, masks, labels, strict=True)
            ]
        targets = student.video_targets(labels)
        scored = predictions if student.config.use_auxiliary_loss else predictions[-1:]
        losses = self.criterion(scored, features.mask_features, targets)
        with torch.autocast(pixel_values_videos.device.type, enabled=False):
            old_mask_features = None if old_features is None else old_features.mask_features
            losses |= self._distill(predictions, features.mask_features, old_predictions, old_mask_features)
            if settings.pod_weight > 0:
                num_old, num_labels = self.criterion.num_old, self.criterion.num_labels
                weight = settings.pod_weight * ((num_labels - num_old) / num_labels) ** 0.5
                pairs = (
                    [*maps, features.mask_features.flatten(0, 1)],
                    [*old_maps, old_features.mask_features.flatten(0, 1)],
                )
                pairs = ([at_least_float32(part) for part in parts] for parts in pairs)
                losses["loss_pod"] = weight * pooled_distillation_loss(*pairs, settings.pod_cells)
        return VideoInstanceSegmentationOutput(loss=sum(losses.values()), loss_dict=losses)

    @property
    def _needs_teacher(self) -> bool:
        settings = self.settings
        weights = (settings.distillation_weight, settings.mask_weight, settings.pod_weight)
        return settings.pseudo_labels or any(weight > 0 for weight in weights)

    def _maps(self, model: ClipDetector, pixel_values_videos: torch.Tensor) -> list[torch.Tensor] | None:
        """Return the backbone feature maps of all frames, or None if they are not compared."""
        if self.settings.pod_weight == 0:
            return None
        return model.model.pixel_level_module.extract_features(pixel_values_videos.flatten(0, 1))

    def _distill(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        old_predictions: Sequence[LayerPrediction] | None,
        old_mask_features: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted distances of classes and masks from those of the teacher, by name."""
        settings = self.settings
        losses: dict[str, torch.Tensor] = {}
        if not (settings.distillation_weight > 0 or settings.mask_weight > 0):
            return losses
        pairs = list(zip(predictions, old_predictions, strict=True))
        names = [*(f"_{layer}" for layer in range(len(pairs) - 1)), ""]
        for suffix, (ours, theirs) in list(zip(names, pairs, strict=True))[0 if settings.every_layer else -1 :]:
            ours, theirs = (LayerPrediction(*map(at_least_float32, layer)) for layer in (ours, theirs))
            if settings.distillation_weight > 0:
                loss = class_distillation_loss(
                    ours.class_logits, theirs.class_logits, settings.distillation, settings.reweight, settings.alpha
                )
                losses[f"loss_class_distillation{suffix}"] = settings.distillation_weight * loss
            if settings.mask_weight > 0:
                masks = mask_logits(ours.mask_embeddings, at_least_float32(mask_features))
                old_masks = mask_logits(theirs.mask_embeddings, at_least_float32(old_mask_features))
                losses[f"loss_mask_distillation{suffix}"] = settings.mask_weight * mask_distillation_loss(
                    masks, old_masks
                )
        return losses


__all__ = ["PRESETS", "DistillationSettings", "DistillingModel"]
