"""`flowmaps new` writes recipe files, and `flowmaps train` takes them: as the recipe, with what they set."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from program import refused, run
from run_cases import weights

from flowmaps.cli import commands
from flowmaps.cli import main as cli
from flowmaps.cli.recipes import as_options
from flowmaps.runs import recipe_files
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.recipes import OF_POINTS, RECIPES, Recipe, found
from flowmaps.training import settings

TINY = "--no-compile --device cpu --teacher-steps 2 --steps 3 --network.width 8 --show-every 0 --optimiser.batch 16"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that `train --check` is asked for, which are not checked; the folder is empty."""
    monkeypatch.chdir(tmp_path)
    recipes: list[Recipe] = []
    monkeypatch.setattr(commands, "check", lambda recipe, folder: recipes.append(recipe))
    return recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_of_a_recipe_is_that_recipe(name: str, tmp_path: Path):
    """With all lines as they are written, and with all commented values taken out of their comments."""
    path, recipe = tmp_path / "file.toml", RECIPES[name]()
    text = recipe_files.written("file.toml", recipe, name, [])
    for content, least in ((text, 0), (re.sub(r"(?m)^#(?! |$)", "", text), 60)):
        path.write_text(content)
        file = recipe_files.read(path)
        assert len(file.options) >= least
        found = file.for_method(file.method)[1]
        assert found == recipe
        assert json.dumps(settings.values(found)) == json.dumps(settings.values(recipe))  # no 1 for 1.0
    assert recipe_files.written("file.toml", found, name, list(file.options)) == content


@pytest.mark.parametrize("name", ["checkerboard", "cifar10-tiny"])
def test_new_then_train_is_the_bare_recipe(name: str, asked: list[Recipe]):
    run("new", "some/where/file.TOML", "--recipe", name)
    run("train", "some/where/file.TOML", "--check")
    run("train", name, "--check")
    assert asked == [RECIPES[name]()] * 2


def test_every_option_has_its_help():
    for recipe in (RECIPES["points"](), RECIPES["images"]()):
        text = recipe_files.written("file.toml", recipe, recipe.name, [])
        names = [f.name for f in recipe_files.fields(recipe)]
        for line, below in zip(text.splitlines(), text.splitlines()[1:], strict=False):
            assert len(line) <= 120
            if re.match(r"#\w+ = ", below):
                assert line.startswith("# ")
                assert line.endswith(("...", ".", ")"))
        assert len(names) > 40


def test_what_is_given_is_set_and_the_command_line_has_the_last_word(asked: list[Recipe]):
    said = run("new", "b.toml", "--recipe=checkerboard", "--method", "lsd", "--steps", 16_000, "--optimiser.batch", 64)
    assert said.startswith("b.toml: 3 of ")
    assert "flowmaps train b.toml --out runs/b" in said
    content = tomllib.loads(Path("b.toml").read_text())
    assert {name: value for name, value in content.items() if value != {}} == {
        "recipe": "checkerboard",
        "method": "lsd",
        "steps": 16_000,
        "optimiser": {"batch": 64},
    }
    run("train", "b.toml", "--check")
    run("train", "b.toml", "--check", "--optimiser.batch", 32, "--steps", 7, "--method=lmd")
    usual = RECIPES["checkerboard"]()
    own = replace(usual, method="lsd", optimiser=replace(usual.optimiser, batch=64))
    assert asked[0] == replace(own, teacher_steps=0)  # the file's are all steps, though the recipe has as many
    assert asked[1] == replace(own, method="lmd", steps=7, optimiser=replace(usual.optimiser, batch=32))


def test_steps_of_a_file_count_as_those_of_the_command_line(asked: list[Recipe]):
    """All steps, for a method that trains no teacher."""
    Path("a.toml").write_text('recipe = "checkerboard"\nmethod = "lsd"\nsteps = 70\n')
    run("train", "a.toml", "--check")
    run("train", "checkerboard", "--method", "lsd", "--steps", 70, "--check")
    assert asked[0] == asked[1]
    assert asked[0].teacher_steps == 0


def test_what_a_search_found_gives_way_to_the_file(asked: list[Recipe], monkeypatch: pytest.MonkeyPatch):
    settings_found = {"lsd": {"optimiser.learning_rate": 0.004, "diagonal_share": 0.6}}
    monkeypatch.setitem(found.FOUND, "checkerboard", settings_found)
    Path("a.toml").write_text('recipe = "checkerboard"\nmethod = "lsd"\ndiagonal_share = 0.5\n')
    run("train", "a.toml", "--check")
    assert (asked[0].diagonal_share, asked[0].optimiser.learning_rate) == (0.5, 0.004)
    run("new", "n.toml", "--recipe", "checkerboard", "--method", "lsd")
    assert set(tomllib.loads(Path("n.toml").read_text())) - {"network", "optimiser", "evaluation"} == {
        *("recipe", "method")
    }
    assert "#diagonal_share = 0.6" in Path("n.toml").read_text()


def test_words_of_any_kind_are_read_back(tmp_path: Path):
    names = ('a"b', "c\\d", "é ☃ 😀", "'", "#", "--x", "no\u00e9l", "]")
    recipe = replace(RECIPES["points"](), drop_columns=names, data="C:\\x.csv", guidance=(1e-7, 1.0))
    (tmp_path / "x.toml").write_text(recipe_files.written("x", recipe, "points", ["drop_columns", "data", "guidance"]))
    read = recipe_files.read(tmp_path / "x.toml")
    assert read.for_method("lmd")[1] == recipe


def test_a_run_of_a_file_keeps_what_was_run_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "evaluate", lambda *measured: None)
    run("new", "a.toml", "--recipe", "checkerboard", *TINY.split())
    run("train", "a.toml", "--out", "run", "--seed", 3)
    run("train", "checkerboard", "--out", "same", "--seed", 3, *TINY.split())
    assert weights(tmp_path / "run") == weights(tmp_path / "same")
    kept = [json.loads(Path(folder, "config.json").read_text())["recipe"] for folder in ("run", "same")]
    assert kept[0] == kept[1]
    assert (kept[0]["steps"], kept[0]["seed"]) == (3, 3)
    stopped = run("train", "a.toml", "--out", "short", "--minutes", 1e-9)
    assert "flowmaps train a.toml --out short --resume" in stopped
    run("train", "a.toml", "--out", "short", "--resume")
    assert RunFolder.open(Path("short")).finished


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "x.toml: it names no recipe: add a line such as recipe = \"checkerboard\""),
        ("recipe = 3", "x.toml, line 1: recipe must be the name of one, got 3."),
        ('\n# the\nrecipe = "checkerbord"', "x.toml, line 3: unknown recipe 'checkerbord'"),
        ("steps = ", "x.toml is no TOML: Invalid value (at line 2, column"),
        ("steps = 1\nsteps = 2", "x.toml is no TOML: Cannot overwrite a value (at line 3"),
        ("stepz = 1", "x.toml, line 2: stepz is no option: did you mean steps?"),
        ("teacher-steps = 1", "x.toml, line 2: teacher-steps is no option: did you mean teacher_steps?"),
        ("batch = 3", "x.toml, line 2: batch is no option: did you mean batch below [optimiser]?"),
        ('"optimiser.batch" = 3', "line 2: optimiser.batch is no option: did you mean batch below [optimiser]?"),
        ("[optimizer]\nbatch = 3", "x.toml, line 2: optimizer is no option: did you mean optimiser?"),
        ("[network]\nbatch = 3", "line 3: network.batch is no option: did you mean batch below [optimiser]?"),
        ('evaluation.features = "x"', "line 2: evaluation.features is an option of images, and"),
        ('"" = 1', "x.toml, line 2: '' is no option of a recipe of points"),
        ('"\\u001b[31m" = 1', "x.toml: '\\x1b[31m' is no option of a recipe of points"),
        ("[optimiser]\n\nbach = 3", "line 4: optimiser.bach is no option: did you mean batch below [optimiser]?"),
        ("zebra = 1", "line 2: zebra is no option of a recipe of points: flowmaps train checkerboard --help-all lists"),
        ("optimiser = 3", "x.toml, line 2: optimiser must be a table, [optimiser], got 3."),
        ("[[optimiser]]\nbatch = 3", "x.toml, line 2: optimiser must be a table"),
        ("[steps]\na = 3", "x.toml, line 2: steps must be a whole number, got"),
        ('steps = "many"', "x.toml, line 2: steps must be a whole number, got many."),
        ("steps = 1.5", "x.toml, line 2: steps must be a whole number, got 1.5."),
        ("steps = true", "x.toml, line 2: steps must be a whole number, got true."),
        ("steps = 0", "x.toml, line 2: steps must be at least 1, got 0."),
        ("compile = 1", "x.toml, line 2: compile must be true or false, got 1."),
        ("steps = 1979-05-27", "x.toml, line 2: steps must be a whole number, got datetime.date"),
        ("# a\n[optimiser]\nlearning_rate = nan", "x.toml, line 4: learning_rate must be above 0, got nan."),
        ("optimiser.learning_rate = inf", "x.toml, line 2: learning_rate must be at most 100, got inf."),
        ("optimiser = {batch = 64, learning_rate = -1}", "x.toml, line 2: learning_rate must be above 0, got -1."),
        ('drop_columns = [\n"steps",\n""\n]\nsteps = 0', "line 2: drop_columns must be a list, each entry of it no"),
        ('track = """\nsteps = 3\n"""', "x.toml, line 2: track must be a list, each entry of it one of tensorboard"),
        ('precision = "float64"', "line 2: precision must be one of float32, bfloat16, float16, auto, got float64."),
        ("evaluation.steps = [0, 4]", "line 2: steps must be a list, each entry of it at least 1, got [0, 4]."),
        ("evaluation.steps = 4", "line 2: steps must be a list, each entry of it a whole number, got 4."),
        ("resolution = 16", "x.toml, line 2: resolution is an option of images, and checkerboard a"),
        ('out = "x"', "x.toml, line 2: out is no option"),
        ("keep_checkpoints_every = 3", "--keep-checkpoints-every must be a multiple of --checkpoint-every"),
        ('method = "lmdd"', "unknown method 'lmdd': did you mean 'lmd'?"),
    ],
)  # fmt: skip
def test_files_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, text: str, said: str
):
    monkeypatch.chdir(tmp_path)
    head = "" if not text or "recipe" in text else 'recipe = "checkerboard"\n'
    Path("x.toml").write_text(head + text)
    assert said in refused(capsys, "train", "x.toml", "--out", "OUT")
    assert [path.name for path in tmp_path.iterdir()] == ["x.toml"]


def test_images_have_no_options_of_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    for line in ("whiten = true", "[network]\nwidth = 3"):
        Path("x.toml").write_text(f'recipe = "images"\n{line}\n')
        assert "is an option of points, and images a recipe of images" in refused(capsys, "train", "x.toml", "--check")


@pytest.mark.parametrize(
    "content, said",
    [
        (b'\xef\xbb\xbfrecipe = "checkerboard"\r\nsteps = 0\r\n', "x.toml, line 2: steps must be at least 1"),
        ('recipe = "checkerboard"'.encode("utf-16"), "x.toml is no TOML: byte 0 is not of UTF-8"),
        (b"\x00" * 100, "x.toml is no TOML"),
        (b"a" * 2**21, "x.toml is no recipe file: it has more than 1,048,576 bytes"),
        (b'recipe = "checkerboard"\nsteps = ' + b"[" * 5_000 + b"]" * 5_000, "x.toml"),
        (b'recipe = "checkerboard"\nsteps = ' + b"9" * 5_000, "x.toml"),
        (b"recipe = '''\x1b[31mred'''", "x.toml"),
        (b'recipe = "checkerboard"\n' + b"a" * 5_000 + b" = 1", "x.toml, line 2: aaa"),
        (b'recipe = "' + b"a" * 5_000 + b'"', "x.toml, line 1: unknown recipe 'aaa"),
    ],
)  # fmt: skip
def test_files_of_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, content: bytes, said: str
):
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_bytes(content)
    words = refused(capsys, "train", "x.toml", "--check")
    assert said in words
    assert words.rstrip("\n").isprintable()
    assert len(words) < 1_000


@pytest.mark.parametrize(
    "words, said",
    [
        ("new", "new needs --recipe RECIPE, one of checkerboard"),
        ("new x.toml", "new needs --recipe RECIPE, one of checkerboard"),
        ("new x.toml --recipe zebra", "unknown recipe 'zebra': choose one of checkerboard"),
        ("new x --recipe points", "the name of a recipe file must end in .toml, got x: take x.toml."),
        ("new .toml --recipe points", "the name of a recipe file must end in .toml, got .toml"),
        ("new x.toml --recipe points --method lmdd", "unknown method 'lmdd': did you mean 'lmd'?"),
        ("new there.toml --recipe points", "there.toml already exists: choose another name, or remove it."),
        ("new x.toml --recipe points --steps 0", "--steps must be at least 1, got 0"),
        ("new there.toml/x.toml --recipe points", "there.toml"),
        ("train gone.toml --check", "there is no recipe file gone.toml: flowmaps new gone.toml --recipe RECIPE"),
        ("train folder.toml --check", "folder.toml is no file, but a folder or a device"),
        ("compare there.toml", "compare takes the name of a recipe, got the file there.toml, which flowmaps"),
        ("tune there.toml", "tune takes the name of a recipe"),
    ],
)  # fmt: skip
def test_commands_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: str, said: str
):
    monkeypatch.chdir(tmp_path)
    Path("there.toml").write_text("kept")
    Path("folder.toml").mkdir()
    assert said in refused(capsys, *words.split())
    assert {path.name for path in tmp_path.iterdir()} == {"there.toml", "folder.toml"}
    assert Path("there.toml").read_text() == "kept"


def help_of(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def options_in(text: str) -> set[str]:
    lines = (line.strip("│ ") for line in text.splitlines())
    return {line.split()[0].rstrip(",") for line in lines if re.match(r"--[\w.-]+(, --|  ?[A-Z{\[])", line)}


TEN = {*(["--out", "--resume", "--check", "--data", "--method", "--steps", "--teacher-steps", "--seed"]),
       *("--optimiser.batch", "--optimiser.learning-rate")}  # fmt: skip


@pytest.mark.parametrize("name", ["checkerboard", "images", "x.toml"])
def test_help_shows_ten_options_and_help_all_every_one(
    name: str, asked: list[Recipe], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "100")
    Path("x.toml").write_text('recipe = "images"\nsteps = 777\n')
    few = help_of(capsys, "train", name, "--help")
    assert options_in(few) - {"--help"} == TEN
    assert "--help-all" in few
    assert few.count("\n") < 50
    every = help_of(capsys, "train", name, "--help-all")
    recipe: Any = as_options(RECIPES["checkerboard" if name == "checkerboard" else "images"]())
    unused = {"network"} if name != "checkerboard" else set()
    own = {f"--{one}" for one in settings.values(recipe) if one.partition(".")[0] not in unused}
    hidden = {f"--{one.replace('_', '-')}" for one in OF_POINTS} if name != "checkerboard" else set()
    shown = {one.partition("no-")[0] + one.partition("no-")[2] for one in options_in(every)} | options_in(every)
    assert own - hidden <= shown
    assert "What this recipe sets differently from its methods" in every
    if name == "x.toml":
        assert "777" in few
        assert "777" in every


def test_the_help_of_other_commands(capsys: pytest.CaptureFixture):
    for command in ("compare", "tune"):
        few, every = (help_of(capsys, command, "checkerboard", word) for word in ("-h", "--help-all"))
        assert {"--methods", "--out", "--optimiser.batch"} <= options_in(few)
        assert "--network.width" not in options_in(few)
        assert "--network.width" in options_in(every)
    for words in (["new", "--help"], ["new", "--recipe", "digits", "--help"]):
        assert {"--recipe", "--steps"} <= options_in(help_of(capsys, *words))
    assert help_of(capsys, "sample", "--help") == help_of(capsys, "sample", "--help-all")


def test_an_unknown_option_points_to_all_options(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    for words in ("train checkerboard --out X --stepz 3", "train checkerboard --steps x", "compare digits --stepz 3"):
        with pytest.raises(SystemExit):
            cli.main(words.split())
        error = capsys.readouterr().err
        assert f"flowmaps {' '.join(words.split()[:2])} --help-all" in error
        assert {len(line) for line in error.splitlines()} == {100}  # the box is whole


def test_without_a_command_the_program_says_what_it_is_and_how_to_begin(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        cli.main([])
    lines = capsys.readouterr().out.splitlines()
    commands_shown = [line.split()[1] for line in lines if line.startswith("  flowmaps ")]
    assert commands_shown == ["train", "new", "train", "sample", "distill"]
    assert len(lines) < 12
    assert max(map(len, lines)) <= 100
