# SPDX-License-Identifier: Apache-2.0
"""Configurations: classes, `starts_from`, unknown keys, and the switches of `behaviour`."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.support.helpers import tiny_detector_config
from transformers_cvis import CrispConfig, GenVisConfig, HvplConfig, MinVisConfig, SpvisConfig, VitaConfig
from transformers_cvis.modeling.auto import MODELS
from transformers_cvis.modeling.configuration_base import switch_table, switches

RELEASED = {"scan_axes": "released", "encoder_slices": "joint", "cross_tokens": "released"}


class TestClasses:
    @pytest.mark.parametrize("config_class", MODELS, ids=lambda config_class: config_class.model_type)
    @pytest.mark.parametrize(
        ("id2label", "message"),
        [
            ({1: "disk", 2: "star"}, r"must number its 2 classes 0 to 1 without gaps, got \[1, 2\]"),
            ({0: "disk", 2: "star"}, r"got \[0, 2\]"),
            ({"disk": "star"}, "maps class numbers to names, got the key 'disk'"),
        ],
    )
    def test_numbers_of_classes_are_0_to_n_minus_1(self, config_class, id2label, message):
        with pytest.raises(ValueError, match=message):
            config_class(id2label=id2label)
        config = config_class(id2label={0: "disk"})
        with pytest.raises(ValueError, match=message):
            config.id2label = id2label

    @pytest.mark.parametrize("config_class", MODELS, ids=lambda config_class: config_class.model_type)
    def test_names_follow_a_new_id2label(self, config_class):
        config = config_class(id2label={"1": "star", "0": "disk"}, label2id={"moon": 7})
        assert list(config.id2label.items()) == [(0, "disk"), (1, "star")]
        assert config.label2id == {"disk": 0, "star": 1}
        config.id2label = {0: "moon"}
        assert config.label2id == {"moon": 0}
        assert config.num_labels == 1
        if hasattr(config, "detector_config"):
            assert config.detector_config.label2id == {"moon": 0}
        if hasattr(config, "task_class_counts"):
            assert config.task_class_counts == [1]


class TestBehaviour:
    def test_released_sets_all_switches(self):
        config = HvplConfig(behaviour="released")
        assert {name: getattr(config, name) for name in switches(HvplConfig)} == RELEASED

    def test_single_field_overrides_behaviour(self):
        config = HvplConfig(behaviour="released", scan_axes="frames_queries")
        assert config.scan_axes == "frames_queries"
        assert config.encoder_slices == "joint"
        assert HvplConfig(encoder_slices="joint").cross_tokens == "per_task"

    def test_behaviour_is_saved_with_all_values(self, tmp_path):
        CrispConfig(behaviour="paper", matching="cosine").save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert (loaded.behaviour, loaded.matching, loaded.isc_similarity) == ("paper", "cosine", "cosine")
        assert loaded.num_prompts == "classes"

    def test_loading_with_another_behaviour_sets_all_switches(self, tmp_path):
        GenVisConfig(uvla="paper").save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path, behaviour="released").uvla == "released"
        assert AutoConfig.from_pretrained(tmp_path, behaviour="released", uvla="paper").uvla == "paper"
        config = AutoConfig.from_pretrained(tmp_path)
        config.behaviour = "released"
        assert config.uvla == "released"

    def test_a_folder_of_earlier_versions_loads_as_default(self, tmp_path):
        SpvisConfig(alignment="released").save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        content = json.loads(path.read_text())
        del content["behaviour"], content["joint"]
        path.write_text(json.dumps(content))
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert (loaded.behaviour, loaded.alignment, loaded.joint) == ("default", "released", "sum")

    def test_an_unknown_behaviour_is_refused(self):
        with pytest.raises(Exception, match="behaviour"):
            GenVisConfig(behaviour="best")

    @pytest.mark.parametrize("config_class", MODELS, ids=lambda config_class: config_class.model_type)
    def test_every_switch_has_three_values_and_a_reason(self, config_class):
        for behaviour in ("default", "paper", "released"):
            config = config_class(behaviour=behaviour)
            for name, values in switches(config_class).items():
                assert getattr(config, name) == values[behaviour]
        assert switch_table([config_class]).count("\n") == 2 + len(switches(config_class))


class TestStarts:
    def test_fields_of_another_system_are_dropped_silently(self, tmp_path, caplog):
        SpvisConfig.from_frame_detector(tiny_detector_config(), tracker_layers=2).save_pretrained(tmp_path)
        config = MinVisConfig.from_pretrained(tmp_path)
        assert config.hidden_dim == 32
        assert not hasattr(config, "tracker_layers")
        assert "has no field" not in caplog.text

    def test_a_system_that_cannot_start_another_is_refused(self, tmp_path):
        VitaConfig().save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match="is a 'vita' model. A 'minvis' model loads its own checkpoints, or starts from"
        ):
            MinVisConfig.from_pretrained(tmp_path)


def test_the_table_of_switches_is_that_of_the_fields():
    page = (Path(__file__).parents[2] / "docs" / "switches.md").read_text(encoding="utf-8")
    assert page.endswith(switch_table(list(MODELS)))
