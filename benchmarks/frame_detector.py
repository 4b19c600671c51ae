# SPDX-License-Identifier: Apache-2.0
"""The frame detector against transformers' Mask2Former of the same configuration and weights.

ResNet-50, 384 x 640, float32, eager, 2 threads, one frame at a time. Both return the class and mask logits of
the last layer. `backbone`, `pixel_decoder` and `decoder` are its stages, each on the same inputs; ours makes the mask
features in the decoder, Mask2Former in the pixel decoder. `gemm_share` is the rate of floating-point operations of
`per_frame` over the best that matrix products reach in the same run.
"""

import torch
from _harness import compare, main, row
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
from transformers.utils import logging

from transformers_cvis.kernels import linear
from transformers_cvis.modeling.frame_detector import FrameDetector, FrameDetectorConfig

HEIGHT, WIDTH, NUM_THREADS, NUM_LABELS = 384, 640, 2, 40


def rows(quick: bool):
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


def _check_same(ours, peer, pixel_values) -> None:
    actual, expected = ours(pixel_values, output_predictions=True), peer(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        # A rounding error can flip an entry of an attention mask, which moves a few queries.
        error = (getattr(actual, name) - getattr(expected, name)).abs().median()
        if error > 1e-4:
            raise RuntimeError(f"The two models do not compute the same: median difference of {name} is {error:.1e}.")


def _stages(ours, peer, pixel_values, repeats):
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

    def peer_decoder():
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


def _gemm_share(ours, pixel_values, seconds: float) -> dict:
    # The counter knows PyTorch's own products, which are what runs where gradients are wanted.
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
