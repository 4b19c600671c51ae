"""State dicts with the names and shapes of released checkpoints, tiny and random."""

import torch

WIDTH, HEADS, LEVELS, POINTS, FEED_FORWARD = 32, 2, 3, 4, 24


def random_state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet_names() -> dict[str, tuple[int, ...]]:
    """Basic bottleneck backbone, one block a stage but two in the second."""

    def frozen(name, *shape):
        statistics = {f"{name}.norm.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.weight": shape, **statistics}

    names, width = frozen("backbone.stem.conv1", 8, 3, 7, 7), 8
    for stage, (size, depth) in enumerate(((16, 1), (32, 2), (32, 1), (64, 1)), start=2):
        for block in range(depth):
            prefix = f"backbone.res{stage}.{block}"
            if block == 0:
                names |= frozen(f"{prefix}.shortcut", size, width, 1, 1)
            names |= frozen(f"{prefix}.conv1", size // 4, width, 1, 1)
            names |= frozen(f"{prefix}.conv2", size // 4, size // 4, 3, 3)
            names |= frozen(f"{prefix}.conv3", size, size // 4, 1, 1)
            width = size
    return names


RESNET_CHANNELS = (16, 32, 32, 64)


def swin_names(window: int = 3) -> dict[str, tuple[int, ...]]:
    names = with_bias("backbone.patch_embed.proj", 8, 3, 4, 4) | with_bias("backbone.patch_embed.norm", 8)
    for stage, (depth, heads) in enumerate(zip((1, 2, 1, 1), (1, 2, 2, 4), strict=True)):
        width = 8 * 2**stage
        for block in range(depth):
            prefix = f"backbone.layers.{stage}.blocks.{block}"
            names |= with_bias(f"{prefix}.norm1", width) | with_bias(f"{prefix}.norm2", width)
            names |= with_bias(f"{prefix}.attn.qkv", 3 * width, width) | with_bias(f"{prefix}.attn.proj", width, width)
            names |= {f"{prefix}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads)}
            names |= {f"{prefix}.attn.relative_position_index": (window**2, window**2)}
            names |= with_bias(f"{prefix}.mlp.fc1", 4 * width, width) | with_bias(f"{prefix}.mlp.fc2", width, 4 * width)
        if stage < 3:
            prefix = f"backbone.layers.{stage}.downsample"
            names |= {f"{prefix}.reduction.weight": (2 * width, 4 * width)} | with_bias(f"{prefix}.norm", 4 * width)
        names |= with_bias(f"backbone.norm{stage}", width)
    return names


SWIN_CHANNELS = (8, 16, 32, 64)


def mask2former_names(channels: tuple[int, ...], num_labels: int = 5) -> dict[str, tuple[int, ...]]:
    """All but the backbone; `channels` are those of its four maps."""
    pixel, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    names = {"criterion.empty_weight": (num_labels + 1,), f"{pixel}.transformer.level_embed": (LEVELS, WIDTH)}
    for level, size in enumerate(reversed(channels[1:])):
        names |= with_bias(f"{pixel}.input_proj.{level}.0", WIDTH, size, 1, 1)
        names |= with_bias(f"{pixel}.input_proj.{level}.1", WIDTH)
    for layer in range(2):
        prefix = f"{pixel}.transformer.encoder.layers.{layer}"
        names |= with_bias(f"{prefix}.self_attn.sampling_offsets", HEADS * LEVELS * POINTS * 2, WIDTH)
        names |= with_bias(f"{prefix}.self_attn.attention_weights", HEADS * LEVELS * POINTS, WIDTH)
        names |= with_bias(f"{prefix}.self_attn.value_proj", WIDTH, WIDTH)
        names |= with_bias(f"{prefix}.self_attn.output_proj", WIDTH, WIDTH)
        names |= with_bias(f"{prefix}.norm1", WIDTH) | with_bias(f"{prefix}.norm2", WIDTH)
        names |= with_bias(f"{prefix}.linear1", FEED_FORWARD, WIDTH) | with_bias(
            f"{prefix}.linear2", WIDTH, FEED_FORWARD
        )
    for name, shape in (("adapter_1", (WIDTH, channels[0], 1, 1)), ("layer_1", (WIDTH, WIDTH, 3, 3))):
        names |= {f"{pixel}.{name}.weight": shape} | with_bias(f"{pixel}.{name}.norm", WIDTH)
    names |= with_bias(f"{pixel}.mask_features", WIDTH, WIDTH, 1, 1)

    names |= {f"{predictor}.{name}.weight": (6, WIDTH) for name in ("query_feat", "query_embed")}
    names |= {f"{predictor}.level_embed.weight": (LEVELS, WIDTH)}
    for layer in range(3):
        for kind, attention in (("cross_attention", "multihead_attn"), ("self_attention", "self_attn")):
            prefix = f"{predictor}.transformer_{kind}_layers.{layer}"
            names |= {f"{prefix}.{attention}.in_proj_weight": (3 * WIDTH, WIDTH)}
            names |= {f"{prefix}.{attention}.in_proj_bias": (3 * WIDTH,)}
            names |= with_bias(f"{prefix}.{attention}.out_proj", WIDTH, WIDTH) | with_bias(f"{prefix}.norm", WIDTH)
        prefix = f"{predictor}.transformer_ffn_layers.{layer}"
        names |= with_bias(f"{prefix}.linear1", FEED_FORWARD, WIDTH) | with_bias(
            f"{prefix}.linear2", WIDTH, FEED_FORWARD
        )
        names |= with_bias(f"{prefix}.norm", WIDTH)
    names |= with_bias(f"{predictor}.decoder_norm", WIDTH) | with_bias(
        f"{predictor}.class_embed", num_labels + 1, WIDTH
    )
    for layer in range(3):
        names |= with_bias(f"{predictor}.mask_embed.layers.{layer}", WIDTH, WIDTH)
    return names
