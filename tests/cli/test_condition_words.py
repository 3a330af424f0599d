"""Words of --condition: how they are read, and that the example in a refusal can be followed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas
import pytest

from flowmaps.cli.conditions import Given, of_words
from flowmaps.cli.words import joined, unmarked
from flowmaps.data import Points, TableOptions, Units, open_data
from flowmaps.evaluation.sampling import numbers_of_samples

ROWS = 60
RNG = np.random.default_rng(0)
FRAME = pandas.DataFrame({"x": RNG.normal(size=ROWS), "a": RNG.normal(size=ROWS), "b": np.arange(ROWS) % 2 == 0})
pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")


def units_of(path: Path, frame: pandas.DataFrame = FRAME, **options: object) -> Units:
    frame.to_csv(path / "a.csv", index=False)
    names = tuple(name for name in frame if name != "x")
    source = open_data(str(path / "a.csv"), table=TableOptions(condition_columns=names, **options))  # type: ignore[arg-type]
    assert isinstance(source, Points)
    return source.units


@pytest.mark.parametrize(
    "words", [["a = 1.5, b = 1"], ["a=1.5,b=1,"], ["a=1.5", "b=True"], [" a=1.5 ,", "b= true"], ["b=TRUE,a=1.5"]]
)
def test_spaces_commas_at_the_end_and_truth_values_are_taken(tmp_path: Path, words: list[str]):
    assert of_words(units_of(tmp_path), words) == {"a": 1.5, "b": 1.0}


@pytest.mark.parametrize(
    "words, said",
    [
        (["a=1,5", "b=1"], "--condition takes decimals with a point, got 'a=1,5': write 1.5 for 1,5"),
        (["a=True", "b=1"], "--condition takes NAME=NUMBER, got 'a=True': give a="),
        (["a=1e39", "b=1"], "a is 1e.39, which single precision does not hold"),
        (["a=1"], "--condition has no b: add b=1, for example"),
        (["a=", "b=1"], "--condition takes NAME=NUMBER, got 'a='"),
    ],
)
def test_words_that_are_refused(tmp_path: Path, words: list[str], said: str):
    with pytest.raises(ValueError, match=said):
        of_words(units_of(tmp_path), words)


def test_the_example_in_the_refusal_works(tmp_path: Path):
    when = 1_700_000_000 + RNG.integers(0, 3_600, ROWS)
    narrow = FRAME.assign(when=when, narrow=1_000 + 1e-3 * RNG.normal(size=ROWS))
    for frame in (narrow, narrow.rename(columns={"a": "a, in m", "when": "--t=0"})):
        units = units_of(tmp_path, frame)
        with pytest.raises(ValueError, match="this map is conditioned on") as caught:
            numbers_of_samples(units, 4, {})
        (example,) = re.findall("pass (.*), or --condition-file FILE", str(caught.value))
        values = of_words(units, list(unmarked(tuple(word for word in joined(shlex.split(example))[1:]))))
        for own in units.conditions:
            assert own.low <= values[own.name] <= own.high
            assert own.column.type != "bool" or values[own.name] in (0, 1)
        given = Given(1, {name: np.array([value]) for name, value in values.items()})
        assert not given.notes(units)


def test_of_many_columns_a_file_is_asked_for(tmp_path: Path):
    many = pandas.DataFrame({"x": RNG.normal(size=ROWS)} | {f"c{k}": RNG.normal(size=ROWS) for k in range(11)})
    with pytest.raises(ValueError, match="and 1 more: pass --condition-file FILE with a table of these columns"):
        numbers_of_samples(units_of(tmp_path, many), 4, {})


def test_values_outside_are_told_with_enough_digits(tmp_path: Path):
    frame = FRAME[["x"]].assign(when=1_700_000_000 + 10 * np.arange(ROWS) % 590, a=FRAME.a)
    units = units_of(tmp_path, frame, held_out=0.0, transform=("a=quantile",))
    values = {"when": np.array([1_600_000_000.0]), "a": np.array([1e9])}
    notes = Given(1, values).notes(units)
    assert "outside 1700000000 to 1700000580" in next(note for note in notes if "when" in note)
    note = next(note for note in notes if "of a:" in note)
    assert "the range of the training, and taken as the nearer end; the map" in note
    assert numbers_of_samples(units, 1, values) is not None
