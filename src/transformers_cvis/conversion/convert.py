"""Released Detectron2-style state dicts to this package's names."""

import re
from dataclasses import dataclass, field

import torch

from .names import RULES, Ignore


@dataclass
class ConversionReport:
    """What became of every name of a released state dict.

    Args:
        mapped: released name -> names in this package.
        ignored: released name -> why it has no place here.
        unknown: released names that no rule matches.
    """

    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.mapped)} tensors mapped, {len(self.ignored)} ignored, {len(self.unknown)} unknown"]
        lines += [f"ignored {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"unknown {name}" for name in self.unknown]
        return "\n".join(lines)


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], system: str
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename the tensors of a released checkpoint.

    Args:
        state_dict: released names to tensors.
        system: key of `RULES`, e.g. "mask2former".

    Returns:
        The tensors under this package's names (rows of packed projections split), and what became of every name.

    Raises:
        ValueError: for an unknown system.
    """
    if system not in RULES:
        raise ValueError(f"No name table for system {system!r}; there are {sorted(RULES)}.")
    rules = [(re.compile(rule.pattern), rule) for rule in RULES[system]()]
    converted: dict[str, torch.Tensor] = {}
    report = ConversionReport()
    for name, tensor in _with_current_names(state_dict).items():
        match, rule = next(
            ((match, rule) for pattern, rule in rules if (match := pattern.fullmatch(name))), (None, None)
        )
        if rule is None:
            report.unknown.append(name)
        elif isinstance(rule, Ignore):
            report.ignored[name] = rule.reason
        else:
            targets = tuple(match.expand(target) for target in rule.targets)
            tensor = tensor.squeeze(0) if rule.squeeze else tensor
            for target, part in zip(targets, tensor.chunk(len(targets)) if len(targets) > 1 else [tensor], strict=True):
                converted[target] = part.clone()
                # A frozen norm of the original counts no batches; the counter is part of a batch norm here.
                if target.endswith(".running_var"):
                    converted[target.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
            report.mapped[name] = targets
    return converted, report


def _with_current_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Newer names for those of old Mask2Former files, which had neither `pixel_decoder` nor `query_feat`."""
    renamed = {}
    old = not any(name.startswith("sem_seg_head.pixel_decoder.") for name in state_dict)
    for name, tensor in state_dict.items():
        if old and name.startswith("sem_seg_head.") and not name.startswith("sem_seg_head.predictor."):
            name = name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
        renamed[name.replace("predictor.static_query.", "predictor.query_feat.")] = tensor
    return renamed
