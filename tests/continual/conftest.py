# SPDX-License-Identifier: Apache-2.0
"""Data and a finished run that the tests of this folder share."""

from pathlib import Path

import pytest

from tests.support.tiny_schedule import CATEGORIES, tiny_schedule
from transformers_cvis.continual import train_continual
from transformers_cvis.data import make_moving_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return make_moving_shapes(
        folder, 8, 3, num_frames=4, size=(64, 96), seed=1, categories=CATEGORIES, num_objects=(2, 4)
    )


@pytest.fixture(scope="session")
def finished(shapes, tmp_path_factory) -> Path:
    """Return the output folder of a whole run of HVPL."""
    folder = tmp_path_factory.mktemp("run") / "hvpl"
    train_continual(tiny_schedule(shapes), folder)
    return folder
