# SPDX-License-Identifier: Apache-2.0
"""Command `transformers-cvis push`."""

import argparse
from pathlib import Path

from transformers import AutoVideoProcessor

from transformers_cvis_cli import CommandError

from ..evaluation import ContinualReport
from ..hub.card import read_training_summary
from ..hub.push import push_to_hub
from ..modeling.auto import AutoModelForVideoInstanceSegmentation
from ..modeling.tasks.adapter_files import ADAPTER_CONFIG_FILE


def run_push(options: argparse.Namespace) -> int:
    """Upload a saved model or task adapter, and print the address of the commit."""
    if not (Path(options.folder) / "config.json").is_file():
        raise CommandError(
            f"{options.folder} holds no saved model: config.json is missing. Give a folder that "
            "`transformers-cvis train` or `save_pretrained` wrote."
        )
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
