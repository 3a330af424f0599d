"""Training: draws, averages and rates by their formulas; an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmaps import checkpoint, folders, methods
from flowmaps import train as training
from flowmaps.data import Board, Source
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.objectives import Loss, Objective
from flowmaps.plans import stages
from flowmaps.recipes import Evaluation, Network, Optimiser, Recipe
from flowmaps.runs import Run
from flowmaps.train import State, begin, generator, schedule, train
from flowmaps.velocities import Draw

SETTINGS = Optimiser(batch=17, rate=1e-2, warmup=3, ema=0.9)
TINY = Recipe(
    name="tiny",
    data="checkerboard",
    steps=5,
    teacher_steps=4,
    compile=False,
    device="cpu",
    checkpoint_every=3,
    log_every=2,
    network=Network(width=8, depth=2),
    optimiser=SETTINGS,
    evaluation=Evaluation(samples=100, points=10),
)


def objective(seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return methods.lsd(AverageVelocity(MLP(2, width=8, depth=2)))


def values(state: State) -> list[Tensor]:
    return [p.detach().clone() for p in state.parameters]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Recorder:
    """Keeps the draws that an objective is given."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.draws = objective, []

    def __call__(self, draw: Draw) -> Loss:
        self.draws.append(draw)
        return self.objective.evaluate(draw)


# streams of random numbers -------------------------------------------------------------------------------------------


def test_streams_are_functions_of_seed_and_numbers_and_differ():
    numbers = list(itertools.product(range(12), range(12), range(12)))
    seeds = {n: generator(*n).initial_seed() for n in numbers}
    assert len(set(seeds.values())) == len(numbers)
    assert generator(3, 1, 4).initial_seed() == seeds[3, 1, 4]
    assert generator(0).initial_seed() != generator(0, 0).initial_seed()


def test_streams_of_neighbouring_steps_are_unrelated():
    draws = torch.stack([torch.randn(400, generator=generator(0, step)) for step in range(40)])
    correlations = torch.corrcoef(draws)[~torch.eye(40, dtype=torch.bool)]
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(400)


def test_draws_are_a_function_of_seed_and_step():
    """Whatever came before: step k of a restored state sees what step k of an unbroken run saw."""
    whole, part, other = (Recorder(objective()) for _ in range(3))
    state = begin(whole.objective, SETTINGS)
    for step in train(state, Board(), SETTINGS, steps=6, seed=5, evaluate=whole):
        if step.number == 3:
            kept = {name: value.clone() for name, value in state.tensors().items()}
    late = begin(part.objective, SETTINGS)
    late.restore(kept, 3)
    list(train(late, Board(), SETTINGS, steps=6, seed=5, evaluate=part))
    list(train(begin(other.objective, SETTINGS), Board(), SETTINGS, steps=1, seed=6, evaluate=other))
    for one, same in zip(whole.draws[3:], part.draws, strict=True):
        for a, b in zip(one, same, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    firsts = [draw.x0 for draw in (*whole.draws, *other.draws)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(firsts, 2))


# the loop ------------------------------------------------------------------------------------------------------------


def test_averages_follow_their_formula():
    state = begin(objective(), SETTINGS)
    averages = values(state)
    for step in train(state, Board(), SETTINGS, steps=30):
        decay = min(0.9, step.number / (step.number + 9))  # short memory at first, so that the start is forgotten
        averages = [decay * a + (1 - decay) * p for a, p in zip(averages, values(state), strict=True)]
        for a, b in zip(state.averages, averages, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    now = values(state)
    assert not equal(state.averages, now)
    state.use_averages()
    assert equal(values(state), state.averages)


def test_an_average_without_memory_is_the_parameters():
    settings = dataclasses.replace(SETTINGS, ema=0.0)
    state = begin(objective(), settings)
    for _ in train(state, Board(), settings, steps=3):
        assert equal(state.averages, values(state))


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    settings = Optimiser(rate=0.3, warmup=4, floor=0.1)
    assert [schedule(settings, k, 0.0) for k in range(6)] == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3, 0.3])
    assert schedule(settings, 99, 1.0) == pytest.approx(0.03)
    assert schedule(settings, 99, 0.5) == pytest.approx(0.3 * 0.55)
    rates = [schedule(settings, 99, p / 20) for p in range(21)]
    assert rates == sorted(rates, reverse=True)
    assert schedule(settings, 1, 1.5) == pytest.approx(0.5 * 0.03)
    assert schedule(Optimiser(rate=0.3, warmup=0), 0, 0.0) == pytest.approx(0.3)


def test_steps_report_the_rate_that_was_used():
    """Adam's first step moves each weight by the rate, whatever the gradient."""
    settings = Optimiser(batch=17, rate=1e-3, warmup=1)
    state = begin(objective(), settings)
    before = values(state)
    step = next(train(state, Board(), settings, steps=10))
    assert step.rate == pytest.approx(1e-3)
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(before, values(state), strict=True)])
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-3)
    assert float(moved.max()) <= 1.001e-3


def test_gradients_are_clipped():
    settings = dataclasses.replace(SETTINGS, clip=1e-3)
    state = begin(objective(), settings)
    for _ in train(state, Board(), settings, steps=2):
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in state.parameters if p.grad is not None))
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_steps_are_counted_and_the_loss_is_the_objectives():
    state = begin(objective(), SETTINGS)
    recorder = Recorder(state.objective)
    before = None
    for k, step in enumerate(train(state, Board(), SETTINGS, steps=4, evaluate=recorder), 1):
        assert (step.number, state.step) == (k, k)
        assert step.progress == pytest.approx((k - 1) / 4)
        assert not step.loss.value.requires_grad
        if before is not None:
            loss = objective()
            with torch.no_grad():
                torch._foreach_copy_(list(loss.parameters()), before)
            assert torch.equal(loss.evaluate(recorder.draws[-1]).value.detach(), step.loss.value)
        before = values(state)
    assert list(train(state, Board(), SETTINGS, steps=4)) == []  # nothing is left to do


def test_training_lowers_the_loss():
    settings = Optimiser(batch=256, rate=5e-3, warmup=5)
    losses = [float(step.loss.value) for step in train(begin(objective(), settings), Board(), settings, steps=80)]
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])


def test_a_budget_ends_training_and_drives_the_rate(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()  # a second each time it is read: once at the start, once a step
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    settings = dataclasses.replace(SETTINGS, warmup=0, floor=0.0)
    steps = list(train(begin(objective(), settings), Board(), settings, steps=1000, budget=8.0))
    assert len(steps) == 7
    assert [step.progress for step in steps] == pytest.approx([k / 8 for k in range(1, 8)])
    assert steps[-1].rate == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    few = list(train(begin(objective(), settings), Board(), settings, steps=4, budget=1e9))
    assert [step.progress for step in few] == pytest.approx(
        [0, 0.25, 0.5, 0.75], abs=1e-6
    )  # the greater of the two shares


def test_frozen_parts_are_not_trained():
    torch.manual_seed(0)
    flow_map, teacher = (AverageVelocity(MLP(2, width=8, depth=2)) for _ in range(2))
    state = begin(methods.lmd(flow_map, teacher=teacher.velocity), SETTINGS)
    assert len(state.parameters) == len(list(flow_map.parameters()))
    before, own = [p.clone() for p in teacher.parameters()], values(state)
    list(train(state, Board(), SETTINGS, steps=2))
    assert equal(before, list(teacher.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(own, values(state), strict=True))


def test_a_state_of_another_network_is_refused():
    torch.manual_seed(0)
    small = begin(methods.lsd(AverageVelocity(MLP(2, width=4, depth=2))), SETTINGS)
    deep = begin(methods.lsd(AverageVelocity(MLP(2, width=8, depth=3))), SETTINGS)
    tensors = begin(objective(), SETTINGS).tensors()
    for state in (small, deep):
        with pytest.raises(ValueError, match="the checkpoint is of another network"):
            state.restore(tensors, 1)


# runs ----------------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("weights.safetensors"))}


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def quiet(text: str) -> None:
    pass


def open_run(recipe: Recipe, folder: Path, resume: bool = False) -> Run:
    return Run.open(recipe, folder, resume=resume, say=quiet)


def interrupt(run: Run, after: int, *, ctrl_c: bool) -> None:
    """Stop a run after some steps: at the keyboard within the next step, or as if its process was killed."""
    if not ctrl_c:
        steps = run.train()
        for _ in range(after):
            next(steps)
        steps.close()
        return
    source, count = run.source, itertools.count()

    class Interrupting(Source):
        units = source.units

        def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            if next(count) == after:
                raise KeyboardInterrupt
            return source.sample(number, generator)

        def to(self, device: torch.device | str) -> Source:
            return self

    run.source = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        list(run.train())


CASES = [("lmd", "linear", False), ("lsd", "trigonometric", False), ("pfmm", "linear", False), ("emd", "linear", True)]
CASES += [("progressive_distillation", "linear", False)]  # its target follows the map


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Path]]:
    method, path, learned = request.param
    recipe = dataclasses.replace(TINY, method=method, interpolant=path, learned_weight=learned)
    folder = tmp_path_factory.mktemp("unbroken") / method
    list(open_run(recipe, folder).train())
    return recipe, folder


@pytest.mark.parametrize("ctrl_c", [True, False], ids=["interrupted", "killed"])
@pytest.mark.parametrize("after", [0, 2, 3, 4, 5, 8])
def test_a_resumed_run_is_bit_identical(unbroken: tuple[Recipe, Path], tmp_path: Path, after: int, ctrl_c: bool):
    recipe, expected = unbroken
    interrupt(open_run(recipe, tmp_path / "run"), after, ctrl_c=ctrl_c)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    steps = [step for _, step in open_run(recipe, tmp_path / "run", resume=True).train()]
    assert len(steps) == 9 - after if ctrl_c else 9 - after <= len(steps) <= 9
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_run_interrupted_again_and_again(unbroken: tuple[Recipe, Path], tmp_path: Path):
    recipe, expected = unbroken
    interrupt(open_run(recipe, tmp_path / "run"), 1, ctrl_c=True)
    for ctrl_c in (True, False, True):
        interrupt(open_run(recipe, tmp_path / "run", resume=True), 2, ctrl_c=ctrl_c)
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)


def test_a_run_killed_while_its_result_is_written(unbroken: tuple[Recipe, Path], tmp_path: Path, monkeypatch):
    """The weights are there and the card is not yet: the run has not finished."""
    recipe, expected = unbroken
    run, write = open_run(recipe, tmp_path / "run"), checkpoint.write_atomically

    def fail(path: Path, content: bytes | str) -> Path:
        if Path(path) == tmp_path / "run" / "config.json":
            raise OSError("no space left")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", fail)
        with pytest.raises(OSError, match="no space"):
            list(run.train())
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)


def test_the_stages_of_a_run(unbroken: tuple[Recipe, Path]):
    recipe, folder = unbroken
    names = [(stage.name, stage.steps) for stage in stages(recipe)]
    two = {"lsd": [("map", 9)], "pfmm": [("strip", 5), ("map", 4)]}
    assert names == two.get(recipe.method, [("teacher", 4), ("map", 5)])
    logged = [(line["stage"], line["step"]) for line in log(folder)]
    assert logged == [(n, k) for n, last in names for k in range(1, last + 1) if k % 2 == 0 or k == last]
    for line in log(folder):
        assert {"stage", "step", "loss", "rate"} < set(line)
    loaded = folders.load_run(folder)
    assert loaded[0] == recipe
    assert (loaded[2] is None) is (recipe.method in ("lsd", "pfmm"))


def test_the_map_starts_from_its_teacher(tmp_path: Path):
    recipe = dataclasses.replace(TINY, method="lmd", optimiser=dataclasses.replace(SETTINGS, rate=1e-12))
    list(open_run(recipe, tmp_path / "run").train())
    first, last = (checkpoint.load(tmp_path / "run" / name) for name in ("teacher", "."))
    for a, b in zip(first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_seed_decides_everything(tmp_path: Path):
    made = {}
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        torch.manual_seed(hash(name) % 1000)  # the state of the process does not matter
        list(open_run(dataclasses.replace(TINY, method="psd", seed=seed), tmp_path / name).train())
        made[name] = weights(tmp_path / name)
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


def test_resuming_another_recipe_is_refused(tmp_path: Path):
    recipe = dataclasses.replace(TINY, method="lsd")
    interrupt(open_run(recipe, tmp_path / "run"), 2, ctrl_c=True)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for change, words in [
        ({"method": "esd"}, "begun with --method lsd, got esd"),
        ({"seed": 3}, "begun with --seed 0, got 3"),
        ({"optimiser": dataclasses.replace(SETTINGS, rate=0.5)}, "begun with --optimiser.rate 0.01, got 0.5"),
        ({"network": Network(width=9, depth=2)}, "begun with --network.width 8, got 9"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_run(dataclasses.replace(recipe, **change), tmp_path / "run", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    free = {"log_every": 1, "checkpoint_every": 50, "evaluation": Evaluation(samples=200)}
    list(open_run(dataclasses.replace(recipe, **free), tmp_path / "run", resume=True).train())


def test_resuming_with_other_data_is_refused(tmp_path: Path):
    """The file that the run began with was written anew: other points, another scaling."""
    data = tmp_path / "a.npy"
    np.save(data, np.random.default_rng(0).normal(size=(40, 2)))
    recipe = dataclasses.replace(TINY, method="lsd", data=str(data))
    interrupt(open_run(recipe, tmp_path / "run"), 2, ctrl_c=True)
    np.save(data, np.random.default_rng(1).normal(size=(40, 2)))
    with pytest.raises(ValueError, match=r"a.npy has changed since the run began"):
        open_run(recipe, tmp_path / "run", resume=True)


def test_a_finished_or_missing_run_is_not_resumed(unbroken: tuple[Recipe, Path], tmp_path: Path):
    recipe, folder = unbroken
    with pytest.raises(ValueError, match="has finished training: there is nothing to resume"):
        open_run(recipe, folder, resume=True)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        open_run(recipe, tmp_path / "nowhere", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no config.json"):
        open_run(recipe, tmp_path / "empty", resume=True)


@pytest.mark.parametrize("bad_at", [2, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path, bad_at: int):
    recipe = dataclasses.replace(TINY, method="lsd", log_every=100)
    run = open_run(recipe, tmp_path / "run")
    source, count = run.source, itertools.count()

    class Failing(Board):
        def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            x, labels = source.sample(number, generator)
            return (x * math.nan if next(count) == bad_at else x), labels

    run.source = Failing()
    with pytest.raises(ValueError, match=r"not finite at step \d .*lower --optimiser.rate"):
        list(run.train())
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    if (tmp_path / "run" / "state.safetensors").exists():
        tensors, about = checkpoint.load_tensors(tmp_path / "run" / "state.safetensors")
        assert about["step"] <= bad_at
        assert about["step"] == 3
        assert all(bool(value.isfinite().all()) for value in tensors.values())
    else:
        assert bad_at < recipe.checkpoint_every


def test_a_log_that_was_cut_short_is_still_read(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert folders.read_log(tmp_path) == [{"step": 1}, {"step": 2}]
    assert folders.read_log(tmp_path / "nowhere") == []
