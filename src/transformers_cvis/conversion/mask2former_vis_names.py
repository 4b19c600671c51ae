"""Table of parameter names of Mask2Former-VIS, whose checkpoints have the names of Mask2Former's image models."""

from .names import RULES, frame_detector_rules

RULES["mask2former_vis"] = frame_detector_rules
