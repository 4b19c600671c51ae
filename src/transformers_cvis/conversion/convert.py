"""Released Detectron2-style state dicts to the names of this package."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from .released.mask2former import count
from .rules import Ignore
from .systems import SYSTEMS

LISTED_NAMES = 8  # of a group of names, with numbers as *


@dataclass
class ConversionReport:
    """What became of every name of a released state dict, and of every weight of the model.

    Args:
        mapped: released name -> names in this package.
        ignored: released name -> why it has no place here.
        unknown: released names that no rule matches.
        fresh: weights of the model that the checkpoint does not hold, which start anew.
        notes: what a user should know besides, a sentence each.
    """

    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = defaultdict(list)
        for name, reason in self.ignored.items():
            reasons[reason].append(name)
        lines = list(self.notes)
        counts = f"{len(self.mapped)} tensors mapped, {len(self.ignored)} ignored, {len(self.unknown)} unknown"
        lines.append(f"{counts}; {len(self.fresh)} weights start anew." if self.fresh else f"{counts}.")
        for reason, names in reasons.items():
            lines += [f"Ignored, {reason}:", *_listing(names)]
        if self.unknown:
            lines += ["Unknown, with no place in the model:", *_listing(self.unknown)]
        if self.fresh:
            lines += ["Not in the checkpoint, starting anew:", *_listing(self.fresh)]
        return "\n".join(lines)


def _listing(names: Iterable[str]) -> Iterator[str]:
    """Names with `*` for their numbers, each once."""
    patterns = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    for pattern, number in list(patterns.items())[:LISTED_NAMES]:
        yield f"  {pattern}" + (f" ({number})" if number > 1 else "")
    rest = list(patterns.values())[LISTED_NAMES:]
    if rest:
        yield f"  and {sum(rest)} more"


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], system: str
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename the tensors of a released checkpoint.

    Args:
        state_dict: released names to tensors.
        system: key of `SYSTEMS`, e.g. "mask2former".

    Returns:
        The tensors under this package's names (rows of packed projections split), and what became of every name.

    Raises:
        ValueError: for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"There is no converter for {system!r}; there are {', '.join(sorted(SYSTEMS))}.")
    rules = [(re.compile(rule.pattern), rule) for rule in SYSTEMS[system].rules()]
    converted: dict[str, torch.Tensor] = {}
    report = ConversionReport()
    for name, current_name in current_names(state_dict).items():
        match, rule = next(
            ((match, rule) for pattern, rule in rules if (match := pattern.fullmatch(current_name))), (None, None)
        )
        if rule is None:
            report.unknown.append(name)
        elif isinstance(rule, Ignore):
            report.ignored[name] = rule.reason
        else:
            targets = tuple(match.expand(target) for target in rule.targets)
            tensor = state_dict[name].squeeze(0) if rule.squeeze else state_dict[name]
            parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
            if rule.copies is not None:
                targets = tuple(targets[0].replace("*", str(copy)) for copy in range(count(state_dict, rule.copies)))
                parts = [tensor] * len(targets)
            for target, part in zip(targets, parts, strict=True):
                converted[target] = part.clone()
                # A frozen norm of the original counts no batches; the counter is part of a batch norm here.
                if target.endswith(".running_var"):
                    converted[target.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
            report.mapped[name] = targets
    return converted, report


def current_names(names: Iterable[str]) -> dict[str, str]:
    """For each name that which newer files have in its place.

    Old Mask2Former files know neither `pixel_decoder` nor `query_feat`; files of a backbone alone, trained on ImageNet,
    leave out `backbone`.
    """
    names = list(names)
    backbone_alone = not {"stem.conv1.weight", "patch_embed.proj.weight"}.isdisjoint(names)
    old = not any(name.startswith("sem_seg_head.pixel_decoder.") for name in names)
    renamed = {}
    for name in names:
        current = f"backbone.{name}" if backbone_alone else name
        if old and name.startswith("sem_seg_head.") and not name.startswith("sem_seg_head.predictor."):
            current = name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
        renamed[name] = current.replace("predictor.static_query.", "predictor.query_feat.")
    return renamed
