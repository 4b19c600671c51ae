# SPDX-License-Identifier: Apache-2.0
"""Available memory, with and without the limit of a container."""

import torch

from transformers_cvis.modeling.clip_detector import available_memory as module
from transformers_cvis.modeling.clip_detector.available_memory import available_memory

CPU = torch.device("cpu")


def host(monkeypatch, tmp_path, available_kilobytes: int, limit: str | None = None, used: int = 0, files: int = 0):
    information = tmp_path / "meminfo"
    information.write_text(f"MemTotal: 999999999 kB\nMemAvailable: {available_kilobytes} kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(module, "MEMORY_INFORMATION", information)
    folder = tmp_path / "cgroup"
    folder.mkdir()
    if limit is not None:
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")
    monkeypatch.setattr(module, "CONTAINER_FILES", ((folder, "memory.max", "memory.current"),))


def test_this_machine():
    available = available_memory(CPU)
    assert available is None or 0 < available < 2**50


def test_a_host_without_containers(monkeypatch, tmp_path):
    host(monkeypatch, tmp_path, 1000)
    assert available_memory(CPU) == 1_024_000


def test_a_container_without_limit(monkeypatch, tmp_path):
    host(monkeypatch, tmp_path, 1000, limit="max")
    assert available_memory(CPU) == 1_024_000


def test_container_limit_ignores_reclaimable_file_pages(monkeypatch, tmp_path):
    host(monkeypatch, tmp_path, 1000, limit="500000", used=300000, files=100000)
    assert available_memory(CPU) == 300_000
    (tmp_path / "cgroup" / "memory.current").write_text("900000\n")
    assert available_memory(CPU) == 0


def test_unknown_memory_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MEMORY_INFORMATION", tmp_path / "none")
    assert available_memory(CPU) is None
    assert available_memory(torch.device("meta")) is None


def test_gpus_count_what_the_allocator_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert available_memory(torch.device("cuda", 0)) == 120
