"""`flowmaps distill`: a pipeline of diffusers, or a network of the user's own, becomes a run like any other."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from safetensors import safe_open

import flowmaps as fm
from flowmaps import interop
from flowmaps.cli.main import main
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.recipes import RECIPES
from flowmaps.runs.recipes.checks import is_other_model
from flowmaps.runs.run import with_absolute_paths

SMALL = ["--steps", "2", "--checkpoint-every", "2", "--optimiser.batch", "8", "--device", "cpu"]
CHEAP = ["--evaluation.samples", "100", "--evaluation.points", "10", "--evaluation.steps", "1"]
OF_IMAGES = [*CHEAP, "--evaluation.solver-steps", "1", "--evaluation.features", "efficientnet-lite0:32"]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.time_embed, self.first, self.last = nn.Linear(1, width), nn.Linear(2, width), nn.Linear(width, 2)
        self.drop = nn.Dropout(0.5)  # which a student leaves out, as its teacher does

    def forward(self, x, t):
        return self.last(self.drop(torch.tanh(self.first(x) + self.time_embed(t[:, None]))))

def make():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    return tmp_path / "pictures.npy"


@pytest.fixture
def of_noise(tmp_path: Path) -> Path:
    tiny.ddpm().save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_velocity.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_velocity:make"  # type: ignore[misc]
    sys.modules.pop("my_velocity", None)


@pytest.mark.slow
def test_a_network_of_the_users_own_is_distilled_stopped_resumed_and_sampled(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The resumed run ends with the weights of one that was not stopped."""
    words = ["distill", "--teacher", module, "--data", "checkerboard", *SMALL, *CHEAP, "--show-every", "0"]
    once, twice = tmp_path / "once", tmp_path / "twice"
    main([*words, "--out", str(once)])
    said = " ".join(capsys.readouterr().out.split())
    assert "parameters are trained; it has the teacher's velocity from the start" in said
    main([*words, "--out", str(twice), "--minutes", "1e-9"])
    again = " ".join(capsys.readouterr().out.split())
    assert f"flowmaps distill --teacher {module} --out {twice}" in again
    main([*words, "--out", str(twice), "--resume"])
    one, other = (fm.load(folder).state_dict() for folder in (once, twice))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert "velocity" not in [stage.name for stage in RunFolder.open(once).plan.stages]
    words = ["sample", str(once), "--steps", "2", "--number", "7", "--out", str(tmp_path / "x.npy")]
    sys.modules.pop("my_velocity")  # as in another process
    with pytest.raises(SystemExit):
        main(words)
    assert "import it first, with --import-module my_velocity" in " ".join(capsys.readouterr().err.split())
    main([*words, "--import-module", "my_velocity"])
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    rows = json.loads((once / "metrics.json").read_text())["rows"]
    assert [row["sampler"] for row in rows].count("map") == 1


@pytest.mark.slow
def test_a_pipeline_is_distilled_and_its_folder_needs_it_no_more(
    of_noise: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, words = tmp_path / "run", ["distill", "--teacher", str(of_noise), "--data", str(pictures)]
    main([*words, "--teacher-steps", "2", *SMALL, *OF_IMAGES, "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    assert "UNet2DModel of DDPMPipeline: epsilon in 1,000 steps, DDPMScheduler; condition: none" in said
    assert "it learns the teacher's velocity first" in said
    run, model = RunFolder.open(out), interop.diffusers(of_noise)
    assert [(stage.name, stage.steps) for stage in run.plan.stages] == [("velocity", 2), ("map", 2)]
    of_noise.rename(tmp_path / "gone")
    teacher = run.load_teacher()
    assert teacher is not None
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(teacher.velocity(x, t), model.teacher(x, t))
    main(["sample", str(out), "--steps", "1", "--number", "3", "--out", str(tmp_path / "x.npz")])
    assert np.load(tmp_path / "x.npz")["x"].shape[0] == 3


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["distill", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_help_shows_the_teacher_and_the_settings_of_a_distillation(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--teacher" in words
    assert "Optimiser steps of the map" in words
    for option, default in {"--steps": "10000", "--teacher-steps": "2000", "--optimiser.batch": "64"}.items():
        after = words.partition(f" {option} INT ")[2].partition("(default: ")[2]
        assert after.partition(")")[0] == default, option


def test_what_does_not_go_with_a_model_is_refused_in_a_line(
    of_noise: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    unet = ["--teacher", str(of_noise), "--data", str(pictures)]
    cases = {
        "needs --teacher": ["--data", "checkerboard", *out],
        "the module no_such_module cannot be imported": ["--teacher", "no_such_module:make", *out],
        "the model makes samples of 3 x 8 x 8": [*unet, "--resolution", "4", *out],
        "on the linear path, got --interpolant trigonometric": [*unet, "--interpolant", "trigonometric", *out],
        "guidance needs a condition that means none": [*unet, "--guidance", "2", *out],
        "give --guidance one number": [*unet, "--guidance", "1", "2", *out],
        "distill needs --out DIR": unet,
        "there is no folder teachr: --teacher is a folder that save_pretrained": ["--teacher", "teachr", *out],
        "has neither model_index.json nor config.json: --teacher is": ["--teacher", str(pictures), *out],
        f"give the folder around it, {of_noise}": ["--teacher", str(of_noise / "unet"), *out],
    }
    for words, given in cases.items():
        line = refused(given, capsys)
        assert line.startswith("flowmaps: "), line
        assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_adapters_alone_are_trained_and_written_beside_the_map(
    of_noise: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Checkpoints have no weight that is frozen; a resumed run ends with the weights of one that was not stopped."""
    words = ["distill", "--teacher", str(of_noise), "--data", str(pictures), "--lora", "2"]
    words += ["--teacher-steps", "2", *SMALL, "--precision", "float32", *OF_IMAGES]  # auto chooses by the clock
    once, twice = tmp_path / "once", tmp_path / "twice"
    main([*words, "--out", str(once)])
    said = " ".join(capsys.readouterr().out.split())
    net = interop.diffusers(of_noise, lora=2).student.net
    counts = {kind: sum(p.numel() for p in net.parameters() if p.requires_grad is kind) for kind in (False, True)}
    assert f"{counts[False]:,} parameters are frozen, {counts[True]:,} parameters are trained" in said
    assert "trained: 4 steps in" in said
    assert "of memory on cpu" in said
    before, after = (fm.load(once / name).state_dict() for name in ("start", "."))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all("lora_" in name or name.endswith((".first.weight", ".last.weight")) for name in changed)
    adapter, whole = (once / name for name in ("adapter.safetensors", "weights.safetensors"))
    assert 3 * adapter.stat().st_size < whole.stat().st_size
    net.load_adapter(adapter)  # type: ignore[operator, union-attr]
    assert all(torch.equal(value, after[f"net.{name}"]) for name, value in net.state_dict().items())
    main([*words, "--out", str(twice), "--minutes", "1e-9"])
    (kept,) = (twice / "checkpoints").glob("velocity-*1*")
    with safe_open(next(kept.glob("*.safetensors")), "pt") as file:
        names = [name for name in file.keys() if name.startswith(("parameter.", "frozen."))]  # noqa: SIM118
    assert not [name for name in names if "base_layer" in name]
    main([*words, "--out", str(twice), "--resume"])
    for name, value in fm.load(twice).state_dict().items():
        assert torch.equal(value, after[name]), name


def test_a_rank_below_one_is_refused(of_noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert "at least 1, got -1" in refused(["--teacher", str(of_noise), "--lora", "-1", *out], capsys)


def test_a_pipeline_that_is_gone_is_one_still(of_noise: Path, monkeypatch: pytest.MonkeyPatch):
    """As a run keeps its name; and no teacher is none, in whatever folder the program runs."""
    recipe = with_absolute_paths(replace(RECIPES["images"](), data="", teacher=str(of_noise)))
    assert recipe.teacher == str(of_noise.resolve() / "model_index.json")
    monkeypatch.chdir(of_noise)
    assert not is_other_model("")
    assert not with_absolute_paths(RECIPES["points"]()).teacher
    of_noise.rename(of_noise.parent / "gone")
    assert is_other_model(recipe.teacher)
