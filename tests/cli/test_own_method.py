"""`--method module:name`: a method of a file of the user's own, wherever a method of the library may stand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from program import refused, run

from flowmaps.methods import METHODS, Jumps
from flowmaps.runs.folder import RunFolder
from flowmaps.samplers import MultistepConsistency
from flowmaps.storage.methods import known, method_of

SMALL = ["--optimiser.batch", "8", "--device", "cpu", "--no-compile", "--network.width", "8", "--network.depth", "2"]
CHEAP = [
    "--evaluation.samples",
    "100",
    "--evaluation.points",
    "10",
    "--evaluation.steps",
    "1",
    "2",
    "--show-every",
    "0",
]
TRAIN = ["train", "checkerboard", "--steps", "20", "--checkpoint-every", "10", *SMALL, *CHEAP]

OWN = """
import functools
import flowmaps as fm
from flowmaps.methods import Jumps, LearnsFrom, Method

def chord(flow_map, *, leg=0.5, times=fm.times.ToData(), weight=fm.losses.Power(2), **options):
    equation = fm.equations.Semigroup(fm.equations.Stop.TARGET, velocity_first=True)
    split = fm.times.FixedLeg(leg)
    return fm.objectives.MapMatching(flow_map, equation=equation, times=times, split=split, weight=weight, **options)

to_data = Method(chord, jumps=Jumps.TO_DATA)

def half_lsd(flow_map, **options):
    return fm.methods.lsd(flow_map, share=0.5, **options)

def lmd(flow_map, teacher, **options):
    return fm.methods.lmd(flow_map, teacher=teacher, **options)

taught = Method(lmd, LearnsFrom.TEACHER)
bare = lambda flow_map: fm.methods.lsd(flow_map)
partial = Method(functools.partial(fm.methods.lsd, share=0.5))
number = 3

def needing(flow_map, times, **options):
    return fm.methods.lsd(flow_map, times=times, **options)

def nothing(flow_map, **options):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a module of methods in it that is not imported."""
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    forget()


def forget() -> None:
    """As in another process."""
    sys.modules.pop("own_methods", None)


def test_a_method_of_ones_own_is_trained_resumed_and_sampled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--method", "own_methods:to_data", "--optimiser.ema-decays", "0.9"]
    said = " ".join(run(*TRAIN, *own, "--out", "once").split())
    assert "trained: 20 steps in" in said
    run(*TRAIN, *own, "--out", "twice", "--minutes", "1e-9")
    forget()
    run(*TRAIN, *own, "--out", "twice", "--resume")
    one, other = (RunFolder.open(Path(name)).load_map().state_dict() for name in ("once", "twice"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert json.loads(Path("once/config.json").read_text())["recipe"]["method"] == "own_methods:to_data"
    assert json.loads(Path("once/metrics.json").read_text())["method"] == "own_methods:to_data"
    report = Path("once/report.html").read_text()
    assert "own_methods:to_data" in report
    assert isinstance(RunFolder.open(Path("once")).plan.sampler(2), MultistepConsistency)
    sample = ["sample", "once", "--steps", "2", "--number", "7", "--out", "x.npy"]
    forget()
    for command in (
        sample,
        ["evaluate", "once"],
        ["export", "once", "--out", "x.pt2"],
        ["average", "once", "--out", "y", "--decay", "0.9"],
    ):
        line = refused(capsys, *command)
        assert "own_methods:to_data is of a module that is not imported" in line, command
        assert line.rstrip().endswith("import it first, with --import-module own_methods."), command
    again = ["--import-module", "own_methods"]
    run(*sample, *again)
    assert np.load("x.npy").shape == (7, 2)
    forget()
    run("average", "once", "--out", "y", "--decay", "0.9", *again)
    forget()
    run("evaluate", "once", "--steps", "2", *again)
    forget()
    Path("own_methods.py").unlink()
    assert "the module own_methods cannot be imported (ModuleNotFoundError" in refused(capsys, *sample, *again)


def test_a_function_is_wrapped_and_a_run_of_it_is_a_teacher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its module's own name for it: the method lmd of the module is not that of the library."""
    run(*TRAIN, "--method", "own_methods:half_lsd", "--out", "first")
    forget()
    words = ["--teacher", "first", "--teacher-steps", "0"]
    assert "import it first, with --import-module own_methods" in refused(
        capsys, *TRAIN, "--method", "lmd", *words, "--check"
    )
    assert "a teacher" not in run(*TRAIN, "--method", "lmd", *words, "--import-module", "own_methods", "--check")
    checked = run(*TRAIN, "--method", "own_methods:taught", "--teacher-steps", "10", "--check")
    assert "map, own_methods.lmd:" in checked
    assert "teacher, fm.methods.flow_matching:" in checked
    distilled = run("distill", "--teacher", "first", "--check", "--import-module", "own_methods")
    assert "a run of own_methods:half_lsd on checkerboard" in " ".join(distilled.split())


def test_methods_of_ones_own_are_compared_and_written_into_recipe_files(folder: Path) -> None:
    words = ["--budget-steps", "4", *SMALL[:-4], *CHEAP[:-2], "--out", "both"]
    printed = run("compare", "checkerboard", "--methods", "lsd", "own_methods:to_data", *words)
    assert "own_methods:to_data" in printed
    rows = json.loads(Path("both/compare.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"lsd", "own_methods:to_data"}
    assert Path("both/cells/own_methods--to_data-0.json").exists()
    assert Path("both/samples-own_methods--to_data.png").exists()
    run("new", "mine.toml", "--recipe", "checkerboard", "--method", "own_methods:half_lsd")
    forget()
    assert "fm.methods" not in run("train", "mine.toml", "--check", "--device", "cpu", "--no-compile")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("own_method:chord", "the module own_method cannot be imported (ModuleNotFoundError"),
        ("own_methods:cord", "the module own_methods has no cord: name a Method of it, or a function (flow_map, **"),
        ("own_methods:", "--method takes a name or module:name, got 'own_methods:': for instance my_methods:chord"),
        ("own_methods:number", "own_methods:number is of the type int, and no method: name a Method"),
        ("own_methods:partial", "own_methods:partial is of the type partial, and no method"),
        ("own_methods:bare", "own_methods:bare takes no interpolant, which a recipe passes to every method: add **opt"),
        ("own_methods:needing", "own_methods:needing has no default for times: give it one, with which a run is"),
        ("lds", "unknown method 'lds': did you mean 'lsd'?"),
    ],
)
def test_what_is_no_method_gets_one_line(
    name: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(capsys, *TRAIN, "--check", "--method", name)
    assert line in refused(capsys, "compare", "checkerboard", "--methods", "lsd", name, "--out", "none")
    assert line in refused(capsys, "new", "mine.toml", "--recipe", "points", "--method", name)


def test_a_card_imports_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="import it first, with --import-module own_methods"):
        method_of("own_methods:to_data")
    assert "own_methods" not in sys.modules
    assert known("own_methods:to_data") is None
    assert known("lsd") is METHODS["lsd"]
    sys.path.insert(0, str(folder))
    __import__("own_methods")
    own = known("own_methods:to_data")
    assert own is sys.modules["own_methods"].to_data
    assert own.jumps is Jumps.TO_DATA


def test_what_returns_no_objective_gets_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *TRAIN, "--out", "none", "--method", "own_methods:nothing")
    assert "nothing must return an objective of its map, got NoneType" in said


def test_a_card_makes_no_method_of_a_function_that_happens_to_be_imported() -> None:
    for text in ("subprocess:run", "json:dumps"):
        assert text.partition(":")[0] in sys.modules
        with pytest.raises(ValueError, match=f"import it first, with --import-module {text.partition(':')[0]}"):
            method_of(text)
