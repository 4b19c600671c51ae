"""Configurations of SPVIS and DVIS read from the shapes of a released state dict."""

import torch

from ..modeling.spvis import SpvisConfig
from .released.mask2former import count, infer_frame_detector_config


def infer_spvis_config(state_dict: dict[str, torch.Tensor], system: str, **settings) -> SpvisConfig:
    """The configuration that a released SPVIS or DVIS checkpoint was trained with, and computes as released.

    Args:
        state_dict: released names to tensors.
        system: "spvis" or "dvis".
        settings: fields that shapes do not tell, for example `id2label`, `joint` or `alignment`.

    Raises:
        ValueError: for another system, or when the checkpoint has no tracker.
    """
    if system not in ("spvis", "dvis"):
        raise ValueError(f"No tracker configuration for system {system!r}; there are 'dvis' and 'spvis'.")
    if "tracker.class_embed.weight" not in state_dict:
        raise ValueError(f"This checkpoint has no tracker (`tracker.*`), so it is no {system} checkpoint.")
    filter_width = state_dict.get("tracker.transformer_cross_attention_layers.0.feedforward.0.weight")
    if (system == "spvis") != (filter_width is not None):
        raise ValueError(
            f"This checkpoint's tracker has {'no' if filter_width is None else 'a'} disturbance filter, so it is no "
            f"{system} checkpoint."
        )
    interaction = count(state_dict, r"interaction\.cross_attention_layers\.(\d+)\.")
    temporal = count(state_dict, r"(?:refiner|offline_tracker)\.transformer_cross_attention_layers\.(\d+)\.")
    found = {
        "tracker_layers": count(state_dict, r"tracker\.transformer_cross_attention_layers\.(\d+)\."),
        "tracker_dim_feedforward": len(state_dict["tracker.transformer_ffn_layers.0.linear1.weight"]),
        "filter": "disturbance" if system == "spvis" else "referring",
        "alignment": "released",
    }
    if system == "spvis":
        found["filter_dim_feedforward"] = len(filter_width)
        found["filter_residual"] = "released"
    if interaction or temporal:
        found["refiner"] = "spvis" if interaction else "dvis"
        found["refiner_layers"] = interaction or temporal
    if interaction and not any(name.startswith("compensator.") for name in state_dict):
        found["joint"] = "interaction_only"
    detector = infer_frame_detector_config(state_dict).to_dict()
    del detector["model_type"]
    return SpvisConfig(**{**detector, **found, **settings})
