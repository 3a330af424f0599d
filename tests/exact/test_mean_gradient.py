"""The check of a method against the map of a Gaussian: what it finds, what it prints, what it refuses."""

from __future__ import annotations

import pytest
import torch

import flowmaps as fm
from flowmaps.exact.mean_gradient import z_scores


def unweighted(flow_map: fm.maps.FlowMap, **options: object) -> fm.objectives.Objective:
    return fm.methods.alphaflow(flow_map, weight=fm.losses.Constant(), **options)  # type: ignore[arg-type]


def test_a_bias_is_told_from_noise_by_more_rows():
    """z grows as the root of the rows where the gradient has a mean, and stays where it has none."""
    biased, unbiased = (
        [fm.exact.mean_gradient(method, rows=rows, progress=0.0).largest for rows in (5_000, 80_000)]
        for method in (unweighted, fm.methods.lsd)
    )
    assert biased[0] > 5
    assert 3 < biased[1] / biased[0] < 5
    assert max(unbiased) < 4


def test_a_schedule_is_taken_where_training_stands():
    early, late = (fm.exact.mean_gradient(unweighted, progress=progress).largest for progress in (0.0, 1.0))
    assert late < 4 < early


def test_the_path_and_the_base_are_those_of_the_objective():
    path = fm.interpolants.VarianceExploding(5.0, 3.0)

    def method(flow_map: fm.maps.FlowMap) -> fm.objectives.Objective:
        coupling = fm.couplings.Independent(fm.couplings.Normal(5.0))
        return fm.methods.meanflow(flow_map, interpolant=path, coupling=coupling, weight=fm.losses.Constant())

    assert fm.exact.mean_gradient(method).largest < 4
    law = fm.exact.Gaussian([0.0], [[1.0]], base_covariance=[[25.0]], interpolant=path)
    assert fm.exact.mean_gradient(method, law).parameters.shape == (4, 1)


def test_a_teacher_of_another_law_is_seen():
    law = fm.exact.Gaussian([1.0], [[0.5]])
    other = fm.exact.Gaussian([1.0], [[0.6]])

    def largest(taught_by: fm.exact.Gaussian) -> float:
        def teacher(x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
            return taught_by.velocity(x, t)

        return fm.exact.mean_gradient(lambda flow_map: fm.methods.lmd(flow_map, teacher=teacher), law).largest

    assert largest(law) == 0  # in each row
    assert largest(other) > 20


def test_each_figure_has_its_name():
    gradients = torch.randn(400, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.linspace(0, 0.8, 400, dtype=torch.float64)
    found = z_scores(gradients, s.flip(0))
    mean, error = gradients.mean(0), gradients.std(0) / 20
    torch.testing.assert_close(found.parameters, mean / error)
    last = gradients[:100, -1].sum(1)  # the largest s
    torch.testing.assert_close(found.bands[-1], last.mean() / (last.std() / 10))
    torch.testing.assert_close(found.edges, torch.tensor([0, 0.2, 0.4, 0.6, 0.8]).double(), atol=0.01, rtol=0)
    lines = str(found).splitlines()
    assert [line[:15].strip() for line in lines] == [
        *("sine 1", "sine 2", "sine 3", "growth"),
        *("s 0.00 to 0.20", "s 0.20 to 0.40", "s 0.40 to 0.60", "s 0.60 to 0.80"),
    ]
    assert lines[3].split()[1:] == [f"{z:.1f}" for z in found.parameters[3].tolist()]
    assert lines[7].split()[-1] == f"{float(found.bands[3]):.1f}"


def test_what_is_refused():
    law = fm.exact.Gaussian([0.0], [[1.0]], interpolant=fm.interpolants.Trigonometric())
    with pytest.raises(ValueError, match=r"on the path Linear\(\), the law on Trigonometric\(\): pass interpolant="):
        fm.exact.mean_gradient(fm.methods.lsd, law)
    with pytest.raises(ValueError, match="rows must be at least 8, two in each band, got 7"):
        fm.exact.mean_gradient(fm.methods.lsd, rows=7)
    with pytest.raises(ValueError, match="one draw without guidance: leave guidance= and draws= out"):
        fm.exact.mean_gradient(lambda flow_map: fm.methods.lsd(flow_map, draws=2))
    with pytest.raises(
        ValueError, match=r"a learned weight multiplies the noise of dI: pass weight=fm\.losses\.Constant"
    ):
        fm.exact.mean_gradient(fm.methods.sct)

    def root(r: torch.Tensor) -> torch.Tensor:
        return r.sum(1).sqrt()

    with pytest.raises(
        ValueError, match=r"the gradient of \d+ of 20 rows is not finite: look at .* where Linear has no"
    ):
        fm.exact.mean_gradient(lambda flow_map: fm.methods.lsd(flow_map, distance=root), rows=20)
