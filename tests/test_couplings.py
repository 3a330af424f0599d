"""Couplings keep their marginals; minibatch optimal transport is optimal."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowmaps.couplings import Empirical, Independent, MinibatchOT, Normal, Paired


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum())


def sorted_rows(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in x.flatten(1).tolist())


@pytest.mark.parametrize("shape", [(7, 1), (33, 2), (65, 5), (13, 2, 3)])
def test_minibatch_transport_is_the_optimal_assignment(shape: tuple[int, ...]):
    x1, x0 = points(*shape, seed=1), points(*shape, seed=2)
    a, b = MinibatchOT().pair(x1, x0)
    matrix = (x1.flatten(1)[:, None] - x0.flatten(1)[None]).square().sum(2)
    rows, columns = linear_sum_assignment(matrix.numpy())
    assert cost(a, b) == pytest.approx(float(matrix[rows, columns].sum()), rel=1e-12)
    assert cost(a, b) < cost(x0, x1)  # and better than as they came
    assert torch.equal(b, x1)  # the data stay in place, so do their labels
    assert sorted_rows(a) == sorted_rows(x0)  # every base point is used once


def test_minibatch_transport_beats_every_permutation_of_five():
    x1, x0 = points(5, 2, seed=3), points(5, 2, seed=4)
    best = min(cost(x0[list(order)], x1) for order in itertools.permutations(range(5)))
    assert cost(*MinibatchOT().pair(x1, x0)) == pytest.approx(best)


def test_minibatch_transport_on_a_line_keeps_the_order():
    x1, x0 = points(41, 1, seed=5), points(41, 1, seed=6)
    a, b = MinibatchOT().pair(x1, x0)
    assert torch.equal(a[:, 0].argsort(), b[:, 0].argsort())


def test_minibatch_transport_with_ties_still_uses_every_point():
    x0 = torch.cat([torch.zeros(8, 2), points(8, 2).float()])  # half of the base at one place
    x1 = torch.cat([torch.ones(9, 2), points(7, 2, seed=1).float()])
    a, _ = MinibatchOT().pair(x1, x0)
    assert sorted_rows(a) == sorted_rows(x0)


def test_the_order_of_the_batch_changes_nothing():
    x1, x0 = points(17, 3, seed=1), points(17, 3, seed=2)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    a, _ = MinibatchOT().pair(x1, x0)
    shuffled, _ = MinibatchOT().pair(x1[order], x0)
    assert torch.equal(shuffled, a[order])


def test_independent_draws_from_its_base_and_takes_what_is_given():
    x1, x0 = points(9, 4), points(9, 4, seed=1)
    a, b = Independent().pair(x1, x0)
    assert a is x0
    assert b is x1
    one, two = (Independent().pair(x1, generator=torch.Generator().manual_seed(k))[0] for k in (0, 1))
    assert torch.equal(one, Independent().pair(x1, generator=torch.Generator().manual_seed(0))[0])
    assert not torch.equal(one, two)
    assert one.dtype == torch.float64


def test_a_normal_base_has_its_deviation():
    x = Normal(2.5).sample(torch.zeros(4_001, 5), torch.Generator().manual_seed(0)) / 2.5
    deviation, tail = float(x.std()), float((x.abs() > 1.959964).float().mean())
    assert deviation == pytest.approx(1, abs=4 / (2 * x.numel()) ** 0.5)
    assert tail == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / x.numel()) ** 0.5)
    assert abs(float(x.mean())) < 4 / x.numel() ** 0.5
    assert torch.equal(
        Normal(3.0).sample(torch.zeros(3, 2), torch.Generator().manual_seed(1)),
        3 * Normal().sample(torch.zeros(3, 2), torch.Generator().manual_seed(1)),
    )


def test_an_empirical_base_draws_its_rows_evenly():
    data = points(5, 3)
    drawn = Empirical(data).sample(torch.zeros(10_001, 3, dtype=torch.float32), torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    counts = [(drawn == row.float()).all(1).sum().item() for row in data]
    assert sum(counts) == 10_001
    assert all(abs(count / 10_001 - 0.2) < 4 * (0.16 / 10_001) ** 0.5 for count in counts)


def test_couplings_of_data_with_data():
    source, target = points(50, 2, seed=1) - 3, points(20, 2, seed=2)
    a, b = MinibatchOT(Empirical(source)).pair(target, generator=torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in source.tolist()}
    assert all(tuple(row) in rows for row in a.tolist())
    assert torch.equal(b, target)


def test_given_pairs_stay_pairs():
    x0, x1 = points(6, 2), points(6, 2, seed=1)
    a, b = Paired().pair(x1, x0)
    assert a is x0
    assert b is x1
    with pytest.raises(ValueError, match=r"needs both ends of each pair: call objective\(x1, x0\)"):
        Paired().pair(x1)


def test_bases_that_are_refused():
    with pytest.raises(ValueError, match="scale > 0, got 0"):
        Normal(0)
    with pytest.raises(ValueError, match=r"the base has rows \(3,\), the data \(2,\)"):
        Empirical(points(5, 3)).sample(points(4, 2))
