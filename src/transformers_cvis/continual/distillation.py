"""Methods without prompts that learn task after task: fine-tuning, MiB, CoMFormer and PLOP's POD, on one clip detector.

They share a model whose queries serve all tasks and whose class heads grow (`add_task(class_names, num_prompts=0)`),
and differ in the losses of later tasks, for which the model before the task is the teacher.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..modeling.clip_detector.modeling_clip_detector import ClipDetector
from ..modeling.layers.mask_logits import mask_logits
from ..modeling.losses import (
    IncrementalClipLoss,
    class_distillation_loss,
    mask_distillation_loss,
    pooled_distillation_loss,
    pseudo_labels,
)
from ..modeling.losses.mask_classification import full_precision
from ..modeling.outputs import LayerPrediction, VideoInstanceSegmentationOutput


@dataclass
class DistillationRecipe:
    """Losses of tasks after the base.

    classification: cross entropy, "ce"; "unbiased", in which no-object stands for old classes, too (MiB); or "focal",
        without a weight of no-object (CoMFormer).
    focal_alpha, focal_gamma: of "focal".
    distillation_weight: of the distance of each query's classes from the teacher's; 0 for none.
    distillation: "unbiased" (MiB), "plain" or "squared", see `class_distillation_loss`.
    reweight: weigh queries by how sure the teacher is of an object (CoMFormer).
    alpha: factor on the teacher's class logits, an inverse temperature.
    mask_weight: of the distance of all queries' masks from the teacher's; 0 for none.
    every_layer: compare classes and masks after every layer of the decoder instead of the last alone.
    pod_weight: of the distance of pooled feature maps of backbone and pixel decoder; 0 for none. It is multiplied with
        the square root of the share of new classes.
    pod_cells: "rows_and_columns" or "released", see `pooled_distillation_loss`.
    pseudo_labels: label what the teacher sees where nothing is labelled (CoMFormer).
    pseudo_threshold: least class probability of such an object.
    """

    classification: Literal["ce", "unbiased", "focal"] = "ce"
    focal_alpha: float = 5.0
    focal_gamma: float = 1.0
    distillation_weight: float = 0.0
    distillation: Literal["unbiased", "plain", "squared"] = "unbiased"
    reweight: bool = False
    alpha: float = 1.0
    mask_weight: float = 0.0
    every_layer: bool = False
    pod_weight: float = 0.0
    pod_cells: Literal["rows_and_columns", "released"] = "rows_and_columns"
    pseudo_labels: bool = False
    pseudo_threshold: float = 0.0

    def __post_init__(self):
        for name in ("distillation_weight", "mask_weight", "pod_weight", "focal_alpha", "focal_gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.alpha <= 0:
            raise ValueError(f"`alpha` is a factor on logits and must be more than 0, got {self.alpha}.")
        if not 0 <= self.pseudo_threshold <= 1:
            raise ValueError(f"`pseudo_threshold` is a probability in 0..1, got {self.pseudo_threshold}.")

    @classmethod
    def preset(cls, name: str, **changes) -> "DistillationRecipe":
        """A method by its name, with some fields changed.

        Raises:
            ValueError: an unknown name.
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
"""Methods by name. The weights with which the authors of CRISP ran MiB and CoMFormer on video are not published; these
are those of the methods' own papers and scripts, for images, and POD's is to be tuned.

A preset is losses alone. CoMFormer's scripts for images train later tasks at half the learning rate of the base, which
is a matter of the schedule (`increment.optimizer.learning_rate`). Weight alignment (`WA_STEP` of the released wrapper,
which rescales the class rows of new classes in training) is not offered: it is for linear heads alone."""


class DistillingModel(nn.Module):
    """A student and the frozen model that it was before the task, to be trained as one model.

    Called with labels, it gives the losses of the task; without, what the student predicts. What is saved is the
    student.

    Args:
        student: a clip detector that has added the task, without prompts.
        teacher: as it was before.
        recipe: the losses.

    Raises:
        ValueError: the student has prompts, or its classes do not begin with the teacher's.
    """

    def __init__(self, student: ClipDetector, teacher: ClipDetector, recipe: DistillationRecipe):
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
                f"The student's classes must be the teacher's ({', '.join(old)}) and more behind them; they are "
                f"{', '.join(new)}."
            )
        self.student, self.recipe = student, recipe
        self.teacher = teacher.requires_grad_(False)
        self.criterion = IncrementalClipLoss(
            config.num_labels,
            teacher.config.num_labels,
            unbiased=recipe.classification == "unbiased",
            focal=(recipe.focal_alpha, recipe.focal_gamma) if recipe.classification == "focal" else None,
            **IncrementalClipLoss.settings_of(config),
        )
        self.train(student.training)

    @classmethod
    def add_task(cls, model: ClipDetector, class_names: list[str], recipe: DistillationRecipe) -> "DistillingModel":
        """Start to learn new classes with `model`, of which a copy, as it is now, is the teacher."""
        teacher = copy.deepcopy(model)
        model.add_task(class_names, 0)
        return cls(model, teacher, recipe)

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        return self

    def save_pretrained(self, *args, **kwargs) -> None:
        """Save the student, as [`PreTrainedModel.save_pretrained`] does."""
        self.student.save_pretrained(*args, **kwargs)

    @property
    def config(self):
        """That of the student."""
        return self.student.config

    def forward(
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]] | None = None, **inputs
    ) -> VideoInstanceSegmentationOutput:
        """As that of the student.

        Returns:
            With labels, `loss_dict` has the losses of mask classification, `loss_class_distillation` and
            `loss_mask_distillation` (of earlier layers with `_0`, ... behind the name) and `loss_pod`.
        """
        student, recipe = self.student, self.recipe
        if labels is None:
            return student(pixel_values_videos, **inputs)
        student.check_inputs(pixel_values_videos, None, labels)
        pixel_values_videos = pixel_values_videos.to(student.dtype)
        maps, old_maps, old_predictions, old_features = None, None, None, None
        if self._needs_teacher:
            with torch.no_grad():
                old_maps = self._maps(self.teacher, pixel_values_videos)
                old_predictions, old_features = self.teacher.predict_clips(pixel_values_videos, old_maps)
        if recipe.pod_weight > 0:
            maps = self._maps(student, pixel_values_videos)
        predictions, features = student.predict_clips(pixel_values_videos, maps)

        if recipe.pseudo_labels:
            masks = mask_logits(old_predictions[-1].mask_embeddings, old_features.mask_features)
            labels = [
                pseudo_labels(full_precision(logits), full_precision(clip), label, recipe.pseudo_threshold)
                for logits, clip, label in zip(old_predictions[-1].class_logits, masks, labels, strict=True)
            ]
        targets = student.video_targets(labels)
        scored = predictions if student.config.use_auxiliary_loss else predictions[-1:]
        losses = self.criterion(scored, features.mask_features, targets)
        with torch.autocast(pixel_values_videos.device.type, enabled=False):
            losses |= self._distill(predictions, features.mask_features, old_predictions, old_features)
            if recipe.pod_weight > 0:
                num_old, num_labels = self.criterion.num_old, self.criterion.num_labels
                weight = recipe.pod_weight * ((num_labels - num_old) / num_labels) ** 0.5
                pairs = (
                    [*maps, features.mask_features.flatten(0, 1)],
                    [*old_maps, old_features.mask_features.flatten(0, 1)],
                )
                pairs = ([full_precision(part) for part in parts] for parts in pairs)
                losses["loss_pod"] = weight * pooled_distillation_loss(*pairs, recipe.pod_cells)
        return VideoInstanceSegmentationOutput(loss=sum(losses.values()), loss_dict=losses)

    @property
    def _needs_teacher(self) -> bool:
        recipe = self.recipe
        weights = (recipe.distillation_weight, recipe.mask_weight, recipe.pod_weight)
        return recipe.pseudo_labels or any(weight > 0 for weight in weights)

    def _maps(self, model: ClipDetector, pixel_values_videos: Tensor) -> list[Tensor] | None:
        """Maps of the backbone for all frames, where they are to be compared."""
        if self.recipe.pod_weight == 0:
            return None
        return model.model.pixel_level_module.extract_features(pixel_values_videos.flatten(0, 1))

    def _distill(self, predictions, mask_features, old_predictions, old_features) -> dict[str, Tensor]:
        """Weighted distances of classes and masks from the teacher's, by name."""
        recipe, losses = self.recipe, {}
        if not (recipe.distillation_weight > 0 or recipe.mask_weight > 0):
            return losses
        pairs = list(zip(predictions, old_predictions, strict=True))
        names = [*(f"_{layer}" for layer in range(len(pairs) - 1)), ""]
        for suffix, (ours, theirs) in list(zip(names, pairs, strict=True))[0 if recipe.every_layer else -1 :]:
            ours, theirs = (LayerPrediction(*map(full_precision, layer)) for layer in (ours, theirs))
            if recipe.distillation_weight > 0:
                loss = class_distillation_loss(
                    ours.class_logits, theirs.class_logits, recipe.distillation, recipe.reweight, recipe.alpha
                )
                losses[f"loss_class_distillation{suffix}"] = recipe.distillation_weight * loss
            if recipe.mask_weight > 0:
                masks = mask_logits(ours.mask_embeddings, full_precision(mask_features))
                old_masks = mask_logits(theirs.mask_embeddings, full_precision(old_features.mask_features))
                losses[f"loss_mask_distillation{suffix}"] = recipe.mask_weight * mask_distillation_loss(
                    masks, old_masks
                )
        return losses


__all__ = ["PRESETS", "DistillationRecipe", "DistillingModel"]
