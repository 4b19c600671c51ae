"""HVPL: hierarchical visual prompt learning for continual video instance segmentation (Dong et al., 2025)."""


from torch import Tensor, nn

from ..losses import LayerPrediction
from ..task_queries import GroupedQueries, calibrate_class_logits
from ..video_decoder import DecodedQueries, VideoStep
from ..whole_video import WholeVideoModel
from .configuration_hvpl import HvplConfig
from .frame_detector import HvplFrameDetector
from .video_head import HvplVideoHead


class HvplForVideoInstanceSegmentation(WholeVideoModel):
    """VITA that learns task by task: each later task adds prompts at frame level and at video level, and its heads.

    With labels the newest task is trained: before `add_task` the whole model as VITA, after it the newest prompts with
    their mask heads and class heads, and the no-object heads, which all tasks share. Without labels all tasks predict,
    each its own classes (`config.calibration_deltas`).
    """

    config_class = HvplConfig
    video_head_class = HvplVideoHead

    @staticmethod
    def build_detector(config: HvplConfig) -> HvplFrameDetector:
        return HvplFrameDetector(
            config.detector_config, config.task_class_counts, config.task_prompt_counts, config.deep_class_head
        )

    # Tasks

    def add_task(self, class_names: list[str], num_prompts: int) -> None:
        """Start to learn new classes: a group of prompts and heads at both levels, all else frozen.

        Args:
            class_names: of the new task; `config.id2label` continues with them.
            num_prompts: prompts at each level, the most objects of the new classes in a video.

        Raises:
            ValueError: when there is no class or no prompt, or a class is known already.
        """
        known = set(self.config.label2id)
        twice = sorted({name for name in class_names if name in known or class_names.count(name) > 1})
        if twice:
            raise ValueError(f"Classes {twice} are known already or named twice; a task brings new classes only.")
        if not class_names or num_prompts < 1:
            raise ValueError(f"A task needs at least 1 class and 1 prompt, got {len(class_names)} and {num_prompts}.")
        for level in (self.detector, self.video_head):
            level.add_task(len(class_names), num_prompts)
        config = self.config
        config.id2label = dict(enumerate([*config.id2label.values(), *class_names]))
        config.label2id = {name: index for index, name in config.id2label.items()}
        config.task_class_counts = [*config.task_class_counts, len(class_names)]
        config.task_prompt_counts = [*config.task_prompt_counts, num_prompts]
        config.share_labels()
        self.criterion.num_labels = self.detector.criterion.num_labels = config.num_labels
        self._freeze()
        self.train(self.training)

    @property
    def num_tasks(self) -> int:
        """Tasks learnt so far, the base included."""
        return len(self.config.task_class_counts)

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """What task `task` >= 1 added to the model, by name; without the no-object heads, which it trains, too."""
        if not 1 <= task < self.num_tasks:
            raise ValueError(f"There is no task {task} after the base: the model has learnt {self.num_tasks - 1}.")
        prefixes = tuple(
            f"{level}.{part}."
            for level in ("detector", "video_head")
            for part in (f"task_queries.{task - 1}", f"class_predictor.heads.{task + 1}")
        )
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def no_object_parameters(self) -> dict[str, nn.Parameter]:
        """The heads that every task trains further, by name."""
        prefixes = ("detector.class_predictor.heads.0.", "video_head.class_predictor.heads.0.")
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def _freeze(self) -> None:
        if self.num_tasks == 1:
            super()._freeze()
            return
        self.requires_grad_(False)
        for parameter in {**self.task_parameters(self.num_tasks - 1), **self.no_object_parameters()}.values():
            parameter.requires_grad_(True)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.num_tasks > 1:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            if self.config.freeze_drop_path:
                self.video_head.encoder.eval()
        return self

    # Inference

    def _associate(self, frame_queries: Tensor, training: bool = False) -> VideoStep:
        return self.video_head(frame_queries, newest_only=training, all_layers=training)

    def predict_queries(self, video_queries: Tensor) -> tuple[Tensor, Tensor]:
        head = self.video_head
        return self._calibrated(head.class_predictor(video_queries), head), head.mask_embeddings(video_queries)

    def classify_frame_queries(self, frame_queries: Tensor) -> Tensor:
        """Frame queries (..., F, C) of all tasks -> calibrated class logits (..., F, K + 1) of single frames."""
        return self._calibrated(self.detector.class_predictor(frame_queries), self.detector)

    def _calibrated(self, class_logits: Tensor, level: nn.Module) -> Tensor:
        widths = [len(group.features) for group in level.groups()]
        return calibrate_class_logits(
            class_logits, widths, self.config.task_class_counts, self.config.calibration_deltas
        )

    # Training

    def layer_predictions(self, decoded: DecodedQueries) -> list[LayerPrediction]:
        newest = GroupedQueries(self.video_head.groups()[-1:], alignment=1)
        class_logits = self.video_head.class_predictor(self.split_layers(decoded.normalised, dim=1))
        mask_embeddings = newest.mask_embeddings(decoded.normalised.flatten(0, 1))
        mask_embeddings = mask_embeddings.unflatten(0, decoded.normalised.shape[:2])
        parts = class_logits, self.split_layers(mask_embeddings, dim=1)
        return [LayerPrediction(*layer) for layer in zip(*parts, strict=True)]


__all__ = ["HvplForVideoInstanceSegmentation"]
