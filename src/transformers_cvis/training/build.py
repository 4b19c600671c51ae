# SPDX-License-Identifier: Apache-2.0
"""Build the model, the video processor and the training samples of a recipe."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..data import (
    ClipDataset,
    MixedClipDataset,
    PseudoVideoAugmentation,
    class_names,
    collate_clips,
    load_coco,
    load_ytvis,
)
from ..files import complete_file
from ..modeling.auto import MODELS, SYSTEMS, load_config
from ..modeling.frame_detector import FrameDetector, FrameDetectorConfig
from ..processing import PROCESSOR_FILES, CvisVideoProcessor, find_video_processor
from .recipe import Recipe, SourceSettings, shipped_recipes
from .settings import merge

logger = logging.get_logger(__name__)

CLASS_PREDICTOR = "class_predictor"
GENERATED_DATA = "moving_shapes"  # folder of the generated videos in the recipes for them


def build_model(recipe: Recipe, names: Sequence[str]) -> PreTrainedModel:
    """Build the model with which a run starts, on the CPU.

    The checkpoint may belong to another system, which provides the weights that both have. VITA starts GenVIS and HVPL.
    Mask2Former, MinVIS and online SPVIS, which contain a frame detector, start each the next of them, Mask2Former-VIS,
    CRISP, and the detector of VITA, GenVIS and HVPL. Configuration fields whose defaults differ between the two systems
    take the default of the new system. Class heads get random weights, with a warning, unless the checkpoint has the
    same classes in the same order.

    Args:
        recipe: recipe of the run.
        names: class names in label order.

    Raises:
        OSError: if `model.init_from` is neither a folder with a model nor a model on the Hub, or cannot be downloaded.
        ValueError: if the checkpoint cannot start this system, or weights other than the class heads differ in shape.
    """
    model_class = MODELS[SYSTEMS[recipe.system]]
    start, revision = recipe.model.init_from, recipe.model.revision
    source = source_config(recipe)
    config = build_config(recipe, source, names)
    if source is None:
        return model_class(config)

    loading: dict[str, Any] = {"revision": revision, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if _gives_detector(source, type(config)):
        model = model_class(config)
        detector, info = FrameDetector.from_pretrained(start, config=config.detector_config, **loading)
        own = model.detector.state_dict()  # the class heads of a model with tasks have other names
        model.detector.load_state_dict({**own, **{k: v for k, v in detector.state_dict().items() if k in own}})
        logger.warning(f"{start} provides the frame detector; the video head starts from random weights.")
    else:
        model, info = model_class.from_pretrained(start, config=config, **loading)
    _check_loaded(start, info)
    if [source.id2label[label] for label in sorted(source.id2label)] != list(names):
        _reset_class_heads(model, start, source, names)
    return model


def source_config(recipe: Recipe) -> PreTrainedConfig | None:
    """Return the configuration of the model that a run starts from, or None if it starts from random weights.

    Raises:
        OSError: if `model.init_from` cannot be found.
    """
    start = recipe.model.init_from
    if start is None:
        return None
    return load_config(start, recipe.model.revision, f"`model.init_from`: {start}", _missing_start_hint(start))


def _missing_start_hint(start: str) -> str:
    """Return a hint for a `model.init_from` that does not exist."""
    if start in shipped_recipes():
        return (
            "It is the name of a recipe that ships with the package: train that recipe first, with "
            f"`transformers-cvis train {start}`, or give the folder of its model with `--set model.init_from=FOLDER`."
        )
    return "Give the folder of a saved model, or the name of one on the Hub, with `--set model.init_from=NAME`."


def build_config(recipe: Recipe, source: PreTrainedConfig | None, names: Sequence[str]) -> PreTrainedConfig:
    """Build the configuration of the model of a run.

    Args:
        recipe: recipe of the run.
        source: configuration of the model that the run starts from; None for random weights.
        names: class names in label order.

    Raises:
        ValueError: if a model of `source` cannot start this system.
    """
    config_class = SYSTEMS[recipe.system]
    if source is None:
        settings = {}
    elif _gives_detector(source, config_class):
        settings = {"detector_config": _shared_settings(source, FrameDetectorConfig)}
    elif source.model_type in (config_class.model_type, *config_class.starts_from):
        settings = _shared_settings(source, config_class)
    else:
        starts = dict.fromkeys(
            [config_class.model_type, *config_class.starts_from, *getattr(config_class, "detector_starts_from", ())]
        )
        raise ValueError(
            f"`model.init_from`: {recipe.model.init_from} is a {source.model_type!r} model; {recipe.system} starts "
            f"from {', '.join(starts)}."
        )
    return config_class(**merge(settings, recipe.model.config), id2label=dict(enumerate(names)))


def config_of_base(recipe: Recipe, base_model: str | None) -> PreTrainedConfig:
    """Build the configuration of the base of a schedule.

    Args:
        recipe: recipe of the base.
        base_model: folder or Hub repository of a trained base; None if `recipe` trains the base.
    """
    former = source_config(recipe) if base_model is None else AutoConfig.from_pretrained(base_model)
    return build_config(recipe, former, recipe.data.class_names)


def _gives_detector(source: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> bool:
    """Return whether a model of `source` becomes the frame detector of a larger model."""
    return source.model_type in getattr(config_class, "detector_starts_from", ())


def _shared_settings(source: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> dict:
    """Return the fields that `source` shares with `config_class`, without those whose defaults differ."""
    values = source.to_dict()
    defaults = {field.name: field.default for field in fields(type(source))}
    shared = {}
    for field in fields(config_class):
        if field.name in values and field.default is not MISSING and field.default == defaults.get(field.name):
            shared[field.name] = values[field.name]
    for name in ("id2label", "label2id", "architectures", "transformers_version", "dtype"):
        shared.pop(name, None)
    return shared


def _reset_class_heads(model: PreTrainedModel, start: str, source: PreTrainedConfig, names: Sequence[str]) -> None:
    heads = {name: module for name, module in model.named_modules() if name.split(".")[-1] == CLASS_PREDICTOR}
    for module in heads.values():
        module.reset_parameters()
    logger.warning(
        f"The class heads start from random weights: {start} has {len(source.id2label)} classes "
        f"({_abbreviated(source.id2label.values())}), this run has {len(names)} ({_abbreviated(names)})."
    )
    frozen = [name for name, module in heads.items() if not any(p.requires_grad for p in module.parameters())]
    if frozen:
        logger.warning(
            f"{' and '.join(frozen)} will stay random, because this run does not train them: train the previous stage "
            "on the classes of this run, and start from it."
        )


def _check_loaded(start: str, info: dict) -> None:
    mismatched = [entry for entry in sorted(info["mismatched_keys"]) if CLASS_PREDICTOR not in entry[0].split(".")]
    if mismatched:
        listing = "; ".join(f"{name}: checkpoint {tuple(old)}, model {tuple(new)}" for name, old, new in mismatched)
        raise ValueError(
            f"{start} does not fit the model of the recipe. Weights of another shape: {listing}. Remove the sizes from "
            "`model.config` to use those of the checkpoint."
        )


def _abbreviated(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def build_processor(recipe: Recipe, *saved_in: str | Path | None) -> CvisVideoProcessor:
    """Build the video processor of a run, which training and evaluation use and which is saved with the model.

    Mean, standard deviation, rescaling and size divisor come from the saved processor; the size comes from
    `recipe.evaluation`.

    Args:
        recipe: recipe of the run.
        saved_in: folders or repositories in which to look for a saved processor, in this order, followed by
            `model.init_from`. Without one, the default of `CvisVideoProcessor` is used.
    """
    processor = None
    for place, revision in (*((place, None) for place in saved_in), (recipe.model.init_from, recipe.model.revision)):
        processor = processor or find_video_processor(place, revision)
    processor = processor or CvisVideoProcessor()
    processor.size = {"shortest_edge": recipe.evaluation.short_side, "longest_edge": recipe.evaluation.max_size}
    return processor


def keep_processor(processor: CvisVideoProcessor, checkpoints: Path) -> None:
    """Save the processor of a run next to its checkpoints, where a resumed run finds it."""
    with complete_file(checkpoints / PROCESSOR_FILES[0]) as file:
        file.write(processor.to_json_string().encode())


def build_dataset(recipe: Recipe) -> tuple[Dataset, list[str]]:
    """Build the data set of training samples.

    Returns:
        The data set and the class names in label order.

    Raises:
        FileNotFoundError: if a file is missing, see `load_ytvis`.
        ValueError: if a source is not valid, or one after the first has a category that is not a class.
    """
    data = recipe.data
    for number, source in enumerate(data.train):
        if source.use:
            _check_annotation_file(f"data.train.{number}", source)
    names = data.class_names
    clips = []
    for source in data.used_sources:
        load: Callable[..., Any] = load_coco if source.kind == "images" else load_ytvis
        augmentation: Any = data.augmentation
        if source.kind == "images" and data.image_rotation is not None:
            augmentation = PseudoVideoAugmentation(augmentation, data.image_rotation)
        table = load(
            source.json, source.images, labels=names, class_mapping=source.class_mapping, class_filter=source.classes
        )
        names = names or class_names(table)
        clips.append(
            ClipDataset(table, data.num_frames, data.frame_range, augmentation, recipe.seed, data.reverse_probability)
        )
    if len(clips) == 1:
        return clips[0], names
    return MixedClipDataset(clips, [source.ratio for source in data.used_sources], recipe.seed), names


def _check_annotation_file(key: str, source: SourceSettings) -> None:
    path = Path(source.json)
    if path.is_file():
        return
    if path.parts[:1] == (GENERATED_DATA,):
        remedy = f"Make the data there first: `transformers-cvis make-data moving-shapes {GENERATED_DATA}`."
    else:
        remedy = f"Put the data set there, or give its place with `--set {key}.json=FILE --set {key}.images=FOLDER`."
    raise FileNotFoundError(f"`{key}.json`: {path.absolute()} does not exist. {remedy}")


def build_collate(
    processor: CvisVideoProcessor,
) -> Callable[[list[dict]], tuple[dict[str, torch.Tensor | list], list[str]]]:
    """Build the function that turns samples into a batch: keyword arguments of the model, and names for messages.

    Args:
        processor: the video processor, from [`build_processor`], which normalises and pads the clips.
    """
    return partial(_collate, processor)


def _collate(processor: CvisVideoProcessor, samples: list[dict]) -> tuple[dict[str, torch.Tensor | list], list[str]]:
    return collate_clips(samples, processor), [sample["name"] for sample in samples]
