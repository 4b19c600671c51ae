# SPDX-License-Identifier: Apache-2.0
"""Run a class-incremental training, with a model or adapter, its evaluation and a report after every task."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..evaluation import ContinualReport, TaskEvaluation, evaluate_after_task
from ..files import sha256, write_json
from ..hub.card import CardInfo, read_training_summary
from ..hub.push import push_to_hub
from ..messages import check_choice
from ..modeling.auto import MODELS, SYSTEMS, AutoModelForVideoInstanceSegmentation
from ..modeling.tasks.adapter_files import ADAPTER_WEIGHTS_FILE, task_name
from ..processing import CvisVideoProcessor
from ..training.build import build_collate, build_model, build_processor, keep_processor
from ..training.callbacks import Task, TrainingCallback, with_model_callbacks
from ..training.checkpoint_files import find_checkpoint
from ..training.measure import predict_on_processes
from ..training.train import join_processes, save_model_folder, summarise
from ..training.trainer import Trainer, runs_on_cpu
from .distilling_model import DistillingModel
from .preparation import REPORT_FOLDER, RunPlan, prepare
from .schedule import Schedule

logger = logging.get_logger(__name__)

RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"  # written last, so its presence marks a finished task


def train_continual(
    schedule: Schedule | str | Path,
    output_dir: str | Path | None = None,
    resume: str = "auto",
    overrides: Iterable[str] = (),
    callbacks: Iterable[TrainingCallback] = (),
) -> ContinualReport:
    """Train a model on one task after another from a schedule.

    Run it in one process, or in several under `accelerate launch` or `torchrun`; batch sizes are totals.

    Args:
        schedule: a [`Schedule`], a YAML file, or the name of a schedule that ships with the package.
        output_dir: folder of the run, by default that of the schedule. It receives `schedule.json`; `task-0`, the model
            folder of the base; `task-1` and so on, adapters for `from_pretrained` (whole models for methods without
            prompts); `report` with tables and plots on the tasks so far; and `splits`, the train/test split, with
            `test_share`. Each task has `results.json` with the tracks of the test videos.
        resume: "auto" to continue the run in `output_dir` at the task and step where it stopped, with the numbers of an
            uninterrupted run; "restart" to delete it, after all checks have passed, and start again. A continued or
            finished run may change `push` and `report` (except `forgetting_videos`): tasks that the repository lacks
            are pushed, and the report is written again.
        overrides: changes to the schedule, "key.key=value".
        callbacks: callbacks to run in every step, and before and after every task.

    Returns:
        The report on all tasks, the same in every process.

    Raises:
        FileNotFoundError: if a data set or the base model does not exist, before any training.
        ValueError: if schedule, data and base model do not fit together, or `output_dir` holds the run of another
            schedule or other data, before any training.
        FloatingPointError: if a loss is not finite; the message names the videos.
    """
    schedule = Schedule.load(schedule, overrides)
    output_dir = output_dir or schedule.output_dir
    if output_dir is None:
        raise ValueError("`output_dir` is missing: give it in the call or in the schedule.")
    check_choice("resume", resume, ("auto", "restart"))
    if (num_threads := schedule.recipe.get("num_threads")) is not None:
        torch.set_num_threads(num_threads)
    join_processes(runs_on_cpu(schedule.recipe.get("device", "auto")))
    plan = prepare(schedule, Path(output_dir), resume)
    return ContinualRun(plan, [*schedule.rules.make_callbacks(schedule), *callbacks]).run()


class ContinualRun:
    """A class-incremental run, which starts at the first task that is not finished.

    Args:
        plan: tasks, recipes and data, from [`prepare`].
        callbacks: callbacks to run in every step, and before and after every task.
    """

    def __init__(self, plan: RunPlan, callbacks: Iterable[TrainingCallback] = ()) -> None:
        self.plan = plan
        self.schedule = plan.schedule
        self.tasks = plan.tasks
        self.callbacks = list(callbacks)

    def run(self) -> ContinualReport:
        """Learn the tasks that are not finished, push those that are not pushed, and write the report."""
        state, model = PartialState(), None
        evaluations: list[TaskEvaluation] = []
        for number in range(len(self.tasks)):
            path = self.folder(number) / EVALUATION_FILE
            is_new = not path.is_file()
            if is_new:
                logger.info(f"Task {number} of {len(self.tasks) - 1}: {', '.join(self.tasks[number])}")
                model = self._learn(number, model, evaluations)
            else:
                model = None
            evaluations.append(TaskEvaluation(**json.loads(path.read_text(encoding="utf-8"))))
            if self.schedule.push is not None and state.is_main_process and (is_new or not self._is_pushed(number)):
                self._push(number, model, evaluations)
            state.wait_for_everyone()
        report = self._report(evaluations)
        if state.is_main_process:
            report.save(self.plan.output_dir / REPORT_FOLDER)
        return report

    def folder(self, number: int) -> Path:
        """Return the folder of a task."""
        return self.plan.output_dir / f"task-{number}"

    def _learn(self, number: int, model: PreTrainedModel | None, evaluations: list[TaskEvaluation]) -> PreTrainedModel:
        """Learn one task, evaluate and save it.

        Args:
            number: number of the task, 0 for the base.
            model: model after the previous task; None loads it from its folder.
            evaluations: evaluations of the previous tasks.

        Returns:
            The model after the task.
        """
        recipe, folder = self.plan.recipes[number], self.folder(number)
        state = PartialState()
        folder.mkdir(parents=True, exist_ok=True)
        processor = self._processor(number)
        base_model = self.schedule.base_model if number == 0 else None
        if base_model is not None:
            summary = read_training_summary(base_model) or {}
            model_class = MODELS[SYSTEMS[self.schedule.rules.system]]
            model = model_class.from_pretrained(base_model, **recipe.model.config)
            model.to(state.device)
        else:
            model, summary = self._train(number, model, processor)
        task = self._task(number, model, processor, is_trained=base_model is None)
        for callback in self.callbacks:
            callback.after_task(task)
        model.eval()
        evaluation = self._evaluate(number, model, processor)
        if evaluation is not None:  # in the main process
            report = self._report([*evaluations, evaluation])
            report.save(self.plan.output_dir / REPORT_FOLDER)
            self._save(number, model, processor, {**summary, **self._measured(evaluation)}, report)
            write_json(folder / EVALUATION_FILE, asdict(evaluation), indent=2)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        state.wait_for_everyone()
        return model

    def _train(
        self, number: int, model: PreTrainedModel | None, processor: CvisVideoProcessor
    ) -> tuple[PreTrainedModel, dict]:
        """Train one task, starting from its last checkpoint, if any.

        Args:
            number: number of the task, 0 for the base.
            model: model after the previous task; None loads it from its folder.
            processor: video processor of the task.

        Returns:
            The model and the summary of its training.
        """
        recipe, folder = self.plan.recipes[number], self.folder(number)
        checkpoint = find_checkpoint(folder / "checkpoints", "auto")
        set_seed(recipe.seed)
        if checkpoint is not None:
            model = AutoModelForVideoInstanceSegmentation.from_pretrained(checkpoint)
            logger.info(f"Continuing from {checkpoint}.")
        elif number == 0:
            model = build_model(recipe, recipe.data.class_names)
        else:
            model = self._model_after(number - 1) if model is None else model
            model.add_task(self.tasks[number], self.schedule.prompts_of(self.tasks[number]))
        if recipe.model.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        learner, distillation = model, self.schedule.distillation_settings
        if number > 0 and distillation is not None:
            learner = DistillingModel(model, self._model_after(number - 1), distillation)
        for callback in self.callbacks:
            callback.before_task(self._task(number, model, processor))
        callbacks = with_model_callbacks(learner, self.callbacks)
        dataset, collate = self.plan.datasets[number], build_collate(processor)
        trainer = Trainer(recipe, folder, learner, dataset, collate, None, checkpoint, callbacks)
        if trainer.accelerator.is_main_process:
            keep_processor(processor, trainer.checkpoint_dir)
        try:
            result = trainer.train()
            # The summary counts the parameters of the model, not those of a teacher.
            return model, {**summarise(recipe, result, trainer), "num_parameters": model.num_parameters()}
        finally:
            trainer.finish()

    def _task(
        self, number: int, model: PreTrainedModel, processor: CvisVideoProcessor, is_trained: bool = True
    ) -> Task:
        """Return the description of a task for callbacks."""
        return Task(
            number,
            len(self.tasks),
            self.tasks[number],
            model,
            self.plan.datasets[number],
            processor,
            self.plan.recipes[number],
            is_trained,
        )

    def _model_after(self, number: int) -> PreTrainedModel:
        """Load the model after a finished task."""
        return AutoModelForVideoInstanceSegmentation.from_pretrained(self.folder(number))

    def _evaluate(self, number: int, model: PreTrainedModel, processor: CvisVideoProcessor) -> TaskEvaluation | None:
        """Evaluate the model after a task on the classes so far, and save its tracks.

        Returns:
            The evaluation in the main process, None in the others.
        """
        settings, ground_truth = self.plan.recipes[number].evaluation, self.plan.ground_truth
        seen = [name for names in self.tasks[: number + 1] for name in names]
        categories = [category for category in ground_truth["categories"] if category["name"] in seen]
        videos = {"videos": ground_truth["videos"], "categories": categories}
        results = predict_on_processes(model, processor, videos, self.plan.test_source.images, settings)
        if not PartialState().is_main_process:
            return None
        write_json(self.folder(number) / RESULTS_FILE, results, indent=2)
        return evaluate_after_task(ground_truth, results, self.tasks, number, self.schedule.report.forgetting_videos)

    def _measured(self, evaluation: TaskEvaluation) -> dict:
        """Return the metrics of a task and a description of their data, for the training summary and the model card."""
        counts = [len(names) for names in self.tasks]
        learnt, classes = sum(counts[: evaluation.after + 1]), self.schedule.report.evaluate_classes
        scope = {
            "all": f"all {sum(counts)} classes, {learnt} of them learnt",
            "seen": f"the {learnt} classes learnt so far",
            "current": f"the {counts[evaluation.after]} classes of this task",
        }[classes]
        return {"metrics": evaluation.overall[classes], "dataset": f"{self.plan.test_source.json}, over {scope}"}

    def _report(self, evaluations: list[TaskEvaluation]) -> ContinualReport:
        settings = self.schedule.report
        return ContinualReport(
            self.tasks[: len(evaluations)],
            evaluations,
            evaluate_classes=settings.evaluate_classes,
            undefined=settings.undefined,
            num_classes=settings.num_classes,
        )

    def _save(
        self, number: int, model: PreTrainedModel, processor: CvisVideoProcessor, summary: dict, report: ContinualReport
    ) -> None:
        folder, card = self.folder(number), CardInfo(self._license, training_summary=summary, report=report)
        if self._is_adapter(number):
            model.save_task_adapter(folder, processor, base=self.folder(0), card=card)
        else:
            save_model_folder(model, processor, folder, card)

    def _is_pushed(self, number: int) -> bool:
        """Return whether the repository holds the weights of a finished task."""
        name = ADAPTER_WEIGHTS_FILE if self._is_adapter(number) else SAFE_WEIGHTS_NAME
        try:
            files = HfApi().get_paths_info(self.plan.repository, name, revision=self._revision(number))
        except RevisionNotFoundError:
            return False
        return [file.lfs and file.lfs.sha256 for file in files] == [sha256(self.folder(number) / name)]

    def _push(self, number: int, model: PreTrainedModel | None, evaluations: list[TaskEvaluation]) -> None:
        """Push a finished task.

        Args:
            number: number of the task, 0 for the base.
            model: model after the task; None loads it from its folder.
            evaluations: evaluations of the tasks up to this one.
        """
        model = self._model_after(number) if model is None else model
        processor = self._processor(number)
        repository = self.plan.repository
        card: dict[str, Any] = {
            "report": self._report(evaluations),
            "training_summary": read_training_summary(self.folder(number)),
            "license": self._license,
        }
        if self._is_adapter(number):
            model.push_task_adapter(repository, processor, base=repository, base_revision="main", **card)
        else:
            push_to_hub(model, processor, repository, revision=self._revision(number), **card)

    def _processor(self, number: int) -> CvisVideoProcessor:
        """Build the video processor of a task from that of the previous task or of the trained base."""
        checkpoints = self.folder(number) / "checkpoints"
        start = self.schedule.base_model if number == 0 else self.folder(number - 1)
        return build_processor(self.plan.recipes[number], checkpoints if checkpoints.is_dir() else None, start)

    def _revision(self, number: int) -> str | None:
        return task_name(number) if number else None

    def _is_adapter(self, number: int) -> bool:
        return number > 0 and self.schedule.rules.has_prompts

    @property
    def _license(self) -> str:
        return "unknown" if self.schedule.push is None else self.schedule.push.license


__all__ = ["ContinualRun", "train_continual"]
