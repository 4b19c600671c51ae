# SPDX-License-Identifier: Apache-2.0
"""Conversion of files into model folders. `tests/parity` shows that the converted models compute the right numbers."""

import json
import pickle
from pathlib import Path
from typing import Any, NoReturn

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
    mask2former_names,
    random_state_dict,
    vita_names,
)
from tests.support.released_checkpoints import CLASSES, TASK_CLASSES, load_model, save_checkpoint
from transformers_cvis import segment_video
from transformers_cvis.conversion import ConversionError, convert_checkpoint, convert_state_dict
from transformers_cvis.processing import CvisVideoProcessor

FIELD_ERROR = r"GenVisConfig has no field 'clip_lenght' to set\. Did you mean 'clip_length'\?"


def file_names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


@pytest.mark.parametrize(
    ("system", "backbone", "short_side"),
    [
        *((system, ResNet(), 360) for system in SYSTEM_NAMES),
        ("genvis", Swin(), 448),
        ("minvis", Swin(), 480),
        ("mask2former", Swin(), 480),
    ],
)
def test_checkpoint_of_each_system_becomes_a_model_that_segments(system, backbone, short_side, tmp_path):
    shapes = SYSTEM_NAMES[system](backbone)
    names = TASK_CLASSES if system in ("hvpl", "crisp") else CLASSES
    path, folder = save_checkpoint(tmp_path, shapes), tmp_path / "new" / "out"
    report = convert_checkpoint(path, folder, system, class_names=names)
    assert len(report.mapped) + len(report.ignored) == len(shapes)
    assert not report.unknown
    assert not report.missing

    model = load_model(folder)
    assert list(model.config.id2label.values()) == names
    assert CvisVideoProcessor.from_pretrained(folder).size == {"shortest_edge": short_side, "longest_edge": 1333}
    processor = CvisVideoProcessor.from_pretrained(folder, size={"shortest_edge": 32})
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    assert segment_video(model, processor, video, threshold=0.0).num_frames == 3


class TestStateDict:
    """Renaming of tensors."""

    def test_packed_projections_are_split_in_order(self):
        released = random_state_dict(mask2former_names(Swin()))
        converted, report = convert_state_dict(released, "mask2former")
        name = "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight"
        parts = [converted[target] for target in report.mapped[name]]
        assert [target.split(".")[-2] for target in report.mapped[name]] == ["q_proj", "k_proj", "v_proj"]
        assert torch.equal(torch.cat(parts), released[name])
        name = "backbone.layers.1.blocks.0.attn.qkv.bias"
        assert torch.equal(torch.cat([converted[target] for target in report.mapped[name]]), released[name])
        cross_attention = "sem_seg_head.predictor.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight"
        assert report.mapped[cross_attention] == (
            "model.transformer_module.decoder.layers.1.cross_attn.in_proj_weight",
        )

    def test_unknown_names_are_reported(self):
        _, report = convert_state_dict({"sem_seg_head.predictor.surprise.weight": torch.zeros(1)}, "mask2former")
        assert report.unknown == ["sem_seg_head.predictor.surprise.weight"]

    def test_unknown_system_is_an_error(self):
        with pytest.raises(ValueError, match=r"Unknown system 'masktrack': expected one of crisp, dvis, .*mask2former"):
            convert_state_dict({}, "masktrack")


class TestSettings:
    """Arguments of the conversion, and what the report says about them."""

    def test_settings_are_saved_and_the_report_names_the_assumptions(self, tmp_path):
        path = save_checkpoint(tmp_path, genvis_names(ResNet()), iteration=7, optimizer={}, scheduler={})
        settings, folder = {"clip_length": 3}, tmp_path / "out"
        report = convert_checkpoint(path, folder, "genvis", settings=settings, short_side=288, license="mit")
        assert load_model(folder).config.clip_length == 3
        assert CvisVideoProcessor.from_pretrained(folder).size == {"shortest_edge": 288, "longest_edge": 1333}
        assert "license: mit" in (folder / "README.md").read_text()
        assert str(report).splitlines() == [
            "genvis: resnet backbone of 1-2-1-1 blocks, 4 queries, 5 classes; videos are resized to a short side of "
            "288 pixels.",
            "The classes are called LABEL_0, LABEL_1, ...; name them with --classes (`class_names`).",
            "Left out, since these are not weights: iteration, optimizer, scheduler.",
            "309 tensors mapped, 3 ignored, 0 unknown.",
            "Ignored (class weights of the loss are configuration):",
            "  criterion.empty_weight",
            "  vita_criterion.empty_weight",
            "  genvis_criterion.empty_weight",
        ]

    def test_fields_that_no_tensor_shows_are_reported(self, tmp_path):
        report = convert_checkpoint(save_checkpoint(tmp_path, vita_names(ResNet())), tmp_path / "out", "vita")
        value = load_model(tmp_path / "out").config.encoder_window_size
        assert (
            f"The tensors do not show encoder_window_size={value}; change it with --set (`settings`)." in report.notes
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"class_names": CLASSES[:4]}, "has 5 classes, but 4 names were given: name the classes of the data"),
            ({"class_names": TASK_CLASSES}, "has 5 classes, but 6 names were given"),
            ({"settings": {"clip_lenght": 3}}, FIELD_ERROR),
            ({"settings": {"id2label": {0: "a"}}}, "id2label is not a setting: give the names .* with --classes"),
            ({"settings": {"clip_length": "x"}}, "^Field 'clip_length' expected int, got str"),
            ({"settings": {"clip_length": 0}}, "^`clip_length` must be at least 1 frame, got 0"),
            (
                {"settings": {"num_queries": 9}},
                r"video_head.queries_features.weight has the shape \(4, 32\) in the checkpoint, but \(9, 32\) in the",
            ),
            ({"task": 1}, r"has no class heads of tasks: leave out --task \(`task`\)"),
        ],
    )
    def test_arguments_that_do_not_fit_the_checkpoint_are_errors(self, arguments, message, tmp_path):
        path = save_checkpoint(tmp_path, genvis_names(ResNet()))
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "out", "genvis", **arguments)
        assert file_names(tmp_path) == ["model_final.pth"]


class TestFit:
    """Checkpoints that do not fit the system."""

    @pytest.mark.parametrize(
        ("released", "system", "message"),
        [
            (
                "mask2former",
                "vita",
                "no video head .* not VITA. A complete match is --system minvis, mask2former-vis or",
            ),
            ("mask2former", "spvis", "has no tracker .* not SPVIS. A complete match is --system minvis, "),
            ("mask2former", "hvpl", "has no class heads of tasks .* not HVPL. A complete match is --system minvis, "),
            ("genvis", "minvis", r"does not fit minvis: 91 of 312 tensors are unknown \(vita"),
            ("genvis", "vita", "does not fit vita: 8 of 312 tensors .* A complete match is --system genvis"),
            ("vita", "genvis", "does not fit genvis: 8 weights are missing .* A complete match is --system vita"),
            ("dvis", "spvis", "has no disturbance filter, so it is not SPVIS. A complete match is --system dvis"),
            ("spvis", "dvis", "has a disturbance filter, so it is not DVIS. A complete match is --system spvis"),
            (
                "hvpl",
                "vita",
                "lacks .*predictor.class_embed.weight, so it is not vita. A complete match is --system hvpl",
            ),
            ("hvpl", "minvis", "lacks .*class_embed.weight, so it is not minvis. A complete match is --system hvpl"),
            ("vita", "hvpl", "not HVPL. A complete match is --system vita"),
            ("mask2former", "crisp", "has no class heads of tasks .* not CRISP. A complete match is --system minvis, "),
        ],
    )
    def test_checkpoint_of_another_system_is_an_error_that_names_it(self, released, system, message, tmp_path):
        path = save_checkpoint(tmp_path, SYSTEM_NAMES[released](ResNet()))
        with pytest.raises(ConversionError, match=message) as failure:
            convert_checkpoint(path, tmp_path / "out", system)
        assert len(failure.value.report.mapped) > 200
        assert file_names(tmp_path) == ["model_final.pth"]

    def test_checkpoint_of_an_unknown_network_is_an_error(self, tmp_path):
        torch.save({"model": {"features.0.weight": torch.zeros(8, 3, 3, 3)}}, tmp_path / "vgg.pth")
        message = "vgg.pth: The backbone of the checkpoint is neither a ResNet .* nor a Swin"
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(tmp_path / "vgg.pth", tmp_path / "out", "mask2former")

    def test_unknown_system_is_an_error_before_the_file_is_read(self, tmp_path):
        with pytest.raises(ValueError, match=r"Unknown system 'mask3former'.* Did you mean 'mask2former'"):
            convert_checkpoint(tmp_path / "absent.pth", tmp_path / "out", "mask3former")

    def test_missing_and_unknown_tensors_are_errors_unless_allowed(self, tmp_path):
        released = random_state_dict(genvis_names(ResNet()))
        del released["vita_module.decoder_norm.weight"]
        released["vita_module.extra.weight"] = torch.zeros(3)
        torch.save(released, tmp_path / "cut.pth")
        message = (
            r"does not fit genvis: 1 of 312 tensors are unknown \(vita_module.extra.weight\) and 1 weights are missing "
            r"\(video_head.decoder.layernorm.weight\)\. Use --allow-missing \(`allow_missing=True`\) to convert it"
        )
        with pytest.raises(ConversionError, match=message) as failure:
            convert_checkpoint(tmp_path / "cut.pth", tmp_path / "out", "genvis")
        assert failure.value.report.missing == ["video_head.decoder.layernorm.weight"]
        assert not (tmp_path / "out").exists()

        report = convert_checkpoint(tmp_path / "cut.pth", tmp_path / "out", "genvis", allow_missing=True)
        assert report.unknown == ["vita_module.extra.weight"]
        assert report.missing == ["video_head.decoder.layernorm.weight"]
        norm = load_model(tmp_path / "out").video_head.decoder.layernorm.weight
        assert torch.equal(norm.detach(), torch.ones(TINY.width))

    def test_newly_initialised_weights_are_the_same_each_time(self, tmp_path):
        path = save_checkpoint(tmp_path, vita_names(ResNet()))
        models = []
        for folder in ("first", "second"):
            torch.manual_seed(len(folder))
            report = convert_checkpoint(path, tmp_path / folder, "genvis", allow_missing=True)
            assert len(report.missing) == 8
            assert {name.split(".")[1] for name in report.missing} == {"memory_attention"}
            models.append(load_model(tmp_path / folder).state_dict())
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])

    def test_checkpoint_without_any_weight_of_the_system_is_an_error_even_if_allowed(self, tmp_path):
        torch.save({"backbone.stem.conv1.weight": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "a.pth")
        message = "a.pth: The checkpoint lacks backbone.res2.0.conv2.weight, so it is not minvis"
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / "a.pth", tmp_path / "out", "minvis", allow_missing=True)


class TestTasks:
    """Models that learn task by task."""

    def test_checkpoint_keeps_all_tasks_by_default(self, tmp_path):
        report = convert_checkpoint(save_checkpoint(tmp_path, hvpl_names(ResNet())), tmp_path / "out", "hvpl")
        assert "6 classes of 3 tasks (3 + 2 + 1)" in report.notes[0]
        assert load_model(tmp_path / "out").config.task_class_counts == [3, 2, 1]

    @pytest.mark.parametrize("task", [0, 1, 2])
    def test_checkpoint_is_cut_back_to_an_earlier_task(self, task, tmp_path):
        path = save_checkpoint(tmp_path, hvpl_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "hvpl", task=task, class_names=TASK_CLASSES)
        config = load_model(tmp_path / "out").config
        assert config.task_class_counts == [3, 2, 1][: task + 1]
        assert config.task_prompt_counts == [3, 3][:task]
        assert list(config.id2label.values()) == TASK_CLASSES[: sum(config.task_class_counts)]
        left_out = {reason: list(report.ignored.values()).count(reason) for reason in report.ignored.values()}
        # prompts, their positions and mask heads, and a class head, each in the frame decoder and in the video head
        each = 2 * (1 + 6 + 6) + TINY.decoder_layers + TINY.video_layers + 1
        assert left_out == {f"belongs to task {later}": each for later in range(task + 1, 3)}
        note = "Task 2 is the last task" if task == 2 else f"The tasks after task {task} are left out. The no-object"
        assert any(line.startswith(note) for line in report.notes)

    def test_model_cut_back_to_a_task_equals_the_checkpoint_without_the_later_task(self, tmp_path):
        released = random_state_dict(hvpl_names(ResNet()))
        torch.save(released, tmp_path / "step2.pth")
        later = ("prompt_feat.1.", "prompt_embed.1.", "prompt_mask_embed.1.", "prompt_fq_pos.1.", "class_embed.cls.3.")
        before = {name: value for name, value in released.items() if not any(part in name for part in later)}
        torch.save(before, tmp_path / "step1.pth")
        convert_checkpoint(tmp_path / "step2.pth", tmp_path / "cut", "hvpl", task=1)
        convert_checkpoint(tmp_path / "step1.pth", tmp_path / "whole", "hvpl")
        cut, whole = load_model(tmp_path / "cut"), load_model(tmp_path / "whole")
        assert cut.config.to_diff_dict() | {"_name_or_path": ""} == whole.config.to_diff_dict() | {"_name_or_path": ""}
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in cut.state_dict().items())

    @pytest.mark.parametrize("task", [3, -1])
    def test_task_that_the_checkpoint_does_not_hold_is_an_error(self, task, tmp_path):
        path = save_checkpoint(tmp_path, hvpl_names(ResNet()))
        with pytest.raises(ValueError, match=f"holds the tasks 0 to 2, but not task {task}"):
            convert_checkpoint(path, tmp_path / "out", "hvpl", task=task)

    def test_too_few_class_names_are_an_error(self, tmp_path):
        path = save_checkpoint(tmp_path, hvpl_names(ResNet()))
        with pytest.raises(ValueError, match="has 6 classes, but 5 names were given"):
            convert_checkpoint(path, tmp_path / "out", "hvpl", class_names=TASK_CLASSES[:5])

    def test_names_of_future_classes_are_left_out(self, tmp_path):
        path = save_checkpoint(tmp_path, hvpl_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "hvpl", class_names=[*TASK_CLASSES, "ant"])
        assert "The classes have the first 6 of the 7 names." in report.notes
        assert list(load_model(tmp_path / "out").config.id2label.values()) == TASK_CLASSES

    def test_crisp_cut_back_to_a_task_keeps_its_class_tokens(self, tmp_path):
        path = save_checkpoint(tmp_path, crisp_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "crisp", task=1, class_names=TASK_CLASSES)
        model = load_model(tmp_path / "out")
        assert model.config.task_class_counts == [3, 2]
        assert len(model.class_tokens) == 2
        # prompts, positions, mask head, class head and class tokens
        assert list(report.ignored.values()).count("belongs to task 2") == 1 + TINY.decoder_layers + 6 + 6 + 1


class TestOutput:
    """The output folder is complete or does not exist."""

    @pytest.fixture
    def path(self, tmp_path) -> str:
        return save_checkpoint(tmp_path, mask2former_names(ResNet()))

    def test_folder_in_use_is_an_error(self, path, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("precious")
        with pytest.raises(FileExistsError, match="out exists and is not an empty folder; give a new folder"):
            convert_checkpoint(path, tmp_path / "out", "minvis")
        with pytest.raises(FileExistsError, match=r"model_final.pth exists"):
            convert_checkpoint(path, path, "minvis")
        assert (tmp_path / "out" / "mine").read_text() == "precious"

    def test_empty_folder_is_filled(self, path, tmp_path):
        (tmp_path / "out").mkdir()
        convert_checkpoint(path, tmp_path / "out", "minvis")
        assert (tmp_path / "out" / "config.json").is_file()

    def test_folder_that_cannot_be_written_is_an_error(self, path):
        with pytest.raises(OSError, match=r"Cannot write into the folder .*model_final.pth: Not a directory"):
            convert_checkpoint(path, f"{path}/a/b", "minvis")

    def test_failure_while_saving_leaves_no_folder(self, path, tmp_path, monkeypatch):
        def fail(*arguments: Any, **keywords: Any) -> NoReturn:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("transformers_cvis.conversion.convert.save_model", fail)
        with pytest.raises(OSError, match="No space left"):
            convert_checkpoint(path, tmp_path / "new" / "out", "minvis")
        assert file_names(tmp_path) == ["model_final.pth"]

    def test_report_can_be_written_as_json(self, path, tmp_path):
        report = convert_checkpoint(path, tmp_path / "out", "minvis")
        assert json.loads(json.dumps(vars(report)))["ignored"] == {
            "criterion.empty_weight": "class weights of the loss are configuration"
        }

    def test_other_content_of_a_model_zoo_file_is_reported(self, tmp_path):
        released = random_state_dict(mask2former_names(ResNet()))
        content = {"model": {name: tensor.numpy() for name, tensor in released.items()}, "__author__": "Zoo"}
        (tmp_path / "model_final_3c8ec9.pkl").write_bytes(pickle.dumps(content, protocol=4))
        report = convert_checkpoint(tmp_path / "model_final_3c8ec9.pkl", tmp_path / "out", "mask2former")
        assert "Left out, since these are not weights: __author__." in report.notes

    def test_gradient_basis_next_to_the_checkpoint_is_reported(self, tmp_path):
        path = save_checkpoint(tmp_path, hvpl_names(ResNet()))
        (tmp_path / "grad_data_frame.pkl").write_bytes(b"")
        report = convert_checkpoint(path, tmp_path / "out", "hvpl")
        assert "grad_data_frame.pkl next to the checkpoint is not part of the model" in report.notes[-1]
