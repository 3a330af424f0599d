"""Columns of a table on which a map is conditioned: what the network gets, what is held out, refusals and advice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from flowmaps.data import Points, TableOptions, Units, open_data
from flowmaps.shapes import Conditions

ROWS = 200
RNG = np.random.default_rng(0)
FRAME = pandas.DataFrame(
    {
        "speed": RNG.uniform(0, 30, ROWS).round(3),
        "drag": RNG.normal(size=ROWS),
        "kind": ["car", "bus"] * (ROWS // 2),
        "when": 1_700_000_000 + RNG.integers(0, 3_600, ROWS),
        "lift": RNG.normal(size=ROWS),
    }
)
pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")


def opened(path: Path, frame: Any = FRAME, **options: Any) -> Points:
    frame.to_csv(path / "a.csv", index=False)
    source = open_data(str(path / "a.csv"), table=TableOptions(**{"held_out": 0.0, **options}))
    assert isinstance(source, Points)
    return source


def test_the_network_gets_standardised_numbers_and_does_not_learn_them(tmp_path: Path):
    source = opened(tmp_path, condition_columns=("when", "speed"), label_column="kind")
    assert [column.name for column in source.units.table.columns] == ["drag", "lift"]  # type: ignore[union-attr]
    assert [own.name for own in source.units.conditions] == ["speed", "when"]  # in the order of the file
    raw = FRAME[["speed", "when"]].to_numpy(np.float64)
    expected = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    assert source.numbers is not None
    np.testing.assert_allclose(source.numbers.numpy(), expected, atol=1e-6)  # float32 alone would keep 128 seconds
    x, cond = source.sample(50, torch.Generator().manual_seed(0))
    assert isinstance(cond, Conditions)
    for row, label, numbers in zip(x, cond.label, cond.numbers, strict=True):  # rows stay together
        at = int((source.numbers - numbers).abs().sum(1).argmin())
        assert torch.equal(source.data[at], row)
        assert source.labels is not None
        assert source.labels[at] == label


def test_values_are_given_in_the_units_of_the_file(tmp_path: Path):
    source = opened(tmp_path, FRAME.drop(columns="kind"), condition_columns=("speed", "when"))
    units = Units.from_dict(json.loads(json.dumps(dataclasses.asdict(source.units))))
    assert units == source.units
    numbers = units.to_condition({"when": FRAME.when.to_numpy(), "speed": FRAME.speed.to_numpy()})
    assert source.numbers is not None
    torch.testing.assert_close(numbers, source.numbers)
    one = units.to_condition({"speed": 3.5, "when": FRAME.when.to_numpy()})
    assert one.shape == (ROWS, 2)
    assert one[:, 0].unique().tolist() == pytest.approx([(3.5 - FRAME.speed.mean()) / FRAME.speed.std()])
    for values, words in (
        ({"speed": 1.0}, "'when' has none"),
        ({"speed": 1.0, "wen": 2.0}, "unknown column to condition on 'wen': did you mean 'when'"),
        ({"speed": float("nan"), "when": 1.0}, "speed must be finite numbers, got"),
    ):
        with pytest.raises(ValueError, match=words):
            units.to_condition(values)


@pytest.mark.parametrize("kind", ["log", "asinh", "quantile"])
def test_conditions_may_be_transformed(tmp_path: Path, kind: str):
    frame = FRAME.assign(speed=np.exp(2 * RNG.normal(size=ROWS)))[["speed", "drag"]]
    source = opened(tmp_path, frame, condition_columns=("speed",), transform=(f"speed={kind}",))
    assert source.numbers is not None
    numbers = source.numbers[:, 0].double().numpy()
    assert numbers.mean() == pytest.approx(0, abs=1e-5)
    assert numbers.std(ddof=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(numbers.argsort(), frame.speed.to_numpy().argsort())
    if kind == "log":
        np.testing.assert_allclose(
            numbers, (np.log(frame.speed) - np.log(frame.speed).mean()) / np.log(frame.speed).std()
        )
    beyond = {"log": (-1.0, "speed is positive"), "quantile": (1e9, "quantiles do not tell values beyond")}
    if kind in beyond:
        with pytest.raises(ValueError, match=beyond[kind][1]):
            source.units.to_condition({"speed": beyond[kind][0]})
    else:
        source.units.to_condition({"speed": 1e9})


def test_held_out_rows_keep_their_conditions_and_are_what_samples_get(tmp_path: Path):
    frame = pandas.DataFrame({"x": np.arange(ROWS) + 0.25, "c": 2.0 * np.arange(ROWS)})
    source = opened(tmp_path, frame, condition_columns=("c",), held_out=0.2)
    x, numbers = source.reference(1_000, torch.Generator())
    rows = source.to_data(x)[:, 0].round().double()
    own = source.units.conditions[0]
    torch.testing.assert_close(numbers[:, 0].double() * own.scale + own.shift, 2 * rows, atol=1e-3, rtol=0)
    assert len(rows) == 40
    assert not {*rows.tolist()} & {*source.to_data(source.data)[:, 0].round().tolist()}
    given = source.conditions(100)  # in turn
    torch.testing.assert_close(given, torch.cat([numbers, numbers, numbers[:20]]))
    every = opened(tmp_path, frame, condition_columns=("c",))
    spread = every.conditions(4)[:, 0].double() * every.units.conditions[0].scale + every.units.conditions[0].shift
    assert spread.round().tolist() == [0, 100, 200, 300]  # of the whole file, which may be sorted


def test_the_dry_run_says_what_is_a_condition(tmp_path: Path):
    about = "\n".join(opened(tmp_path, condition_columns=("speed",), label_column="kind").about)
    assert "condition, not learned: standardised" in about
    assert "speed" in about


@pytest.mark.parametrize(
    "options, words",
    [
        ({"condition_columns": ("kind",)}, "holds the text 'car', and --condition-columns takes numbers"),
        ({"condition_columns": ("sped",)}, "no column 'sped' for --condition-columns: did you mean 'speed'"),
        (
            {"condition_columns": ("speed",), "label_column": "speed", "label_bins": 2},
            "column 'speed' is given to --condition-columns and --label-column: give it to one",
        ),
        ({"condition_columns": ("speed", "drag", "when", "lift"), "label_column": "kind"}, "no column left to learn"),
        ({"condition_columns": "speed"}, "--condition-columns must be names of columns"),
    ],
)
def test_columns_that_cannot_be_conditions_are_refused(tmp_path: Path, options: dict, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        opened(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_missing_cells_and_constants_are_refused(tmp_path: Path):
    frame = FRAME.drop(columns="kind")
    gaps = frame.assign(speed=frame.speed.where(frame.index != 7))
    with pytest.raises(ValueError, match=r"line 9: column 'speed' is missing.*--drop-columns speed"):
        opened(tmp_path, gaps, condition_columns=("speed",))
    with pytest.raises(ValueError, match=r"column 'speed' is 3 in all rows.*--drop-columns speed"):
        opened(tmp_path, frame.assign(speed=3), condition_columns=("speed",))
    opened(tmp_path, frame.assign(speed=3), drop_columns=("speed",))  # the advice works


def test_a_column_that_counts_or_looks_like_classes_may_be_a_condition(tmp_path: Path):
    frame = FRAME.assign(id=np.arange(ROWS), target=np.arange(ROWS) % 2).drop(columns="kind")
    source = opened(tmp_path, frame, condition_columns=("id", "target"))
    assert [own.name for own in source.units.conditions] == ["id", "target"]
    assert source.classes is None
