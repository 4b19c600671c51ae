"""A whole class-incremental training: schedule in; after every task a model or adapter, its evaluation, a report."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from ..data import is_split_of, read_annotations, split_ytvis
from ..evaluation import ContinualReport, GroundTruth, TaskEvaluation, evaluate_after_task
from ..hub.push import push_to_hub, read_training_summary
from ..modeling.auto import AutoModelForVideoInstanceSegmentation, load_config
from ..modeling.crisp import CrispConfig
from ..modeling.tasks.adapters import ADAPTER_WEIGHTS_FILE, task_name
from ..processing import CvisVideoProcessor
from ..training.build import (
    build_collate,
    build_dataset,
    build_model,
    build_processor,
    config_of_base,
    keep_processor,
)
from ..training.checkpoints import find_checkpoint, write_json
from ..training.measure import predict_on_processes
from ..training.recipe import Recipe, SourceRecipe
from ..training.train import join_processes, save_model_folder, summarise
from ..training.trainer import Trainer, check_precision, runs_on_cpu
from .distillation import DistillingModel
from .gradient_projection import GradientProjection, check_collection, collect_directions
from .schedule import Schedule, videos_of_classes

SCHEDULE_FILE = "schedule.json"
RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"  # of a task; written last: it says that the task is complete
REPORT_FOLDER = "report"


def train_continual(
    schedule: Schedule | str | Path,
    output_dir: str | Path | None = None,
    resume: str = "auto",
    overrides: Iterable[str] = (),
) -> ContinualReport:
    """Train a model task after task, as a schedule says.

    Run it in one process, or in several under `accelerate launch` or `torchrun`; batch sizes are totals.

    Args:
        schedule: a [`Schedule`], a YAML file, or the name of a schedule that ships with the package.
        output_dir: by default the schedule's. Receives `schedule.json`; `task-0`, the base as a model folder; `task-1`
            and so on, folders for `from_pretrained` with what these tasks added (or whole models, for methods whose
            tasks train all of the model), each with `results.json` of the test videos; `report`, tables and plots after
            the tasks so far; and `splits`, where the schedule holds out a part of the videos.
        resume: "auto" goes on in `output_dir`, at the task and step where it was interrupted, with the very numbers
            that an uninterrupted run gives; "restart" deletes what is there, once all is checked that can be checked
            before a training, and starts afresh. A run that goes on, or is finished, may be given another `push` and
            another `report` (but for its `forgetting_videos`): tasks that the repository lacks are pushed, the report
            is written again.
        overrides: changes to the schedule, "key.key=value".

    Returns:
        The report on all tasks; the same in every process.

    Raises:
        ValueError, FileNotFoundError: schedule, data or base are not as they must be, or `output_dir` holds the run of
            another schedule or of other data. All of these before any training.
        FloatingPointError: a loss is not finite; the message names the videos.
    """
    schedule = Schedule.load(schedule, overrides)
    output_dir = output_dir or schedule.output_dir
    if output_dir is None:
        raise ValueError("Give `output_dir`, in the call or in the schedule.")
    if resume not in ("auto", "restart"):
        raise ValueError(f"`resume` must be 'auto' or 'restart', got {resume!r}.")
    return _ContinualRun(schedule, Path(output_dir)).run(resume)


class _ContinualRun:
    def __init__(self, schedule: Schedule, output_dir: Path):
        self.schedule = schedule
        self.output_dir = output_dir

    # Before any training

    @cached_property
    def train_sources(self) -> list[SourceRecipe]:
        sources = [source for source in self.schedule.train if source.use]
        if self.schedule.test_share is None:
            return sources
        return [replace(sources[0], json=str(self.split_folder / "train_split.json")), *sources[1:]]

    @cached_property
    def test_source(self) -> SourceRecipe:
        if self.schedule.test is not None:
            return self.schedule.test
        return replace(self.schedule.train[0], json=str(self.split_folder / "test_split.json"))

    @property
    def split_folder(self) -> Path:
        return self.output_dir / "splits"

    @cached_property
    def videos_of_classes(self) -> list[dict[str, set[int]]]:
        """Of each training source, the videos that each class is in."""
        return [videos_of_classes(source) for source in self.train_sources]

    @cached_property
    def tasks(self) -> list[list[str]]:
        """The classes of every task."""
        tasks = self.schedule.classes.assign(list(self.videos_of_classes[0]), self.schedule.seed)
        for number, name in ((number, name) for number, names in enumerate(tasks) for name in names):
            if not any(videos.get(name) for videos in self.videos_of_classes):
                raise ValueError(f"The class {name!r} of task {number} is in no video of the training data.")
        return [[name for names in tasks for name in names]] if self.schedule.rules.learns_all_at_once else tasks

    @cached_property
    def ground_truth(self) -> dict:
        """That of the test videos, with the classes of the schedule alone."""
        source = self.test_source
        content = read_annotations(source.json, source.kind, source.class_mapping)
        classes = {name for names in self.tasks for name in names}
        missing = sorted(classes - {category["name"] for category in content["categories"]})
        if missing:
            raise ValueError(
                f"{source.json} has other classes than the schedule: {', '.join(missing)} cannot be evaluated on it. "
                f"Its classes are {', '.join(category['name'] for category in content['categories'])}; a "
                "`class_mapping` can translate them."
            )
        kept = {category["id"] for category in content["categories"] if category["name"] in classes}
        content["categories"] = [category for category in content["categories"] if category["id"] in kept]
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] in kept]
        GroundTruth.read(content).check_annotations()
        return content

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The training of every task, from the sources that have something for it."""
        recipes = []
        for number in range(len(self.tasks)):
            sources = [
                source
                for source, videos in zip(self.train_sources, self.videos_of_classes, strict=True)
                if self.schedule.videos_of_task(number, self.tasks, videos)
            ]
            recipes.append(self.schedule.task_recipe(number, self.tasks, sources or self.train_sources))
        return recipes

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Training samples of every task; tables are made now, so that what is wrong with the data is found now."""
        datasets = []
        for number, recipe in enumerate(self.recipes):
            try:
                datasets.append(build_dataset(recipe)[0])
            except ValueError as error:
                raise ValueError(f"Task {number} ({', '.join(self.tasks[number])}): {error}") from error
        return datasets

    @cached_property
    def repository(self) -> str:
        """Full name of the repository to push to, which is made if needed; a missing token or permission shows here."""
        push = self.schedule.push
        return HfApi().create_repo(push.repo, private=push.private, exist_ok=True).repo_id

    def prepare(self, resume: str) -> None:
        state, path = PartialState(), self.output_dir / SCHEDULE_FILE
        if state.is_main_process:
            with contextlib.ExitStack() as stack:
                if resume == "restart":
                    stack.enter_context(self._former_run_deleted())
                if path.is_file():
                    self._check_same_schedule(json.loads(path.read_text(encoding="utf-8")))
                stack.enter_context(self._held_out_videos(has_begun=path.is_file()))
                _ = self.ground_truth, self.datasets  # in the cache before the other processes ask for them
                self._check_base_model()
                self._check_prompts()
                check_collection(self.schedule, self.recipes)
                for recipe in self.recipes:
                    check_precision(recipe)
                if self.schedule.push is not None:
                    _ = self.repository
                self.output_dir.mkdir(parents=True, exist_ok=True)
                write_json(path, self.schedule.to_dict())
        state.wait_for_everyone()
        _ = self.ground_truth, self.datasets

    @contextlib.contextmanager
    def _held_out_videos(self, has_begun: bool) -> Iterator[None]:
        """The parts of the first source are there within, and stay if the block ends well."""
        source, share, seed = self.schedule.train[0].json, self.schedule.test_share, self.schedule.seed
        if share is None or is_split_of(self.split_folder, source, share, seed):
            yield
            return
        if has_begun and self.split_folder.exists():
            raise ValueError(
                f"{source} has changed since this run held out its test videos ({self.split_folder}): its tasks would "
                "not be tested on what they have not seen. Put the data back, give another output folder, or delete "
                "this run with --resume restart."
            )
        is_new = not self.output_dir.exists()
        try:
            split_ytvis(source, self.split_folder, share, seed)
            yield
        except BaseException:
            shutil.rmtree(self.split_folder, ignore_errors=True)
            if is_new:
                shutil.rmtree(self.output_dir, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def _former_run_deleted(self) -> Iterator[None]:
        """Within, the run in the output folder is out of the way. It is back if the block fails, else deleted."""
        parts = [*self.output_dir.glob("task-*"), self.output_dir / REPORT_FOLDER, self.split_folder]
        parts = [path for path in [*parts, self.output_dir / SCHEDULE_FILE] if path.exists()]
        if not parts:
            yield
            return
        aside = Path(tempfile.mkdtemp(prefix=".former-", dir=self.output_dir))
        try:
            for path in parts:
                path.rename(aside / path.name)
            yield
        except BaseException:
            for path in aside.iterdir():
                path.rename(self.output_dir / path.name)
            aside.rmdir()
            raise
        shutil.rmtree(aside)

    def _check_same_schedule(self, former: dict) -> None:
        ours, theirs = _what_tasks_depend_on(self.schedule.to_dict()), _what_tasks_depend_on(former)
        if changed := [key for key in ours if ours[key] != theirs.get(key)]:
            raise ValueError(
                f"{self.output_dir} holds the run of another schedule: it differs in {', '.join(changed)}. Its tasks "
                "build on each other, so they cannot go on with new values: give another output folder, or delete this "
                "run with --resume restart."
            )

    def _check_base_model(self) -> None:
        start = self.schedule.base_model
        if start is None:
            return
        remedy = "Give the folder of a task that was learnt, such as runs/eclipse/task-0, or a model of the Hub."
        config = load_config(start, None, f"`base_model`: {start}", remedy)
        if config.model_type != self.schedule.rules.system:
            raise ValueError(
                f"`base_model`: {start} is a {config.model_type} model, {self.schedule.method} needs "
                f"{self.schedule.rules.system}."
            )
        names = [config.id2label[index] for index in sorted(config.id2label)]
        if names != self.tasks[0]:
            raise ValueError(
                f"`base_model`: {start} knows the classes {', '.join(names)}, in this order; the base of the schedule "
                f"has {', '.join(self.tasks[0])}."
            )

    def _check_prompts(self) -> None:
        config = config_of_base(self.recipes[0], self.schedule.base_model)
        if self.schedule.rules.has_prompts and isinstance(config, CrispConfig):
            for names in self.tasks[1:]:
                config.check_num_prompts(self.schedule.prompts_of(names))

    # Task after task

    def run(self, resume: str) -> ContinualReport:
        if (num_threads := self.schedule.recipe.get("num_threads")) is not None:
            torch.set_num_threads(num_threads)
        join_processes(runs_on_cpu(self.schedule.recipe.get("device", "auto")))
        self.prepare(resume)
        state, evaluations, model = PartialState(), [], None
        for number in range(len(self.tasks)):
            path = self.folder(number) / EVALUATION_FILE
            is_new = not path.is_file()
            if is_new:
                if state.is_main_process:
                    names = ", ".join(self.tasks[number])
                    tqdm.write(f"Task {number} of {len(self.tasks) - 1}: {names}", file=sys.stderr)
                model = self._learn(number, model, evaluations)
            else:
                model = None
            evaluations.append(TaskEvaluation(**json.loads(path.read_text(encoding="utf-8"))))
            if self.schedule.push is not None and state.is_main_process and (is_new or not self._is_pushed(number)):
                self._push(number, model, evaluations)
            state.wait_for_everyone()
        report = self._report(evaluations)
        if state.is_main_process:
            report.save(self.output_dir / REPORT_FOLDER)
        return report

    def folder(self, number: int) -> Path:
        return self.output_dir / f"task-{number}"

    def _learn(self, number: int, model: PreTrainedModel | None, evaluations: list[TaskEvaluation]) -> PreTrainedModel:
        """Learn one task, evaluate, save.

        Args:
            model: as the task before left it; None to load it from its folder.
        """
        recipe, folder = self.recipes[number], self.folder(number)
        state = PartialState()
        folder.mkdir(parents=True, exist_ok=True)
        processor = self._processor(number)
        if number == 0 and self.schedule.base_model is not None:
            summary = read_training_summary(self.schedule.base_model) or {}
            model = AutoModelForVideoInstanceSegmentation.from_pretrained(
                self.schedule.base_model, **recipe.model.config
            )
            model.to(state.device)
        else:
            model, summary = self._train(number, model, recipe, folder, processor)
        self._protect(number, model, recipe, processor)
        model.eval()
        evaluation = self._evaluate(number, model, processor, recipe)
        if state.is_main_process:
            report = self._report([*evaluations, evaluation])
            report.save(self.output_dir / REPORT_FOLDER)
            self._save(number, model, processor, {**summary, **self._measured(evaluation)}, report)
            write_json(folder / EVALUATION_FILE, asdict(evaluation))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        state.wait_for_everyone()
        return model

    def _train(
        self,
        number: int,
        model: PreTrainedModel | None,
        recipe: Recipe,
        folder: Path,
        processor: CvisVideoProcessor,
    ) -> tuple[PreTrainedModel, dict]:
        checkpoint = find_checkpoint(folder / "checkpoints", "auto")
        set_seed(recipe.seed)
        if checkpoint is not None:
            model = AutoModelForVideoInstanceSegmentation.from_pretrained(checkpoint)
            if PartialState().is_main_process:
                tqdm.write(f"Continuing from {checkpoint}.", file=sys.stderr)
        elif number == 0:
            model = build_model(recipe, recipe.data.class_names)
        else:
            model = self._model_after(number - 1) if model is None else model
            model.add_task(self.tasks[number], self.schedule.prompts_of(self.tasks[number]))
        if recipe.model.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        learner, distillation = model, self.schedule.distillation_recipe
        if number > 0 and distillation is not None:
            learner = DistillingModel(model, self._model_after(number - 1), distillation)
        projection = self._projection(number, model)
        collate = build_collate(processor)
        trainer = Trainer(recipe, folder, learner, self.datasets[number], collate, None, checkpoint, projection)
        if trainer.accelerator.is_main_process:
            keep_processor(processor, trainer.checkpoint_dir)
        try:
            result = trainer.run()
            # A teacher beside the model is not part of it.
            return model, {**summarise(recipe, result, trainer), "num_parameters": model.num_parameters()}
        finally:
            trainer.finish()

    def _model_after(self, number: int) -> PreTrainedModel:
        return AutoModelForVideoInstanceSegmentation.from_pretrained(self.folder(number))

    def _projection(self, number: int, model: PreTrainedModel) -> GradientProjection | None:
        recipe = self.schedule.gradient_projection
        if recipe is None or number == 0 or (basis := model.protected_directions()) is None:
            return None
        return GradientProjection(model.projected_parameters(), basis, recipe.project_update)

    def _protect(self, number: int, model: PreTrainedModel, recipe: Recipe, processor: CvisVideoProcessor) -> None:
        """Have the model remember the directions that its tasks use; nothing to do after the last one."""
        projection = self.schedule.gradient_projection
        if projection is None or number == len(self.tasks) - 1:
            return
        if number == 0 and self.schedule.base_model is not None and model.protected_directions() is not None:
            return  # they came with the base
        directions = collect_directions(
            model,
            self.datasets[number],
            processor,
            projection.space,
            projection.threshold,
            projection.num_clips,
            projection.centre,
        )
        model.protect_directions(directions)

    def _evaluate(self, number: int, model: PreTrainedModel, processor, recipe: Recipe) -> TaskEvaluation | None:
        seen = [name for names in self.tasks[: number + 1] for name in names]
        categories = [category for category in self.ground_truth["categories"] if category["name"] in seen]
        videos = {"videos": self.ground_truth["videos"], "categories": categories}
        results = predict_on_processes(model, processor, videos, self.test_source.images, recipe.evaluation)
        if not PartialState().is_main_process:
            return None
        write_json(self.folder(number) / RESULTS_FILE, results)
        return evaluate_after_task(
            self.ground_truth, results, self.tasks, number, self.schedule.report.forgetting_videos
        )

    def _measured(self, evaluation: TaskEvaluation) -> dict:
        """Of a task's training summary, what its model card shows as measured."""
        counts = [len(names) for names in self.tasks]
        learnt, classes = sum(counts[: evaluation.after + 1]), self.schedule.report.evaluate_classes
        scope = {
            "all": f"all {sum(counts)} classes, {learnt} of them learnt",
            "seen": f"the {learnt} classes learnt so far",
            "current": f"the {counts[evaluation.after]} classes of this task",
        }[classes]
        return {"metrics": evaluation.overall[classes], "dataset": f"{self.test_source.json}, over {scope}"}

    def _report(self, evaluations: list[TaskEvaluation]) -> ContinualReport:
        settings = self.schedule.report
        return ContinualReport(
            self.tasks[: len(evaluations)],
            evaluations,
            evaluate_classes=settings.evaluate_classes,
            undefined=settings.undefined,
            num_classes=settings.num_classes,
        )

    def _save(self, number: int, model, processor, summary: dict, report: ContinualReport) -> None:
        folder, card = self.folder(number), {"report": report, "license": self._license}
        if self._is_adapter(number):
            model.save_task_adapter(folder, processor, base=self.folder(0), training_summary=summary, **card)
        else:
            save_model_folder(model, processor, folder, summary, **card)

    def _is_pushed(self, number: int) -> bool:
        """Whether the repository holds the weights of a task that is finished."""
        name = ADAPTER_WEIGHTS_FILE if self._is_adapter(number) else SAFE_WEIGHTS_NAME
        try:
            files = HfApi().get_paths_info(self.repository, name, revision=self._revision(number))
        except RevisionNotFoundError:
            return False
        ours = hashlib.sha256((self.folder(number) / name).read_bytes()).hexdigest()
        return [file.lfs and file.lfs.sha256 for file in files] == [ours]

    def _push(self, number: int, model: PreTrainedModel | None, evaluations: list[TaskEvaluation]) -> None:
        """Push a task that is finished.

        Args:
            model: as it was left by the task; None to load it from its folder.
        """
        model = self._model_after(number) if model is None else model
        processor = self._processor(number)
        card = {
            "report": self._report(evaluations),
            "training_summary": read_training_summary(self.folder(number)),
            "license": self._license,
        }
        if self._is_adapter(number):
            model.push_task_adapter(self.repository, processor, base=self.repository, base_revision="main", **card)
        else:
            push_to_hub(model, processor, self.repository, revision=self._revision(number), **card)

    def _processor(self, number: int) -> CvisVideoProcessor:
        """Build the video processor of a task, with the pixels of the task before it, or of the base model."""
        checkpoints = self.folder(number) / "checkpoints"
        start = self.schedule.base_model if number == 0 else self.folder(number - 1)
        return build_processor(self.recipes[number], checkpoints if checkpoints.is_dir() else None, start)

    def _revision(self, number: int) -> str | None:
        return task_name(number) if number else None

    def _is_adapter(self, number: int) -> bool:
        return number > 0 and self.schedule.rules.has_prompts

    @property
    def _license(self) -> str:
        return "unknown" if self.schedule.push is None else self.schedule.push.license


def _what_tasks_depend_on(schedule: dict) -> dict:
    """A schedule without what can change after tasks were learnt: where they go, and how their evaluations are read."""
    kept = {key: value for key, value in schedule.items() if key not in ("output_dir", "push", "report")}
    return {**kept, "report.forgetting_videos": schedule["report"]["forgetting_videos"]}


__all__ = ["train_continual"]
