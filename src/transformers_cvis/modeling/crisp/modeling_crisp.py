"""CRISP: Mask2Former-VIS that learns task by task, with prompts that the names of classes shape in training.

B videos, T frames, Q queries of all groups, P queries of a group, C channels, K classes of all tasks.
"""

import torch
from torch import Tensor, nn

from ..clip_detector.modeling_clip_detector import ClipDetector, ClipFeatures
from ..layers.query_groups import GroupParameters
from ..outputs import LayerPrediction, VideoInstanceSegmentationOutput
from ..tasks.adapters import TaskAdapterMixin
from ..tasks.queries import (
    DecodedGroups,
    GroupedQueries,
    GroupLayout,
    TaskClassPredictor,
    TaskQueryGroup,
    calibrate_class_logits,
)
from .configuration_crisp import CrispConfig
from .initialization import principal_rows
from .losses import contrastive_loss, correlation_loss, match_prompts
from .text_encoder import RANDOM, ClassTextEncoder


class CrispForVideoInstanceSegmentation(TaskAdapterMixin, ClipDetector):
    """Mask2Former-VIS that learns task by task: each later task adds prompts and its heads, all else is frozen.

    With labels the newest task is trained: before `add_task` the whole model, after it the newest prompts with their
    mask head and class head, and the no-object head, which all tasks share. Class names become prompts, too, by a CLIP
    text model (`config.text_encoder`), which is needed in training alone. Without labels all tasks predict, each its
    own classes (`config.calibration_deltas`).

    With tasks of 0 prompts it is the model that the methods without prompts share (fine-tuning, MiB, CoMFormer): the
    same queries for all tasks, class heads that grow, and all weights train.
    """

    config_class = CrispConfig
    fewest_prompts = 0

    def __init__(self, config: CrispConfig):
        super().__init__(config)
        config.share_labels()
        self.class_predictor = TaskClassPredictor(config.hidden_dim, config.task_class_counts, config.deep_class_head)
        self.task_queries = nn.ModuleList(self._new_group(count) for count in config.task_prompt_counts if count)
        counts = config.task_class_counts if config.uses_class_names else []
        self.class_tokens = nn.ModuleList(nn.Embedding(count, config.text_hidden_size) for count in counts)
        self._text_encoder: ClassTextEncoder | None = None
        self.post_init()
        self._freeze()

    # Tasks

    def task_stages(self) -> dict[str, nn.Module]:
        return {"": self}

    def add_task(self, class_names: list[str], num_prompts: int | None = None) -> None:
        """As [`TaskLearningMixin.add_task`].

        Args:
            num_prompts: `config.num_prompts` by default. 0 for a task that all weights of the model learn.
        """
        if num_prompts is None:
            num_prompts = self.config.num_prompts
            num_prompts = len(class_names) if num_prompts == "classes" else num_prompts
        self.config.check_num_prompts(num_prompts)
        super().add_task(class_names, num_prompts)

    def _new_group(self, num_prompts: int) -> TaskQueryGroup:
        config = self.config
        return TaskQueryGroup(num_prompts, config.decoder_layers - 1, config.hidden_dim, config.mask_feature_size)

    def _add_groups(self, num_classes: int, num_prompts: int) -> None:
        self.class_predictor.add_task(num_classes, fresh=num_prompts == 0)
        if num_prompts:
            groups = self.groups()
            group = self._new_group(num_prompts).to(self.device, self.dtype)
            group.start_from(groups[0])
            if self.config.prompt_init != "mean":
                old_queries = torch.cat([old.features for old in groups])
                rows = principal_rows(old_queries, num_prompts, self.config.prompt_init)
                group.features.load_state_dict({"weight": rows})
            self.task_queries.append(group)
        if self.config.uses_class_names:
            tokens = nn.Embedding(num_classes, self.config.text_hidden_size)
            self.class_tokens.append(tokens.to(self.device, self.dtype))

    def _remove_groups(self) -> None:
        self.class_predictor.remove_task()
        if self.learns_by_prompts:
            del self.task_queries[-1]
        if self.config.uses_class_names:
            del self.class_tokens[-1]

    def _task_parts(self, task: int) -> list[str]:
        return [*super()._task_parts(task), f"class_tokens.{task}"]

    def _freeze(self) -> None:
        super()._freeze()
        trained = self.num_tasks - 1 if self._uses_components else None
        for task, tokens in enumerate(self.class_tokens):
            tokens.requires_grad_(task == trained)

    def groups(self) -> list[GroupParameters]:
        """The base, then every later task."""
        return [self.base_group(), *(queries.group() for queries in self.task_queries)]

    @property
    def group_widths(self) -> list[int]:
        return [self.config.num_queries, *(len(group.features.weight) for group in self.task_queries)]

    # Class names

    def set_text_encoder(self, encoder: ClassTextEncoder) -> None:
        """Use a text encoder that is in memory, whatever `config.text_encoder` says."""
        self._check_text_encoder(encoder)
        self._text_encoder = encoder

    def text_encoder(self) -> ClassTextEncoder:
        """The text encoder; fetched when it is first asked for.

        Raises:
            ValueError: none is configured, or it does not fit the class tokens. OSError: it cannot be loaded.
        """
        if self._text_encoder is None:
            name = self.config.text_encoder
            if name is None:
                raise ValueError(
                    "CRISP learns with prompts that a text encoder makes of class names, and none is configured: set "
                    "`config.text_encoder` to a CLIP checkpoint of the Hub (published is "
                    "openai/clip-vit-base-patch32), to its folder, or to 'random'. To train without text, set "
                    "`residual_prompts` to False and `lambda_isc` to 0."
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
                f"The text encoder has token embeddings of {theirs} channels, the class tokens of this model have "
                f"{ours}: build the model with `text_hidden_size={theirs}`."
            )

    def semantic_prompts(self, task: int) -> Tensor:
        """Prompts of the classes of a task, (classes, C), made of their names and their learnable tokens."""
        return self.text_encoder().encode(
            self._classes_of(task), self.class_tokens[task].weight, self.config.hidden_dim
        )

    def card_note(self) -> str | None:
        if not self.config.uses_class_names:
            return None
        return (
            "The text encoder with which training makes prompts of class names is not part of the model: inference "
            "needs none."
        )

    # Inference

    def decode(self, features: ClipFeatures) -> tuple[list[Tensor], list[Tensor]]:
        if not self.task_queries:
            return super().decode(features)
        decoded = self.decode_groups(features, GroupedQueries(self.groups()))
        return decoded.queries, decoded.mask_embeddings

    def decode_groups(
        self, features: ClipFeatures, groups: GroupedQueries, value_residual: Tensor | None = None
    ) -> DecodedGroups:
        """Run groups of queries through the decoder, each by itself, as [`GroupedQueries.decode`]."""
        return groups.decode(self.model.transformer_module.decoder, *self.clip_tokens(features), value_residual)

    def classify(self, queries: Tensor) -> Tensor:
        class_logits = self.class_predictor(queries, GroupLayout(self.group_widths))
        if not self.learns_by_prompts:
            return class_logits
        config = self.config
        return calibrate_class_logits(
            class_logits, self.group_widths, config.task_class_counts, config.calibration_deltas
        )

    def embed_masks(self, queries: Tensor) -> Tensor:
        if not self.task_queries:
            return super().embed_masks(queries)
        return GroupedQueries(self.groups()).mask_embeddings(queries)

    def _predict_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        return GroupLayout(self.group_widths).mask_logits(mask_embeddings, mask_features)

    # Training

    @property
    def _uses_components(self) -> bool:
        """Whether the task that is trained now has residual prompts, ISC and IC loss, where these are switched on."""
        return self.learns_by_prompts or (self.num_tasks == 1 and self.config.apply_at_base)

    def _compute_loss(
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        config, targets = self.config, self.video_targets(labels)
        features = self.read_frames(pixel_values_videos)
        group = self.groups()[-1]
        loss_dict, residual = {}, None
        if self._uses_components and config.uses_class_names:
            prompts = self.semantic_prompts(self.num_tasks - 1)
            matched = match_prompts(group.features, prompts, config.matching)
            if config.residual_prompts:
                residual = prompts[matched]
            if config.lambda_isc > 0:
                loss = contrastive_loss(group.features, prompts, matched, config.isc_similarity)
                loss_dict["loss_isc"] = config.lambda_isc * loss
        groups = GroupedQueries([group])
        hidden_states, queries, mask_embeddings = self.decode_groups(features, groups, residual)
        mask_embeddings.append(groups.mask_embeddings(queries[-1]))
        predictions = [
            LayerPrediction(self.class_predictor(states), embeddings)
            for states, embeddings in zip(queries, mask_embeddings, strict=True)
        ]
        losses = self.criterion(self._scored(predictions), features.mask_features, targets)
        if self._uses_components and config.lambda_ic > 0:
            target = self.correlation_target(len(group.features))
            names = ["loss_ic", *(f"loss_ic_{layer}" for layer in range(len(hidden_states) - 1))]
            for name, states in zip(names, hidden_states, strict=True):
                loss_dict[name] = config.lambda_ic * correlation_loss(states, target)
        loss_dict = {**losses, **loss_dict}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)

    def _scored(self, predictions: list[LayerPrediction]) -> list[LayerPrediction]:
        if not self.config.use_auxiliary_loss:
            return predictions[-1:]
        if self.learns_by_prompts and self.config.deep_supervision == "released":
            return [predictions[0], predictions[-1]]
        return predictions

    @torch.no_grad()
    def correlation_target(self, num_queries: int) -> Tensor:
        """What the cosines of the queries to each other should be, (P, P): for the base none of another, for prompts
        those of as many queries of the base."""
        base = self.model.transformer_module.queries_features.weight
        if not self.learns_by_prompts:
            return torch.eye(num_queries, dtype=base.dtype, device=base.device)
        directions = nn.functional.normalize(base[:num_queries], dim=-1)
        return directions @ directions.T


__all__ = ["CrispForVideoInstanceSegmentation"]
