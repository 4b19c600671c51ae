"""Files which ship with the package: the embedded default model and a short video with its ground truth.

`examples/train_default_model.py` makes all of them.
"""

from pathlib import Path

__all__ = ["default_model_path", "demo_ground_truth_path", "demo_video_path"]

ASSETS = Path(__file__).parent


def _shipped(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. It ships with transformers-cvis: reinstall the package, or in a source checkout "
            "make it with `python examples/train_default_model.py`."
        )
    return path


def default_model_path() -> Path:
    """Folder of the embedded default model, a GenVIS trained on generated videos of moving shapes.

    It loads like any saved model: `AutoModelForVideoInstanceSegmentation.from_pretrained(default_model_path())`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    folder = ASSETS / "genvis-moving-shapes"
    _shipped(folder / "config.json")
    _shipped(folder / "model.safetensors")
    return folder


def demo_video_path() -> Path:
    """The mp4 which `make demo` segments: generated moving shapes which the default model has not seen.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _shipped(ASSETS / "demo" / "moving_shapes.mp4")


def demo_ground_truth_path() -> Path:
    """YouTube-VIS json with the exact masks of the video of `demo_video_path()`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    return _shipped(ASSETS / "demo" / "moving_shapes.json")
