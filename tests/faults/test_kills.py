"""A run that is killed at random moments, also inside a save, ends as if nothing had happened: to the bit."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from amount import cases
from checkpoint_cases import bits
from run_cases import SETTINGS, TINY
from safetensors.torch import load_file

from flowmaps.runs.recipes import Network
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints, models
from flowmaps.training.failures import CHECKPOINTS

KILLS = cases(30)
LONGEST = 0.25  # seconds that a run is left alone
RECIPE = replace(TINY, method="lmd", steps=260, teacher_steps=60, checkpoint_every=2, keep_checkpoints_every=50,
                 store_averages_every=40, log_every=3, network=Network(width=16, depth=2),
                 optimiser=replace(SETTINGS, ema_decays=(0.99,), ema_widths=(0.1,)))  # fmt: skip


def run(folder: Path, told: Connection | None) -> None:
    """Begin the run or go on with it; says when the first step is taken."""
    torch.set_num_threads(1)
    opened = Run.open(RECIPE, folder, resume=(folder / models.CARD).exists(), say=lambda _: None)
    for _ in opened.train():
        if told is not None:
            told.send(None)
            told.close()
            told = None


def live(folder: Path, after: float | None) -> bool:
    """A process that runs until it is killed, `after` seconds of training or of its whole life; whether it was."""
    context = multiprocessing.get_context("forkserver")
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(folder, tells), daemon=True)
    process.start()
    tells.close()
    try:
        if after is None:
            process.join(120)
            assert process.exitcode == 0, "the run hangs, or has failed"
            return False
        assert hears.poll(60), "no step within a minute"
        with contextlib.suppress(EOFError):  # it ended before a step
            hears.recv()
        time.sleep(after)
    finally:
        process.kill()
        process.join(30)
        hears.close()
    return process.exitcode == -signal.SIGKILL


def content(folder: Path) -> dict[str, Any]:
    """What a run leaves, but for the time that it took, which checkpoints have in their header."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): bits(load_file(path)) if path.name == checkpoints.STATE else path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return found | {"log": [{k: v for k, v in line.items() if k != "seconds"} for line in lines]}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    live(folder, None)
    return content(folder)


def test_a_run_killed_thirty_times_ends_as_an_unbroken_one(unbroken: dict, tmp_path: Path):
    """At whatever moments; at each of the calls that a save makes it is killed in test_damage.py."""
    chance, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs, folder = runs + 1, tmp_path / f"run-{runs}"
        alive = True
        while alive and kills < KILLS:
            alive = live(folder, chance.uniform(0, LONGEST))
            kills += alive
        if alive:
            live(folder, None)
        assert content(folder) == unbroken


@pytest.mark.slow
def test_a_run_killed_before_its_first_step_is_begun_again(unbroken: dict, tmp_path: Path):
    """A folder that has a card and no checkpoint yet."""
    folder = tmp_path / "run"
    opened = Run.open(RECIPE, folder, say=lambda _: None)
    steps = opened.train()
    next(steps)
    opened.folder.release()  # as the end of a process does
    assert not (folder / CHECKPOINTS).exists()
    live(folder, None)
    assert content(folder) == unbroken
