"""Released checkpoint files to model folders. That the numbers are right is shown in `tests/parity`."""

import json
import pickle
import re

import numpy as np
import pytest
import torch

from tests.support.detectron2_names import (
    SYSTEM_NAMES,
    TINY,
    ResNet,
    Swin,
    crisp_names,
    genvis_names,
    hvpl_names,
    imagenet_names,
    mask2former_names,
    old_names,
    random_state_dict,
    vita_names,
)
from transformers_cvis import AutoModelForVideoInstanceSegmentation, FrameDetector, segment_video
from transformers_cvis.conversion import ConversionError, convert_checkpoint
from transformers_cvis.processing import CvisVideoProcessor

CLASSES = ["cat", "dog", "cow", "hen", "fox"]
TASKS = ["cat", "dog", "cow", "hen", "fox", "owl"]  # three, two and one


def saved(folder, shapes, **extra) -> str:
    path = folder / "model_final.pth"
    torch.save({"model": random_state_dict(shapes), **extra}, path)
    return str(path)


def load(folder):
    model, info = AutoModelForVideoInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


@pytest.mark.parametrize(
    ("system", "backbone", "short_side"),
    [
        *((system, ResNet(), 360) for system in SYSTEM_NAMES),
        ("genvis", Swin(), 448),
        ("minvis", Swin(), 480),
        ("mask2former", Swin(), 480),
    ],
)
def test_a_released_checkpoint_becomes_a_model_that_segments(system, backbone, short_side, tmp_path):
    shapes = SYSTEM_NAMES[system](backbone)
    names = TASKS if system in ("hvpl", "crisp") else CLASSES
    report = convert_checkpoint(saved(tmp_path, shapes), tmp_path / "new" / "out", system, class_names=names)
    assert len(report.mapped) + len(report.ignored) == len(shapes) and not report.unknown and not report.fresh

    model = load(tmp_path / "new" / "out")
    assert list(model.config.id2label.values()) == names
    processor = CvisVideoProcessor.from_pretrained(tmp_path / "new" / "out")
    assert processor.size == {"shortest_edge": short_side, "longest_edge": 1333}
    processor = CvisVideoProcessor.from_pretrained(tmp_path / "new" / "out", size={"shortest_edge": 32})
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    assert segment_video(model, processor, video, threshold=0.0).num_frames == 3


def test_model_zoo_files_and_old_names(tmp_path):
    released = random_state_dict(mask2former_names(ResNet()))
    renamed = old_names(released)
    content = {"model": {renamed[name]: tensor.numpy() for name, tensor in released.items()}, "__author__": "Zoo"}
    (tmp_path / "model_final_3c8ec9.pkl").write_bytes(pickle.dumps(content, protocol=4))
    report = convert_checkpoint(tmp_path / "model_final_3c8ec9.pkl", tmp_path / "out", "mask2former")
    assert "Left out, as no weights: __author__." in report.notes and not report.unknown
    detector = FrameDetector.from_pretrained(tmp_path / "out")
    assert torch.equal(detector.class_predictor.weight.detach(), released["sem_seg_head.predictor.class_embed.weight"])


def test_settings_and_what_the_report_says_of_them(tmp_path):
    path = saved(tmp_path, genvis_names(ResNet()), iteration=7, optimizer={}, scheduler={})
    report = convert_checkpoint(
        path, tmp_path / "out", "genvis", settings={"clip_length": 3}, short_side=288, license="mit"
    )
    model = load(tmp_path / "out")
    assert model.config.clip_length == 3
    assert CvisVideoProcessor.from_pretrained(tmp_path / "out").size == {"shortest_edge": 288, "longest_edge": 1333}
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    assert str(report).splitlines() == [
        "genvis: resnet backbone of 1-2-1-1 blocks, 4 queries, 5 classes; videos are read with a short side of 288 "
        "pixels.",
        "The classes are called LABEL_0, LABEL_1, ...; --classes names them.",
        "Left out, as no weights: iteration, optimizer, scheduler.",
        "309 tensors mapped, 3 ignored, 0 unknown.",
        "Ignored, class weights of the loss are configuration:",
        "  criterion.empty_weight",
        "  vita_criterion.empty_weight",
        "  genvis_criterion.empty_weight",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": CLASSES[:4]}, "has 5 classes, but 4 names were given: name the classes of the data"),
        ({"class_names": TASKS}, "has 5 classes, but 6 names were given"),
        ({"settings": {"clip_lenght": 3}}, "GenVisConfig has no field clip_lenght to set. Did you mean clip_length?"),
        ({"settings": {"id2label": {0: "a"}}}, "no field id2label to set. .* --classes"),
        ({"settings": {"clip_length": "x"}}, "^Field 'clip_length' expected int, got str"),
        ({"settings": {"clip_length": 0}}, "^`clip_length` must be at least 1 frame, got 0"),
        (
            {"settings": {"num_queries": 9}},
            r"video_head.queries_features.weight has the shape \(4, 32\) in the checkpoint and \(9, 32\) in the model",
        ),
        ({"task": 1}, "has no class heads of tasks, so there is no --task to choose"),
    ],
)
def test_what_the_user_says_has_to_fit(arguments, message, tmp_path):
    path = saved(tmp_path, genvis_names(ResNet()))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / "out", "genvis", **arguments)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model_final.pth"]


@pytest.mark.parametrize(
    ("released", "system", "message"),
    [
        (
            "mask2former",
            "vita",
            "no video head .*, so it is no vita checkpoint. It is complete as --system minvis, mask",
        ),
        ("mask2former", "spvis", "has no tracker .*, so it is no spvis checkpoint. It is complete as --system minvis"),
        ("mask2former", "hvpl", "has no class heads of tasks .*: no HVPL. It is complete as --system minvis"),
        ("genvis", "minvis", r"does not fit minvis: 91 of its 312 tensors have names that minvis does not know \(vita"),
        ("genvis", "vita", "does not fit vita: 8 of its 312 tensors .*It is complete as --system genvis"),
        ("vita", "genvis", "does not fit genvis: it lacks 8 weights of genvis .* It is complete as --system vita"),
        ("dvis", "spvis", "no disturbance filter, so it is no spvis checkpoint. It is complete as --system dvis"),
        ("spvis", "dvis", "has a disturbance filter, .* It is complete as --system spvis"),
        ("hvpl", "vita", "predictor.class_embed.weight is missing. It is complete as --system hvpl"),
        ("hvpl", "minvis", "class_embed.weight is missing. It is complete as --system hvpl"),
        ("vita", "hvpl", "no HVPL. It is complete as --system vita"),
    ],
)
def test_checkpoints_of_another_system(released, system, message, tmp_path):
    path = saved(tmp_path, SYSTEM_NAMES[released](ResNet()))
    with pytest.raises(ConversionError, match=message) as failure:
        convert_checkpoint(path, tmp_path / "out", system)
    assert len(failure.value.report.mapped) > 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["model_final.pth"]


def test_a_checkpoint_of_nothing_known(tmp_path):
    torch.save({"model": {"features.0.weight": torch.zeros(8, 3, 3, 3)}}, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match="vgg.pth: The checkpoint's backbone is neither a ResNet .* nor a Swin"):
        convert_checkpoint(tmp_path / "vgg.pth", tmp_path / "out", "mask2former")
    with pytest.raises(ValueError, match="no converter for 'mask3former'; there are crisp, dvis, genvis"):
        convert_checkpoint(tmp_path / "vgg.pth", tmp_path / "out", "mask3former")


def test_missing_weights(tmp_path):
    released = random_state_dict(genvis_names(ResNet()))
    del released["vita_module.decoder_norm.weight"]
    released["vita_module.extra.weight"] = torch.zeros(3)
    torch.save(released, tmp_path / "cut.pth")
    message = (
        r"does not fit genvis: 1 of its 312 tensors have names that genvis does not know \(vita_module.extra.weight\) "
        r"and it lacks 1 weights of genvis \(video_head.decoder.layernorm.weight\). With --allow-missing"
    )
    with pytest.raises(ConversionError, match=message) as failure:
        convert_checkpoint(tmp_path / "cut.pth", tmp_path / "out", "genvis")
    assert failure.value.report.fresh == ["video_head.decoder.layernorm.weight"]
    assert not (tmp_path / "out").exists()

    report = convert_checkpoint(tmp_path / "cut.pth", tmp_path / "out", "genvis", allow_missing=True)
    assert report.unknown == ["vita_module.extra.weight"]
    assert report.fresh == ["video_head.decoder.layernorm.weight"]
    assert torch.equal(load(tmp_path / "out").video_head.decoder.layernorm.weight.detach(), torch.ones(TINY.width))


def test_a_vita_starts_a_genvis_the_same_way_each_time(tmp_path):
    path = saved(tmp_path, vita_names(ResNet()))
    models = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        report = convert_checkpoint(path, tmp_path / name, "genvis", allow_missing=True)
        assert {name.split(".")[1] for name in report.fresh} == {"memory_attention"} and len(report.fresh) == 8
        models.append(load(tmp_path / name).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("backbone", [ResNet(), Swin()], ids=["resnet", "swin"])
def test_a_backbone_alone_starts_a_detector(backbone, tmp_path):
    released = random_state_dict(imagenet_names(backbone))
    content = {"model": {name: tensor.numpy() for name, tensor in released.items()}, "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    arguments = (tmp_path / "R-50.pkl", tmp_path / "out", "mask2former")
    with pytest.raises(ConversionError, match=r"it lacks \d+ weights of mask2former .*--allow-missing"):
        convert_checkpoint(*arguments)
    with pytest.raises(ConversionError, match="has no class head: give the names of the classes"):
        convert_checkpoint(*arguments, allow_missing=True)
    with pytest.raises(ValueError, match=r"no video head .* --system minvis, .* or mask2former lacks \d+ weights only"):
        convert_checkpoint(*arguments[:2], "vita")
    report = convert_checkpoint(*arguments, allow_missing=True, class_names=["cat"])
    places = [place for places in report.mapped.values() for place in places]
    assert not report.unknown and all(place.startswith("model.pixel_level_module.encoder.") for place in places)
    fresh = [name for name in report.fresh if name.startswith("model.pixel_level_module.encoder.")]
    assert all("hidden_states_norms" in name for name in fresh)  # of Swin's maps, which ImageNet does not train
    assert load(tmp_path / "out").config.id2label == {0: "cat"}


def test_what_no_tensor_tells_of_mask2former_vis_is_said(tmp_path):
    report = convert_checkpoint(saved(tmp_path, mask2former_names(ResNet())), tmp_path / "out", "mask2former-vis")
    assert any(note.startswith("No tensor tells whether it was trained on videos") for note in report.notes)


def test_nothing_of_the_system_is_never_enough(tmp_path):
    torch.save({"backbone.stem.conv1.weight": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth: It lacks backbone.res2.0.conv2.weight, from which a size of minvis"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out", "minvis", allow_missing=True)


class TestTasks:
    """Models that learn by tasks."""

    def test_the_last_task_is_the_default(self, tmp_path):
        report = convert_checkpoint(saved(tmp_path, hvpl_names(ResNet())), tmp_path / "out", "hvpl")
        assert "6 classes of 3 tasks (3 + 2 + 1)" in report.notes[0]
        assert "No tensor tells calibration_deltas=[0.0]; --set changes it." in report.notes
        config = load(tmp_path / "out").config
        assert config.task_class_counts == [3, 2, 1] and config.cross_tokens == "released"

    @pytest.mark.parametrize("task", [0, 1, 2])
    def test_a_task_before(self, task, tmp_path):
        path = saved(tmp_path, hvpl_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "hvpl", task=task, class_names=TASKS)
        model = load(tmp_path / "out")
        assert model.config.task_class_counts == [3, 2, 1][: task + 1]
        assert model.config.task_prompt_counts == [3, 3][:task]
        assert list(model.config.id2label.values()) == TASKS[: sum(model.config.task_class_counts)]
        left_out = {reason: list(report.ignored.values()).count(reason) for reason in report.ignored.values()}
        # prompts, their positions and mask heads, and a class head at each of two levels
        each = 2 * (1 + 6 + 6) + TINY.decoder_layers + TINY.video_layers + 1
        assert left_out == {f"belongs to task {later}": each for later in range(task + 1, 3)}
        note = "Task 2 is the last one" if task == 2 else f"What came after task {task} is left out. The no-object"
        assert any(line.startswith(note) for line in report.notes)

    def test_what_a_task_computes_does_not_change_with_later_ones(self, tmp_path):
        """Cut after task 1: as a checkpoint in which task 2 never was, with the no-object head as it is."""
        released = random_state_dict(hvpl_names(ResNet()))
        torch.save(released, tmp_path / "step2.pth")
        later = ("prompt_feat.1.", "prompt_embed.1.", "prompt_mask_embed.1.", "prompt_fq_pos.1.", "class_embed.cls.3.")
        before = {name: value for name, value in released.items() if not any(part in name for part in later)}
        torch.save(before, tmp_path / "step1.pth")
        convert_checkpoint(tmp_path / "step2.pth", tmp_path / "cut", "hvpl", task=1)
        convert_checkpoint(tmp_path / "step1.pth", tmp_path / "whole", "hvpl")
        cut, whole = load(tmp_path / "cut"), load(tmp_path / "whole")
        assert cut.config.to_diff_dict() | {"_name_or_path": ""} == whole.config.to_diff_dict() | {"_name_or_path": ""}
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in cut.state_dict().items())

    @pytest.mark.parametrize(("system", "names_of"), [("hvpl", hvpl_names), ("crisp", crisp_names)])
    def test_positions_that_all_layers_share(self, system, names_of, tmp_path):
        """Prompts that are not deep have `prompt_embed.{task}.weight` alone."""
        positions = r"(.+\.prompt_embed\.\d+)\.\d+\.weight"
        shapes = {re.sub(positions, r"\1.weight", name): shape for name, shape in names_of(ResNet()).items()}
        path = saved(tmp_path, shapes)
        report = convert_checkpoint(path, tmp_path / "out", system, class_names=TASKS)
        assert len(report.mapped) + len(report.ignored) == len(shapes) and not report.unknown and not report.fresh
        model, released = load(tmp_path / "out"), torch.load(path)["model"]
        levels = {"sem_seg_head.predictor": model.task_stages()["detector" if system == "hvpl" else ""]}
        if system == "hvpl":
            levels["vita_module"] = model.video_head
        for source, level in levels.items():
            for task, queries in enumerate(level.task_queries):
                assert len(queries.positions) == (TINY.decoder_layers if "pred" in source else TINY.video_layers)
                expected = released[f"{source}.prompt_embed.{task}.weight"]
                assert all(torch.equal(layer.weight, expected) for layer in queries.positions)
        convert_checkpoint(path, tmp_path / "cut", system, task=1)
        assert load(tmp_path / "cut").config.task_prompt_counts == [3]

    def test_tasks_that_are_not_there(self, tmp_path):
        path = saved(tmp_path, hvpl_names(ResNet()))
        for task in (3, -1):
            with pytest.raises(ValueError, match=f"holds the tasks 0 to 2; there is no task {task}"):
                convert_checkpoint(path, tmp_path / "out", "hvpl", task=task)
        with pytest.raises(ValueError, match="has 6 classes, but 5 names were given"):
            convert_checkpoint(path, tmp_path / "out", "hvpl", class_names=TASKS[:5])

    def test_names_of_classes_to_come_are_left_for_later(self, tmp_path):
        path = saved(tmp_path, hvpl_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "hvpl", class_names=[*TASKS, "ant"])
        assert "The classes have the first 6 of the 7 names." in report.notes
        assert list(load(tmp_path / "out").config.id2label.values()) == TASKS

    def test_crisp(self, tmp_path):
        path = saved(tmp_path, crisp_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "crisp", task=1, class_names=TASKS)
        model = load(tmp_path / "out")
        assert model.config.task_class_counts == [3, 2] and len(model.class_tokens) == 2
        # prompts, positions, mask head, class head and class tokens
        assert list(report.ignored.values()).count("belongs to task 2") == 1 + TINY.decoder_layers + 6 + 6 + 1
        assert sum("CLIP" in reason for reason in report.ignored.values()) == 6

    def test_the_gradient_basis_beside_it_is_mentioned(self, tmp_path):
        path = saved(tmp_path, hvpl_names(ResNet()))
        (tmp_path / "grad_data_frame.pkl").write_bytes(b"")
        report = convert_checkpoint(path, tmp_path / "out", "hvpl")
        assert "grad_data_frame.pkl beside the checkpoint is no part of the model" in report.notes[-1]


class TestOutput:
    """The folder is whole or is not there."""

    @pytest.fixture
    def path(self, tmp_path):
        return saved(tmp_path, mask2former_names(ResNet()))

    def test_in_use(self, path, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("precious")
        with pytest.raises(FileExistsError, match="out exists and is not an empty folder; give a new folder"):
            convert_checkpoint(path, tmp_path / "out", "minvis")
        with pytest.raises(FileExistsError, match="model_final.pth exists"):
            convert_checkpoint(path, path, "minvis")
        assert (tmp_path / "out" / "mine").read_text() == "precious"

    def test_empty_folder(self, path, tmp_path):
        (tmp_path / "out").mkdir()
        convert_checkpoint(path, tmp_path / "out", "minvis")
        assert (tmp_path / "out" / "config.json").is_file()

    def test_not_writable(self, path):
        with pytest.raises(OSError, match="Cannot write into the folder .*model_final.pth: Not a directory"):
            convert_checkpoint(path, f"{path}/a/b", "minvis")

    def test_a_failure_while_writing_leaves_nothing(self, path, tmp_path, monkeypatch):
        def fail(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("transformers_cvis.conversion.checkpoints.save_model", fail)
        with pytest.raises(OSError, match="No space left"):
            convert_checkpoint(path, tmp_path / "new" / "out", "minvis")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model_final.pth"]


def test_reports_are_json(tmp_path):
    report = convert_checkpoint(saved(tmp_path, mask2former_names(ResNet())), tmp_path / "out", "minvis")
    assert json.loads(json.dumps(vars(report)))["ignored"] == {
        "criterion.empty_weight": "class weights of the loss are configuration"
    }
