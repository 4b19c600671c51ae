# SPDX-License-Identifier: Apache-2.0
"""Available memory of a device, from which the length of clips is chosen."""

from pathlib import Path

import torch

MEMORY_INFORMATION = Path("/proc/meminfo")
# Memory limits of containers by cgroup version: folder of the files, and names of the files with limit and usage.
CONTAINER_FILES = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available_memory(device: torch.device) -> int | None:
    """Return how many bytes can be allocated on a device now.

    Memory that PyTorch's GPU allocator holds without using it counts as available. So do cached pages of files, which
    the host would drop. On the host the limits of the container apply.

    Args:
        device: a GPU or the host.

    Returns:
        Bytes, or None if they are unknown, as on systems other than Linux.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not MEMORY_INFORMATION.is_file():
        return None
    available = 1024 * _numbers(MEMORY_INFORMATION)["MemAvailable:"]
    for folder, limit, usage in CONTAINER_FILES:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            statistics = _numbers(folder / "memory.stat")
            cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            available = min(available, int(text) - int((folder / usage).read_text()) + cached)
    return max(0, available)


def _numbers(path: Path) -> dict[str, int]:
    """Read the lines "name number ..." of a file."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}


__all__ = ["available_memory"]
