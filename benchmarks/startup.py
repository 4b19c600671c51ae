# SPDX-License-Identifier: Apache-2.0
"""CPU time of fresh processes: `import transformers_cvis`, and answers of the command line.

The peer of the import is the import of the names of transformers that the package needs. The command line answers
without torch; its rows have no peer. `command` imports the package, for comparison.
"""

import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from _harness import main, row

PEER = "from transformers import AutoVideoProcessor, Pipeline, PreTrainedModel"
PROGRAM = "import sys; from transformers_cvis_cli import main; sys.exit(main())"
ANSWERS = {
    "help": ["--help"],
    "help of a command": ["segment", "--help"],
    "version": ["--version"],
    "mistyped option": ["segment", "my.mp4", "--treshold", "0.5"],
    "missing file": ["segment", "absent.mp4"],
    "command": ["train", "--list"],
}


def cpu_seconds(*arguments: str) -> float:
    """Return the CPU time, user and system, of a fresh Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parent, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(quick: bool) -> Iterator[dict]:
    """Yield a row for the import and one for each answer."""
    repeats = 2 if quick else 10
    ours, peer = [], []
    for turn in range(1 + repeats):  # the first turn fills the disk cache
        for samples, code in ((ours, "import transformers_cvis"), (peer, PEER)):
            seconds = cpu_seconds("-c", code)
            if turn:
                samples.append(seconds)
    yield row("import", statistics.median(ours), statistics.median(peer), "s", "peer: names of transformers")
    for name, arguments in ANSWERS.items():
        seconds = [cpu_seconds("-c", PROGRAM, *arguments) for _ in range(repeats)]
        yield row(name, statistics.median(seconds), None, "s", f"transformers-cvis {' '.join(arguments)}")


if __name__ == "__main__":
    main("CPU time of starting", rows)
