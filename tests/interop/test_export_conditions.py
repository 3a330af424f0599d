"""Exported maps of conditions that are numbers: the file takes them in the units of the table, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import flowmaps as fm
from flowmaps.data import Points, TableOptions, open_data
from flowmaps.interop.units import InUnits
from flowmaps.shapes import Conditions, GuidedCondition, label_and_numbers

ROWS = 60
pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")


def opened(path: Path, when: str = "standard") -> Points:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"x": rng.normal(5, 2, ROWS), "wide": rng.standard_cauchy(ROWS), "mass": rng.gamma(2, size=ROWS)}
    )
    frame = frame.assign(far=1_700_000_000 + rng.integers(0, 9, ROWS), tail=1.7e9 + rng.standard_cauchy(ROWS))
    frame = frame.assign(when=1_700_000_000 + rng.integers(0, 3_600, ROWS), kind=["a", "b", "c"] * (ROWS // 3))
    frame.to_csv(path / "a.csv", index=False)
    transform = ("tail=asinh", "wide=asinh", "mass=log", f"when={when}")
    options = TableOptions(condition_columns=("wide", "mass", "when"), label_column="kind", transform=transform)
    source = open_data(str(path / "a.csv"), table=options)
    assert isinstance(source, Points)
    return source


def values(source: Points, rows: int = 4) -> dict[str, np.ndarray]:
    return {own.name: np.linspace(own.low, own.high, rows) for own in source.units.conditions}


def test_conditions_in_the_units_of_a_table_are_those_of_the_network(tmp_path: Path):
    source = opened(tmp_path)
    given = values(source)
    numbers = torch.from_numpy(np.stack([*given.values()], axis=1))
    numbers[3] = torch.nan
    label, weight = torch.tensor([0, 1, 2, 3]), torch.ones(4)
    seen = InUnits(source.units).condition(GuidedCondition(Conditions(label, numbers), weight))
    assert isinstance(seen, GuidedCondition)
    found = label_and_numbers(seen)
    assert torch.equal(found[0], label)
    torch.testing.assert_close(found[1][:3], source.units.to_condition(given)[:3], atol=1e-5, rtol=1e-5)
    assert bool(found[1][3].isnan().all())


def test_a_logarithm_of_no_positive_number_is_not_taken_for_no_condition(tmp_path: Path):
    source = opened(tmp_path)
    given = torch.from_numpy(np.stack([*values(source).values()], axis=1))
    given[1:3, 1] = torch.tensor([0.0, -1.0])
    given[3] = torch.nan
    seen = label_and_numbers(InUnits(source.units).condition(Conditions(torch.zeros(4).long(), given)))[1]
    assert seen[1:3, 1].tolist() == [-torch.inf] * 2
    assert seen.isnan().any(1).tolist() == [False, False, False, True]


def test_conditions_of_quantiles_are_refused_with_the_way_out(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the map knows its condition when by quantiles.*--raw"):
        InUnits(opened(tmp_path, "quantile").units)


def test_a_file_takes_conditions_in_the_units_of_the_table(tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    source = opened(tmp_path)
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(3, width=16, depth=2, classes=3, condition_dim=3)).eval()
    written = fm.export(flow_map, 2, tmp_path / "map.onnx", units=source.units)
    assert written.inputs == ("noise", "condition.label", "condition.numbers")
    session = runtime.InferenceSession(str(written.path))
    noise, given, label = torch.randn(4, 3), values(source), torch.tensor([0, 1, 2, 0])
    inputs = {"noise": noise.numpy(), "condition.label": label.numpy()}
    (samples,) = session.run(None, inputs | {"condition.numbers": np.stack([*given.values()], axis=1)})
    x = fm.samplers.Jump(2)(flow_map, noise, Conditions(label, source.units.to_condition(given)))
    np.testing.assert_allclose(samples, source.units.to_data(x.detach()).numpy(), rtol=0, atol=1e-3)
    wrong = np.stack([*given.values()], axis=1)
    wrong[1:, 1] = -1, 0, np.nan  # of the logarithm, and of no condition: NaN is whole rows
    wrong[3] = np.nan
    (samples,) = session.run(None, inputs | {"condition.numbers": wrong})
    assert np.isnan(samples).all(1).tolist() == [False, True, True, False]
    assert np.isfinite(samples[[0, 3]]).all()
