# SPDX-License-Identifier: Apache-2.0
"""Methods without prompts that learn task after task: fine-tuning, MiB, CoMFormer and PLOP's POD, on one clip detector.

They share a model whose queries serve all tasks and whose class heads grow (`add_task(class_names, num_prompts=0)`),
and differ in the losses of later tasks, for which the model before the task is the teacher.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

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
    """Losses of the tasks after the base, for methods that compare the model with itself before the task."""

    classification: Literal["ce", "unbiased", "focal"] = field(
        default="ce",
        metadata={
            "help": "Classification loss: 'ce', cross entropy; 'unbiased', in which no-object also stands for old "
            "classes (MiB); 'focal', which does not weight no-object (CoMFormer)."
        },
    )
    focal_alpha: float = field(default=5.0, metadata={"help": "Factor on the 'focal' loss."})
    focal_gamma: float = field(default=1.0, metadata={"help": "Exponent of the 'focal' loss."})
    distillation_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the distance of each query's classes from the teacher's; 0 leaves it out."},
    )
    distillation: Literal["unbiased", "plain", "squared"] = field(
        default="unbiased",
        metadata={
            "help": "Kind of that distance: Kullback-Leibler divergence, 'unbiased' (MiB) or 'plain', or the "
            "difference 'squared'."
        },
    )
    reweight: bool = field(
        default=False, metadata={"help": "Weigh queries by how sure the teacher is of an object (CoMFormer)."}
    )
    alpha: float = field(
        default=1.0, metadata={"help": "Factor on the teacher's class logits, an inverse temperature."}
    )
    mask_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the distance of all queries' masks from the teacher's; 0 leaves it out."},
    )
    every_layer: bool = field(
        default=False,
        metadata={"help": "Compare classes and masks after every layer of the decoder; false, after the last only."},
    )
    pod_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the distance of pooled feature maps of backbone and pixel decoder; 0 leaves it out. It "
            "is multiplied by the square root of the share of new classes."
        },
    )
    pod_cells: Literal["rows_and_columns", "released"] = field(
        default="rows_and_columns",
        metadata={
            "help": "Cells over which these maps are pooled: 'rows_and_columns' divides height and width, 'released' "
            "takes the width for both, like the released code."
        },
    )
    pseudo_labels: bool = field(
        default=False,
        metadata={"help": "Label the objects that the teacher finds where nothing is labelled (CoMFormer)."},
    )
    pseudo_threshold: float = field(
        default=0.0, metadata={"help": "Smallest class probability of such an object, 0 to 1."}
    )

    def __post_init__(self) -> None:
        for name in ("distillation_weight", "mask_weight", "pod_weight", "focal_alpha", "focal_gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.alpha <= 0:
            raise ValueError(f"`alpha` is a factor on logits and must be more than 0, got {self.alpha}.")
        if not 0 <= self.pseudo_threshold <= 1:
            raise ValueError(f"`pseudo_threshold` is a probability in 0..1, got {self.pseudo_threshold}.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "DistillationSettings":
        """Return the losses of a method by its name, with some fields changed.

        Raises:
            ValueError: if the name is unknown.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
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
"""Losses of each method, by name. The weights with which the authors of CRISP ran MiB and CoMFormer on video are not
published; these come from the methods' own papers and scripts, for images. The weight of POD is to be tuned.

A preset holds losses only. CoMFormer's scripts for images train later tasks at half the learning rate of the base; set
that in the schedule (`increment.optimizer.learning_rate`). Weight alignment (`WA_STEP` of the released wrapper, which
rescales the class rows of new classes in training) is not offered, since it needs linear heads."""


class DistillingModel(nn.Module):
    """A student and its teacher, the frozen model that it was before the task, to be trained as one model.

    With labels the model returns the losses of the task, without them the predictions of the student. Only the student
    is saved.

    Args:
        student: clip detector to which the task was added, without prompts.
        teacher: the same model, as it was before.
        settings: the losses.

    Raises:
        ValueError: if the student has prompts, or its classes do not begin with the teacher's.
    """

    def __init__(self, student: ClipDetector, teacher: ClipDetector, settings: DistillationSettings) -> None:
        super().__init__()
        config = student.config
        if sum(student.group_widths) != sum(teacher.group_widths):
            raise ValueError(
                "Distillation compares query by query, so student and teacher must have the same: this student has "
                f"{sum(student.group_widths)}, the teacher {sum(teacher.group_widths)}. Add the task without prompts."
            )
        old, new = (list(model.config.id2label.values()) for model in (teacher, student))
        if old != new[: len(old)] or len(new) == len(old):
            raise ValueError(
                f"The student's classes must be the teacher's ({', '.join(old)}) and more after them; they are "
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
        """Add new classes to `model`, with a copy of its present state as the teacher."""
        teacher = copy.deepcopy(model)
        model.add_task(class_names, 0)
        return cls(model, teacher, settings)

    def train(self, mode: bool = True) -> "DistillingModel":
        super().train(mode)
        self.teacher.eval()
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the student, as [`PreTrainedModel.save_pretrained`] does."""
        self.student.save_pretrained(*args, **kwargs)

    @property
    def config(self) -> ClipDetectorConfig:
        """Configuration of the student."""
        return self.student.config

    def forward(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]] | None = None, **inputs: Any
    ) -> VideoInstanceSegmentationOutput:
        """Compute the losses of the task, or the predictions of the student; arguments as in the student's forward.

        Returns:
            With labels, `loss_dict` has the losses of mask classification, `loss_class_distillation` and
            `loss_mask_distillation` (with the suffix `_0`, ... for earlier layers) and `loss_pod`.
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
        """Return the maps of the backbone for all frames, or None if they are not compared."""
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
        """Return the weighted distances of classes and masks from the teacher's, by name."""
        settings, losses = self.settings, {}
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
