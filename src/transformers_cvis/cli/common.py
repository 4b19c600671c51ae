# SPDX-License-Identifier: Apache-2.0
"""Parts that commands share: messages, loading of the model, and checks of output files."""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import Handler, LogRecord
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoVideoProcessor, PreTrainedModel
from transformers.utils import logging

from transformers_cvis_cli import CommandError

from ..assets import default_model_path
from ..logs import PACKAGE, draws_progress_bars
from ..modeling.auto import IMAGE_MODELS, MODELS, AutoModelForVideoInstanceSegmentation, load_config
from ..processing import CvisVideoProcessor

logger = logging.get_logger(__name__)


class MessageHandler(Handler):
    """Log handler that prints to the current standard error, above a progress bar if one is drawn."""

    def emit(self, record: LogRecord) -> None:
        """Print a message. Warnings and errors begin with their level."""
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"{kind}{self.format(record)}", file=sys.stderr)


@contextmanager
def messages(quiet: bool, verbose: bool) -> Iterator[None]:
    """Show messages and progress in the style of a command line while the block runs.

    Messages of the package are shown from level INFO on, those of libraries from WARNING on, unless
    `TRANSFORMERS_VERBOSITY` sets another level for both. No progress bar is drawn if standard error is not a terminal.

    Args:
        quiet: show errors only, and no progress.
        verbose: show all messages from level INFO on.
    """
    library, package = logging.get_logger(), logging.get_logger(PACKAGE)
    levels = library.level, package.level
    hide_bars = logging.is_progress_bar_enabled() and (quiet or not draws_progress_bars())
    handler = MessageHandler()
    logging.disable_default_handler()
    logging.add_handler(handler)
    if quiet:
        library.setLevel(logging.ERROR)
    elif verbose:
        library.setLevel(logging.INFO)
    elif library.level == logging.WARNING:
        package.setLevel(logging.INFO)
    if hide_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(levels[0])
        package.setLevel(levels[1])
        logging.remove_handler(handler)
        logging.enable_default_handler()
        if hide_bars:
            logging.enable_progress_bar()


def load_model(options: argparse.Namespace) -> tuple[PreTrainedModel, CvisVideoProcessor]:
    """Load the model that the options name.

    Args:
        options: parsed options, with `model`, `revision`, `device` and `dtype`.

    Returns:
        The model in evaluation mode on its device, and its video processor.

    Raises:
        CommandError: the device is not available, or the model is not a video instance segmentation model.
        OSError: the model cannot be found or read.
    """
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise CommandError(f"--device {options.device}: use cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError(f"--device {options.device}: torch finds no GPU here. Use --device cpu.")
    name = options.model
    if name is None:
        name = str(default_model_path())
        logger.info("No --model given: using the embedded GenVIS, which knows moving shapes only.")
    remedy = "Give the folder of a saved model, or the name of one on the Hub."
    config = load_config(name, options.revision, f"--model {name}", remedy)
    if type(config) not in (*MODELS, *IMAGE_MODELS):
        raise CommandError(
            f"{name} is a {config.model_type!r} model, not a video instance segmentation model. A recipe with "
            "`model.init_from` can train one from a Mask2Former checkpoint (`transformers-cvis train --help`)."
        )
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(
        name, config=config, revision=options.revision, dtype=getattr(torch, options.dtype)
    )
    model.check_trained()
    video_processor = AutoVideoProcessor.from_pretrained(name, revision=options.revision)
    return model.to(device).eval(), video_processor


def writable_folder(path: str | Path) -> Path:
    """Return a folder, made if needed, after a trial write, so that a wrong path fails before the work.

    Raises:
        CommandError: the folder cannot be made or written into.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"Cannot write into the folder {folder}: {error.strerror}.") from error
    return folder


def check_new_files(paths: Sequence[Path], overwrite: bool) -> None:
    """Check that no file exists, unless existing files may be replaced.

    Raises:
        CommandError: files exist. The message names the first of them.
    """
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise CommandError(
            f"{', '.join(existing[:3])}{more} exists already: choose another --out, or replace it with --overwrite."
        )
