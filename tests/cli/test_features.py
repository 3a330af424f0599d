"""Features, such as those of text, as the condition: in Python with guidance, and on the command line."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor

import flowmaps as fm
from flowmaps.cli.main import main
from flowmaps.guidance import Guidance
from flowmaps.solvers import SolverFlow

SMALL = ["--steps", "2", "--teacher-steps", "2", "--checkpoint-every", "2", "--optimiser.batch", "8", "--device", "cpu"]
CHEAP = ["--evaluation.samples", "100", "--evaluation.points", "10", "--evaluation.steps", "1"]
OF_IMAGES = [*CHEAP, "--precision", "float32", "--evaluation.features", "efficientnet-lite0:32"]
OF_IMAGES += ["--evaluation.solver-steps", "1", "--evaluation.solver-tolerance", "0.5"]
PROMPTS = {"text": torch.tensor([[[1.0, 0.2], [0.3, 0.4]], [[-1.0, 0.5], [0.1, -0.6]]]), "pooled": torch.eye(2)}
NULL = {"pooled": torch.zeros(1, 2), "text": torch.zeros(1, 2, 2)}
CENTRES = torch.tensor([[1.0, 0.5], [-1.0, 0.5]])

OWN = """
import torch
from torch import nn

class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, s, t, cond):
        return self.net(torch.cat([x, s[:, None], t[:, None], cond["text"].flatten(1), cond["pooled"]], 1))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_reader.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_reader:Reads"
    sys.modules.pop("own_reader", None)


def captioned(file: Path, number: int = 400, spread: float = 0.2) -> Path:
    """Points round two centres, each with the features of its caption."""
    rng, which = torch.Generator().manual_seed(0), torch.arange(number) % 2
    x = CENTRES[which] + spread * torch.randn(number, 2, generator=rng)
    return fm.data.save_latents(file, x, cond={name: value[which] for name, value in PROMPTS.items()}, null=NULL)


def prompt(which: int, rows: int) -> dict[str, Tensor]:
    return {name: value[[which] * rows] for name, value in PROMPTS.items()}


@pytest.mark.slow
def test_a_map_follows_features_with_guidance_away_from_those_of_an_empty_prompt(module: str, tmp_path: Path):
    """A velocity learned from data with dropped captions, its guided flow by a solver, and the map by lmd of it."""
    source = fm.data.open_data(str(captioned(tmp_path / "captioned.safetensors")))
    assert isinstance(source, fm.data.Latents)
    torch.manual_seed(0)
    make = import_module(module.partition(":")[0]).Reads
    options = {"batch": 256, "device": "cpu", "compile": False, "say": lambda _: None, "learning_rate": 3e-3}
    velocity = fm.maps.AverageVelocity(make())
    learn = Guidance(1.0, null=source.null, dropout=0.3)
    fm.fit(fm.methods.flow_matching(velocity, guidance=learn), source, steps=600, **options)
    guided = Guidance(1.8, null=source.null, dropout=0)
    teacher = fm.maps.Target(velocity).velocity
    student = fm.maps.AverageVelocity(make())
    student.load_state_dict(velocity.state_dict())
    fm.fit(fm.methods.lmd(student, teacher=teacher, guidance=guided), source, steps=600, **options)
    x0, zero = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(500)
    for which in (0, 1):
        cond, none = prompt(which, 500), {name: value.expand(500, *value.shape[1:]) for name, value in NULL.items()}

        def field(x: Tensor, t: Tensor, _: Any, towards: Any = cond, none: Any = none) -> Tensor:
            away = teacher(x, t, none)
            return away + 1.8 * (teacher(x, t, towards) - away)

        with torch.no_grad():
            flow = SolverFlow(field, method="heun2", steps=40)(x0, zero, 1 + zero)
            plain = SolverFlow(teacher, method="heun2", steps=40)(x0, zero, 1 + zero, cond)
            found = fm.samplers.Jump(2)(student, x0, cond)
        assert (found - flow).square().mean() < 0.3 * (plain - flow).square().mean()
        centre = source.to_data(plain).mean(0)
        torch.testing.assert_close(centre, CENTRES[which], rtol=0, atol=0.15)  # the captions are followed
    direct = fm.maps.AverageVelocity(make())
    fm.fit(
        fm.methods.meanflow(direct, guidance=Guidance(1.8, null=source.null, dropout=0.2)), source, steps=3, **options
    )


@pytest.mark.slow
def test_a_network_of_the_users_own_reads_features_on_the_command_line(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, out = str(captioned(tmp_path / "captioned.safetensors")), tmp_path / "run"
    words = ["train", "points", "--data", data, *SMALL, *CHEAP, "--show-every", "0", "--no-compile"]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(out)])
    assert "give --net module:Class" in " ".join(capsys.readouterr().err.split())
    main([*words, "--net", module, "--out", str(out)])
    main(["sample", str(out), "--net", module, "--number", "8", "--steps", "1", "--out", str(tmp_path / "x.npy")])
    assert np.load(tmp_path / "x.npy").shape == (8, 2)
    main(["export", str(out), "--net", module, "--out", str(tmp_path / "x.pt2")])
    assert json.loads((out / "config.json").read_text())["units"]["features"] == ["cond.pooled", "cond.text"]


@pytest.mark.slow
def test_a_pipeline_of_text_is_distilled_on_precomputed_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Stable Diffusion, guided away from its empty prompt, with its own autoencoder to decode what it draws."""
    pipeline = tiny.stable_diffusion(tmp_path)
    pipeline.save_pretrained(tmp_path / "sd")
    latents = tmp_path / "latents"
    pipeline.vae.save_pretrained(latents / "vae")
    prompts = ["a cat", "a dog", "an owl"] * 8
    cond = fm.interop.diffusers(pipeline).condition(prompts)
    fm.data.save_latents(latents / "latents.safetensors", torch.randn(24, 4, 8, 8), cond=cond)
    out = tmp_path / "run"
    words = ["distill", "--teacher", str(tmp_path / "sd"), "--guidance", "2", *SMALL, *OF_IMAGES, "--out", str(out)]
    main([*words, "--data", str(latents)])
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert all("fd" in row for row in rows if row["sampler"] == "map")  # a teacher of random weights may diverge
    main(["sample", str(out), "--number", "4", "--steps", "1", "--out", str(tmp_path / "x.png")])
    bare = fm.data.save_latents(tmp_path / "bare.safetensors", torch.randn(24, 4, 8, 8))
    with pytest.raises(SystemExit):
        main([*words[:-1], str(tmp_path / "other"), "--data", str(bare)])
    assert "has no encoder_hidden_states: keep features beside the data" in " ".join(capsys.readouterr().err.split())
