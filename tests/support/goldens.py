# SPDX-License-Identifier: Apache-2.0
"""Reference cases: find and read them, rebuild their weights from names, compare with them."""

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

GOLDENS = Path(os.environ.get("CVIS_GOLDENS") or Path(__file__).parents[1] / "parity" / "goldens")


@dataclass
class Case:
    """One reference case; floating tensors are float64 whatever they are stored as."""

    name: str
    folder: Path
    meta: dict
    keys: dict
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def config(self) -> dict:
        return self.meta["config"]

    @property
    def tolerance(self) -> float:
        """Tolerance of `assert_matches` for a float64 port: 1e-9, or 1e-6 for a case stored as float32."""
        return 1e-6 if self.meta.get("stored_dtype") == "float32" else 1e-9

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Build the reference model's weights from names and shapes in `keys.json` and `scale` in `meta.json`."""
        weights = {name: _fill(name, tuple(shape)) for name, shape in self.keys.items()}
        for pattern, factor in self.meta.get("scale", {}).items():
            for name in weights:
                if re.search(pattern, name):
                    weights[name] = weights[name] * factor
        return weights


def load_case(name: str) -> Case:
    """Read the case `name`; skip the test if the folder in use lacks it."""
    folder = GOLDENS / name
    if not folder.is_dir():
        pytest.skip(f"reference case {name} is not in {GOLDENS}; set CVIS_GOLDENS to a folder that holds it")
    case = Case(
        name,
        folder,
        meta=json.loads((folder / "meta.json").read_text()),
        keys=json.loads((folder / "keys.json").read_text()),
    )
    for part in ("inputs", "outputs"):
        path = folder / f"{part}.safetensors"
        if path.is_file():
            tensors = {k: v.double() if v.is_floating_point() else v for k, v in load_file(path).items()}
            setattr(case, part, tensors)
    return case


class FixedPoints:
    """Replacement of a criterion's `point_sampler`: the recorded points `(P, 2)` for every problem and mask."""

    def __init__(self, matcher_points: torch.Tensor, loss_points: torch.Tensor):
        self.matcher_points, self.recorded_loss_points = matcher_points, loss_points

    def matching_points(self, num_problems: int, like: torch.Tensor) -> torch.Tensor:
        return self.matcher_points.to(like).expand(num_problems, -1, -1)

    def loss_points(self, mask_logits: torch.Tensor) -> torch.Tensor:
        return self.recorded_loss_points.to(mask_logits).expand(*mask_logits.shape[:2], -1, -1)


def assert_matches(actual, expected: torch.Tensor, name: str = "", tolerance: float = 1e-9) -> None:
    """Check `actual` against `expected` within `tolerance`, absolute plus relative to the largest entry."""
    actual = torch.as_tensor(actual).detach()
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    if not expected.is_floating_point():
        different = int((actual.to(expected.dtype) != expected).sum())
        assert different == 0, f"{name}: {different} of {expected.numel()} entries differ"
        return
    if expected.numel() == 0:
        return
    bound = tolerance * (1 + expected.abs().max().item())
    error = (actual.double() - expected).abs().max().item()
    assert error <= bound, f"{name}: largest difference {error:.3e} exceeds {bound:.3e}"


def _fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return torch.from_numpy(0.5 + rng.random(shape))
    noise = rng.standard_normal(shape)
    if len(shape) <= 1:
        one = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        return torch.from_numpy(one + 0.05 * noise)
    return torch.from_numpy(noise / np.sqrt(int(np.prod(shape[1:]))))
