"""The search on the command line: its files, its refusals, and what becomes of the settings found."""

from __future__ import annotations

import ast
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import image_cases
import pytest
from matplotlib.image import imread
from program import refused, run

from flowmaps.cli.main import main
from flowmaps.evaluation import compare
from flowmaps.evaluation.results import Result, score_of
from flowmaps.evaluation.search import Search
from flowmaps.methods import METHODS
from flowmaps.reports import figures
from flowmaps.reports import search as reports
from flowmaps.runs.plan import Plan
from flowmaps.runs.recipes import RECIPES, checkerboard, for_method, found
from flowmaps.runs.recipes.found import fields_of, with_options

SMALL = """--no-compile --network.width 8 --network.depth 2 --optimiser.batch 16 --evaluation.samples 300
--evaluation.points 30 --budget 0.2""".split()  # noqa: SIM905
TRIALS = ["--methods", "lsd", "lmd", "--trials", "3", "--final-seeds", "2"]


def train(self: Search, plan: Plan, settings: dict[str, Any], seed: int, watch: Any) -> dict[str, Any]:
    """A training that is better the higher the share at s = 0, and that diverges once for lsd."""
    lost = plan.method.name == "lsd" and settings.get("learned_weight")
    score = 1.1 - settings["from_noise_share"]
    rows = [] if lost else [{"sampler": "map", "steps": 1, "kl": score, "kl_floor": 0.0}]
    return {"score": None if lost else score, "seconds": 1.0, "rows": rows}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "_train", train)


def test_a_search_trains_measures_and_writes_its_files(tmp_path: Path):
    out = tmp_path / "out"
    said = run("tune", "checkerboard", "--methods", "psd", "--trials", 2, "--final-seeds", 1, "--out", out, *SMALL)
    assert "psd, trial 1 of 2: score" in said
    assert "min to go" in said
    lines = [json.loads(line) for line in (out / "study.jsonl").read_text().splitlines()[1:]]
    assert [(line.get("trial"), line.get("seed")) for line in lines][:3] == [(0, None), (1, None), (None, 0)]
    assert all([row["steps"] for row in line["rows"]] == [1, 4] for line in lines)
    content = json.loads((out / "tuned.json").read_text())
    assert (content["recipe"], content["clock"], content["validation_seed"]) == ("checkerboard", "process_time", 1000)
    assert content["metric"] == "KL above its floor [nats]"
    assert content["methods"]["psd"]["score"] == min(line["score"] for line in lines if "trial" in line)
    assert "| psd |" in (out / "tune.md").read_text()
    height, width, _ = imread(out / "tune.png").shape
    assert min(height, width) > 200
    again = [word for word in content["command"].split() if word not in ("flowmaps",)]
    before = (out / "study.jsonl").read_text()
    assert again[-1] == "--resume"
    main(again)  # nothing is left to do
    assert (out / "study.jsonl").read_text() == before


def test_what_is_printed_is_pasted_and_becomes_the_settings_of_the_method(
    tmp_path: Path, scored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out = tmp_path / "study"
    said = run("tune", "checkerboard", *TRIALS, "--out", out, *SMALL, "--seed", 3)
    pasted = said[said.index('FOUND["checkerboard"]') : said.index("table: ")]
    assert pasted in (out / "tune.md").read_text()
    given = "--network.width 8 --network.depth 2 --optimiser.batch 16"
    assert f"# found with {given}, which these lines do not set\n" in said
    content = json.loads((out / "tuned.json").read_text())["methods"]
    table: dict[str, Any] = {"checkerboard": {}}
    exec(pasted, {"FOUND": table})
    assert table["checkerboard"] == {name: one["settings"] for name, one in content.items() if one["better"]}
    monkeypatch.setitem(found.FOUND, "checkerboard", table["checkerboard"])
    share = table["checkerboard"]["lmd"]["from_noise_share"]
    assert share > 0.25
    checked = run("train", "checkerboard", "--check", "--no-compile")
    assert "found by flowmaps tune for lmd: --" in checked
    assert f"--from-noise-share {share}" in checked
    own = run("train", "checkerboard", "--check", "--no-compile", "--from-noise-share", 0.25)
    assert "--from-noise-share" not in own
    with pytest.raises(SystemExit):
        main(["train", "checkerboard", "--help-all"])
    assert "found by flowmaps tune for lmd" in capsys.readouterr().out


def test_what_is_no_better_has_no_line_even_where_settings_were_found_before(
    tmp_path: Path, scored: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(found.FOUND, "checkerboard", {"psd": {"diagonal_share": 0.6, "adaptive_power": 0.2}})
    out = tmp_path / "study"
    words = ("--methods", "psd", "--trials", 1, "--adaptive-power", 0.2)
    said = run("tune", "checkerboard", *words, "--out", out, *SMALL)
    assert "# nothing better than today's settings" in said
    assert json.loads((out / "tuned.json").read_text())["methods"]["psd"]["settings"] == {"diagonal_share": 0.6}
    assert "| `--diagonal-share 0.6` |" in (out / "tune.md").read_text()


def test_a_diverged_trial_is_the_worst_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def lost(self: Search, plan: Plan, settings: dict[str, Any], *others: Any) -> dict[str, Any]:
        today = settings["from_noise_share"] == 0.25
        return train(self, plan, settings, *others) | ({} if today else {"score": None})

    monkeypatch.setattr(Search, "_train", lost)
    said = run("tune", "checkerboard", "--methods", "lmd", "--trials", 3, "--out", tmp_path / "x", *SMALL)
    assert "lmd, trial 2 of 3: diverged; best 0.85, trial 1" in said
    assert "# nothing better than today's settings" in said
    assert "| 3, 2 diverged | today's |" in (tmp_path / "x" / "tune.md").read_text()


def test_ctrl_c_ends_in_one_line_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    calls = []

    def stopped(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(Search, "_train", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["tune", "checkerboard", *TRIALS, "--out", str(tmp_path / "a b"), *SMALL])
    assert stop.value.code == 130
    error = capsys.readouterr().err
    assert error.startswith("flowmaps: interrupted; the finished trials are kept: go on with flowmaps tune checker")
    assert error.endswith(f"--out '{tmp_path}/a b' {' '.join(SMALL)} --resume\n")
    said = run("tune", "checkerboard", *TRIALS, "--out", tmp_path / "a b", *SMALL, "--resume")
    assert "going on with the study" in said
    assert said.count("lsd, trial 3 of 3") == 1
    assert "lsd, trial 2 of 3" not in said


@pytest.mark.parametrize(
    "words, said",
    [
        ("--trials 0", "--trials must be at least 1, got 0"),
        ("--budget 0", "--budget must be positive, got 0.0 seconds"),
        ("--budget nan", "--budget must be positive, got nan seconds"),
        ("--final-seeds -1", "--final-seeds must be at least 0"),
        ("--final-seeds 1001", "at most 1,000, where the validation seed comes, and leave seeds below 2^32, got 1001"),
        ("--methods lsd lsd", "--methods needs different methods, got lsd lsd"),
        ("--methods lsdd", "unknown method 'lsdd': did you mean 'lsd'?"),
        ("--precision auto", "a search needs one --precision for all trials"),
        ("--diagonal-share 0.5 --methods lmd", "lmd has no share of rows on the diagonal, got --diagonal-share 0.5"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, words: str, said: str):
    assert said in refused(capsys, "tune", "checkerboard", "--out", tmp_path / "x", *words.split())
    assert not (tmp_path / "x").exists()


def test_without_optuna_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = refused(capsys, "tune", "checkerboard", "--out", tmp_path / "x")
    assert error == "flowmaps: tune searches with Optuna: pip install 'flowmaps[tune]'.\n"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.filterwarnings("error")
def test_the_picture_has_a_panel_for_each_method(number: int, tmp_path: Path):
    scores = [[1.07, 1.34, 1.53], [1.0, None, 0.3], [None, None, 2.0], [None] * 3, [0.5]][:number]
    rows = [[{"score": score, "settings": {}} for score in row] for row in scores]
    same = Result([{"score": 0.3}, {"score": 0.3}], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scores of one value have an axis too
        (ax,) = (ax for ax in reports.figure({"lsd": same}, "KL").axes if ax.axison)
    assert ax.get_ylim()[0] < 0.3 < ax.get_ylim()[1]
    figure = reports.figure({f"method {k}": Result(row, []) for k, row in enumerate(rows)}, "KL above its floor [nats]")
    figures.save(figure, tmp_path / "tune.png")
    assert sum(bool(ax.get_title()) for ax in figure.axes) == number
    words = {text.get_text() for text in figure.legends[0].get_texts()}
    assert ("diverged" in words) == (number > 1)


# the settings found ---------------------------------------------------------------------------------------------------


def test_the_table_is_of_settings_that_recipes_have_and_lmd_on_the_checkerboard_is_as_it_was():
    for name, methods in found.FOUND.items():
        for method, options in methods.items():
            recipe = for_method(RECIPES[name](), method)
            assert {field: fields_of(recipe)[field] for field in options} == options
            assert all(fields_of(RECIPES[name]())[field] != value for field, value in options.items())
    assert for_method(checkerboard(), "lmd") == checkerboard()


def test_an_option_that_is_given_takes_the_place_of_what_was_found(monkeypatch: pytest.MonkeyPatch):
    options = {"optimiser.learning_rate": 0.003, "diagonal_share": 0.6, "learned_weight": True}
    monkeypatch.setitem(found.FOUND, "checkerboard", {"lsd": options})
    recipe = for_method(checkerboard(), "lsd", {"diagonal_share", "learned_weight"})
    assert (recipe.method, recipe.optimiser.learning_rate) == ("lsd", 0.003)
    assert (recipe.diagonal_share, recipe.learned_weight) == ("own", False)
    assert found.found_in(recipe) == {"optimiser.learning_rate": 0.003}
    assert with_options(checkerboard(), options).optimiser.batch == checkerboard().optimiser.batch
    words = "--optimiser.learning-rate 0.003 --diagonal-share 0.6 --learned-weight"
    assert found.in_options(options) == words
    checked = run("train", "checkerboard", "--method", "lsd", "--check", "--no-compile", "--no-learned-weight")
    assert "found by flowmaps tune for lsd: --optimiser.learning-rate 0.003 --diagonal-share 0.6\n" in checked


def test_a_comparison_trains_each_method_at_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(found.FOUND, "checkerboard", {"psd": {"diagonal_share": 0.6, "adaptive_power": 0.2}})
    plans, whole = {}, compare.train_method

    def train_method(plan: Plan, *others: Any, **options: Any) -> Any:
        plans[plan.method.name] = plan.recipe
        return whole(plan, *others, **options)

    monkeypatch.setattr(compare, "train_method", train_method)
    small = [*SMALL, "--evaluation.steps", "1", "--adaptive-power", "0.5"]
    main(["compare", "checkerboard", "--methods", "psd", "lsd", "--out", str(tmp_path), *small])
    assert (plans["psd"].diagonal_share, plans["psd"].adaptive_power) == (0.6, 0.5)  # 0.5 is given, as it is by default
    assert plans["lsd"].diagonal_share == "own"
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert {row["method"]: row.get("settings") for row in rows} == {"psd": {"diagonal_share": 0.6}, "lsd": None}


def test_seeds_at_other_settings_found_do_not_join(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any):
    words = ["compare", "checkerboard", "--methods", "psd", *SMALL, "--evaluation.steps", "1", "--out", tmp_path / "x"]
    monkeypatch.setitem(found.FOUND, "checkerboard", {"psd": {"diagonal_share": 0.6}})
    run(*words, "--seed", 0)
    own = (tmp_path / "x" / "compare.json").read_text()
    assert json.loads(own)["settings"] == {"psd": {"diagonal_share": 0.6}}
    said = refused(capsys, *words, "--seed", 1, "--diagonal-share", "own")  # given, as it is by default
    assert "has psd with the settings found --diagonal-share 0.6, got none: choose another --out." in said
    monkeypatch.setitem(found.FOUND, "checkerboard", {})
    assert "has psd with the settings found --diagonal-share 0.6, got none" in refused(capsys, *words, "--seed", 1)
    assert (tmp_path / "x" / "compare.json").read_text() == own


def test_no_method_is_named_outside_methods_and_recipes():
    """What a search may change is told by what a method takes."""
    folder = Path(found.__file__).parents[2]
    for path in (folder / "evaluation").glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not texts & METHODS.keys()


def test_images_are_scored_by_their_frechet_distance(small_images: None, tmp_path: Path):
    words = ["--methods", "meanflow", "--trials", "2", "--final-seeds", "0", "--budget", "0.2", "--out", tmp_path / "x"]
    run("tune", "cifar10-tiny", *words, *image_cases.OPTIONS.replace("--log-every 1", "").split())
    content = json.loads((tmp_path / "x" / "tuned.json").read_text())
    assert content["metric"] == "Fréchet distance"
    entry = content["methods"]["meanflow"]
    assert entry["today"]["mean_weight"] == "auto"
    rows = [json.loads(line) for line in (tmp_path / "x" / "study.jsonl").read_text().splitlines()[1:]]
    assert entry["score"] == min(score_of(row["rows"]) or math.inf for row in rows) > 0
