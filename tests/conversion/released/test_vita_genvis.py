# SPDX-License-Identifier: Apache-2.0
"""VITA and GenVIS checkpoints: configurations from shapes."""

import pytest

from tests.support.detectron2_names import (
    TINY,
    ResNet,
    genvis_names,
    mask2former_names,
    meta_state_dict,
    vita_names,
)
from transformers_cvis import GenVisConfig, VitaConfig
from transformers_cvis.conversion.released.vita_genvis import infer_genvis_config, infer_vita_config

CASES = [(infer_vita_config, vita_names, VitaConfig), (infer_genvis_config, genvis_names, GenVisConfig)]


@pytest.mark.parametrize(("infer_config", "names_of", "config_class"), CASES)
def test_sizes_are_read_from_the_shapes(infer_config, names_of, config_class):
    config = infer_config(meta_state_dict(names_of(ResNet())), encoder_window_size=3)
    assert type(config) is config_class
    assert (config.num_queries, config.num_labels) == (TINY.video_queries, TINY.classes)
    assert (config.encoder_layers, config.decoder_layers) == (TINY.video_layers, TINY.video_layers)
    assert (config.dim_feedforward, config.num_attention_heads) == (TINY.feed_forward, TINY.heads)
    assert config.detector_config.num_queries == TINY.queries
    assert config.encoder_window_size == 3


@pytest.mark.parametrize(("infer_config", "names_of", "config_class"), CASES)
def test_given_labels_decide_the_number_of_classes(infer_config, names_of, config_class):
    config = infer_config(meta_state_dict(names_of(ResNet())), id2label={0: "cat", 1: "dog"})
    assert config.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(("infer_config", "name"), [(infer_vita_config, "VITA"), (infer_genvis_config, "GenVIS")])
def test_checkpoint_without_a_video_head_is_an_error(infer_config, name):
    with pytest.raises(ValueError, match=rf"has no video head \(`vita_module\.\*`\), so it is not {name}\."):
        infer_config(meta_state_dict(mask2former_names(ResNet())))
