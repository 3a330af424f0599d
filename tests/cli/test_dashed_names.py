"""Names of columns that begin with dashes: advice for them works, options may be given again, resumes repeat them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from program import refused, run

from flowmaps.cli.options import changed_options
from flowmaps.cli.words import MARK, joined, unmarked
from flowmaps.data.raw import option
from flowmaps.runs.recipes import points

QUICK = ["--check", "--no-compile", "--device", "cpu"]


def test_the_advice_for_such_names_works(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = "".join(f"word,{k}.5,other,{k * k}\n" for k in range(30))
    (tmp_path / "a.csv").write_text("--x,b,-y,c d\n" + rows)
    words = ["train", "points", "--data", str(tmp_path / "a.csv"), *QUICK]
    for name in ("--x", "-y"):
        error = refused(capsys, *words)
        assert f"column '{name}' holds the text" in error
        (advice,) = re.findall(rf"--drop-columns={name}", error)
        words += shlex.split(advice)
    assert "2 numbers a row" in run(*words)
    assert "1 numbers a row" in run(*words, "--drop-columns", "c d")  # what was given before still counts


@pytest.mark.parametrize("names", [["a"], ["a", "b c"], ["--x"], ["-y"], ["--x", "b"], ["a b", "--x", "--y=1", "-1"]])
def test_the_words_that_give_names_give_them_all(names: list[str]):
    words = joined(["--steps", "3", *shlex.split(option("--drop-columns", names)), "--seed", "-1"])
    assert words[:4] == ["--steps", "3", "--seed", "-1"]
    assert words[4] == "--drop-columns"
    assert list(unmarked(tuple(words[5:]))) == names
    assert not any(word.startswith("--") for word in words[5:])
    assert all(word.count(MARK) <= 1 for word in words)


def test_options_with_underscores_may_be_given_again():
    words = joined(
        ["--condition_columns", "a_b", "--seed", "1", "--condition-columns", "c", "--condition_columns=--d_e"]
    )
    assert unmarked(tuple(words)) == ("--seed", "1", "--condition-columns", "a_b", "c", "--d_e")


def test_the_words_that_resume_a_run_repeat_such_names(tmp_path: Path):
    (tmp_path / "a.csv").write_text("--x,b,-y\n" + "".join(f"1.5,{k}.5,2.5\n" for k in range(30)))
    changed = replace(points(), drop_columns=("--x", "-y"), label_column="--x")
    assert changed_options(changed, points()) == ["--label-column=--x", "--drop-columns=--x", "--drop-columns=-y"]
    words = changed_options(replace(changed, label_column=""), points())
    assert "1 numbers a row" in run("train", "points", "--data", tmp_path / "a.csv", *QUICK, *words)
