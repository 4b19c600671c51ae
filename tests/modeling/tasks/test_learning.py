"""Tasks come and go; what is frozen follows."""

import pytest
import torch

from tests.support.helpers import tiny_hvpl


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_removing_a_task_gives_the_model_before_it():
    model = tiny_hvpl()
    before, config, trained = model.state_dict(), model.config.to_dict(), trainable(model)
    model.add_task(["moon", "sun"], num_prompts=3)
    assert trainable(model) == {*model.task_parameters(1), *model.no_object_parameters()}
    model.remove_task()
    assert model.config.to_dict() == config and trainable(model) == trained
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.criterion.num_labels == model.detector.criterion.num_labels == model.config.num_labels
    with pytest.raises(ValueError, match="The base cannot be removed"):
        model.remove_task()
