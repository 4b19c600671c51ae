"""Released checkpoint files to model folders. That the numbers are right is shown in `tests/parity`."""

import json
import pickle

import numpy as np
import pytest
import torch
from parity.goldens import GOLDENS

from transformers_cvis import AutoModelForVideoInstanceSegmentation, cli, segment_video
from transformers_cvis.conversion import convert_checkpoint, read_checkpoint
from transformers_cvis.processing import CvisVideoProcessor

SHRUNK = (64, 128, 256, 512, 768, 1024, 2048)  # channel counts of the released network, made eight times smaller
KEPT_ROWS = ("sampling_offsets", "attention_weights")  # heads, levels and points stay


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """A GenVIS state dict with the released names, random and small."""
    generator = torch.Generator().manual_seed(0)
    shapes = json.loads((GOLDENS / "genvis_r50_online" / "keys.json").read_text())
    tensors = {}
    for name, shape in shapes.items():
        small = [size // 8 if size in SHRUNK else size for size in shape]
        if any(part in name for part in KEPT_ROWS):
            small[0] = shape[0]
        tensors[name] = torch.rand(small, generator=generator) * 0.1
    return tensors


@pytest.fixture
def checkpoint(released, tmp_path) -> str:
    path = tmp_path / "model_final.pth"
    torch.save({"model": released, "iteration": 16000}, path)
    return str(path)


def test_a_released_checkpoint_becomes_a_model_that_segments(checkpoint, released, tmp_path):
    num_classes = len(released["vita_module.class_embed.weight"]) - 1
    names = [f"class {index}" for index in range(num_classes)]
    report = convert_checkpoint(checkpoint, tmp_path / "out", "genvis", class_names=names, settings={"clip_length": 2})
    assert len(report.mapped) + len(report.ignored) == len(released)

    model = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.clip_length == 2 and model.config.id2label[1] == "class 1"
    torch.testing.assert_close(
        model.video_head.class_predictor.weight.detach(), released["vita_module.class_embed.weight"]
    )
    processor = CvisVideoProcessor.from_pretrained(tmp_path / "out", size={"shortest_edge": 32, "longest_edge": 64})
    video = np.zeros((3, 32, 48, 3), dtype=np.uint8)
    assert segment_video(model, processor, video, threshold=0.0).num_frames == 3


def test_the_command_takes_class_names_from_a_data_set(checkpoint, released, tmp_path, capsys):
    num_classes = len(released["vita_module.class_embed.weight"]) - 1
    categories = [{"id": 2 * index + 1, "name": f"thing {index}"} for index in reversed(range(num_classes))]
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories}))
    arguments = ["convert", checkpoint, str(tmp_path / "out"), "--system", "genvis", "--set", "clip_length=3"]
    assert cli.main([*arguments, "--classes", str(tmp_path / "train.json")]) == 0
    assert "tensors mapped" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["clip_length"] == 3 and config["id2label"]["0"] == "thing 0"
    assert cli.main(arguments) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(checkpoint, released, tmp_path):
    with pytest.raises(ValueError, match=r"has \d+ classes, but 2 names were given"):
        convert_checkpoint(checkpoint, tmp_path / "out", "genvis", class_names=["a", "b"])
    with pytest.raises(ValueError, match="is no minvis checkpoint: .* names that minvis does not know"):
        convert_checkpoint(checkpoint, tmp_path / "out", "minvis")
    with pytest.raises(ValueError, match="no converter for 'mask3former'"):
        convert_checkpoint(checkpoint, tmp_path / "out", "mask3former")
    name = "vita_module.decoder_norm.weight"
    torch.save({key: value for key, value in released.items() if key != name}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="lacks 1 weights of genvis, for example video_head"):
        convert_checkpoint(tmp_path / "cut.pth", tmp_path / "out", "genvis")
    assert not (tmp_path / "out").exists()


def test_only_tensors_are_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*absent.pth"):
        read_checkpoint(tmp_path / "absent.pth")

    class Harmful:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    with open(tmp_path / "plain.pkl", "wb") as file:
        pickle.dump({"model": {"a": np.zeros(2)}}, file)
    (tmp_path / "text.pth").write_text("hello")
    for name in ("harmful.pth", "plain.pkl", "text.pth"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors alone"):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_checkpoint(tmp_path / "empty.pth")
