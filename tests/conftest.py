# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures; tests run offline: the Hub is a loopback server, every other address is refused.

The Hub client reads its environment when it is imported, so the server starts here, before any test module.
"""

import logging
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.hub_server import LoopbackHub

HUB = LoopbackHub().__enter__()
HF_HOME = tempfile.mkdtemp(prefix="transformers_cvis_hf_home_")

os.environ.update(
    HF_ENDPOINT=HUB.endpoint,
    HF_HOME=HF_HOME,
    HF_TOKEN="hf_test",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
)
# Tests run in parallel, one process per core: more threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# The telemetry switches break the user agent of the kernels client, the offline ones the loopback server.
for name in (
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
):
    os.environ.pop(name, None)

LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}
LOCAL_HOSTS |= {host.encode() for host in LOCAL_HOSTS if host is not None}
real_getaddrinfo, real_connect = socket.getaddrinfo, socket.socket.connect


def refuse_unless_local(host) -> None:
    if host not in LOCAL_HOSTS:
        raise OSError(f"tests run without a network: refused to reach {host!r}")


def local_getaddrinfo(host, *args, **kwargs):
    refuse_unless_local(host)
    return real_getaddrinfo(host, *args, **kwargs)


def local_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        refuse_unless_local(address[0])
    return real_connect(self, address)


socket.getaddrinfo, socket.socket.connect = local_getaddrinfo, local_connect


def pytest_unconfigure(config):
    HUB.__exit__()
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture
def loopback_hub() -> LoopbackHub:
    """Return the loopback Hub, empty. The real `huggingface_hub` client uses it as user `tester`."""
    HUB.reset()
    return HUB


@pytest.fixture
def caplog(caplog, monkeypatch):
    """Extend pytest's `caplog` by the messages of transformers and of this package, which skip the root logger."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.fixture
def terminal(capsys, monkeypatch):
    """Return `capsys` with a terminal as standard error, so that progress bars are drawn."""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    return capsys


@pytest.fixture
def clips_folder() -> Path:
    """Return the folder of real footage: YouTube-VIS data sets with `JPEGImages/`, and mp4 files in `videos/`."""
    folder = os.environ.get("CVIS_CLIPS")
    if not folder:
        pytest.skip("CVIS_CLIPS is not set: no folder of real footage")
    return Path(folder)


@pytest.fixture
def mask2former_on_the_hub(loopback_hub) -> str:
    """Push a small Mask2Former with random weights to the loopback Hub; return its name, that of a real checkpoint."""
    import torch
    from transformers import Mask2FormerImageProcessor

    from tests.support.tiny_mask2former import tiny_mask2former

    name = "facebook/mask2former-swin-tiny-coco-instance"
    torch.manual_seed(0)
    backbone = {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    tiny_mask2former(backbone, id2label={0: "person", 1: "dog"}).push_to_hub(name)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).push_to_hub(name)
    return name


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def cpu_threads(request) -> int:
    """Run the test once with each number of threads, by which kernels divide their work."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(num_threads)


@pytest.fixture
def small_disk():
    """Limit files to 20 kB, which acts like a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
