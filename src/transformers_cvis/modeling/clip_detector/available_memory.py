# SPDX-License-Identifier: Apache-2.0
"""How much memory is left, so that work can be cut to size before it begins."""

from pathlib import Path

import torch

MEMORY_INFORMATION = Path("/proc/meminfo")
# Limits of containers: the folder of their accounts, and the names of limit and use in it, by version of cgroups.
CONTAINER_ACCOUNTS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on `device` now: of the GPU, or of the host within the limits of its container.

    What PyTorch's GPU allocator holds and does not use counts as available, and so do pages of files that the host
    would drop. None where it cannot be told, as on systems other than Linux.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not MEMORY_INFORMATION.is_file():
        return None
    available = 1024 * _numbers(MEMORY_INFORMATION)["MemAvailable:"]
    for folder, limit, use in CONTAINER_ACCOUNTS:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            accounts = _numbers(folder / "memory.stat")
            dropped = accounts.get("total_inactive_file", accounts.get("inactive_file", 0))
            available = min(available, int(text) - int((folder / use).read_text()) + dropped)
    return max(0, available)


def _numbers(path: Path) -> dict[str, int]:
    """Lines "name number ..." of a file."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}


__all__ = ["available_memory"]
