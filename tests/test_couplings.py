"""Couplings keep their marginals; minibatch optimal transport is optimal."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowmaps.couplings import Empirical, FlowPairs, Independent, MinibatchOT, NoData, Normal, Paired
from flowmaps.exact import GaussianMixture
from flowmaps.shapes import GuidedCondition, label_of
from flowmaps.solvers import SolverFlow


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


def test_minibatch_transport_pairs_within_classes():
    """The noise of each class stays N(0, Id), and each class is paired optimally; without labels means go apart."""
    rows = 600
    labels = torch.arange(rows) % 2
    x1 = points(rows, 1, seed=1) / 10 + (2 * labels[:, None] - 1)
    x0 = points(rows, 1, seed=2)
    for cond in (
        labels,
        GuidedCondition(labels, torch.ones(rows)),
        {"y": labels, "z": torch.zeros(rows, 2, dtype=torch.long)},
    ):
        a, b = MinibatchOT().pair(x1, x0, cond=cond)
        assert torch.equal(b, x1)
        assert sorted_rows(a) == sorted_rows(x0)
        for k in (0, 1):
            own = a[labels == k]
            assert abs(float(own.mean())) < 4 / (rows / 2) ** 0.5
            assert float(own.std()) == pytest.approx(1, abs=0.16)
            assert torch.equal(own[:, 0].argsort(), x1[labels == k][:, 0].argsort())  # optimal on a line
    mixed, _ = MinibatchOT().pair(x1, x0)
    assert float(mixed[labels == 1].mean()) > 0.7
    with pytest.raises(ValueError, match=r"these conditions are no classes .*: take coupling=Independent\(\)"):
        MinibatchOT().pair(x1, x0, cond=x1)


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


# couplings made by a flow --------------------------------------------------------------------------------------------

MIXTURE = GaussianMixture([0.7, 0.3], [[-1.0, 0.3], [0.8, -0.5]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, 0.0], [0.0, 0.5]]])


@pytest.mark.parametrize("labelled", [False, True])
def test_carried_pairs_are_the_flow_of_their_noise(labelled: bool):
    """Reflow: x1 = X_{0,1}(x0), row by row, for the condition of the row."""
    cond = torch.tensor([0, 1, 1, 0, 1]) if labelled else None
    flow = SolverFlow(MIXTURE.velocity, rtol=1e-9, atol=1e-9)
    data = points(5, 2)
    x0, x1 = FlowPairs(flow).pair(data, generator=torch.Generator().manual_seed(3), cond=cond)
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(x1, MIXTURE.flow_map(x0, zero, zero + 1, cond), rtol=1e-6, atol=1e-6)
    assert torch.equal(x0, Normal().sample(data, torch.Generator().manual_seed(3)))
    assert not torch.allclose(x1, data)  # the data give the shape alone
    given = points(5, 2, seed=9)
    a, b = FlowPairs(flow).pair(data, given, cond=cond)
    assert a is given
    torch.testing.assert_close(b, MIXTURE.flow_map(given, zero, zero + 1, cond), rtol=1e-6, atol=1e-6)


def test_carried_pairs_have_the_base_and_the_flows_law():
    """The law of x1 is that of the data: mean and second moments, within standard errors."""
    flow = SolverFlow(MIXTURE.velocity, method="rk4", steps=16)
    x0, x1 = FlowPairs(flow, Normal()).pair(torch.zeros(20_001, 2).double(), generator=torch.Generator().manual_seed(0))
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    assert bool(((x1.mean(0) - mean).abs() < 4.5 * x1.std(0) / len(x1) ** 0.5).all())
    second = (MIXTURE.covariances + MIXTURE.means[:, :, None] * MIXTURE.means[:, None]) * MIXTURE.weights[:, None, None]
    products = x1[:, :, None] * x1[:, None]
    error = (products.mean(0) - second.sum(0)).abs() / (products.std(0) / len(x1) ** 0.5)
    assert float(error.max()) < 4.5
    assert float(torch.corrcoef(torch.cat([x0, x1], 1).mT)[0, 2]) > 0.5  # coupled, unlike independent pairs


@pytest.mark.slow
def test_carried_pairs_of_guided_flows_have_a_weight_for_each_row():
    def guided(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        assert isinstance(cond, GuidedCondition)
        away = MIXTURE.velocity(x, t)
        return away + cond.weight[:, None] * (MIXTURE.velocity(x, t, label_of(cond)) - away)

    labels, weights = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0]).double()
    flow, data = SolverFlow(guided, method="rk4", steps=20), points(5, 2)
    _, x1 = FlowPairs(flow).pair(data, data, cond=GuidedCondition(labels, weights))
    zero = torch.zeros(5, dtype=torch.float64)
    plain = MIXTURE.flow_map(data, zero, zero + 1, labels)
    torch.testing.assert_close(x1[:2], plain[:2], rtol=1e-4, atol=1e-4)
    assert float((x1 - plain)[2:].norm(dim=1).min()) > 0.01


def test_no_gradient_is_kept_of_carried_pairs():
    matrix = torch.eye(2, dtype=torch.float64, requires_grad=True)
    flow = SolverFlow(lambda x, t, cond=None: x @ matrix, method="euler", steps=2)
    x0, x1 = FlowPairs(flow).pair(points(5, 2))
    assert not x1.requires_grad
    torch.testing.assert_close(x1, 2.25 * x0)  # (1 + 1/2)^2: Euler's


def test_without_data_the_path_starts_at_the_base_and_ends_at_zero():
    """FreeFlow looks at s = 0 alone, where I_0 = x0."""
    data = points(5, 3)
    x0, x1 = NoData(Normal(2.0)).pair(data, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x0, Normal(2.0).sample(data, torch.Generator().manual_seed(0)))
    assert x1.tolist() == [[0.0] * 3] * 5
    assert x1.dtype == torch.float64
    given = points(5, 3, seed=1)
    assert NoData().pair(data, given)[0] is given
    other = NoData(Normal(2.0)).pair(7 * data, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(x0, other)  # the data say nothing but their shape


def test_bases_that_are_refused():
    with pytest.raises(ValueError, match="scale > 0, got 0"):
        Normal(0)
    with pytest.raises(ValueError, match=r"the base has rows \(3,\), the data \(2,\)"):
        Empirical(points(5, 3)).sample(points(4, 2))
