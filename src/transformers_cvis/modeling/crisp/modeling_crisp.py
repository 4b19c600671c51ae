# SPDX-License-Identifier: Apache-2.0
"""CRISP: a clip detector that learns task by task, with prompts that class names shape in training.

B videos, T frames, P queries of a group, C channels, K classes of all tasks.
"""

import torch
from torch import nn

from ..outputs import LayerPrediction, VideoInstanceSegmentationOutput
from ..task_clip_detector.modeling_task_clip_detector import TaskClipDetectorForVideoInstanceSegmentation
from .configuration_crisp import CrispConfig
from .initialization import principal_rows
from .losses import contrastive_loss, correlation_loss, match_prompts
from .text_encoder import RANDOM, ClassTextEncoder


class CrispForVideoInstanceSegmentation(TaskClipDetectorForVideoInstanceSegmentation):
    """Clip detector that learns task by task with residual prompts, ISC and IC loss, and prompts from PCA.

    Training updates the newest task: before `add_task` the whole model, after it the newest prompts with their mask
    head and class head, and the no-object head, which all tasks share. A CLIP text model turns class names into
    prompts (`config.text_encoder`); only training needs it.
    """

    config: CrispConfig
    config_class = CrispConfig

    def __init__(self, config: CrispConfig) -> None:
        super().__init__(config)
        self._text_encoder: ClassTextEncoder | None = None

    # Tasks

    def _build_tasks(self) -> None:
        """Build the parts that grow with the tasks, the class tokens included."""
        super()._build_tasks()
        config = self.config
        counts = config.task_class_counts if config.uses_class_names else []
        self.class_tokens = nn.ModuleList(nn.Embedding(count, config.text_hidden_size) for count in counts)

    def _add_groups(self, num_classes: int, num_prompts: int) -> None:
        """Add the parts of a task, with prompts from principal directions and with class tokens."""
        old_queries = torch.cat([group.features for group in self.groups()])
        super()._add_groups(num_classes, num_prompts)
        if num_prompts and self.config.prompt_init != "mean":
            rows = principal_rows(old_queries, num_prompts, self.config.prompt_init)
            self.task_queries[-1].features.load_state_dict({"weight": rows})
        if self.config.uses_class_names:
            tokens = nn.Embedding(num_classes, self.config.text_hidden_size)
            self.class_tokens.append(tokens.to(self.device, self.dtype))

    def _remove_groups(self) -> None:
        """Remove the parts of the newest task, its class tokens included."""
        super()._remove_groups()
        if self.config.uses_class_names:
            del self.class_tokens[-1]

    def frozen_modules(self) -> list[str]:
        """Return the frozen parts, with the class tokens of all tasks that do not train."""
        trained = self.num_tasks - 1 if self._uses_components else None
        tokens = [f"class_tokens.{task}" for task in range(self.num_tasks) if task != trained]
        return [*super().frozen_modules(), *tokens]

    # Class names

    def set_text_encoder(self, encoder: ClassTextEncoder) -> None:
        """Use a text encoder in memory instead of the one that `config.text_encoder` names.

        Args:
            encoder: the text encoder; the width of its token embeddings must be `config.text_hidden_size`.

        Raises:
            ValueError: The text encoder does not fit the class tokens.
        """
        self._check_text_encoder(encoder)
        self._text_encoder = encoder

    def text_encoder(self) -> ClassTextEncoder:
        """Return the text encoder, which is loaded on the first call.

        Raises:
            ValueError: No text encoder is configured, or it does not fit the class tokens.
            OSError: The text encoder cannot be loaded.
        """
        if self._text_encoder is None:
            name = self.config.text_encoder
            if name is None:
                raise ValueError(
                    "CRISP needs a text encoder to turn class names into prompts, but none is configured. Set "
                    "`config.text_encoder` to a CLIP checkpoint on the Hub (published: openai/clip-vit-base-patch32), "
                    "to its folder, or to 'random'. To train without text, set `residual_prompts` to False and "
                    "`lambda_isc` to 0."
                )
            if name == RANDOM:
                self._text_encoder = ClassTextEncoder.random(self.config.text_hidden_size, 2 * self.config.hidden_dim)
            else:
                encoder = ClassTextEncoder.from_pretrained(name)
                self._check_text_encoder(encoder)
                self._text_encoder = encoder
        return self._text_encoder

    def _check_text_encoder(self, encoder: ClassTextEncoder) -> None:
        ours, theirs = self.config.text_hidden_size, encoder.hidden_size
        if ours != theirs:
            raise ValueError(
                f"The text encoder has token embeddings of {theirs} channels, but the class tokens of this model have "
                f"{ours}. Build the model with `text_hidden_size={theirs}`."
            )

    def semantic_prompts(self, task: int) -> torch.Tensor:
        """Compute the prompts of a task's classes from their names and their learnable tokens.

        Args:
            task: number of the task; 0 is the base.

        Returns:
            `(classes, C)`.

        Raises:
            ValueError: No text encoder is configured, or it does not fit the model.
            OSError: The text encoder cannot be loaded.
        """
        return self.text_encoder().encode(
            self.classes_of_task(task), self.class_tokens[task].weight, self.config.hidden_dim
        )

    def card_note(self) -> str | None:
        """Return a note on the text encoder for the model card, or None if training uses none."""
        if not self.config.uses_class_names:
            return None
        return (
            "The text encoder that turns class names into prompts in training is not part of the model; inference does "
            "not need it."
        )

    # Training

    @property
    def _uses_components(self) -> bool:
        """Whether the newest task trains with the components of CRISP that the configuration switches on."""
        return self.learns_by_prompts or (self.num_tasks == 1 and self.config.apply_at_base)

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        """Compute the losses of the newest task on clips `(B, T, 3, H, W)`, with ISC and IC loss."""
        config, targets = self.config, self.video_targets(labels)
        features, group = self.read_frames(pixel_values_videos), self.groups()[-1]
        loss_dict, residual = {}, None
        if self._uses_components and config.uses_class_names:
            prompts = self.semantic_prompts(self.num_tasks - 1)
            matched = match_prompts(group.features, prompts, config.matching)
            if config.residual_prompts:
                residual = prompts[matched]
            if config.lambda_isc > 0:
                loss = contrastive_loss(group.features, prompts, matched, config.isc_similarity)
                loss_dict["loss_isc"] = config.lambda_isc * loss
        predictions, hidden_states = self._predict_newest(features, residual)
        losses = self.criterion(self._scored(predictions), features.mask_features, targets)
        if self._uses_components and config.lambda_ic > 0:
            target = self.correlation_target(len(group.features))
            names = ["loss_ic", *(f"loss_ic_{layer}" for layer in range(len(hidden_states) - 1))]
            for name, states in zip(names, hidden_states, strict=True):
                loss_dict[name] = config.lambda_ic * correlation_loss(states, target)
        loss_dict = {**losses, **loss_dict}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def _scored(self, predictions: list[LayerPrediction]) -> list[LayerPrediction]:
        """Return the predictions that the losses score, see `config.deep_supervision`."""
        scored = super()._scored(predictions)
        if len(scored) > 1 and self.learns_by_prompts and self.config.deep_supervision == "released":
            return [scored[0], scored[-1]]
        return scored

    @torch.no_grad()
    def correlation_target(self, num_queries: int) -> torch.Tensor:
        """Compute the target of the IC loss.

        Args:
            num_queries: number of queries P of the newest group.

        Returns:
            `(P, P)`: for the base the identity, for prompts the cosine similarities of the first P queries of the base.
        """
        base = self.model.transformer_module.queries_features.weight
        if not self.learns_by_prompts:
            return torch.eye(num_queries, dtype=base.dtype, device=base.device)
        directions = nn.functional.normalize(base[:num_queries], dim=-1)
        return directions @ directions.T


__all__ = ["CrispForVideoInstanceSegmentation"]
