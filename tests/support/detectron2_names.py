# SPDX-License-Identifier: Apache-2.0
"""State dicts with the names and shapes of released checkpoints, tiny by default or of published sizes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

LEVELS, POINTS = 3, 4
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ResNet:
    stem: int = 8
    channels: tuple[int, ...] = (16, 32, 32, 64)
    depths: tuple[int, ...] = (1, 2, 1, 1)


@dataclass(frozen=True)
class Swin:
    width: int = 8
    depths: tuple[int, ...] = (1, 2, 1, 1)
    heads: tuple[int, ...] = (1, 2, 2, 4)
    window: int = 3

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.width * 2**stage for stage in range(4))


# "Deep Residual Learning" table 1, "Swin Transformer" section 3.3; window 12 for those that were trained on 384 pixels.
PUBLISHED_BACKBONES = {
    "R50": ResNet(64, (256, 512, 1024, 2048), (3, 4, 6, 3)),
    "R101": ResNet(64, (256, 512, 1024, 2048), (3, 4, 23, 3)),
    "Swin-T": Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "Swin-S": Swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "Swin-B": Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "Swin-L": Swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


@dataclass(frozen=True)
class Sizes:
    width: int = 32
    heads: int = 2
    encoder_layers: int = 2
    encoder_feed_forward: int = 24
    decoder_layers: int = 3
    feed_forward: int = 40
    queries: int = 6
    classes: int = 5
    # number of heads over frame queries
    video_layers: int = 2
    video_queries: int = 4
    # only for models that learn task by task
    task_classes: tuple[int, ...] = (3, 2, 1)
    prompts: int = 3


TINY = Sizes()
PUBLISHED = Sizes(256, 8, 6, 1024, 9, 2048, 100, 80)


def random_state_dict(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights that keep activations of the order of one through all layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            tensors[name] = 0.5 + noise.abs()
        elif len(shape) > 1:
            tensors[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            tensors[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return tensors


def meta_state_dict(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return meta tensors: shapes without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def packed_attention(name: str, width: int) -> Shapes:
    projections = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return projections | with_bias(f"{name}.out_proj", width, width)


def feed_forward(name: str, width: int, hidden: int) -> Shapes:
    return (
        with_bias(f"{name}.linear1", hidden, width)
        | with_bias(f"{name}.linear2", width, hidden)
        | with_bias(f"{name}.norm", width)
    )


def perceptron(name: str, width: int, outputs: int | None = None) -> Shapes:
    """Return the shapes of a perceptron of three layers."""
    names = with_bias(f"{name}.layers.0", width, width) | with_bias(f"{name}.layers.1", width, width)
    return names | with_bias(f"{name}.layers.2", outputs or width, width)


def decoder_layers(prefix: str, count: int, sizes: Sizes) -> Shapes:
    names = {}
    for layer in range(count):
        for kind, attention in (("cross_attention", "multihead_attn"), ("self_attention", "self_attn")):
            part = f"{prefix}.transformer_{kind}_layers.{layer}"
            names |= packed_attention(f"{part}.{attention}", sizes.width) | with_bias(f"{part}.norm", sizes.width)
        names |= feed_forward(f"{prefix}.transformer_ffn_layers.{layer}", sizes.width, sizes.feed_forward)
    return names


def resnet_names(backbone: ResNet) -> Shapes:
    """Return the shapes of a ResNet with frozen norms and bottleneck blocks."""

    def frozen(name, *shape):
        statistics = {f"{name}.norm.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.weight": shape, **statistics}

    names, width = frozen("backbone.stem.conv1", backbone.stem, 3, 7, 7), backbone.stem
    for stage, (size, depth) in enumerate(zip(backbone.channels, backbone.depths, strict=True), start=2):
        for block in range(depth):
            prefix = f"backbone.res{stage}.{block}"
            if block == 0:
                names |= frozen(f"{prefix}.shortcut", size, width, 1, 1)
            names |= frozen(f"{prefix}.conv1", size // 4, width, 1, 1)
            names |= frozen(f"{prefix}.conv2", size // 4, size // 4, 3, 3)
            names |= frozen(f"{prefix}.conv3", size, size // 4, 1, 1)
            width = size
    return names


def swin_names(backbone: Swin) -> Shapes:
    names = with_bias("backbone.patch_embed.proj", backbone.width, 3, 4, 4)
    names |= with_bias("backbone.patch_embed.norm", backbone.width)
    window = backbone.window
    for stage, width in enumerate(backbone.channels):
        for block in range(backbone.depths[stage]):
            prefix = f"backbone.layers.{stage}.blocks.{block}"
            names |= with_bias(f"{prefix}.norm1", width) | with_bias(f"{prefix}.norm2", width)
            names |= with_bias(f"{prefix}.attn.qkv", 3 * width, width) | with_bias(f"{prefix}.attn.proj", width, width)
            table = ((2 * window - 1) ** 2, backbone.heads[stage])
            names |= {f"{prefix}.attn.relative_position_bias_table": table}
            names |= {f"{prefix}.attn.relative_position_index": (window**2, window**2)}
            names |= with_bias(f"{prefix}.mlp.fc1", 4 * width, width) | with_bias(f"{prefix}.mlp.fc2", width, 4 * width)
        if stage < 3:
            prefix = f"backbone.layers.{stage}.downsample"
            names |= {f"{prefix}.reduction.weight": (2 * width, 4 * width)} | with_bias(f"{prefix}.norm", 4 * width)
        names |= with_bias(f"backbone.norm{stage}", width)
    return names


def detector_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    """Return the shapes of Mask2Former without its class head."""
    pixel, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    names = swin_names(backbone) if isinstance(backbone, Swin) else resnet_names(backbone)
    names |= {f"{pixel}.transformer.level_embed": (LEVELS, sizes.width)}
    for level, size in enumerate(reversed(backbone.channels[1:])):
        names |= with_bias(f"{pixel}.input_proj.{level}.0", sizes.width, size, 1, 1)
        names |= with_bias(f"{pixel}.input_proj.{level}.1", sizes.width)
    for layer in range(sizes.encoder_layers):
        prefix = f"{pixel}.transformer.encoder.layers.{layer}"
        samples = sizes.heads * LEVELS * POINTS
        names |= with_bias(f"{prefix}.self_attn.sampling_offsets", 2 * samples, sizes.width)
        names |= with_bias(f"{prefix}.self_attn.attention_weights", samples, sizes.width)
        names |= with_bias(f"{prefix}.self_attn.value_proj", sizes.width, sizes.width)
        names |= with_bias(f"{prefix}.self_attn.output_proj", sizes.width, sizes.width)
        names |= with_bias(f"{prefix}.norm1", sizes.width) | with_bias(f"{prefix}.norm2", sizes.width)
        names |= with_bias(f"{prefix}.linear1", sizes.encoder_feed_forward, sizes.width)
        names |= with_bias(f"{prefix}.linear2", sizes.width, sizes.encoder_feed_forward)
    lateral = {"adapter_1": (sizes.width, backbone.channels[0], 1, 1), "layer_1": (sizes.width, sizes.width, 3, 3)}
    for name, shape in lateral.items():
        names |= {f"{pixel}.{name}.weight": shape} | with_bias(f"{pixel}.{name}.norm", sizes.width)
    names |= with_bias(f"{pixel}.mask_features", sizes.width, sizes.width, 1, 1)

    names |= {f"{predictor}.{name}.weight": (sizes.queries, sizes.width) for name in ("query_feat", "query_embed")}
    names |= {f"{predictor}.level_embed.weight": (LEVELS, sizes.width)}
    names |= decoder_layers(predictor, sizes.decoder_layers, sizes)
    names |= with_bias(f"{predictor}.decoder_norm", sizes.width)
    return names | perceptron(f"{predictor}.mask_embed", sizes.width)


def mask2former_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    head = with_bias("sem_seg_head.predictor.class_embed", sizes.classes + 1, sizes.width)
    return detector_names(backbone, sizes) | head | {"criterion.empty_weight": (sizes.classes + 1,)}


def video_head_names(sizes: Sizes) -> Shapes:
    """Return the shapes shared by VITA, GenVIS and HVPL, without encoder and class head."""
    head, width = "vita_module", sizes.width
    names = with_bias(f"{head}.vita_mask_features", width, width, 1, 1) | with_bias(f"{head}.decoder_norm", width)
    names |= {f"{head}.{name}.weight": (sizes.video_queries, width) for name in ("query_feat", "query_embed")}
    names |= {f"{head}.fq_pos.weight": (sizes.queries, width)}
    for name in ("input_proj_dec", "sim_embed_frame", "sim_embed_clip"):
        names |= with_bias(f"{head}.{name}", width, width)
    return names | decoder_layers(head, sizes.video_layers, sizes) | perceptron(f"{head}.mask_embed", width)


def vita_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    names = mask2former_names(backbone, sizes) | video_head_names(sizes)
    names |= with_bias("vita_module.class_embed", sizes.classes + 1, sizes.width)
    for layer in range(sizes.video_layers):
        prefix = f"vita_module.enc_self_attn.{layer}"
        names |= packed_attention(f"{prefix}.self_attn", sizes.width) | with_bias(f"{prefix}.norm", sizes.width)
        names |= feed_forward(f"vita_module.enc_ffn.{layer}", sizes.width, sizes.feed_forward)
    return names | {"vita_criterion.empty_weight": (sizes.classes + 1,)}


def genvis_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    names = vita_names(backbone, sizes) | {"genvis_criterion.empty_weight": (sizes.classes + 1,)}
    for name in ("pre_memory_embed_k", "pre_memory_embed_v", "pre_query_embed_k", "pre_query_embed_v"):
        names |= with_bias(f"vita_module.{name}", sizes.width, sizes.width)
    return names


def task_names(level: str, layers: int, sizes: Sizes) -> Shapes:
    """Return the prompts and class heads of one level of a model that learns task by task."""
    width, names = sizes.width, {}
    for head, count in enumerate((1, *sizes.task_classes)):
        names |= perceptron(f"{level}.class_embed.cls.{head}", width, count)
    for task in range(len(sizes.task_classes) - 1):
        names |= {f"{level}.prompt_feat.{task}.weight": (sizes.prompts, width)}
        names |= {f"{level}.prompt_embed.{task}.{layer}.weight": (sizes.prompts, width) for layer in range(layers)}
        names |= perceptron(f"{level}.prompt_mask_embed.{task}", width)
    return names


def hvpl_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    width, inner, rank = sizes.width, 2 * sizes.width, -(-sizes.width // 16)
    names = detector_names(backbone, sizes) | video_head_names(sizes)
    names |= task_names("sem_seg_head.predictor", sizes.decoder_layers, sizes)
    names |= task_names("vita_module", sizes.video_layers, sizes)
    for task in range(len(sizes.task_classes) - 1):
        names |= {f"vita_module.prompt_fq_pos.{task}.weight": (sizes.prompts, width)}
    for layer in range(sizes.video_layers):
        prefix = f"vita_module.enc_mamba.{layer}"
        names |= with_bias(f"{prefix}.norm1.0", width) | with_bias(f"{prefix}.norm2.0", width)
        names |= with_bias(f"{prefix}.mlp.fc1", 4 * width, width) | with_bias(f"{prefix}.mlp.fc2", width, 4 * width)
        scan = f"{prefix}.TreeSSM"
        names |= {
            f"{scan}.in_proj.weight": (2 * inner, width),
            f"{scan}.conv2d.weight": (inner, 1, 3, 3),
            f"{scan}.x_proj_weight": (1, rank + 2, inner),
            f"{scan}.dt_projs_weight": (1, inner, rank),
            f"{scan}.dt_projs_bias": (1, inner),
            f"{scan}.A_logs": (inner, 1),
            f"{scan}.Ds": (inner,),
            f"{scan}.out_proj.weight": (width, inner),
        }
        names |= with_bias(f"{scan}.h_norm", inner) | with_bias(f"{scan}.out_norm", inner)
    return names


def crisp_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    """Return the shapes of CRISP with a few tensors of the copies of CLIP in its files."""
    predictor = "sem_seg_head.predictor"
    names = detector_names(backbone, sizes) | task_names(predictor, sizes.decoder_layers, sizes)
    for task, count in enumerate(sizes.task_classes):
        names |= {f"{predictor}.sem_prompter.learnable_prompts.{task}.weight": (count, 2 * sizes.width)}
    for copy in ("clip_model", "text_encoder"):
        names |= {f"{predictor}.sem_prompter.{copy}.positional_embedding": (7, 2 * sizes.width)}
        names |= with_bias(f"{predictor}.sem_prompter.{copy}.ln_final", 2 * sizes.width)
    return names


def dvis_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    """Return the shapes of online DVIS: detector and tracker."""
    names = mask2former_names(backbone, sizes) | decoder_layers("tracker", sizes.video_layers, sizes)
    names |= with_bias("tracker.decoder_norm", sizes.width) | perceptron("tracker.mask_embed", sizes.width)
    return names | with_bias("tracker.class_embed", sizes.classes + 1, sizes.width)


def spvis_names(backbone: ResNet | Swin, sizes: Sizes = TINY) -> Shapes:
    """Return the shapes of DVIS with the disturbance filter."""
    width, names = sizes.width, {}
    for name, shape in dvis_names(backbone, sizes).items():
        if not (name.startswith("tracker.transformer_cross_attention_layers.") and ".norm." in name):
            names[name] = shape
    for layer in range(sizes.video_layers):
        prefix = f"tracker.transformer_cross_attention_layers.{layer}"
        names |= with_bias(f"{prefix}.temporal_conv", width, width, 3) | packed_attention(f"{prefix}.self_attn", width)
        names |= with_bias(f"{prefix}.feedforward.0", sizes.feed_forward, width)
        names |= with_bias(f"{prefix}.feedforward.3", width, sizes.feed_forward)
        for norm in range(1, 5):
            names |= with_bias(f"{prefix}.norm{norm}", width)
    return names


SYSTEM_NAMES = {
    "vita": vita_names,
    "genvis": genvis_names,
    "hvpl": hvpl_names,
    "crisp": crisp_names,
    "spvis": spvis_names,
    "dvis": dvis_names,
    "minvis": mask2former_names,
    "mask2former-vis": mask2former_names,
    "mask2former": mask2former_names,
}


def imagenet_names(backbone: ResNet | Swin) -> Shapes:
    """Return the names of a backbone file with its classifier."""
    if isinstance(backbone, ResNet):
        names, classifier = resnet_names(backbone), with_bias("stem.fc", 1000, backbone.channels[-1])
    else:
        names = {name: shape for name, shape in swin_names(backbone).items() if not name.startswith("backbone.norm")}
        classifier = with_bias("norm", backbone.channels[-1]) | with_bias("head", 1000, backbone.channels[-1])
        classifier |= {"layers.0.blocks.0.attn_mask": (4, backbone.window**2, backbone.window**2)}
    return {name.removeprefix("backbone."): shape for name, shape in names.items()} | classifier


def old_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to that in the first files of Mask2Former."""
    return {
        name: name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query")
        for name in names
    }
