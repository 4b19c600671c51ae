# SPDX-License-Identifier: Apache-2.0
"""Principal directions of old queries."""

import pytest
import torch

from transformers_cvis.modeling.crisp.initialization import principal_rows


def old_queries(count=12, channels=8):
    """Return queries whose spread falls from channel to channel."""
    spread = torch.tensor([10.0, 5, 2, 1, 0.5, 0.2, 0.1, 0.05], dtype=torch.float64)[:channels]
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread + 1


def test_directions_are_those_of_largest_variance():
    queries = old_queries()
    rows = principal_rows(queries, 3)
    centred = queries - queries.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    directions = vectors.T.flip(0)[:3]
    length = queries.norm(dim=1).mean()
    torch.testing.assert_close((rows @ directions.T).abs(), length * torch.eye(3, dtype=torch.float64))
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(rows, principal_rows(queries, 5)[:3])
    torch.testing.assert_close(principal_rows(queries.float(), 3), rows.float())


def test_other_readings():
    queries = old_queries()
    unit, released, loadings = (
        principal_rows(queries, 8, reading) for reading in ("directions", "released", "loadings")
    )
    assert torch.equal(released, -unit)
    lengths = loadings.norm(dim=1)
    assert (lengths[:-1] >= lengths[1:]).all()
    torch.testing.assert_close(lengths.mean(), queries.norm(dim=1).mean())
    torch.testing.assert_close(loadings / lengths[:, None], unit / unit.norm(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="`reading` must be one of 'directions', 'loadings', 'released', got 'best'"):
        principal_rows(queries, 2, "best")


@pytest.mark.parametrize("reading", ["directions", "loadings", "released"])
def test_rows_beyond_the_directions_are_the_mean(reading):
    queries = old_queries(count=4)
    rows = principal_rows(queries, 6, reading)
    assert torch.equal(rows[:3], principal_rows(queries, 3, reading))
    torch.testing.assert_close(rows[3:], queries.mean(0).expand(3, -1))
    alike = principal_rows(queries[:1].expand(4, -1), 3, reading)
    assert alike.isfinite().all()
