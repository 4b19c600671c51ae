# SPDX-License-Identifier: Apache-2.0
"""Files that ship with the package: the embedded default model, a short video with its ground truth, task adapters.

`examples/train_default_model.py` makes the model and the video, `benchmarks/continual_moving_shapes.py` the adapters.
"""

from pathlib import Path

__all__ = ["default_model_path", "demo_ground_truth_path", "demo_video_path", "task_adapter_path"]

ASSETS = Path(__file__).parent


def _shipped(path: Path, maker: str = "examples/train_default_model.py") -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. It ships with transformers-cvis: reinstall the package, or in a source checkout "
            f"make it with `python {maker}`."
        )
    return path


def default_model_path() -> Path:
    """Return the folder of the embedded default model, a GenVIS trained on generated videos of moving shapes.

    It loads like any saved model: `AutoModelForVideoInstanceSegmentation.from_pretrained(default_model_path())`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    folder = ASSETS / "genvis-moving-shapes"
    _shipped(folder / "config.json")
    _shipped(folder / "model.safetensors")
    return folder


def demo_video_path() -> Path:
    """Return the mp4 that `make demo` segments: generated moving shapes that the default model was not trained on.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _shipped(ASSETS / "demo" / "moving_shapes.mp4")


def demo_ground_truth_path() -> Path:
    """Return the YouTube-VIS JSON with the exact masks of the video of `demo_video_path()`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _shipped(ASSETS / "demo" / "moving_shapes.json")


def task_adapter_path(number: int = 2) -> Path:
    """Return the folder of a small HVPL trained task by task on generated videos of moving shapes.

    It loads like any saved model.

    Args:
        number: 0 is the base, which knows four kinds of shapes. 1 and 2 are task adapters, which add two kinds each.
            Adapter 2 includes the weights that adapter 1 added, and finds the base in the folder `task-0` next to it.

    Raises:
        FileNotFoundError: the task does not exist, or the installation is incomplete.

    Example:
    ```python
    >>> from transformers_cvis import AutoModelForVideoInstanceSegmentation, task_adapter_path

    >>> model = AutoModelForVideoInstanceSegmentation.from_pretrained(task_adapter_path(1))
    >>> model.config.num_labels
    6

    ```
    """
    folder = ASSETS / "hvpl-moving-shapes" / f"task-{number}"
    files = ("model.safetensors",) if number == 0 else ("task_adapter_config.json", "task_adapter_model.safetensors")
    for file in files:
        _shipped(folder / file, "benchmarks/continual_moving_shapes.py --ship")
    return folder
