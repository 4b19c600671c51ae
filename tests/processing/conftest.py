# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch


@pytest.fixture
def write_video():
    """Write frames `(T, H, W, 3)` as a video file; smooth frames survive the encoder nearly unchanged."""

    def write(path, frames, fps=10, encoder="libx264", rotation=None, options=None):
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(encoder, rate=fps)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "rgb8" if encoder == "gif" else "yuv420p"
            if rotation is not None:
                stream.set_display_rotation(rotation)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def numbered_frames():
    """Return frames whose brightness is their number: frame `i` is `10 * i` everywhere."""

    def make(num_frames, height=48, width=64):
        values = np.arange(num_frames, dtype=np.uint8) * 10
        return np.broadcast_to(values[:, None, None, None], (num_frames, height, width, 3)).copy()

    return make


class FakeModel:
    """Return given class logits per clip, and mask logits cut from one array `(queries, frames, h, w)`."""

    device, dtype, training = torch.device("cpu"), torch.float32, True

    def __init__(self, class_logits, mask_logits, is_online=True, clip_length=2):
        self.class_logits, self.mask_logits, self.is_online = class_logits, mask_logits, is_online
        self.config = SimpleNamespace(
            id2label={i: f"class {i}" for i in range(class_logits.shape[-1] - 1)}, clip_length=clip_length
        )
        self.most_waiting = 0

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def stream(self, clips):
        assert not self.training
        assert not torch.is_grad_enabled()
        clips = clips if self.is_online else list(clips)
        first = 0
        for number, clip in enumerate(clips):
            assert clip.ndim == 5
            assert clip.shape[:1] == (1,)
            assert clip.shape[2] == 3
            assert clip.shape[3] == 4 * self.mask_logits.shape[2]
            assert clip.shape[4] == 4 * self.mask_logits.shape[3]
            last = first + clip.shape[1]
            yield SimpleNamespace(
                class_queries_logits=self.class_logits[None, min(number, len(self.class_logits) - 1)],
                masks_queries_logits=self.mask_logits[None, :, first:last],
            )
            first = last


@pytest.fixture
def fake_model():
    return FakeModel
