"""Programs of these tests in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def launch(program: Path, *arguments: str | Path, processes: int = 1, **environment: str) -> list[subprocess.Popen]:
    """Start a program in one process, or in several that find each other as under `torchrun`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python_path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
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
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
