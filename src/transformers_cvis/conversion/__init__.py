# SPDX-License-Identifier: Apache-2.0
"""Convert checkpoints that research code released into configurations and safetensors of this package.

`convert.py` holds the conversion of a file, `released/` what is known about the checkpoints of each system, and
`systems.py` the table of all systems.
"""

from .convert import convert_checkpoint, convert_state_dict
from .gradient_basis import read_gradient_basis
from .reading import ReleasedCheckpoint, read_checkpoint
from .released.mask2former import frame_detector_rules, infer_frame_detector_config
from .report import ConversionError, ConversionReport
from .rules import Conversion, Ignore, Rename, packed_attention, prefixed
from .systems import CONVERSIONS, register_conversion

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "ConversionError",
    "ConversionReport",
    "Ignore",
    "ReleasedCheckpoint",
    "Rename",
    "convert_checkpoint",
    "convert_state_dict",
    "frame_detector_rules",
    "infer_frame_detector_config",
    "packed_attention",
    "prefixed",
    "read_checkpoint",
    "read_gradient_basis",
    "register_conversion",
]
