# SPDX-License-Identifier: Apache-2.0
"""Forgetting rates against the reference case `forgetting`."""

import numpy as np
import pytest

from tests.support.goldens import load_case
from transformers_cvis.evaluation.forgetting import crisp_forgetting, hvpl_forgetting


@pytest.fixture(scope="module")
def case():
    return load_case("forgetting")


def test_forgetting_rates(case):
    for spec in case.config["specs"]:
        name, base, increment = spec["name"], spec["base"], spec["increment"]
        expected = {key.split("/")[1]: tensor.numpy() for key, tensor in case.outputs.items() if key.startswith(name)}
        class_ap = case.inputs[f"{name}/class_ap"].numpy()
        learnt_after = [max(0, -(-(row + 1 - base) // increment)) for row in range(len(class_ap))]
        assert learnt_after[-1] == spec["tasks"] - 1

        by_class = hvpl_forgetting(class_ap, learnt_after, undefined="released")
        assert by_class.value == pytest.approx(expected["hvpl_class"].item(), abs=1e-9)
        np.testing.assert_allclose(by_class.terms, expected["hvpl_class_terms"], rtol=0, atol=1e-9)

        task_ap = case.inputs[f"{name}/task_ap"].numpy()
        by_task = hvpl_forgetting(task_ap, range(spec["tasks"]), undefined="released")
        assert by_task.value == pytest.approx(expected["hvpl_task"].item(), abs=1e-9)
        np.testing.assert_allclose(by_task.terms, expected["hvpl_task_terms"], rtol=0, atol=1e-9)

        for choice in ("all", "old"):
            rate = crisp_forgetting(class_ap, learnt_after, num_classes=choice)
            assert rate.value == pytest.approx(expected[f"paper_{choice}_classes"].item(), abs=1e-9)
