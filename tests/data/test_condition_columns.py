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
    if kind == "log":
        with pytest.raises(ValueError, match="speed is positive"):
            source.units.to_condition({"speed": -1.0})
    far = source.units.to_condition({"speed": np.array([frame.speed.max(), 1e9])})[:, 0]
    assert far[1] == far[0] if kind == "quantile" else far[1] > far[0]  # quantiles take it for the end


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
    with pytest.raises(ValueError, match=r"line 9: a cell of column 'speed' is empty.*--drop-columns speed"):
        opened(tmp_path, gaps, condition_columns=("speed",))
    with pytest.raises(ValueError, match=r"column 'speed' is 3 in all rows.*--drop-columns speed"):
        opened(tmp_path, frame.assign(speed=3), condition_columns=("speed",))
    opened(tmp_path, frame.assign(speed=3), drop_columns=("speed",))  # the advice works


@pytest.mark.parametrize(
    "cells, words",
    [
        (["3"] * ROWS, "take it out of --condition-columns and pass --drop-columns b"),
        (
            ["", *map(str, range(1, ROWS))],
            "line 2: a cell of column 'b' is empty.*take it out of --condition-columns and ",
        ),
        ([str(2**60 + k) for k in range(ROWS)], "take it out of --condition-columns and pass --drop-columns b, or sub"),
        (
            ["n/k", *map(str, range(1, ROWS))],
            "holds the text 'n/k', and --con.*mend or drop such cells, or take it",
        ),
        (["1,5", "2,5", "n/k", "m"] * (ROWS // 4), "write numbers as 1234.5, with no other sign, or take it out of"),
        (
            ["2024-01-05", "2024-02-06"] * (ROWS // 2),
            r"such as days: frame\['b'\] = \(pandas.to_datetime\(",
        ),
        (["0 days 00:01:00", "1 days 00:02:00"] * (ROWS // 2), r"frame\['b'\] = pandas.to_timedelta\(frame\['b'\]"),
    ],
)
def test_advice_for_faulty_columns_keeps_the_options_apart(tmp_path: Path, cells: list[str], words: str):
    frame = FRAME[["speed", "drag"]].assign(b=cells)
    with pytest.raises(ValueError, match=words) as caught:
        opened(tmp_path, frame, condition_columns=("b", "speed"))
    assert "--label-column" not in str(caught.value)
    opened(tmp_path, frame, condition_columns=("speed",), drop_columns=("b",))  # the advice works


def test_values_that_single_precision_does_not_hold_are_refused(tmp_path: Path):
    units = opened(tmp_path, FRAME[["speed", "drag"]], condition_columns=("speed",)).units
    with pytest.raises(ValueError, match=r"speed is 1e\+39, which single precision does not hold"):
        units.to_condition({"speed": 1e39})
    small = FRAME[["speed", "drag"]].assign(speed=FRAME.speed / 1e6)
    units = opened(tmp_path, small, condition_columns=("speed",)).units
    with pytest.raises(ValueError, match="speed is too far from"):
        units.to_condition({"speed": 1e38})
    own = units.conditions[0]
    one = dataclasses.replace(own, column=dataclasses.replace(own.column, type="float32"))
    values = np.array([1e39, 1.5])
    assert one.written(values).tolist() == values.tolist()  # in float64, as float32 does not hold them
    assert one.written(values[1:]).dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        {"column": {"name": "speed", "transform": "asinh"}},
        {"column": {"name": "speed", "transform": "asinh", "knots": [0.0, -1.0]}},
        {"column": {"name": "speed", "transform": "quantile"}},
        {"column": {"name": "speed", "transform": "quantile", "knots": [2.0, 1.0]}},
        {"column": {"name": "speed", "type": "complex64"}},
        {"column": {"name": "speed", "type": "str"}},
        {"column": {"name": "speed", "transform": "cube"}},
        {"column": {"name": "drag"}},
        {"column": {"name": "speed", "transform": "log"}, "low": -1.0},
        {"place": 2},
        {"place": -1},
        {"place": 1.0},
        {"low": 5.0, "high": 1.0},
        {"scale": 0.0},
        {"scale": 1e-305},
        {"scale": "1"},
    ],
)
def test_a_card_with_a_broken_condition_is_refused(tmp_path: Path, change: dict[str, Any]):
    units = opened(tmp_path, FRAME[["speed", "drag"]], condition_columns=("speed",)).units
    card = json.loads(json.dumps(dataclasses.asdict(units)))
    assert Units.from_dict(card) == units
    card["table"]["conditions"][0] |= change
    with pytest.raises(ValueError, match="does not say what its data are like"):
        Units.from_dict(card)


def test_two_conditions_of_a_card_have_two_places(tmp_path: Path):
    units = opened(tmp_path, FRAME, condition_columns=("speed", "when"), label_column="kind").units
    card = json.loads(json.dumps(dataclasses.asdict(units)))
    assert Units.from_dict(card) == units
    for place in (0, 2):  # of the other one, and of the classes
        card["table"]["conditions"][1]["place"] = place
        with pytest.raises(ValueError, match="different places among 5 columns"):
            Units.from_dict(card)


def test_a_column_without_a_name_gets_a_name_that_is_free(tmp_path: Path):
    rows = "".join(f"{k * k % 7}.5,{k}.25,{k % 3}.5\n" for k in range(30))
    for header, name in ((",1,v", "unnamed 1"), (",b,v", "1")):
        (tmp_path / "a.csv").write_text(f"{header}\n{rows}")
        names = [name, *header.split(",")[1:]]
        cases: tuple[tuple[dict[str, Any], list[str]], ...] = (
            ({}, names),
            ({"drop_columns": (name,)}, names[1:]),
            ({"condition_columns": (name,)}, names[1:]),
            ({"keep_columns": (name,)}, names),
        )
        for options, learned in cases:
            source = open_data(str(tmp_path / "a.csv"), table=TableOptions(**options))
            assert isinstance(source, Points)
            assert source.units.table is not None
            assert [own.name for own in source.units.table.columns] == learned
            said = [note for note in source.notes if "without a name" in note]
            assert said == ([] if "drop_columns" in options else [f"its column without a name is called {name!r}"])


def test_a_column_that_counts_or_looks_like_classes_may_be_a_condition(tmp_path: Path):
    frame = FRAME.assign(id=np.arange(ROWS), target=np.arange(ROWS) % 2).drop(columns="kind")
    source = opened(tmp_path, frame, condition_columns=("id", "target"))
    assert [own.name for own in source.units.conditions] == ["id", "target"]
    assert source.classes is None
