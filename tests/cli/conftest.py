# SPDX-License-Identifier: Apache-2.0
"""A small data set and a small model for all commands."""

from pathlib import Path

import pytest

from tests.support.helpers import save_tiny_genvis
from transformers_cvis.data import make_moving_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Two short videos of moving shapes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_moving_shapes(folder, 1, 2, num_frames=4, size=(48, 64), seed=3, write_mp4=True)


@pytest.fixture(scope="session")
def video(shapes) -> str:
    """One of the two videos."""
    return str(shapes / "videos" / "valid_00000.mp4")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A GenVIS with random weights."""
    return save_tiny_genvis(tmp_path_factory.mktemp("model"))
