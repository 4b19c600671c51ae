# SPDX-License-Identifier: Apache-2.0
"""Association in long videos: MinVIS, GenVIS with and without memory, SPVIS online and offline.

    OMP_NUM_THREADS=1 python benchmarks/association.py [--quick] [--json FILE]

The videos show moving shapes: 104 frames, 3 to 6 shapes of three classes, so that most shapes have a look-alike in
their video. Shapes cross, hide each other, leave and come back. They run at the full frame rate, and at a fourth and an
eighth of it (`stride`), with more motion between two frames. All methods start from one frame detector, trained as
MinVIS on single frames. With the detector frozen, every tracker then trains for the same number of steps of 30 frames,
on the same clips of consecutive frames of all three frame rates. The methods:

- `minvis`: the detector, with queries matched from frame to frame; no further training.
- `genvis`: online GenVIS with a memory of all frames; the video head starts from random weights (published training
  starts it from VITA).
- `genvis_no_memory`: GenVIS trained and tested with a memory of the previous clip only. Its queries start from those of
  that clip in any case, so this leaves the propagation of queries.
- `spvis_online`: the tracker of SPVIS.
- `spvis_offline`: the refiner of SPVIS, which sees the whole video, trained for the same number of steps on top of
  `spvis_online`; twice the budget in total.

Rows (the peer is `minvis`; 0 to 100, more is better):

- `..._ap`: video AP of the 10 best tracks.
- `..._assa`: association accuracy of the tracks that would be shown (score 0.3 and more): agreement of tracks with
  objects, over the masks that are found (IoU 0.5); see `evaluate_association`.
- `..._idf1`: F1 of masks under the best assignment of tracks to objects; also counts missed and false masks.

`--quick` takes a few steps, to check that everything runs. The full run keeps data, checkpoints and predictions in
`build/association` and resumes there; delete the folder to start from scratch.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _harness import main, row
from transformers import AutoVideoProcessor, PreTrainedModel

from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    Recipe,
    evaluate_ytvis,
    make_moving_shapes,
    predict_dataset,
    train,
)
from transformers_cvis.evaluation import evaluate_association
from transformers_cvis.files import write_json
from transformers_cvis.logs import progress_bar
from transformers_cvis.modeling.outputs import VideoInstanceSegmentationOutput

WORK_DIR = Path(__file__).parents[1] / "build" / "association"
STRIDES = (1, 4, 8)
SHAPES = {"num_objects": (3, 6), "categories": ("circle", "square", "star")}
CONSECUTIVE = ("data.num_frames=5", "data.frame_range=null", "batch_size=6")
# Video head of the small VITA from which the recipe of GenVIS starts by default.
GENVIS_HEAD = (
    *("model.config.num_queries=20", "model.config.encoder_layers=2", "model.config.decoder_layers=3"),
    *("model.config.dim_feedforward=192", "model.config.num_attention_heads=4"),
    "model.config.num_frame_query_layers=2",
)


@dataclass(frozen=True)
class Scale:
    """Size of the benchmark; numbers of videos are per stride."""

    train_videos: int
    test_videos: int
    test_frames: int
    detector_steps: int
    tracker_steps: int


FULL = Scale(train_videos=150, test_videos=8, test_frames=104, detector_steps=1500, tracker_steps=700)
QUICK = Scale(train_videos=2, test_videos=1, test_frames=8, detector_steps=1, tracker_steps=1)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: name of the row.
        recipe: recipe that trains it.
        start: method whose model it starts from; None for a new model.
        overrides: changes of the recipe.
    """

    name: str
    recipe: str
    start: str | None = None
    overrides: tuple[str, ...] = field(default=())


METHODS = (
    Method("minvis", "minvis_moving_shapes"),
    Method("genvis", "genvis_moving_shapes", "minvis", (*GENVIS_HEAD, *CONSECUTIVE)),
    Method(
        "genvis_no_memory",
        "genvis_moving_shapes",
        "minvis",
        (*GENVIS_HEAD, *CONSECUTIVE, "model.config.memory_size=1"),
    ),
    Method("spvis_online", "spvis_online_moving_shapes", "minvis", CONSECUTIVE),
    Method(
        "spvis_offline",
        "spvis_offline_moving_shapes",
        "spvis_online",
        ("data.num_frames=10", "data.frame_range=null", "batch_size=3"),
    ),
)


class OnePass:
    """Run a model once on a video and repeat its outputs, to select tracks in more than one way."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.outputs: list[VideoInstanceSegmentationOutput] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        if self.outputs is None:
            self.outputs = list(self.model.stream(clips))
            yield from self.outputs
        else:
            for _, output in zip(clips, self.outputs, strict=True):
                yield output


def make_data(folder: Path, scale: Scale) -> None:
    """Make short training videos and long test videos for each stride; keep those that exist."""
    options = {**SHAPES, "progress": True}
    for stride in STRIDES:
        train_folder, test_folder = folder / f"train_{stride}", folder / f"test_{stride}"
        if not train_folder.exists():
            make_moving_shapes(train_folder, scale.train_videos, 0, 16, seed=1, stride=stride, **options)
        if not test_folder.exists():
            make_moving_shapes(test_folder, 0, scale.test_videos, scale.test_frames, seed=2, stride=stride, **options)


def train_method(method: Method, folder: Path, scale: Scale) -> dict:
    """Train a method, unless its training is complete, and return the training summary."""
    sources = [
        {"json": f"{folder}/train_{stride}/train.json", "images": f"{folder}/train_{stride}/JPEGImages"}
        for stride in STRIDES
    ]
    overrides = [f"data.train={json.dumps(sources)}", "data.valid=null", "data.num_workers=0", *method.overrides]
    if method.start is None:
        overrides.append(f"max_steps={scale.detector_steps}")
    else:
        overrides += [f"max_steps={scale.tracker_steps}", f"model.init_from={folder / method.start}"]
    return train(Recipe.load(method.recipe, overrides), folder / method.name)


def predict(method: Method, stride: int, folder: Path) -> dict[str, list[dict]]:
    """Return the tracks of the test videos: the ten `best`, and those that would be `shown`."""
    path = folder / f"{method.name}_{stride}.json"
    if path.exists():
        return json.loads(path.read_text())
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(folder / method.name).eval()
    processor = AutoVideoProcessor.from_pretrained(folder / method.name)
    content = json.loads((folder / f"test_{stride}" / "valid.json").read_text())
    tracks = {"best": [], "shown": []}
    for video in progress_bar(content["videos"], desc=f"{method.name}, stride {stride}", unit="video"):
        one_pass = OnePass(model)
        data = {"videos": [video], "categories": content["categories"]}, folder / f"test_{stride}" / "JPEGImages"
        tracks["best"] += predict_dataset(one_pass, processor, *data, threshold=None, top_k=10)
        tracks["shown"] += predict_dataset(one_pass, processor, *data, threshold=0.3, top_k=None)
    write_json(path, tracks)
    return tracks


def rows(quick: bool) -> Iterator[dict]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() if quick else contextlib.nullcontext(WORK_DIR) as folder:
        yield from measure(Path(folder), QUICK if quick else FULL)


def measure(folder: Path, scale: Scale) -> Iterator[dict]:
    make_data(folder, scale)
    baseline = {}
    for method in METHODS:
        steps = train_method(method, folder, scale)["steps"]
        for stride in STRIDES:
            tracks = predict(method, stride, folder)
            truth = folder / f"test_{stride}" / "valid.json"
            association = evaluate_association(truth, tracks["shown"])
            notes = {
                "ap": f"{steps} steps",
                "assa": f"{association.switches} switches",
                "idf1": f"detection accuracy {100 * association.detection_accuracy:.1f}",
            }
            values = {
                "ap": evaluate_ytvis(truth, tracks["best"]).summary["AP"],
                "assa": association.association_accuracy,
                "idf1": association.idf1,
            }
            for metric, value in values.items():
                peer = baseline.get((stride, metric)) or None  # 0 has no ratio
                baseline.setdefault((stride, metric), 100 * value)
                yield row(f"{method.name}_{stride}_{metric}", 100 * value, peer, "points", notes[metric])


if __name__ == "__main__":
    main(__doc__.splitlines()[0], rows)
