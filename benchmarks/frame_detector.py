# SPDX-License-Identifier: Apache-2.0
"""Our frame detector against transformers' Mask2Former of the same configuration and weights.

ResNet-50, 384 x 640, float32, eager, 2 threads, one frame at a time. Both return the class and mask logits of the last
layer. `backbone`, `pixel_decoder` and `decoder` time the stages, each on the same inputs; ours computes the mask
features in the decoder, Mask2Former in the pixel decoder. `gemm_share` is the floating-point rate of `per_frame`,
divided by the best rate of matrix products in the same run.
"""

from collections.abc import Iterator

import torch
from _harness import compare, main, row
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
from transformers.utils import logging

from transformers_cvis.kernels import linear
from transformers_cvis.modeling.frame_detector import FrameDetector, FrameDetectorConfig

HEIGHT, WIDTH, NUM_THREADS, NUM_LABELS = 384, 640, 2, 40


def rows(quick: bool) -> Iterator[dict]:
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    settings = {
        "backbone_config": ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
        "num_labels": NUM_LABELS,
    }
    ours = FrameDetector(FrameDetectorConfig(**settings)).eval()
    peer = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**settings)).eval()
    ours.load_state_dict(peer.state_dict(), strict=False)
    pixel_values = torch.randn(1, 3, HEIGHT, WIDTH)
    repeats = 5 if quick else 20
    with torch.inference_mode():
        _check_same(ours, peer, pixel_values)
        frame = compare(
            "per_frame",
            ours=lambda: ours(pixel_values, output_predictions=True),
            peer=lambda: peer(pixel_values),
            repeats=repeats,
            note=f"{HEIGHT}x{WIDTH}, one frame",
        )
        yield frame
        yield from _stages(ours, peer, pixel_values, repeats)
        yield _gemm_share(ours, pixel_values, frame["ours"] / 1e3)


def _check_same(ours: FrameDetector, peer: Mask2FormerForUniversalSegmentation, pixel_values: torch.Tensor) -> None:
    """Raise a RuntimeError if the two models give different logits."""
    actual, expected = ours(pixel_values, output_predictions=True), peer(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        # A rounding error can flip an entry of an attention mask and so change a few queries.
        error = (getattr(actual, name) - getattr(expected, name)).abs().median()
        if error > 1e-4:
            raise RuntimeError(
                f"The two models differ: the median difference of `{name}` is {error:.1e}, at most 1e-4."
            )


def _stages(
    ours: FrameDetector, peer: Mask2FormerForUniversalSegmentation, pixel_values: torch.Tensor, repeats: int
) -> Iterator[dict]:
    our_pixels, peer_pixels = ours.model.pixel_level_module, peer.model.pixel_level_module
    yield compare(
        "backbone",
        ours=lambda: our_pixels.extract_features(pixel_values),
        peer=lambda: peer_pixels.encoder(pixel_values).feature_maps,
        repeats=repeats,
    )
    our_maps, peer_maps = our_pixels.extract_features(pixel_values), peer_pixels.encoder(pixel_values).feature_maps
    yield compare(
        "pixel_decoder",
        ours=lambda: our_pixels.decoder(our_maps),
        peer=lambda: peer_pixels.decoder(peer_maps),
        repeats=repeats,
    )
    levels, fpn_features = our_pixels.decoder(our_maps)
    decoded = peer_pixels.decoder(peer_maps)

    def peer_decoder() -> list[torch.Tensor]:
        queries = peer.model.transformer_module(
            decoded.multi_scale_features, decoded.mask_features, output_hidden_states=True
        ).intermediate_hidden_states
        return [peer.class_predictor(states.transpose(0, 1)) for states in queries]

    yield compare(
        "decoder",
        ours=lambda: ours.predict(levels, fpn_features, output_predictions=True),
        peer=peer_decoder,
        repeats=repeats,
    )


def _gemm_share(ours: FrameDetector, pixel_values: torch.Tensor, seconds: float) -> dict:
    # The counter knows PyTorch's own products only, which run when gradients are wanted.
    with torch.inference_mode(False), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        ours(pixel_values, output_predictions=True)
    achieved = counter.get_total_flops() / seconds
    size = 2048
    first, second = torch.randn(size, size), torch.randn(size, size)
    products = compare("peak", ours=lambda: linear(first, second), peer=lambda: first @ second, repeats=10)
    peak = 2 * size**3 / (min(products["ours"], products["peer"]) / 1e3)
    note = f"{achieved / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {counter.get_total_flops() / 1e9:.0f} GFLOP a frame"
    return row("gemm_share", achieved / peak, unit="share", note=note)


if __name__ == "__main__":
    main("Frame detector against transformers' Mask2Former (ResNet-50, float32, eager)", rows)
