# SPDX-License-Identifier: Apache-2.0
"""Command line `transformers-cvis`: the parsers and `main`.

This module lies outside the package and imports only the standard library, so that help, the version and wrong usage
answer at once. Each command is a function `run_x(options) -> int` in `transformers_cvis.cli`, imported when it runs.

Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = "transformers-cvis"
PACKAGE = Path(__file__).parent / "transformers_cvis"
RECIPES = PACKAGE / "training" / "recipes"
SCHEDULES = PACKAGE / "continual" / "schedules"

# Values of the package, which is not imported here. A test compares them.
DTYPES = ("float32", "bfloat16", "float16")
CONVERTED_SYSTEMS = ("vita", "genvis", "hvpl", "crisp", "spvis", "dvis", "minvis", "mask2former-vis", "mask2former")
THRESHOLD = 0.3
TOP_K = 10

# Patterns of inputs that are not paths.
URL = "(?i:[a-z][a-z0-9+.-]+://.*)"
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"

# Module of `transformers_cvis.cli` that holds a command, if its name differs from that of the command.
MODULES = {"train-continual": "train", **dict.fromkeys(("validate", "import-data", "split-data", "make-data"), "data")}

OVERWRITE = "replace existing files"  # help of a flag that several commands have


class CommandError(Exception):
    """A failure whose message is written for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: words after the name of the program; None takes those of this process.

    Raises:
        SystemExit: help or the version was printed (code 0), or the usage is wrong (code 2).
        Exception: the command failed, and `--debug` is given.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.quiet and options.verbose:
        parser.error("--quiet and --verbose exclude each other: give one of them")
    try:
        if options.check is not None:
            options.check(options)
        check_inputs(options)
        name = MODULES.get(options.command, options.command)
        module = importlib.import_module(f"transformers_cvis.cli.{name}")
        common = importlib.import_module("transformers_cvis.cli.common")
        with common.messages(quiet=options.quiet, verbose=options.verbose):
            return getattr(module, f"run_{options.command.replace('-', '_')}")(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print_error(describe(error))
        return 1


def describe(error: Exception) -> str:
    """Return one line about a failure. It names the type of an error whose message is not written for users."""
    message = " ".join(str(error).split())
    expected = isinstance(error, (CommandError, ValueError, OSError, ImportError, FloatingPointError))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return message if expected and message else f"{type(error).__name__}: {message} (`--debug` shows where)"


def print_error(message: str) -> None:
    """Print the line that tells the user what failed."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)


# Inputs that must exist


class Input(NamedTuple):
    """An argument that must name an existing file or folder."""

    option: str  # name of the argument in messages
    destination: str  # name of the argument in the parsed options
    kind: str  # "file" (which may be a pipe), "folder" or "file or folder"
    unless: str  # regular expression of values that need not exist
    expected: str  # last words of the error, which tell what to give


def check_inputs(options: argparse.Namespace) -> None:
    """Check that the inputs of a command exist.

    Raises:
        FileNotFoundError: an input does not exist. The message names the option, the path, and what to give.
    """
    for option, destination, kind, unless, expected in options.inputs:
        given = getattr(options, destination)
        for text in [given] if isinstance(given, str) else given or []:
            path = os.path.expanduser(text)
            wrong_kind = {"file": os.path.isdir(path), "folder": not os.path.isdir(path)}.get(kind, False)
            if (wrong_kind or not os.path.exists(path)) and not re.fullmatch(unless, text):
                raise FileNotFoundError(f"{option}: No {kind} {text!r} found. Give {expected}.")


def check_yaml(kind: str, shipped: Path, options: argparse.Namespace) -> None:
    """Check that a recipe or schedule is given, as a file or by the name of one that ships with the package."""
    if options.list or options.fields is not None:
        return
    name = getattr(options, kind)
    if name is None:
        raise CommandError(f"Name a {kind}: a YAML file, or one of `{PROGRAM} {options.command} --list`.")
    if not Path(name).is_file() and not (shipped / f"{name}.yaml").is_file():
        names = sorted(path.stem for path in shipped.glob("*.yaml"))
        raise FileNotFoundError(f"No {kind} {name!r}: give a YAML file or one of {', '.join(names)}.")


def check_import_data(options: argparse.Namespace) -> None:
    """Check that the options of `import-data` fit the kind of its source."""
    if options.kind == "masks" and options.frames is None:
        raise CommandError("Masks need their frames: give the folder with --frames.")
    if options.kind == "coco" and (options.frames or options.classes or options.valid):
        raise CommandError("--frames, --classes and --valid are for masks: leave them out for a COCO JSON.")
    if options.valid is not None and Path(options.valid) == Path(options.out):
        raise CommandError("--out and --valid are the same file: give each its own.")


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def probability(text: str) -> float:
    """Parse a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def frame_size(text: str) -> tuple[int, int]:
    """Parse `HEIGHTxWIDTH`, in pixels."""
    height, separator, width = text.lower().partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise argparse.ArgumentTypeError(f"must look like HEIGHTxWIDTH, e.g. 96x160, got {text!r}")
    return int(height), int(width)


# Parsers


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the program with all its commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Detect, segment and track the objects of videos. Train, evaluate and publish models for this.",
        epilog="`transformers-cvis COMMAND --help` explains a command. Start with: transformers-cvis segment my.mp4",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {read_version()}")
    _add_common_flags(parser, default=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for add_command in (
        *(_add_segment, _add_train, _add_train_continual, _add_evaluate, _add_push),
        *(_add_validate, _add_import_data, _add_split_data, _add_make_data, _add_convert),
    ):
        add_command(commands)
    return parser


def read_version() -> str:
    """Read the version of the package without importing it."""
    text = (PACKAGE / "_version.py").read_text(encoding="utf-8")
    return re.search('^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def _add_command(commands: Any, name: str, summary: str, description: str, example: str, check: Any = None) -> Any:
    """Add a command and return its parser. `check` raises an error if the parsed options do not fit together."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(check=check, inputs=())
    # A default would overwrite a flag that was given before the name of the command.
    _add_common_flags(parser, default=argparse.SUPPRESS)
    return parser


def _add(parser: Any, name: str, metavar: str, text: str, **settings: Any) -> None:
    """Add an argument with a value and the help `text`."""
    parser.add_argument(name, metavar=metavar, help=text, **settings)


def _add_input(parser: Any, name: str, metavar: str, text: str, kind: str, unless: str = "", **settings: Any) -> None:
    """Add an argument that must name an existing file or folder (see [`Input`]); its help tells what to give."""
    action = parser.add_argument(name, metavar=metavar, help=text, **settings)
    option = name if name.startswith("-") else metavar
    entry = Input(option, action.dest, kind, unless, text.partition(" (default")[0])
    parser.set_defaults(inputs=(*parser.get_default("inputs"), entry))


def _add_flag(parser: Any, name: str, text: str, default: Any = False) -> None:
    """Add an option without a value."""
    parser.add_argument(name, action="store_true", default=default, help=text)


def _add_common_flags(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add the flags that every command takes, before or after its name."""
    _add_flag(parser, "--quiet", "print results and errors only, no messages and no progress", default)
    _add_flag(parser, "--verbose", "also print the log messages of the libraries", default)
    _add_flag(parser, "--debug", "show the full traceback of an error", default)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model, its device and its precision."""
    text = "the folder of a saved model, or its name on the Hub (default: the small model that ships with the package, "
    _add_input(parser, "--model", "MODEL", f"{text}which knows moving shapes only)", "folder", unless=HUB_NAME)
    _add(parser, "--revision", "NAME", "branch, tag or commit of a model on the Hub, e.g. task-1")
    _add(parser, "--device", "NAME", "cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    text = f"precision of the model (default: {DTYPES[0]})"
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=text)


def _add_set(parser: argparse.ArgumentParser, purpose: str, example: str) -> None:
    """Add the option `--set`, which changes single values."""
    text = f"{purpose}, e.g. {example}; can be repeated"
    _add(parser, "--set", "KEY=VALUE", text, action="append", default=[], dest="overrides")


def _add_segment(commands: Any) -> None:
    parser = _add_command(
        commands,
        "segment",
        "detect, segment and track the objects of videos",
        "Segment videos. Print a table of the tracks found, and write into the folder --out an annotated mp4 and a\n"
        "contact sheet (png) of each video, and one results.json in YouTube-VIS format for all of them.",
        "  transformers-cvis segment my.mp4\n"
        "  transformers-cvis segment a.mp4 b.mp4 --model you/your-model --revision task-1 --threshold 0.5",
    )
    text = "a video file (mp4, webm, gif), URL, or folder of images"
    _add_input(parser, "videos", "VIDEO", text, "file or folder", unless=URL, nargs="+")
    _add_model(parser)
    text = "frames per step: 1 is online; more give more context, with one answer per N frames "
    _add(parser, "--clip-length", "N", f"{text}(default: set by the model)", type=positive_int)
    text = f"lowest score of a track (default: {THRESHOLD})"
    _add(parser, "--threshold", "P", text, type=probability, default=THRESHOLD)
    _add(parser, "--max-frames", "N", "stop after N frames of a video (default: all)", type=positive_int)
    _add(parser, "--stride", "N", "use every N-th frame (default: 1)", type=positive_int, default=1)
    _add(parser, "--out", "FOLDER", "write results into FOLDER (default: segmented)", default="segmented")
    _add(parser, "--json", "FILE", "write the JSON to FILE ('-' prints it instead of the table)")
    _add_flag(parser, "--no-video", "do not write mp4 and contact sheet")
    _add_flag(parser, "--overwrite", OVERWRITE)


def _add_fields(parser: Any, settings: str, example: str) -> None:
    """Add the option that prints the reference of a recipe or a schedule."""
    text = f"print the fields of {settings} with their defaults, or those below KEY, e.g. {example}, and stop"
    parser.add_argument("--fields", nargs="?", const="", metavar="KEY", help=text)


def _add_train(commands: Any) -> None:
    parser = _add_command(
        commands,
        "train",
        "train a model from a recipe",
        "Train a model from a recipe (YAML). To continue an interrupted run from its last checkpoint, start the same\n"
        "command again. Name a recipe that ships with the package without a path; `--list` shows them.",
        "  transformers-cvis make-data moving-shapes moving_shapes\n"
        "  transformers-cvis train vita_moving_shapes\n"
        "  transformers-cvis train my.yaml --out runs/mine --set max_steps=2000 --set data.num_workers=2",
        check=partial(check_yaml, "recipe", RECIPES),
    )
    _add(parser, "recipe", "RECIPE", "a YAML file, or the name of a shipped recipe", nargs="?")
    _add_flag(parser, "--list", "list the shipped recipes and their folder, and stop")
    _add_fields(parser, "a recipe", "optimizer")
    _add(parser, "--out", "FOLDER", "write model and checkpoints into FOLDER (default: from the recipe)")
    _add_set(parser, "change a value of the recipe", "optimizer.learning_rate=5e-5")
    text = "auto: continue from the last checkpoint in --out, if any; restart: delete all checkpoints and start over; "
    text += "or the folder of a checkpoint to continue from (default: auto)"
    _add_input(parser, "--resume", "auto|restart|FOLDER", text, "folder", unless="auto|restart", default="auto")


def _add_train_continual(commands: Any) -> None:
    parser = _add_command(
        commands,
        "train-continual",
        "train a model that learns new classes task by task",
        "Train a model task by task from a schedule (YAML), and evaluate it after each task. Write into the folder\n"
        "--out the base as task-0, the additions of each task as task-1, task-2, ..., each a folder to segment with,\n"
        "and report/ with tables and plots of learning and forgetting. With `push` in the schedule, publish every\n"
        "task as a revision. To continue an interrupted run, start the same command again. Name a schedule that ships\n"
        "with the package without a path; `--list` shows them.",
        "  transformers-cvis train-continual my.yaml --out runs/mine\n"
        "  transformers-cvis train-continual crisp_r50_ytvis2019_20-2 --set method=eclipse --out runs/eclipse\n"
        "  accelerate launch --num_processes 2 -m transformers_cvis.cli train-continual hvpl_r50_ovis_15-5",
        check=partial(check_yaml, "schedule", SCHEDULES),
    )
    _add(parser, "schedule", "SCHEDULE", "a YAML file, or the name of a shipped schedule", nargs="?")
    _add_flag(parser, "--list", "list the shipped schedules and their folder, and stop")
    _add_fields(parser, "a schedule", "classes")
    _add(parser, "--out", "FOLDER", "write tasks and report into FOLDER (default: from the schedule)")
    _add_set(parser, "change a value of the schedule", "classes.split=20-2 or recipe.batch_size=8")
    text = "auto: continue an interrupted run in --out; restart: delete it and start over (default: auto)"
    parser.add_argument("--resume", default="auto", choices=["auto", "restart"], help=text)


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        "measure video AP and AR against a ground truth",
        "Measure average precision and recall of tracks as YouTube-VIS defines them: of existing results (--results),\n"
        "or of a model that first segments every video of the data set (--images, with --model).",
        "  transformers-cvis evaluate valid.json --results results.json\n"
        "  transformers-cvis evaluate valid.json --images JPEGImages --model you/your-model",
    )
    _add_input(parser, "ground_truth", "JSON", "the ground truth in YouTube-VIS format", "file")
    source = parser.add_mutually_exclusive_group(required=True)
    text = "the results to measure: a JSON of `transformers-cvis segment`, or a results.json list"
    _add_input(source, "--results", "FILE", text, "file")
    _add_input(source, "--images", "FOLDER", "the folder of the frames, to segment them with --model", "folder")
    _add_model(parser)
    _add(parser, "--clip-length", "N", "frames per step (default: set by the model)", type=positive_int)
    text = f"tracks per video (default: {TOP_K}, as published for YouTube-VIS; OVIS is published with 20)"
    _add(parser, "--top-k", "N", text, type=positive_int, default=TOP_K)
    _add(parser, "--json", "FILE", "also write the numbers to FILE")
    _add(parser, "--submission", "ZIP", "also write the results to ZIP, for the test servers of YouTube-VIS and OVIS")
    _add_flag(parser, "--overwrite", OVERWRITE)


def _add_push(commands: Any) -> None:
    parser = _add_command(
        commands,
        "push",
        "publish a saved model on the Hub",
        "Upload model, processor and a generated model card to one revision of a Hub repository, in one commit.\n"
        "A task adapter (a folder task-1, task-2, ... of `train-continual`) goes to the revision of that name; push\n"
        "its base, task-0, first. Log in with `hf auth login` before.",
        "  transformers-cvis push runs/shapes you/shapes --license apache-2.0\n"
        "  transformers-cvis push runs/mine/task-0 you/mine && transformers-cvis push runs/mine/task-1 you/mine",
    )
    _add_input(parser, "folder", "FOLDER", "the folder of a model saved by `transformers-cvis train`", "folder")
    _add(parser, "repo_id", "REPOSITORY", "owner/name on the Hub; created if needed")
    _add(parser, "--revision", "BRANCH", "branch to push to; created if needed (default: main; for a task its name)")
    _add(parser, "--message", "TEXT", "commit message")
    text = "licence of the weights by its Hub name, e.g. apache-2.0 (default: unknown)"
    _add(parser, "--license", "ID", text, default="unknown")
    text = "model that the training started from; for a task its base, if that is in another repository"
    _add(parser, "--base-model", "REPOSITORY", text)
    _add_flag(parser, "--private", "make a new repository private", default=None)
    _add_flag(parser, "--create-pr", "open a pull request instead of committing")


def _add_validate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "validate",
        "check a data set of your own",
        "Check a JSON in YouTube-VIS or COCO format. List its problems with the ids of videos or images and of\n"
        "annotations. The exit code is 1 if any problem is found.",
        "  transformers-cvis validate train.json --images JPEGImages",
    )
    _add_input(parser, "json", "JSON", "annotations in YouTube-VIS or COCO format", "file")
    _add_input(parser, "--images", "FOLDER", "the folder of the pictures, to check that they exist", "folder")
    _add(parser, "--limit", "N", "list at most N problems (default: 20)", type=positive_int, default=20)


def _add_import_data(commands: Any) -> None:
    parser = _add_command(
        commands,
        "import-data",
        "convert a data set to YouTube-VIS format",
        "Write a JSON in YouTube-VIS format; the pictures stay where they are. SOURCE is, for\n"
        "  masks  a folder of masks, as in DAVIS and YouTube-VOS: a folder per video with a PNG per frame, whose\n"
        "         pixel values are instance ids; --frames holds the frames, in folders and files of the same names\n"
        "  coco   a JSON in COCO format, whose images become videos of one frame, for `evaluate`. Training\n"
        "         (`kind: images` in a recipe) and `validate` read a COCO JSON directly.",
        "  transformers-cvis import-data masks Annotations --frames JPEGImages --classes meta.json --out train.json\n"
        "  transformers-cvis import-data coco instances_val.json --out valid.json",
        check=check_import_data,
    )
    parser.add_argument("kind", choices=["masks", "coco"], help="the kind of the source")
    _add_input(parser, "source", "SOURCE", "a folder of masks, or a JSON in COCO format", "file or folder")
    _add(parser, "--out", "JSON", "the file to write", required=True)
    _add_input(parser, "--frames", "FOLDER", "the folder of the frames that the masks belong to", "folder")
    text = 'the class of each id in the masks: JSON {"video": {"1": "dog"}}, the meta.json of YouTube-VOS, or CSV with '
    text += "the columns video,id,class (default: from the folder, so that dog_0001 and dog/0001 are dogs)"
    _add_input(parser, "--classes", "FILE", text, "file")
    text = "for masks: write a fifth of the videos of each class to this file instead, to evaluate on"
    _add(parser, "--valid", "JSON", text)
    _add_flag(parser, "--overwrite", OVERWRITE)


def _add_split_data(commands: Any) -> None:
    parser = _add_command(
        commands,
        "split-data",
        "hold out a part of a data set to evaluate on",
        "Split a JSON in YouTube-VIS format by videos into train_split.json and test_split.json, with every class in\n"
        "both parts if possible. This is for benchmarks that hide the labels of their test videos. The same arguments\n"
        "give the same split.",
        "  transformers-cvis split-data ytvis_2019/train.json --out splits --test-share 0.2",
    )
    _add_input(parser, "json", "JSON", "annotations in YouTube-VIS format", "file")
    _add(parser, "--out", "FOLDER", "write both files into FOLDER", required=True)
    _add(parser, "--test-share", "P", "share of the videos held out (default: 0.2)", type=probability, default=0.2)
    _add(parser, "--seed", "N", "seed of the random split (default: 0)", type=int, default=0)
    _add_flag(parser, "--overwrite", OVERWRITE)


def _add_make_data(commands: Any) -> None:
    parser = _add_command(
        commands,
        "make-data",
        "generate a data set for experiments",
        "Generate videos of moving shapes with exact masks, in YouTube-VIS format: train.json, valid.json and\n"
        "JPEGImages/. The same arguments give the same data set.",
        "  transformers-cvis make-data moving-shapes data/shapes --train-videos 200 --valid-videos 20",
    )
    parser.add_argument("kind", choices=["moving-shapes"], help="the kind of videos")
    _add(parser, "folder", "FOLDER", "a new folder")
    _add(parser, "--train-videos", "N", "videos in train.json (default: 200)", type=positive_int, default=200)
    _add(parser, "--valid-videos", "N", "videos in valid.json (default: 20)", type=positive_int, default=20)
    _add(parser, "--frames", "N", "frames per video (default: 16)", type=positive_int, default=16)
    _add(parser, "--size", "HxW", "frame size in pixels (default: 96x160)", type=frame_size, default=(96, 160))
    _add(parser, "--categories", "N", "use the first N of 10 kinds of shapes (default: all)", type=positive_int)
    _add(parser, "--seed", "N", "seed of the random videos (default: 0)", type=int, default=0)
    _add_input(parser, "--backgrounds", "FOLDER", "pictures for the background of half of the videos", "folder")
    _add_flag(parser, "--mp4", "also write each video as mp4, in videos/")


def converted_systems() -> tuple[str, ...]:
    """Return the systems that `convert` knows, with those registered from outside once the package is imported."""
    conversion = sys.modules.get("transformers_cvis.conversion")
    return CONVERTED_SYSTEMS if conversion is None else tuple(conversion.CONVERSIONS)


def _add_convert(commands: Any) -> None:
    parser = _add_command(
        commands,
        "convert",
        "turn a checkpoint released by research code into a model folder",
        "Convert a checkpoint with Detectron2's names into a folder with configuration, safetensors, video processor\n"
        "and card. Backbone, sizes, number of classes and tasks are read from the tensors; give other settings with\n"
        "--set. Every tensor must match a weight, and every weight a tensor. Code in the file is never run.",
        "  transformers-cvis convert genvis_r50_ytvis2019.pth --system genvis --classes train.json --out genvis-r50\n"
        "  transformers-cvis convert model_final_3c8ec9.pkl --system mask2former --out mask2former-r50\n"
        "  transformers-cvis convert step4/model_final.pth --system hvpl --set calibration_deltas=[0.4,0.5] --out hvpl",
    )
    _add_input(parser, "source", "SOURCE", "a checkpoint: .pth, .pkl or .safetensors", "file")
    text = f"the system of the checkpoint: {', '.join(converted_systems())}. As mask2former, an image "
    text += "checkpoint becomes a Mask2Former of transformers; as minvis, a model that tracks"
    _add(parser, "--system", "NAME", text, required=True, choices=converted_systems())
    _add(parser, "--out", "FOLDER", "a new folder for the model", required=True)
    text = "for a model that learns by tasks (hvpl, crisp): its state after task N, 0 for the base (default: the last)"
    _add(parser, "--task", "N", text, type=int)
    text = "class names: a YouTube-VIS JSON of the data set, or a text file with one name per line"
    _add_input(parser, "--classes", "FILE", text, "file")
    _add_set(parser, "set a configuration field", "clip_length=3 or encoder_window_size=6")
    text = "short side of videos in pixels (default: the published value of system and backbone, 360 to 480)"
    _add(parser, "--short-side", "N", text, type=positive_int)
    text = "leave out tensors without a weight, and start weights without a tensor at random, e.g. to train further"
    _add_flag(parser, "--allow-missing", text)
    text = "also write to FILE, as JSON, what became of every tensor; an existing file is replaced"
    _add(parser, "--report", "FILE", text)
    _add(parser, "--license", "ID", "licence of the weights by its Hub name (default: unknown)", default="unknown")
