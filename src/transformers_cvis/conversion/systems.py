# SPDX-License-Identifier: Apache-2.0
"""The systems whose released checkpoints can be converted."""

from ..messages import did_you_mean
from .released.crisp import CRISP
from .released.hvpl import HVPL
from .released.mask2former import MASK2FORMER, MASK2FORMER_VIS, MINVIS
from .released.spvis import DVIS, SPVIS
from .released.vita_genvis import GENVIS, VITA
from .rules import Conversion

CONVERSIONS: dict[str, Conversion] = {
    "vita": VITA,
    "genvis": GENVIS,
    "hvpl": HVPL,
    "crisp": CRISP,
    "spvis": SPVIS,
    "dvis": DVIS,
    "minvis": MINVIS,
    "mask2former-vis": MASK2FORMER_VIS,
    "mask2former": MASK2FORMER,
}


def register_conversion(name: str, conversion: Conversion, exist_ok: bool = False) -> None:
    r"""Add a system to the table, so that its checkpoints can be converted in this process.

    ```python
    register_conversion(
        "toy",
        Conversion(
            rules=lambda: [Rename(r"toy_head\.(.+)", r"head.\1"), *frame_detector_rules()],
            infer_config=infer_toy_config,
            model_class=ToyForVideoInstanceSegmentation,
            short_sides={"resnet": 360},
        ),
    )
    convert_checkpoint("toy.pth", "toy-r50", "toy")
    ```

    Args:
        name: name of the system, as `system` and `--system` take it.
        conversion: description of its checkpoints.
        exist_ok: replace a system of the same name.

    Raises:
        ValueError: a system of this name exists, and `exist_ok` is false.
    """
    if name in CONVERSIONS and not exist_ok:
        raise ValueError(f"A conversion for {name!r} exists already: choose another name, or pass `exist_ok=True`.")
    CONVERSIONS[name] = conversion


def find_conversion(name: str) -> Conversion:
    """Return the conversion of a system.

    Args:
        name: key of `CONVERSIONS`.

    Raises:
        ValueError: no system of this name is known.
    """
    if name not in CONVERSIONS:
        known = ", ".join(sorted(CONVERSIONS))
        raise ValueError(f"Unknown system {name!r}: expected one of {known}.{did_you_mean(name, CONVERSIONS)}")
    return CONVERSIONS[name]
