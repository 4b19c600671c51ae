# SPDX-License-Identifier: Apache-2.0
"""Run programs of the tests in separate processes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from transformers_cvis.training.checkpoint_files import list_checkpoints

REPOSITORY = Path(__file__).parents[2]


def launch(program: Path, *arguments: str | Path, processes: int = 1, **environment: str) -> list[subprocess.Popen]:
    """Start a program in one process, or in several that form a group as under `torchrun`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python_path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    started = []
    for rank in range(processes):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, **environment}
        if processes > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(program), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    return started


def finish(processes: list[subprocess.Popen]) -> None:
    """Wait for all processes; kill the rest after a failure and report the first one."""
    try:
        for process in processes:
            _, errors = process.communicate(timeout=1200)  # seconds are enough, unless the machine is busy
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def kill_after_first_checkpoint(process: subprocess.Popen, directory: Path) -> None:
    """Kill a training as soon as `directory` holds a checkpoint."""
    while not list_checkpoints(directory):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
