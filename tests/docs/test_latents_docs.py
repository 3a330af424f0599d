"""The page "Latents and text" does what it says: its code and commands are run in their order, with short trainings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from program import run

PAGE = (ROOT / "docs" / "latents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
SHORT = "--no-compile --device cpu --show-every 0 --optimiser.batch 16 --evaluation.samples 100 --evaluation.steps 1"
SHORT += " --steps 2 --teacher-steps 2 --unet.width 8 --unet.blocks 1 --unet.head 8 --evaluation.points 50"
SHORT += " --precision float32 --evaluation.features efficientnet-lite0:32 --evaluation.solver-steps 1"
IN_PYTHON = ("steps=1_000, batch=16", 'steps=2, batch=4, device="cpu", compile=False, say=lambda _: None')


@pytest.mark.slow
def test_the_page_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text.replace(*IN_PYTHON), "latents.md", "exec"), names)
            continue
        for line in text.strip().splitlines():
            words = shlex.split(line)[1:]
            run(*words, *(shlex.split(SHORT) if words[0] == "train" else ()))
    assert Path("dogs.png").exists()
    some = np.load("some.npz")
    assert some["x"].shape == (16, 16, 16, 3)
    assert some["latents"].shape == (16, 4, 8, 8)
    assert set(some["labels"]) == {"cat", "dog"}
    assert names["samples"].shape == (8, 4, 8, 8)
    assert names["samples"].isfinite().all()
