"""Columns as the network sees them and back: transforms, constants, whole numbers, categories, whitening."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy.stats import norm

from flowmaps.data import Points, TableOptions, Units, open_data
from flowmaps.data.columns import covariance_root, fitted
from flowmaps.data.decimals import decimals_of, in_decimals
from flowmaps.metrics import energy_distance, sliced_wasserstein2, wasserstein2

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")


def opened(path: Path, table: Any, held_out: float = 0.0, **options: Any) -> Points:
    path = path / ("a.csv" if isinstance(table, dict) else "a.npy")
    pandas.DataFrame(table).to_csv(path, index=False) if isinstance(table, dict) else np.save(path, table)
    source = open_data(str(path), table=TableOptions(held_out=held_out, **options))
    assert isinstance(source, Points)
    return source


def through_json(units: Units) -> Units:
    """Units as a run's card keeps them."""
    found = Units.from_dict(json.loads(json.dumps(dataclasses.asdict(units))))
    assert found == units
    return found


# far from zero ------------------------------------------------------------------------------------------------------


FAR = {
    "unix seconds": 1.7e9 + RNG.uniform(0, 3600, 2000),
    "northing": 5.4e6 + RNG.normal(size=2000),
    "latitude": 48.8566 + 1e-5 * RNG.normal(size=2000),
}


def test_columns_far_from_zero_keep_their_digits(tmp_path: Path):
    data = np.column_stack(list(FAR.values()))
    source = opened(tmp_path, data)
    units = through_json(source.units)
    written = units.to_file(source.data)
    assert written.dtype == np.float64
    np.testing.assert_allclose(written, data, rtol=0, atol=1e-6 * data.std(0).max())
    assert all(len(np.unique(written[:, k])) > 1990 for k in range(3))
    assert np.abs((written - data) / data.std(0)).max() < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int64", "uint8", "bool"])
def test_samples_have_the_type_of_the_file(tmp_path: Path, dtype: str):
    data = RNG.integers(0, 2 if dtype == "bool" else 100, (50, 2)).astype(dtype)
    source = opened(tmp_path, data)
    written = through_json(source.units).to_file(source.data)
    assert written.dtype == np.dtype(dtype)
    np.testing.assert_allclose(written.astype(float), data.astype(float), atol=1e-4 if dtype[0] == "f" else 0)


# constants ----------------------------------------------------------------------------------------------------------


def test_constant_columns_come_back_as_themselves_whatever_the_network_makes(tmp_path: Path):
    values = (5.0, 0.0, 1e-6, 1e6, 0.1, -1e-300)
    source = opened(tmp_path, np.column_stack([RNG.normal(size=300), *(np.full(300, v) for v in values)]))
    noise = torch.randn(100, 7)
    for k, value in enumerate(values, 1):
        assert set(source.units.to_file(noise)[:, k].tolist()) == {value}
        assert not source.data[:, k].any()


def test_a_column_of_rounding_is_constant_and_a_small_one_is_not(tmp_path: Path):
    rounding = np.where(np.arange(300) % 2, 0.3, 0.1 + 0.2)
    small = 1e15 + np.arange(300) % 7
    source = opened(tmp_path, np.column_stack([RNG.normal(size=300), rounding, small]))
    assert source.units.scale[1] == 0
    assert source.units.scale[2] == pytest.approx(small.std(ddof=1), rel=1e-3)


# transforms ---------------------------------------------------------------------------------------------------------


HEAVY = {"cauchy": RNG.standard_cauchy(4001), "lognormal": np.exp(2.5 * RNG.normal(size=4001))}


@pytest.mark.parametrize("kind", ["standard", "log", "asinh", "quantile"])
def test_every_transform_is_undone(tmp_path: Path, kind: str):
    data = np.exp(RNG.normal(size=(700, 2)))
    source = opened(tmp_path, data, transform=(kind,))
    np.testing.assert_allclose(through_json(source.units).to_file(source.data), data, rtol=2e-5)
    assert source.data.mean(0).abs().max() < 1e-2
    torch.testing.assert_close(source.data.std(0), torch.ones(2), rtol=2e-2, atol=0)


def test_quantiles_are_normal_scores():
    x = RNG.standard_cauchy(501)
    column = fitted("a", x, "quantile")
    expected = norm.ppf((np.argsort(np.argsort(x)) + 0.5) / 501)
    np.testing.assert_allclose(column.encode(x)[:, 0], expected, rtol=1e-9, atol=1e-9)
    wild = column.decode(np.array([[-50.0], [50.0]]))
    assert wild.tolist() == [x.min(), x.max()]


def test_a_value_of_many_rows_comes_back_exactly():
    x = np.where(np.arange(1000) % 3 == 0, 0.0, np.exp(RNG.normal(size=1000)))
    column = fitted("a", x, "quantile")
    z = np.random.default_rng(1).normal(size=(3000, 1))
    assert np.mean(column.decode(z) == 0) == pytest.approx(1 / 3, abs=0.03)


def test_asinh_is_of_the_median_and_the_quartiles():
    x = 7 + 3 * RNG.normal(size=100_000)
    column = fitted("a", x, "asinh")
    assert column.knots == pytest.approx((7, 3), rel=0.02)
    np.testing.assert_allclose(column.encode(np.array([7.0, 10.0]))[:, 0], np.arcsinh([0, 1]), atol=0.02)


@pytest.mark.parametrize("kind", ["quantile", "asinh"])
def test_heavy_tails_have_the_width_of_the_others_after_a_transform(tmp_path: Path, kind: str):
    source = opened(tmp_path, HEAVY, transform=(kind,))
    assert source.data.abs().max() < 12
    for k in range(2):
        low, high = np.quantile(source.data[:, k].numpy(), (0.25, 0.75))
        assert 0.6 < (high - low) / 1.349 < 1.4
    raw = opened(tmp_path, HEAVY)
    assert np.subtract(*np.quantile(raw.data[:, 0].numpy(), (0.75, 0.25))) < 0.2


def test_positive_columns_stay_positive_with_a_logarithm(tmp_path: Path):
    source = opened(tmp_path, HEAVY, transform=("lognormal=log",), drop_columns=("cauchy",))
    assert source.units.to_file(10 * torch.randn(500, 1)).min() > 0
    with pytest.raises(ValueError, match=r"'cauchy' has -.* a logarithm takes positive numbers: .*cauchy=asinh"):
        opened(tmp_path, HEAVY, transform=("log",))


def test_heavy_tails_are_told_of(tmp_path: Path):
    source = opened(tmp_path, HEAVY | {"calm": RNG.normal(size=4001)})
    (said,) = [note for note in source.notes if "heavy tails" in note]
    assert "Pass --transform cauchy=asinh lognormal=log (log: all values are positive; asinh: some are not pos" in said
    assert "calm" not in said
    transforms = said.partition("--transform ")[2].partition(" (")[0].split()
    assert not opened(tmp_path, HEAVY, transform=tuple(transforms)).notes  # the advice works
    assert not opened(tmp_path, HEAVY, transform=("quantile",)).notes


def test_the_transform_that_is_advised_is_that_of_the_column(tmp_path: Path):
    wide = np.exp(1.5 * RNG.normal(size=4001))
    table = {"count": wide.round().astype(int), "lump": wide * (RNG.random(4001) < 0.5), "gain": wide - wide[::-1]}
    table["far"] = np.exp(wide.clip(0, 60))
    (said,) = [note for note in opened(tmp_path, table).notes if "heavy tails" in note]
    assert "--transform count=quantile lump=quantile gain=asinh far=quantile (asinh: some" in said


def test_a_misspelt_column_of_a_transform_is_hinted_at(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'lognormla', which is not learned, of .*: did you mean 'lognormal'\?"):
        opened(tmp_path, HEAVY, transform=("lognormla=log",))


# decimals -----------------------------------------------------------------------------------------------------------


def test_samples_have_the_decimals_of_the_file(tmp_path: Path):
    table = {
        "price": (1e3 * RNG.random(400)).round(2),
        "ratio": RNG.normal(size=400).round(6),
        "whole": RNG.normal(40, 9, size=400).round(0),
        "fine": RNG.normal(size=400),
        "size": np.exp(RNG.normal(-3, 1, size=400)).round(2).clip(0.01),
    }
    source = opened(tmp_path, table, transform=("size=log",))
    units, noise = source.units, 2 * torch.randn(500, 5)
    drawn, exact = through_json(units).to_columns(noise), units.to_data(noise).numpy()
    for k, (name, decimals) in enumerate({"price": 2, "ratio": 6, "whole": 0}.items()):
        assert [float(f"{value:.{decimals}f}") for value in drawn[name]] == drawn[name].tolist()
        assert np.abs(drawn[name] - exact[:, k]).max() <= 0.5 * 10.0**-decimals * (1 + 1e-6)
    assert np.array_equal(drawn["fine"], exact[:, 3])
    assert drawn["size"].min() == 0.01  # which a logarithm keeps positive
    back = units.to_columns(source.data)
    assert all(np.array_equal(back[name], table[name]) for name in ("price", "whole", "size"))
    assert opened(tmp_path, {"price": table["price"]}).units.table.plain  # type: ignore[union-attr]  # densities are in its units
    lines = " ".join(source.about)
    assert "standardised, rounded to 2 decimals" in lines
    left = opened(tmp_path, table, integers="float").units.to_columns(noise)["price"]
    assert np.abs(left - left.round(2)).max() > 1e-4


def test_a_zero_has_no_sign_and_huge_numbers_are_left():
    assert np.signbit(in_decimals(np.array([-0.001]), 2)).tolist() == [False]
    huge = np.array([1e305, np.inf, 2.0**60 + 256])
    assert np.array_equal(in_decimals(huge, 6), huge)
    assert np.isnan(in_decimals(np.array([np.nan]), 2)).all()
    assert decimals_of(np.array([0.1, 2.25], np.float32)) == 2
    assert decimals_of(np.array([1e-7, 1.0])) == -1


def test_a_card_without_decimals_loads_and_stands_for_the_same_columns(tmp_path: Path):
    """Cards that were written before have none, and go on with the same data."""
    units = opened(tmp_path, {"a": RNG.normal(size=30).round(1), "b": RNG.normal(size=30)}).units
    fields = json.loads(json.dumps(dataclasses.asdict(units)))
    for column in fields["table"]["columns"]:
        del column["decimals"]
    old = Units.from_dict(fields)
    assert old == units
    noise = torch.randn(9, 2)
    assert np.array_equal(old.to_columns(noise)["a"], units.to_data(noise)[:, 0].numpy())


# whole numbers and categories ---------------------------------------------------------------------------------------


def test_whole_numbers_are_rounded_within_their_range_or_left(tmp_path: Path):
    table = {"age": RNG.integers(18, 90, 400), "x": RNG.normal(size=400)}
    noise = 3 * torch.randn(500, 2)
    age = opened(tmp_path, table).units.to_columns(noise)["age"]
    assert (age.dtype, age.min(), age.max()) == (np.dtype("int64"), table["age"].min(), table["age"].max())
    left = opened(tmp_path, table, integers="float").units.to_columns(noise)["age"]
    assert left.dtype == np.float64
    assert left.min() < 0


def test_samples_that_are_no_numbers_stay_visible_in_a_column_of_whole_numbers(tmp_path: Path):
    units = opened(tmp_path, {"age": RNG.integers(18, 90, 400), "x": RNG.normal(size=400)}).units
    noise = torch.randn(5, 2)
    noise[2] = torch.nan
    assert np.isnan(units.to_columns(noise)["age"]).tolist() == [False, False, True, False, False]


def test_categories_are_decoded_to_what_the_file_has(tmp_path: Path):
    table = {"x": RNG.normal(size=90), "town": ["Bonn", "Ulm", "Aha"] * 30}
    table |= {"code": [7, 9, 30] * 30, "ok": [True, False] * 45}
    source = opened(tmp_path, table, categories=("town", "code", "ok"))
    assert source.shape == (1 + 3 + 3 + 2,)
    assert set(source.data[:, 1:].unique().tolist()) == {-1, 1}
    columns = through_json(source.units).to_columns(source.data)
    assert [columns[name].tolist() for name in ("town", "code", "ok")] == [table[k] for k in ("town", "code", "ok")]
    assert columns["code"].dtype == np.int64
    assert columns["ok"].dtype == bool
    with pytest.raises(ValueError, match=r"column 'town' is text, .* take --out FILE.csv"):
        source.units.to_file(source.data)


def test_whole_numbers_that_floats_do_not_hold_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"2\^53 and more.*--drop-columns id"):
        opened(tmp_path, {"id": 2**60 + RNG.integers(0, 9, 20), "x": RNG.normal(size=20)}, keep_columns=("id",))


# whitening, measuring, rows held out --------------------------------------------------------------------------------


def test_whitening_makes_a_thin_cloud_round_and_is_undone(tmp_path: Path):
    z = RNG.normal(size=(2000, 2)) * [1, 0.01]
    data = z @ np.array([[0.8, 0.6], [-0.6, 0.8]]) * [1, 50] + [3, -7]
    plain, white = opened(tmp_path, data), opened(tmp_path, data, whiten=True)
    assert np.linalg.cond(np.cov(plain.data.T.numpy())) > 1e3
    np.testing.assert_allclose(np.cov(white.data.T.numpy()), np.eye(2), atol=1e-3)
    np.testing.assert_allclose(through_json(white.units).to_file(white.data), data, atol=1e-5)


def test_whitening_keeps_a_sum_of_columns(tmp_path: Path):
    a, b = RNG.normal(size=(2, 500))
    source = opened(tmp_path, np.column_stack([a, b, a + b]), whiten=True)
    x = source.units.to_file(torch.randn(200, 3))
    np.testing.assert_allclose(x[:, 2] - x[:, :2].sum(1), x[0, 2] - x[0, :2].sum(), atol=1e-6)
    root, inverse = covariance_root(np.column_stack([a, a]) - a.mean())
    np.testing.assert_allclose(root @ inverse @ root, root, atol=1e-12)


def test_distances_count_a_column_of_small_units(tmp_path: Path):
    """A shift by one deviation weighs the same in metres and in micrometres, and a constant column weighs nothing."""
    base = RNG.normal(size=(400, 2))
    source = opened(tmp_path, np.column_stack([base[:, 0] * 1e6, base[:, 1] * 1e-6, np.ones(400)]))
    here = source.units.to_measure(source.data)
    for k in range(2):
        moved = source.data.clone()
        moved[:, k] += 1
        moved[:, 2] = torch.randn(400)
        there = source.units.to_measure(moved)
        assert wasserstein2(here, there) == pytest.approx(1, rel=1e-4)
        assert sliced_wasserstein2(here, there) == pytest.approx(3**-0.5, rel=0.15)
        assert energy_distance(here, there) > 0.2


def test_rows_are_held_out_for_the_metrics(tmp_path: Path):
    data = np.arange(1000.0)[:, None] + [[0, 0.5]]
    source = opened(tmp_path, data, held_out=0.2)
    assert source.held_out is not None
    train, held = (source.to_data(x)[:, 0].round().tolist() for x in (source.data, source.held_out))
    assert (len(train), len(held)) == (800, 200)
    assert sorted(train + held) == data[:, 0].tolist()
    generator = torch.Generator().manual_seed(0)
    seen = {*source.to_data(source.sample(20_000, generator)[0])[:, 0].round().tolist()}
    assert not seen & {*held}
    assert source.to_data(source.reference(150, generator)[0])[:, 0].round().tolist() == held[:150]
    assert opened(tmp_path, data[:90], held_out=0.1).held_out is None  # fewer than ten


@pytest.mark.parametrize(
    "change",
    [
        {"columns": []}, {"columns": [{"name": "a", "type": "object"}]}, {"columns": [{"name": 3}]},
        {"label_place": "x"},
        {"columns": [{"name": "a", "transform": "sqrt"}]}, {"columns": [{"name": "a", "limits": [1]}]},
        {"columns": [{"name": "a", "decimals": 7}]},
        {"columns": [{"name": "a", "transform": "asinh", "knots": [0, 0]}]}, {"whitening": [[1.0]]},
        {"columns": [{"name": "a", "transform": "quantile", "knots": ["x"]}]}, {"named": 1}, {"rows": 3},
        {"columns": [{"name": "a", "transform": "categories", "values": [1, 2]}]},
    ],
)  # fmt: skip
def test_a_card_of_another_table_is_refused(tmp_path: Path, change: dict):
    fields = json.loads(json.dumps(dataclasses.asdict(opened(tmp_path, RNG.normal(size=(20, 2))).units)))
    fields["table"] |= change
    with pytest.raises(ValueError, match="does not say what its data are like"):
        Units.from_dict(fields)
