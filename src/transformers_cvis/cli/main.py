"""The command line: `transformers-cvis segment | train | evaluate | push | validate | import-data | make-data | ...`.

Each command is a function that takes the parsed arguments and returns the exit code; it imports what it needs, so that
`--help` answers at once. Results go to standard output, progress and messages to standard error.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import __version__

DTYPES = ("float32", "bfloat16", "float16")


class CommandError(Exception):
    """A failure that has been explained to the user already, or that its message explains."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("transformers-cvis: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print_error(describe(error))
        return 1


def describe(error: Exception) -> str:
    """One line for a failure; its kind too where it is not one that messages are written for."""
    message = " ".join(str(error).split())
    expected = isinstance(error, (CommandError, ValueError, OSError, ImportError, FloatingPointError))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return message if expected and message else f"{type(error).__name__}: {message} (`--debug` shows where)"


def print_error(message: str) -> None:
    print(f"transformers-cvis: error: {message}", file=sys.stderr)


# Parsers


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transformers-cvis",
        description="Detect, segment and track every object of a video; train, measure and publish models that do so.",
        epilog="`transformers-cvis COMMAND --help` explains a command. Start with: transformers-cvis segment my.mp4",
    )
    parser.add_argument("--version", action="version", version=f"transformers-cvis {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_segment(commands)
    add_train(commands)
    add_train_continual(commands)
    add_evaluate(commands)
    add_push(commands)
    add_validate(commands)
    add_import_data(commands)
    add_split_data(commands)
    add_make_data(commands)
    add_convert(commands)
    return parser


def add_overrides(parser: argparse.ArgumentParser, what: str, example: str) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=f"{what}, e.g. {example}; may be repeated",
    )


def add_command(commands, name: str, run, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    default = "" if required else " (default: the small model that ships with the package; it knows moving shapes only)"
    parser.add_argument("--model", metavar="MODEL", help=f"folder of a saved model, or its name on the Hub{default}")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hub, e.g. task-1")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model (default: float32)")


def positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def frame_size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise argparse.ArgumentTypeError(f"must look like HEIGHTxWIDTH, e.g. 96x160, got {text!r}")
    return int(height), int(width)


# Shared by commands


def load_model(options: argparse.Namespace):
    """Model in evaluation mode on its device, and its video processor."""
    import torch
    from transformers import AutoVideoProcessor

    from ..assets import default_model_path
    from ..modeling.auto import IMAGE_MODELS, MODELS, AutoModelForVideoInstanceSegmentation, load_config

    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise CommandError(f"--device {options.device}: use cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError(f"--device {options.device}: torch sees no GPU here. Use --device cpu.")
    name = options.model
    if name is None:
        name = str(default_model_path())
        print("No --model given: using the embedded GenVIS, which knows moving shapes only.", file=sys.stderr)
    remedy = "Give the folder of a saved model, or the name of one on the Hub."
    config = load_config(name, options.revision, f"--model {name}", remedy)
    if type(config) not in (*MODELS, *IMAGE_MODELS):
        raise CommandError(
            f"{name} is a {config.model_type!r} model, which is no video instance segmentation model. A recipe with "
            "`model.init_from` can train one from a Mask2Former checkpoint (`transformers-cvis train --help`)."
        )
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(
        name, config=config, revision=options.revision, dtype=getattr(torch, options.dtype)
    )
    model.check_trained()
    video_processor = AutoVideoProcessor.from_pretrained(name, revision=options.revision)
    return model.to(device).eval(), video_processor


def writable_folder(path: str) -> Path:
    """The folder, made if needed, after a trial write: found out before the work, not after it."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"Cannot write into the folder {folder}: {error.strerror}.") from error
    return folder


def check_new_files(paths: Sequence[Path], overwrite: bool) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise CommandError(
            f"{', '.join(existing[:3])}{more} exists already: choose another --out, or replace it with --overwrite."
        )


def write_json(content, path: Path) -> None:
    from ..processing import complete_file

    with complete_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())


# segment


def add_segment(commands) -> None:
    parser = add_command(
        commands,
        "segment",
        run_segment,
        "find, segment and track the objects of videos",
        "Segments videos: prints a table of the tracks found, and writes into the folder --out, for each video,\n"
        "an annotated mp4 and a contact sheet (png), and for all of them one results.json in YouTube-VIS format.",
        "  transformers-cvis segment my.mp4\n"
        "  transformers-cvis segment a.mp4 b.mp4 --model you/your-model --revision task-1 --threshold 0.5",
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video file (mp4, webm, gif), URL, or folder of images"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--clip-length",
        type=positive_int,
        metavar="N",
        help="frames per step: 1 is online; more frames see more context and give one answer per N frames "
        "(default: what the model was made for)",
    )
    parser.add_argument(
        "--threshold", type=probability, default=0.3, metavar="P", help="least score of a track (default: 0.3)"
    )
    parser.add_argument(
        "--max-frames", type=positive_int, metavar="N", help="stop after N frames of a video (default: all)"
    )
    parser.add_argument("--stride", type=positive_int, default=1, metavar="N", help="use every N-th frame (default: 1)")
    parser.add_argument(
        "--out", default="segmented", metavar="FOLDER", help="where results are written (default: segmented)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where the json is written instead; - prints it in place of the table"
    )
    parser.add_argument("--no-video", action="store_true", help="write no mp4 and no contact sheet")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")


def run_segment(options: argparse.Namespace) -> int:
    folder = writable_folder(options.out)
    json_path = folder / "results.json"
    if options.json is not None:
        json_path = None if options.json == "-" else Path(options.json).expanduser()
        if json_path is not None:
            if json_path.suffix != ".json":
                raise CommandError(f"--json {options.json}: the name of the file must end in .json (- prints it).")
            writable_folder(str(json_path.parent))
    names = output_names(options.videos)
    pictures = [] if options.no_video else [folder / f"{name}{suffix}" for name in names for suffix in (".mp4", ".png")]
    check_new_files([*pictures, *([json_path] if json_path else [])], options.overwrite)
    inputs = {Path(video).expanduser().resolve() for video in options.videos}
    if clash := [str(path) for path in pictures if path.resolve() in inputs]:
        raise CommandError(f"{clash[0]} is one of the videos and would be replaced: choose another --out.")

    from ..processing import open_video, render_video, segment_video

    sampling = {"stride": options.stride, "max_frames": options.max_frames}
    for video in options.videos:  # a name that is no video is found out before the model is loaded
        open_video(video, **sampling)
    model, video_processor = load_model(options)

    results, failed = [], 0
    for video_id, (video, name) in enumerate(zip(options.videos, names, strict=True), start=1):
        started = time.perf_counter()
        try:
            segmentation = segment_video(
                model,
                video_processor,
                video,
                clip_length=options.clip_length,
                threshold=options.threshold,
                progress=True,
                **sampling,
            )
            if json_path is not None:
                print(track_table(video, segmentation, time.perf_counter() - started))
            if not options.no_video:
                print(f"drawing {name}.mp4 and {name}.png", file=sys.stderr)
                render_video(video, segmentation, folder / f"{name}.mp4", folder / f"{name}.png", **sampling)
        except (ValueError, OSError) as error:
            if options.debug or len(options.videos) == 1:
                raise
            print_error(f"{video}: {describe(error)}")
            failed += 1
            continue
        results.append((video_id, video, segmentation))

    content = ytvis_json(results, model.config.id2label)
    if json_path is None:
        print(json.dumps(content))
    else:
        write_json(content, json_path)
        print(f"Results: {json_path}" + ("" if options.no_video else f", pictures and videos in {folder}{os.sep}"))
    return 1 if failed else 0


def output_names(videos: Sequence[str]) -> list[str]:
    """A file name without suffix for each video: its own, numbered where two are called the same."""
    names: list[str] = []
    for video in videos:
        path = Path(video.rstrip("/"))
        base = (path.name if path.is_dir() else path.stem) or "video"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def track_table(video: str, segmentation, seconds: float) -> str:
    """What was found in a video, one line per track; times are those of the first and last frame with a mask."""
    height, width = segmentation.size
    speed = segmentation.num_frames / max(seconds, 1e-9)
    count = f"{len(segmentation.tracks)} track{'' if len(segmentation.tracks) == 1 else 's'}"
    lines = [
        f"{video}: {count} in {segmentation.num_frames} frames of {width}x{height} "
        f"({seconds:.1f} s, {speed:.1f} frames/s)"
    ]
    if not segmentation.tracks:
        return lines[0] + "\n  Nothing scored above the threshold: try a lower --threshold, or another --model."
    width = max(len("label"), *(len(track.label) for track in segmentation.tracks))
    lines.append(f"  {'track':>5}  {'label':<{width}}  score  frames  from - to")
    for number, track in enumerate(segmentation.tracks, start=1):
        visible = [index for index, mask in enumerate(track.segmentations) if mask is not None]
        span = f"{visible[0]} - {visible[-1]}"
        if segmentation.fps:
            span += f"  ({visible[0] / segmentation.fps:.1f} s - {visible[-1] / segmentation.fps:.1f} s)"
        lines.append(f"  {number:>5}  {track.label:<{width}}  {track.score:5.2f}  {len(visible):>6}  {span}")
    return "\n".join(lines)


def ytvis_json(segmentations: Sequence[tuple], id2label: dict[int, str]) -> dict:
    """Segmented videos as one YouTube-VIS json; its annotations carry a score, and None where the object is absent.

    Args:
        segmentations: triples of video id, source and `VideoSegmentation`.
    """
    videos, annotations = [], []
    for video_id, source, segmentation in segmentations:
        height, width = segmentation.size
        shape = {"height": height, "width": width, "length": segmentation.num_frames}
        file_names = [f"{source}#{frame}" for frame in range(segmentation.num_frames)]
        videos.append({"id": video_id, "name": source, "fps": segmentation.fps, **shape, "file_names": file_names})
        for track in segmentation.tracks:
            boxes = [box and [box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in track.boxes]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video_id,
                    "category_id": track.label_id + 1,
                    "score": round(track.score, 6),
                    "iscrowd": 0,
                    **shape,
                    "segmentations": track.segmentations,
                    "bboxes": boxes,
                }
            )
    categories = [{"id": label_id + 1, "name": id2label[label_id]} for label_id in sorted(id2label)]
    return {"videos": videos, "categories": categories, "annotations": annotations}


# train


def add_train(commands) -> None:
    parser = add_command(
        commands,
        "train",
        run_train,
        "train a model from a recipe",
        "Trains a model as a recipe (YAML) says. An interrupted run that is started again with the same command\n"
        "continues from its last checkpoint. Recipes that ship with the package go by their name, without a path;\n"
        "`--list` shows them.",
        "  transformers-cvis make-data moving-shapes moving_shapes\n"
        "  transformers-cvis train vita_moving_shapes\n"
        "  transformers-cvis train my.yaml --out runs/mine --set max_steps=2000 --set data.num_workers=2",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="YAML file, or name of a shipped recipe")
    parser.add_argument("--list", action="store_true", help="list the shipped recipes, say where they are, and stop")
    parser.add_argument("--out", metavar="FOLDER", help="where the model and checkpoints go (default: from the recipe)")
    add_overrides(parser, "change a value of the recipe", "optimizer.learning_rate=5e-5")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|restart|FOLDER",
        help="continue from the last checkpoint in --out if there is one (auto, the default), delete them and start "
        "anew (restart), or continue from the checkpoint in FOLDER",
    )


def run_train(options: argparse.Namespace) -> int:
    from ..training import train
    from ..training.recipe import RECIPES_DIRECTORY

    if options.list:
        print_shipped(RECIPES_DIRECTORY)
        return 0
    if options.recipe is None:
        raise CommandError("Name a recipe: a YAML file, or one of `transformers-cvis train --list`.")
    if options.out is not None:
        writable_folder(options.out)
    summary = train(options.recipe, options.out, resume=options.resume, overrides=options.overrides)
    for name, value in summary["metrics"].items():
        print(f"{name} {value:.4f}")
    return 0


def print_shipped(folder: Path) -> None:
    """A line for each YAML file of a folder: its name, and what it is."""
    from ..training.recipe import describe_shipped

    descriptions = describe_shipped(folder)
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        print(f"{name:<{width}}  {description}")
    print(f"The files are in {folder}{os.sep}", file=sys.stderr)


# train-continual


def add_train_continual(commands) -> None:
    parser = add_command(
        commands,
        "train-continual",
        run_train_continual,
        "train a model that learns new classes task by task",
        "Trains a model task after task as a schedule (YAML) says, and evaluates it after each. The folder --out gets\n"
        "the base as task-0, then what each task added as task-1, task-2, ..., each a folder to segment with, and\n"
        "report/ with tables and plots of what was learnt and forgotten. With `push` in the schedule every task is\n"
        "published as a revision. An interrupted run that is started again with the same command goes on where it\n"
        "was. Schedules that ship with the package go by their name; `--list` shows them.",
        "  transformers-cvis train-continual my.yaml --out runs/mine\n"
        "  transformers-cvis train-continual crisp_r50_ytvis2019_20-2 --set method=eclipse --out runs/eclipse\n"
        "  accelerate launch --num_processes 2 -m transformers_cvis.cli.main train-continual hvpl_r50_ovis_15-5",
    )
    parser.add_argument("schedule", nargs="?", metavar="SCHEDULE", help="YAML file, or name of a shipped schedule")
    parser.add_argument("--list", action="store_true", help="list the shipped schedules, say where they are, and stop")
    parser.add_argument("--out", metavar="FOLDER", help="where everything goes (default: from the schedule)")
    add_overrides(parser, "change a value of the schedule", "classes.split=20-2 or recipe.batch_size=8")
    parser.add_argument(
        "--resume",
        default="auto",
        choices=["auto", "restart"],
        help="go on in --out where a run was interrupted (auto, the default), or delete it and start anew (restart)",
    )


def run_train_continual(options: argparse.Namespace) -> int:
    from ..continual import train_continual
    from ..continual.schedule import SCHEDULES_DIRECTORY

    if options.list:
        print_shipped(SCHEDULES_DIRECTORY)
        return 0
    if options.schedule is None:
        raise CommandError("Name a schedule: a YAML file, or one of `transformers-cvis train-continual --list`.")
    if options.out is not None:
        writable_folder(options.out)
    report = train_continual(options.schedule, options.out, resume=options.resume, overrides=options.overrides)
    print(report.to_markdown(), end="")
    return 0


# evaluate


def add_evaluate(commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "measure video AP and AR against a ground truth",
        "Measures average precision and recall of tracks, as YouTube-VIS defines them: either of results that exist\n"
        "(--results), or of a model which first segments every video of the data set (--images, with --model).",
        "  transformers-cvis evaluate valid.json --results results.json\n"
        "  transformers-cvis evaluate valid.json --images JPEGImages --model you/your-model",
    )
    parser.add_argument("ground_truth", metavar="JSON", help="ground truth in YouTube-VIS format")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--results", metavar="FILE", help="results to measure: of `transformers-cvis segment`, or a results.json list"
    )
    source.add_argument("--images", metavar="FOLDER", help="the frames of the data set: segment them with --model")
    add_model_arguments(parser)
    parser.add_argument("--clip-length", type=positive_int, metavar="N", help="frames per step (default: the model's)")
    parser.add_argument(
        "--top-k",
        type=positive_int,
        default=10,
        metavar="N",
        help="tracks per video (default: 10, as published for YouTube-VIS; OVIS is published with 20)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument(
        "--submission", metavar="ZIP", help="also write the results as a zip for the servers of YouTube-VIS and OVIS"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run_evaluate(options: argparse.Namespace) -> int:
    outputs = [Path(path).expanduser() for path in (options.json, options.submission) if path is not None]
    for path in outputs:
        writable_folder(str(path.parent))
    check_new_files(outputs, options.overwrite)

    from ..evaluation import GroundTruth, evaluate_ytvis, predict_dataset, write_submission

    ground_truth = GroundTruth.read(options.ground_truth)
    labelled = bool(ground_truth.annotations)
    if labelled or options.submission is None:
        ground_truth.check_annotations()
    results = options.results
    if results is None:
        model, video_processor = load_model(options)
        results = predict_dataset(
            model,
            video_processor,
            ground_truth,
            options.images,
            clip_length=options.clip_length,
            top_k=options.top_k,
            progress=True,
        )
    if options.submission is not None:
        write_submission(results, ground_truth, options.submission)
        if not labelled:
            print(f"{options.submission} is written; {options.ground_truth} has no annotations to measure against.")
            return 0
    evaluation = evaluate_ytvis(ground_truth, results)
    print(evaluation)
    if options.json is not None:
        per_category = {evaluation.categories[number]: values for number, values in evaluation.per_category.items()}
        write_json({"summary": evaluation.summary, "per_category": per_category}, Path(options.json).expanduser())
    return 0


# push


def add_push(commands) -> None:
    parser = add_command(
        commands,
        "push",
        run_push,
        "publish a saved model on the Hub",
        "Uploads model, processor and a generated model card to one revision of a Hub repository, in one commit.\n"
        "What a task added (a folder task-1, task-2, ... of `train-continual`) goes to the revision of that name;\n"
        "push its base, task-0, before. Log in first with `hf auth login`.",
        "  transformers-cvis push runs/shapes you/shapes --license apache-2.0\n"
        "  transformers-cvis push runs/mine/task-0 you/mine && transformers-cvis push runs/mine/task-1 you/mine",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a saved model, as `transformers-cvis train` writes it")
    parser.add_argument("repo_id", metavar="REPOSITORY", help="owner/name on the Hub; made if it does not exist")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to; made if needed (default: main, for a task its name)"
    )
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="licence of the weights by its Hub name, e.g. apache-2.0 (default: unknown)",
    )
    parser.add_argument(
        "--base-model",
        metavar="REPOSITORY",
        help="model which the training started from; of a task its base, where it is in another repository",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def run_push(options: argparse.Namespace) -> int:
    from transformers import AutoVideoProcessor

    from ..evaluation import ContinualReport
    from ..hub.push import push_to_hub, read_training_summary
    from ..modeling.auto import AutoModelForVideoInstanceSegmentation
    from ..modeling.tasks.adapters import ADAPTER_CONFIG_FILE

    if not (Path(options.folder) / "config.json").is_file():
        raise CommandError(f"{options.folder} holds no saved model: there is no config.json in it.")
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(options.folder)
    video_processor = AutoVideoProcessor.from_pretrained(options.folder)
    report_path = Path(options.folder) / "report.json"
    common = {
        "revision": options.revision,
        "commit_message": options.message,
        "license": options.license,
        "private": options.private,
        "create_pr": options.create_pr,
        "training_summary": read_training_summary(options.folder),
        "report": ContinualReport.read(report_path) if report_path.is_file() else None,
    }
    if (Path(options.folder) / ADAPTER_CONFIG_FILE).is_file():
        base = {"base": options.base_model} if options.base_model else {}
        commit = model.push_task_adapter(options.repo_id, video_processor, **base, **common)
    else:
        commit = push_to_hub(model, video_processor, options.repo_id, base_model=options.base_model, **common)
    print(commit.pr_url or commit.commit_url)
    return 0


# validate


def add_validate(commands) -> None:
    parser = add_command(
        commands,
        "validate",
        run_validate,
        "check a data set of your own",
        "Checks a json in YouTube-VIS or COCO format and lists what is wrong, with the ids of videos or images and of\n"
        "annotations. The exit code is 1 if there is anything.",
        "  transformers-cvis validate train.json --images JPEGImages",
    )
    parser.add_argument("json", metavar="JSON", help="annotations in YouTube-VIS or COCO format")
    parser.add_argument("--images", metavar="FOLDER", help="also check that the pictures are there")
    parser.add_argument("--limit", type=positive_int, default=20, metavar="N", help="list at most N (default: 20)")


def run_validate(options: argparse.Namespace) -> int:
    from ..data import validate_annotations

    problems = validate_annotations(options.json, options.images, limit=options.limit)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{options.json}: no problem found")
    elif len(problems) == options.limit:
        print(f"... stopped after {options.limit} problems; there may be more")
    return 1 if problems else 0


# import-data


def add_import_data(commands) -> None:
    parser = add_command(
        commands,
        "import-data",
        run_import_data,
        "bring a data set of another form into YouTube-VIS format",
        "Writes a json in YouTube-VIS format; the pictures stay where they are. SOURCE is, for\n"
        "  masks  a folder of masks, as of DAVIS and YouTube-VOS: a folder per video, in it a PNG per frame, whose\n"
        "         pixel values are instance ids; --frames holds the frames, in folders and files of the same names\n"
        "  coco   a json in COCO format, whose images become videos of one frame: for `evaluate`. Training takes COCO\n"
        "         json as it is (`kind: images` in a recipe), and so does `validate`.",
        "  transformers-cvis import-data masks Annotations --frames JPEGImages --classes meta.json --out train.json\n"
        "  transformers-cvis import-data coco instances_val.json --out valid.json",
    )
    parser.add_argument("kind", choices=["masks", "coco"], help="what the source is")
    parser.add_argument("source", metavar="SOURCE", help="folder of masks, or COCO json")
    parser.add_argument("--out", required=True, metavar="JSON", help="the file to write")
    parser.add_argument("--frames", metavar="FOLDER", help="with masks: the frames that they belong to")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help='with masks: what the ids are, as json {"video": {"1": "dog"}}, as the meta.json of YouTube-VOS, or as '
        "csv with the columns video,id,class (default: the folder says it: dog_0001 and dog/0001 are dogs)",
    )
    parser.add_argument(
        "--valid",
        metavar="JSON",
        help="with masks: hold out a fifth of the videos of each class there, to evaluate on",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run_import_data(options: argparse.Namespace) -> int:
    if options.kind == "masks" and options.frames is None:
        raise CommandError("Masks need their frames: give the folder with --frames.")
    if options.kind == "coco" and (options.frames or options.classes or options.valid):
        raise CommandError("--frames, --classes and --valid are for masks; a COCO json says what it is.")
    outputs = [Path(path).expanduser() for path in (options.out, options.valid) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise CommandError("--out and --valid are the same file: give each its own.")
    for path in outputs:
        writable_folder(str(path.parent))
    check_new_files(outputs, options.overwrite)

    from ..data import read_annotations, read_mask_folders, split_annotations

    if options.kind == "coco":
        contents = [read_annotations(options.source, kind="images")]
    else:
        content = read_mask_folders(options.frames, options.source, options.classes, progress=True)
        contents = [content] if options.valid is None else split_annotations(content)
    for path, content in zip(outputs, contents, strict=True):
        write_json(content, path)
        print(f"{path}: {describe_annotations(content)}")
    return 0


def describe_annotations(content: dict) -> str:
    counts = Counter(annotation["category_id"] for annotation in content["annotations"])
    categories = ", ".join(f"{category['name']} {counts[category['id']]}" for category in content["categories"])
    frames = sum(video["length"] for video in content["videos"])
    return f"{len(content['videos'])} videos, {frames} frames; objects: {categories}"


# split-data


def add_split_data(commands) -> None:
    parser = add_command(
        commands,
        "split-data",
        run_split_data,
        "hold out a part of a data set to evaluate on",
        "Splits a json in YouTube-VIS format by videos into train_split.json and test_split.json, with every class in\n"
        "both parts wherever it can be: for benchmarks that hide the labels of their own test videos. The same\n"
        "arguments give the same split.",
        "  transformers-cvis split-data ytvis_2019/train.json --out splits --test-share 0.2",
    )
    parser.add_argument("json", metavar="JSON", help="annotations in YouTube-VIS format")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets both files")
    parser.add_argument(
        "--test-share", type=probability, default=0.2, metavar="P", help="share of the videos held out (default: 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another split (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run_split_data(options: argparse.Namespace) -> int:
    folder = writable_folder(options.out)
    check_new_files([folder / f"{name}_split.json" for name in ("train", "test")], options.overwrite)

    from ..data import split_ytvis

    for path in split_ytvis(options.json, folder, options.test_share, options.seed):
        print(f"{path}: {describe_annotations(json.loads(path.read_text(encoding='utf-8')))}")
    return 0


# make-data


def add_make_data(commands) -> None:
    parser = add_command(
        commands,
        "make-data",
        run_make_data,
        "generate a data set to try things on",
        "Generates videos of moving shapes with exact masks, in YouTube-VIS format: train.json, valid.json and\n"
        "JPEGImages/. The same arguments give the same data set.",
        "  transformers-cvis make-data moving-shapes data/shapes --train-videos 200 --valid-videos 20",
    )
    parser.add_argument("kind", choices=["moving-shapes"], help="what to generate")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder")
    parser.add_argument("--train-videos", type=positive_int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--valid-videos", type=positive_int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--frames", type=positive_int, default=16, metavar="N", help="frames per video (default: 16)")
    parser.add_argument("--size", type=frame_size, default=(96, 160), metavar="HxW", help="in pixels (default: 96x160)")
    parser.add_argument(
        "--categories", type=positive_int, metavar="N", help="kinds of shapes, the first N of 10 (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other videos (default: 0)")
    parser.add_argument("--backgrounds", metavar="FOLDER", help="pictures to use as background of half of the videos")
    parser.add_argument("--mp4", action="store_true", help="also write each video as mp4, in videos/")


def run_make_data(options: argparse.Namespace) -> int:
    from ..data import SHAPES, make_moving_shapes

    if options.categories is not None and options.categories > len(SHAPES):
        raise CommandError(f"--categories {options.categories}: there are {len(SHAPES)} kinds of shapes.")
    folder = make_moving_shapes(
        options.folder,
        num_train_videos=options.train_videos,
        num_valid_videos=options.valid_videos,
        num_frames=options.frames,
        size=options.size,
        seed=options.seed,
        categories=list(SHAPES)[: options.categories],
        background_dir=options.backgrounds,
        write_mp4=options.mp4,
        progress=True,
    )
    print(folder)
    return 0


# convert


def add_convert(commands) -> None:
    from ..conversion import SYSTEMS

    parser = add_command(
        commands,
        "convert",
        run_convert,
        "turn a checkpoint released by research code into a model folder",
        "Converts a checkpoint with Detectron2's names into a folder with configuration, safetensors, video processor\n"
        "and card. Backbone, sizes, number of classes and tasks are read from the tensors; what these do not tell is\n"
        "given with --set. Every tensor has to find its place, and every weight its tensor. Nothing in a file is run.",
        "  transformers-cvis convert genvis_r50_ytvis2019.pth --system genvis --classes train.json --out genvis-r50\n"
        "  transformers-cvis convert model_final_3c8ec9.pkl --system mask2former --out mask2former-r50\n"
        "  transformers-cvis convert step4/model_final.pth --system hvpl --set calibration_deltas=[0.4,0.5] --out hvpl",
    )
    parser.add_argument("source", metavar="SOURCE", help=".pth, .pkl or .safetensors")
    parser.add_argument(
        "--system",
        required=True,
        choices=list(SYSTEMS),
        metavar="NAME",
        help=f"what the checkpoint is of: {', '.join(SYSTEMS)}. An image checkpoint of Mask2Former becomes one of "
        "transformers as mask2former, and one that tracks as minvis",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the model")
    parser.add_argument(
        "--task",
        type=int,
        metavar="N",
        help="of a model that learns by tasks (hvpl, crisp): what it was after task N, 0 for the base "
        "(default: the last one)",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names: a YouTube-VIS json of the data set, or a text file with one name per line",
    )
    add_overrides(parser, "a configuration field", "clip_length=3 or encoder_window_size=6")
    parser.add_argument(
        "--short-side",
        type=positive_int,
        metavar="N",
        help="short side of videos in pixels (default: as published for system and backbone, 360 to 480)",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out tensors that have no place, and start weights anew that the file lacks, e.g. to train on",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="also write there, as json, what became of every tensor; replaced if it exists"
    )
    parser.add_argument(
        "--license", default="unknown", metavar="ID", help="licence of the weights by its Hub name (default: unknown)"
    )


def run_convert(options: argparse.Namespace) -> int:
    import yaml

    from ..conversion import ConversionError, convert_checkpoint

    settings = {}
    for override in options.overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise CommandError(f"--set {override}: must look like KEY=VALUE, e.g. clip_length=3.")
        settings[key] = yaml.safe_load(value)
    report_path = Path(options.report).expanduser() if options.report is not None else None
    if report_path is not None:
        writable_folder(str(report_path.parent))
    failure = None
    try:
        report = convert_checkpoint(
            options.source,
            options.out,
            options.system,
            class_names=read_class_names(options.classes) if options.classes is not None else None,
            task=options.task,
            settings=settings,
            short_side=options.short_side,
            allow_missing=options.allow_missing,
            license=options.license,
        )
    except ConversionError as error:
        failure, report = error, error.report
    print(report, file=sys.stderr if failure else sys.stdout)
    if report_path is not None:
        write_json({"source": options.source, "system": options.system, **dataclasses.asdict(report)}, report_path)
    if failure:
        raise failure
    print(f"Model: {options.out}")
    return 0


def read_class_names(path: str) -> list[str]:
    """Names in label order, from a YouTube-VIS json (by rising category id) or a text file (by line)."""
    text = Path(path).expanduser().read_text(encoding="utf-8")
    if not path.endswith(".json"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        categories = json.loads(text)["categories"]
        return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is no YouTube-VIS json with 'categories'.") from error


if __name__ == "__main__":
    sys.exit(main())
