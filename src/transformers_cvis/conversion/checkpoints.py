"""A released checkpoint file in, a model folder for `from_pretrained` out."""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from ..modeling.genvis import GenVisForVideoInstanceSegmentation
from ..modeling.hub import save_model
from ..modeling.minvis import MinVisForVideoInstanceSegmentation
from ..modeling.spvis import SpvisForVideoInstanceSegmentation
from ..modeling.vita import VitaForVideoInstanceSegmentation
from ..processing import CvisVideoProcessor
from .configurations import infer_minvis_config
from .convert import ConversionReport, convert_state_dict
from .spvis_configurations import infer_spvis_config
from .video_configurations import infer_video_config

SYSTEMS = {
    "vita": VitaForVideoInstanceSegmentation,
    "genvis": GenVisForVideoInstanceSegmentation,
    "minvis": MinVisForVideoInstanceSegmentation,
    "spvis": SpvisForVideoInstanceSegmentation,
    "dvis": SpvisForVideoInstanceSegmentation,
}

UNUSED_WEIGHTS = re.compile(r"\.swin\.layernorm\.")  # in transformers' Swin, which does not use it as a backbone


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    system: str,
    *,
    class_names: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    license: str = "unknown",
) -> ConversionReport:
    """Converts a checkpoint released by research code; sizes come from its tensors.

    Args:
        checkpoint: `.pth` (read with `weights_only=True`) or `.safetensors`, with Detectron2's names.
        output_dir: a new or empty folder; gets configuration, weights, video processor and card.
        system: "vita", "genvis", "minvis", "spvis" or "dvis". Mask2Former's own checkpoints convert as "minvis".
        class_names: in the order of the class head; by default LABEL_0, LABEL_1, ...
        settings: configuration fields that shapes do not tell, for example `clip_length` or `encoder_window_size`.
        license: of the weights, for the card.

    Returns:
        What became of every tensor.

    Raises:
        FileNotFoundError: no such checkpoint. FileExistsError: `output_dir` is in use.
        ValueError: another system, no state dict in the file, names that the system does not have, weights that are
            missing, or another number of classes than `class_names`.
    """
    if system not in SYSTEMS:
        raise ValueError(f"There is no converter for {system!r}; there are {', '.join(sorted(SYSTEMS))}.")
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not an empty folder; give a new folder or remove it first.")
    released = read_checkpoint(checkpoint)
    converted, report = convert_state_dict(released, system)
    if report.unknown:
        raise ValueError(
            f"{checkpoint} is no {system} checkpoint: {len(report.unknown)} of its {len(released)} tensors have names "
            f"that {system} does not know, for example {', '.join(report.unknown[:3])}."
        )
    config = infer_config(released, system, **(settings or {}))
    if class_names is not None:
        if len(class_names) != config.num_labels:
            raise ValueError(f"{checkpoint} has {config.num_labels} classes, but {len(class_names)} names were given.")
        config = infer_config(released, system, **{**(settings or {}), "id2label": dict(enumerate(class_names))})
    model = SYSTEMS[system](config)
    missing = model.load_state_dict(converted, strict=False).missing_keys
    missing = [name for name in missing if not UNUSED_WEIGHTS.search(name)]
    if missing:
        raise ValueError(
            f"{checkpoint} lacks {len(missing)} weights of {system}, for example {', '.join(missing[:3])}: it is cut "
            "short, or of another system."
        )

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.partial-", dir=output_dir.parent))
    try:
        partial_dir.chmod(0o755)
        save_model(model, CvisVideoProcessor(), partial_dir, name=output_dir.name, license=license)
        os.replace(partial_dir, output_dir)
    except BaseException:
        shutil.rmtree(partial_dir, ignore_errors=True)
        raise
    return report


def infer_config(released: dict[str, torch.Tensor], system: str, **settings) -> PreTrainedConfig:
    """The configuration that a released state dict was made with; `settings` are fields that shapes do not tell."""
    if system == "minvis":
        return infer_minvis_config(released, **settings)
    if system in ("spvis", "dvis"):
        return infer_spvis_config(released, system, **settings)
    return infer_video_config(released, system, **settings)


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by released name, on the CPU. What else the file holds, such as the optimiser, is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no state dict, or needs code to be run to be read, as pickles may.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails on foreign bytes in every way there is
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors alone ({type(error).__name__}). Other pickles are not "
            "loaded, since they can run code: where you trust the file, save its state dict anew with `torch.save`."
        ) from error
    state_dict = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} holds no state dict, neither by itself nor under 'model'.")
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
    return tensors
