# SPDX-License-Identifier: Apache-2.0
"""Growth of the protected basis and projected gradients against the reference case `hvpl_ogc`."""

from tests.support.goldens import assert_matches, load_case
from transformers_cvis.continual.gradient_projection import grow_basis_released, project_out


def test_basis_and_projected_gradients():
    case = load_case("hvpl_ogc")
    num_tasks = len({name.split("/")[0] for name in case.inputs})
    for name, threshold in case.config["threshold"].items():
        basis = None
        for task in range(num_tasks):
            basis = grow_basis_released(case.inputs[f"task{task}/representation"], threshold, basis)
            expected, where = f"{name}/task{task}", f"{name}, task {task}"
            assert basis.shape == case.outputs[f"{expected}/basis"].shape, where
            assert_matches(basis @ basis.T, case.outputs[f"{expected}/projector"], where, case.tolerance)
            projected = project_out(case.inputs[f"task{task}/gradient"], basis)
            assert_matches(projected, case.outputs[f"{expected}/projected_gradient"], where, case.tolerance)
