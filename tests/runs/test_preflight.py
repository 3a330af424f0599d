"""`flowmaps train --check`: what it says of a run, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_cases import DIT, SMALL, UNET
from program import refused, run

from flowmaps import objectives
from flowmaps.data import Board
from flowmaps.maps import FlowMap
from flowmaps.runs import duration, inherit, initial, preflight, prepare, recipes
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Evaluation, Network, Optimiser, Recipe
from flowmaps.shapes import GuidedCondition
from flowmaps.training import trackers
from flowmaps.training.distributed import Placement

POINTS = Recipe(
    name="tiny",
    data="points.npz",
    steps=20,
    teacher_steps=10,
    device="cpu",
    compile=False,
    network=Network(width=8, depth=2, space_frequencies=0, time_frequencies=1, modulation=0),
    optimiser=Optimiser(batch=12),
    evaluation=Evaluation(samples=100, points=10),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flowmaps.runs.preflight.open_features", lambda _: None)
    rng = np.random.default_rng(0)
    np.savez("points.npz", x=rng.normal(size=(40, 3)), labels=np.arange(40) % 4)
    np.savez("images.npz", x=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), labels=np.arange(40) % 4)
    return tmp_path


def said(recipe: Recipe, folder: Path | None = None) -> dict[str, str]:
    """The lines of a preflight by their first words, that of the end left out; it has written nothing."""
    before = sorted(Path().rglob("*"))
    *lines, end = preflight.preflight(recipe, folder)
    assert end.startswith("this recipe can run: ")
    assert sorted(Path().rglob("*")) == before
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def changed(recipe: Any, **changes: Any) -> Any:
    """A recipe with options changed, those of its optimiser too."""
    own = {name: value for name, value in changes.items() if hasattr(recipe, name)}
    others = {name: value for name, value in changes.items() if name not in own}
    return dataclasses.replace(recipe, **own, optimiser=dataclasses.replace(recipe.optimiser, **others))


# the plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_a_run_takes():
    """The MLP of 3 numbers and 4 classes: (3 + 2 x 3) x 8 + 8, 8 x 8 + 8, 8 x 3 + 3, labels 5 x 8, by hand."""
    weights = (9 * 8 + 8) + (8 * 8 + 8) + (8 * 3 + 3) + 5 * 8
    plan = said(changed(POINTS, accumulate=3, ema_decays=(0.9, 0.5), ema_widths=(0.1,), keep_checkpoints_every=2_000))
    assert plan["data"] == "points.npz, 3 numbers a row, 4 classes"
    assert plan["stages"] == "10 steps of teacher, then 20 steps of map"
    assert plan["weights"] == f"{weights:,}"
    assert plan["step"] == "adam, 12 rows, taken in 3 parts of 4"
    assert plan["averages"] == "decay 0.999, 0.9, 0.5, and power functions of width 0.1"
    assert plan["device"] == "cpu, float32, not compiled"
    assert "every 1,000 steps; the last 2 kept, and each at a multiple of 2,000 steps" in plan["checkpoint"]
    assert "warning:" not in plan


def test_the_size_of_a_checkpoint_counts_all_that_is_kept():
    """Weights, two moments, 1 + 2 averages of each trained number, in four bytes."""
    stage = resolve(POINTS).stages[0]
    size = preflight.Size(stage, weights=100, trained=110, untrained=7, step=duration.Seconds(0.0, 4))
    assert size.checkpoint(changed(POINTS, ema_decays=(0.9,), ema_widths=(0.1,))) == 4 * (110 * 6 + 7)


@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_images_are_checked_as_they_are_trained(backbone: str):
    recipe = changed(SMALL, data="images.npz", backbone=backbone, labels=True, guidance=(1.0, 2.0), unet=UNET, dit=DIT)
    plan = said(recipe)
    shape = initial.new_map(recipe, (3, 8, 8), 4)
    assert plan["weights"] == f"{sum(p.numel() for p in shape.parameters()):,}"
    assert plan["data"] == "images.npz, 3 x 8 x 8 numbers an image, 4 classes"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_tried_on_this_device(precision: str):
    assert said(changed(POINTS, precision=precision))["device"] == f"cpu, {precision}, not compiled"


def test_a_disk_that_is_too_small_is_told_of(monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")
    need = preflight._disk(
        POINTS, [preflight.Size(stage, 219, 219, 0, duration.Seconds(0.0, 4)) for stage in resolve(POINTS).stages]
    )
    for free, warned in ((need - 1, True), (10 * need, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert ("warning:" in said(POINTS, Path("run"))) is warned


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"data": "missing.npz"}, "there is no file missing.npz"),
        ({"data": "images.npz"}, "tiny is a recipe of points, images.npz has images"),
        ({"data": "checkerboard", "guidance": (2.0,)}, "--guidance is for data with classes, checkerboard has none"),
        ({"device": "abacus"}, "--device abacus is not there"),
        ({"method": "lsd", "batch": 12, "accumulate": 6}, "a batch of 12 rows, 9 of them for the first objective, has"),
        ({"kind": "muon", "network": Network(depth=1, modulation=0)}, "the optimiser muon is for matrices between"),
        ({"teacher": "nowhere"}, "there is no folder nowhere"),
        ({"network": Network(width=2**16, depth=1_000)}, "weights, which with gradients, moments and averages take"),
        ({"max_skipped_steps": 0}, "--max-skipped-steps must be at least 1"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, Any], error: str):
    with pytest.raises(ValueError) as refusal:
        preflight.preflight(changed(POINTS, **changes))
    assert error in str(refusal.value)


def test_a_tracker_that_is_not_installed_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of its name, as wandb makes one beside its runs, is no package."""
    monkeypatch.setattr(sys, "path", [str(here)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (here / "trackio").mkdir()
    with pytest.raises(ValueError, match=r"the tracker trackio needs its package: pip install 'flowmaps\[trackio\]'"):
        trackers.check(("trackio",))
    (here / "trackio" / "__init__.py").touch()
    invalidate_caches()
    trackers.check(("trackio",))


def test_a_folder_in_use_is_refused(here: Path):
    (here / "empty").mkdir()
    said(POINTS, here / "empty")
    said(POINTS, here / "not" / "yet")
    for folder, words in ((here, "is not empty"), (here / "points.npz", "is no folder")):
        with pytest.raises(ValueError, match=f"already exists and {words}: choose another --out"):
            preflight.preflight(POINTS, folder)
    with pytest.raises(ValueError, match=r"cannot be made in .*points.npz, which cannot be written"):
        preflight.preflight(POINTS, here / "points.npz" / "run")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(here: Path):
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="which cannot be written"):
        preflight.preflight(POINTS, here / "locked" / "run")


def test_memory_is_that_of_the_machine_or_of_its_container(monkeypatch: pytest.MonkeyPatch, here: Path):
    cpu, limit = torch.device("cpu"), here / "memory.max"
    monkeypatch.setattr(prepare, "CONTAINER_MEMORY_FILE", limit)
    physical = prepare._memory(cpu)
    for text in ("max\n", f"{2**62}\n"):
        limit.write_text(text)
        assert prepare._memory(cpu) == physical
    limit.write_text("123456\n")
    assert prepare._memory(cpu) == 123_456
    with pytest.raises(ValueError, match=r"moments and averages take .*, cpu has 123 kB: take a smaller network"):
        preflight.preflight(changed(POINTS, network=Network(width=128, depth=4)))


def test_what_a_launcher_is_set_to_counts_as_shard(monkeypatch: pytest.MonkeyPatch):
    """The placement knows: `accelerate launch --use_fsdp` shards without the option."""
    for shard in (False, True):
        placement = Placement(torch.device("cpu"), shard)
        monkeypatch.setattr(prepare, "start", lambda *_, placement=placement, **__: placement)
        assert ("warning:" in said(changed(POINTS, fsdp=not shard))) is shard


def test_a_gradient_is_tried_and_dropped(monkeypatch: pytest.MonkeyPatch):
    """A loss that is finite where its gradient is not, as a square root at 0; of weights that stay without one."""
    tried: list[Any] = []
    evaluate = objectives.VelocityMatching.evaluate

    def rooted(self: Any, draw: Any) -> Any:
        loss = evaluate(self, draw)
        tried.append((self, len(draw.s)))
        return loss._replace(value=loss.value + (0 * loss.value).sqrt())

    said(POINTS)
    monkeypatch.setattr(objectives.VelocityMatching, "evaluate", rooted)
    with pytest.raises(ValueError, match="the gradient of stage teacher is nan before any step, in float32"):
        preflight.preflight(POINTS)
    said(changed(POINTS, precision="float16"))  # there the scale of a run makes room
    assert [rows for _, rows in tried[:2]] == [4, 4]  # what comes after them is timed
    assert all(p.grad is None for own, _ in tried for p in own.parameters())


def test_memory_that_is_too_small_for_a_few_rows(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB.\nSee the manual.")

    monkeypatch.setattr(objectives.VelocityMatching, "evaluate", full)
    with pytest.raises(ValueError) as refusal:
        preflight.preflight(POINTS)
    assert str(refusal.value) == (
        "4 rows of stage teacher do not fit the memory of cpu (CUDA out of memory. Tried to allocate 9 GB.): take a "
        "smaller network, or --activation-checkpointing for images."
    )


def test_rows_that_do_not_fit_beside_few_that_do_are_warned_of(monkeypatch: pytest.MonkeyPatch):
    evaluate = objectives.MapMatching.evaluate

    def small(self: Any, draw: Any) -> Any:
        if len(draw.s) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return evaluate(self, draw)

    monkeypatch.setattr(objectives.MapMatching, "evaluate", small)
    lines = preflight.preflight(POINTS)
    assert (
        "warning: 12 rows of stage map may not fit the memory of cpu: without compilation 4 do, and 4 times as many do "
        "not; raise --optimiser.accumulate, or lower --optimiser.batch." in lines
    )
    assert "on 4 rows of each stage were run; a whole batch" in lines[-1]


def test_a_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Board, "sample", lambda self, number, generator: (torch.full((number, 2), torch.inf), None))
    with pytest.raises(ValueError, match=r"the loss of stage teacher is (nan|inf) before any step, in float32"):
        preflight.preflight(changed(POINTS, data="checkerboard"))


# teachers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulation", [0, 4])
def test_a_map_of_points_takes_a_guidance_weight_that_its_teacher_does_not(modulation: int):
    """It starts as jumps along the teacher's velocity, whatever the weight."""
    net = Network(width=8, depth=2, time_frequencies=1, modulation=modulation)
    taught = changed(POINTS, network=net, guidance=(1.0,))
    teacher = moved(initial.new_map(taught, (3,), 4))
    flow_map = moved(initial.new_map(changed(taught, guidance=(1.0, 3.0)), (3,), 4))
    inherit.start_from_teacher(flow_map, teacher)
    x, s, t = torch.randn(5, 3), torch.rand(5), torch.rand(5)
    labels = torch.arange(5) % 4
    for weight in (1.0, 2.5):
        guide = GuidedCondition(labels, torch.full((5,), weight))
        torch.testing.assert_close(flow_map.average_velocity(x, s, t, guide), teacher.velocity(x, s, labels))
    with pytest.raises(ValueError, match="the network of the teacher is not that of the recipe \\(guidance\\)"):
        inherit.start_from_teacher(teacher, flow_map)


def test_a_guided_teacher_of_points_is_found_fit(here: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = changed(POINTS, guidance=(1.0, 3.0), teacher=str(here / "run"))
    plain = moved(initial.new_map(changed(POINTS, guidance=(1.0,)), (3,), 4))
    monkeypatch.setattr("flowmaps.runs.inherit.given_teacher", lambda *_: plain)
    assert said(recipe)["stages"] == "20 steps of map"


def moved(flow_map: FlowMap) -> FlowMap:
    """The map with no weight at zero."""
    with torch.no_grad():
        for parameter in flow_map.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return flow_map


# the command ---------------------------------------------------------------------------------------------------------

OPTIONS = "--network.width 8 --optimiser.batch 12 --device cpu --data points.npz"
TINY = OPTIONS.split()


def test_the_command_says_the_plan_and_writes_nothing(here: Path):
    before = sorted(here.rglob("*"))
    for out in ([], ["--out", "run"]):
        printed = run("train", "points", "--check", *TINY, *out)
        assert "stages     4,000 steps of teacher, then 4,000 steps of map\n" in printed
        assert re.search(
            r"\ntime       about .* of training \(.* ms a step of teacher, .* of map.*then about ", printed
        )
        assert printed.endswith(
            "this recipe can run: a forward and a backward pass on 12 rows of each stage were run; compilation was not "
            "tried.\n"
        )
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "words, error",
    [
        ([], "train needs --out DIR, the folder of the run"),
        (["--check", "--resume"], "--check is for a run before it begins: leave out --resume, --resume-from and"),
        (["--check", "--minutes", 3], "--check is for a run before it begins: leave out"),
        (["--check", "--optimiser.accumulate", 5], "--optimiser.batch must be a multiple of 5"),
        (["--check", "--network.depth", 10**9], "--network.depth must be at most 1,000, got 1000000000"),
        (["--check", "--out", "points.npz"], "points.npz already exists and is no folder"),
    ],
)
def test_commands_that_are_refused(capsys: pytest.CaptureFixture, here: Path, words: list[Any], error: str):
    before = sorted(here.rglob("*"))
    assert error in refused(capsys, "train", "points", *TINY, *words)
    assert sorted(here.rglob("*")) == before


def test_a_recorded_run_is_read(request: pytest.FixtureRequest):
    """The card of results/cifar10-tiny is older than many an option."""
    card = json.loads((request.config.rootpath / "results" / "cifar10-tiny" / "config.json").read_text())
    recipe = recipes.from_dict(card["recipe"])
    assert (recipe.optimiser.kind, recipe.optimiser.ema_decays, recipe.keep_checkpoints) == ("adam", (), 2)
