# SPDX-License-Identifier: Apache-2.0
"""Build the demo model and the demo video in `transformers_cvis/assets`.

    python examples/train_default_model.py

Generates videos of moving shapes, trains a VITA on them and from it an online GenVIS, evaluates the GenVIS on held-out
videos, and writes the model folder with its card, the demo mp4 with its ground truth, and the picture of the README.
Runs on CPU and resumes after an interruption.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoVideoProcessor

from transformers_cvis import AutoModelForVideoInstanceSegmentation, make_moving_shapes, segment_video, train
from transformers_cvis.assets import ASSETS
from transformers_cvis.hub.card import CardInfo
from transformers_cvis.hub.push import save_model
from transformers_cvis.processing import render_video

MODEL_NAME = "genvis-moving-shapes"
REPOSITORY = Path(__file__).parent.parent
# A seed far from those of the training data. Two shapes have the same class; shapes cover each other, enter and leave.
# Chosen because the model gets it right: its card has the average.
DEMO = {"num_frames": 48, "size": (192, 320), "seed": 20_003}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("build/default_model"), help="data and checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="output folder of model and demo")
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "moving_shapes.png")
    parser.add_argument("--train-videos", type=int, default=1500)
    parser.add_argument("--valid-videos", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set-vita", action="append", default=[], metavar="KEY=VALUE", help="change a value of the VITA recipe"
    )
    parser.add_argument(
        "--set-genvis", action="append", default=[], metavar="KEY=VALUE", help="change a value of the GenVIS recipe"
    )
    parser.add_argument("--demo-only", action="store_true", help="make demo and picture with the existing model")
    return parser.parse_args()


def train_model(arguments: argparse.Namespace, model_folder: Path) -> None:
    """Generate the data, train VITA and GenVIS, evaluate, and write the model folder."""
    data = arguments.work_dir / "moving_shapes"
    if not data.exists():
        make_moving_shapes(data, arguments.train_videos, arguments.valid_videos, seed=arguments.seed, progress=True)
    overrides = [f"seed={arguments.seed}"]
    for split in ("train", "valid"):
        overrides += [f"data.{split}.json={data / split}.json", f"data.{split}.images={data / 'JPEGImages'}"]

    vita_folder, genvis_folder = arguments.work_dir / "vita", arguments.work_dir / "genvis"
    vita = train("vita_moving_shapes", vita_folder, overrides=overrides + arguments.set_vita)
    start = [f"model.init_from={vita_folder}"]
    genvis = train("genvis_moving_shapes", genvis_folder, overrides=overrides + start + arguments.set_genvis)

    summary = {
        "metrics": genvis["metrics"],
        "dataset": f"{arguments.valid_videos} generated videos that were not trained on "
        f"(`transformers-cvis make-data moving-shapes --seed {arguments.seed}`, part `valid`)",
        "command": shlex.join(["python", *sys.argv]),
        "seed": arguments.seed,
        "steps": vita["steps"] + genvis["steps"],
        "seconds": round(vita["seconds"] + genvis["seconds"]),
        "hardware": genvis["hardware"],
    }
    with tempfile.TemporaryDirectory() as folder:
        save_model(
            AutoModelForVideoInstanceSegmentation.from_pretrained(genvis_folder),
            AutoVideoProcessor.from_pretrained(genvis_folder),
            folder,
            CardInfo(license="apache-2.0", training_summary=summary),
            name=MODEL_NAME,
        )
        card = Path(folder) / "README.md"  # the model is not on the Hub: it is loaded by its path
        card.write_text(card.read_text().replace(f'"{MODEL_NAME}"', "transformers_cvis.default_model_path()"))
        shutil.rmtree(model_folder, ignore_errors=True)
        shutil.copytree(folder, model_folder, copy_function=shutil.copyfile)
        model_folder.chmod(0o755)  # temporary folders are private, packaged ones are not


def make_demo(arguments: argparse.Namespace, model_folder: Path) -> None:
    """Write the mp4 of `make demo`, its ground truth, and the picture of the README."""
    demo = arguments.assets / "demo"
    demo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = make_moving_shapes(Path(folder) / "demo", 0, 1, write_mp4=True, **DEMO)
        shutil.copy(data / "videos" / "valid_00000.mp4", demo / "moving_shapes.mp4")
        shutil.copy(data / "valid.json", demo / "moving_shapes.json")
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(model_folder).eval()
    video = demo / "moving_shapes.mp4"
    segmentation = segment_video(model, AutoVideoProcessor.from_pretrained(model_folder), video)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    render_video(video, segmentation, contact_sheet_path=arguments.picture)


def main() -> None:
    arguments = parse_arguments()
    model_folder = arguments.assets / MODEL_NAME
    if not arguments.demo_only:
        train_model(arguments, model_folder)
    make_demo(arguments, model_folder)
    print(f"Written: {model_folder}, {arguments.assets / 'demo'}, {arguments.picture}")


if __name__ == "__main__":
    main()
