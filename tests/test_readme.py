# SPDX-License-Identifier: Apache-2.0
"""The README's python blocks run unchanged, in order, and the program accepts its command lines."""

import re
import shlex
from pathlib import Path

import numpy as np

import transformers_cvis_cli as cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run(mask2former_on_the_hub, loopback_hub, capsys):
    namespace = {"__name__": "readme"}
    np.random.seed(0)
    for number, block in enumerate(blocks("python")):
        try:
            exec(compile(block, f"README, python block {number}", "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"python block {number} of the README fails:\n{block}") from error
    assert "from frame 4: " in capsys.readouterr().out
    branches = loopback_hub.repos["model", "tester/shapes"].branches
    assert set(branches) == {"main", "v2"}


def test_command_lines_are_understood():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("transformers-cvis ")]
    commands += [
        shlex.split(command) for command in re.findall(r"`(transformers-cvis [^`]+)`", README.replace("\n", " "))
    ]
    assert len(commands) >= 6
    for command in commands:
        cli.build_parser().parse_args(command[1:])


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [name for name in targets if "://" not in name and not (Path(__file__).parent.parent / name).exists()]
    assert not missing
