"""`fit` and `Trainer`: any objective, network and data; interrupted, resumed to the same bytes, made longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import log
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flowmaps as fm
from flowmaps.data import Board
from flowmaps.objectives import Objective
from flowmaps.training import Optimiser, Settings, Trainer
from flowmaps.training.guards import lock

ROWS = torch.randn(101, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(101) % 4
QUICK: dict[str, Any] = {"batch": 17, "checkpoint_every": 3, "log_every": 1}


class Net(nn.Module):
    """A user's own network."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(dim + 2, 8), nn.Tanh(), nn.Linear(8, dim))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0 if cond is None else cond[:, None] / 4
        return self.inner(torch.cat([x, s[:, None], t[:, None]], 1)) + shift


def objective(method: Callable[..., Objective] = fm.methods.lsd, dim: int = 3) -> Objective:
    torch.manual_seed(0)
    return method(fm.maps.AverageVelocity(Net(dim)))


def after(number: int) -> Callable[[], bool]:
    """A wish to stop after so many steps."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= number


def quiet(text: str) -> None:
    """Say nothing."""


def content(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


DATA: dict[str, Callable[[], Any]] = {
    "rows": lambda: ROWS,
    "pair": lambda: (ROWS, LABELS),
    "source": Board,
}


@pytest.mark.parametrize("kind", DATA)
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(kind: str, tmp_path: Path):
    dim, given = 2 if kind == "source" else 3, {**QUICK, "steps": 10, "say": quiet}
    fm.fit(objective(dim=dim), DATA[kind](), tmp_path / "a", **given)
    for step in (2, 5):
        fm.fit(objective(dim=dim), DATA[kind](), tmp_path / "b", **given, stop=after(step))
        assert not (tmp_path / "b" / "weights.safetensors").exists()
    fm.fit(objective(dim=dim), DATA[kind](), tmp_path / "b", **given)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert log(tmp_path / "a") == log(tmp_path / "b")
    assert [line["step"] for line in log(tmp_path / "a")] == list(range(1, 11))
    assert {"loss", "diagonal", "lagrangian", "norm", "rate"} <= log(tmp_path / "a")[0].keys()


def test_a_folder_that_is_trained_gives_its_map_again(tmp_path: Path):
    for decay in ("constant", "cosine"):
        given = {**QUICK, "steps": 4, "decay": decay, "say": quiet}
        first = fm.fit(objective(), ROWS, tmp_path / decay, **given)
        before = content(tmp_path / decay)
        again = fm.fit(objective(), ROWS, tmp_path / decay, **given)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not again.training
        assert content(tmp_path / decay) == before
        loaded = fm.load(tmp_path / decay, net=Net())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), loaded.parameters(), strict=True))


def test_a_training_of_a_constant_rate_can_be_made_longer(tmp_path: Path):
    """It is then the longer training, to the byte: also where it was finished."""
    fm.fit(objective(), ROWS, tmp_path / "long", **QUICK, steps=9, say=quiet)
    fm.fit(objective(), ROWS, tmp_path / "short", **QUICK, steps=4, say=quiet)
    fm.fit(objective(), ROWS, tmp_path / "short", **QUICK, steps=9, say=quiet)
    assert content(tmp_path / "long") == content(tmp_path / "short")


@pytest.mark.parametrize(
    ("settings", "method", "words"),
    [
        ({"decay": "cosine"}, fm.methods.lsd, "its learning rate falls along the cosine schedule"),
        ({}, fm.methods.alphaflow, "its objective has a schedule that runs to the last step"),
    ],
)
def test_a_training_with_a_schedule_cannot_be_made_longer(
    settings: dict[str, Any], method: Callable[..., Objective], words: str, tmp_path: Path
):
    given = {**QUICK, **settings, "say": quiet}
    fm.fit(objective(method), ROWS, tmp_path, **given, steps=6, stop=after(4))
    with pytest.raises(ValueError, match=rf"the number of steps cannot change from 6 to 9: {words}"):
        fm.fit(objective(method), ROWS, tmp_path, **given, steps=9)
    fm.fit(objective(method), ROWS, tmp_path, **given, steps=6)
    with pytest.raises(ValueError, match="has a training of 6 steps, which cannot change to 9"):
        fm.fit(objective(method), ROWS, tmp_path, **given, steps=9)


def test_fewer_steps_than_are_taken_are_refused(tmp_path: Path):
    fm.fit(objective(), ROWS, tmp_path, **QUICK, steps=6, say=quiet)
    with pytest.raises(ValueError, match="6 steps are taken already, got 5 in all"):
        fm.fit(objective(), ROWS, tmp_path, **QUICK, steps=5, say=quiet)


class Positioned(list):
    """Batches that can be asked where they are."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches)
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        while self.next < len(self):
            self.next += 1
            yield self[self.next - 1]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def test_an_iterable_that_can_be_asked_for_its_position_is_resumed_to_the_byte(tmp_path: Path):
    batches = list(ROWS.split(17))[:5]
    fm.fit(objective(), Positioned(batches), tmp_path / "a", **QUICK, steps=8, say=quiet)
    fm.fit(objective(), Positioned(batches), tmp_path / "b", **QUICK, steps=8, say=quiet, stop=after(4))
    fm.fit(objective(), Positioned(batches), tmp_path / "b", **QUICK, steps=8, say=quiet)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_data_loader_trains_and_says_that_its_resume_is_not_to_the_bit(tmp_path: Path):
    said: list[str] = []
    loader = DataLoader(TensorDataset(ROWS, LABELS), batch_size=20, drop_last=True)
    given = {**QUICK, "steps": 7, "say": said.append}  # more steps than the five batches
    fm.fit(objective(), loader, tmp_path, **given, stop=after(4))
    assert not any("not bit-exact" in text for text in said)
    fm.fit(objective(), loader, tmp_path, **given)
    assert any("not bit-exact" in text for text in said)
    assert [line["step"] for line in log(tmp_path)] == list(range(1, 8))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.arange(12).reshape(4, 3), r"floating-point rows \(N, \*shape\), got torch.int64 \(4, 3\)"),
        (torch.full((4, 3), float("nan")), "data must be finite"),
        (
            (ROWS, torch.tensor([[0.0, float("nan")]] * len(ROWS))),
            "conditions must be finite, or all NaN in a row .* row 0",
        ),
        ((ROWS, torch.full((len(ROWS),), float("inf"))), "conditions must be finite"),
        ((ROWS, LABELS[:5]), r"a row for each of the 101 rows of data, got \(5,\)"),
        (7, "got a int"),
        ("board.npy", "got a str"),
        ([("a", "b")], "a batch is a tensor x1, or a pair"),
        (ROWS.double(), r"the data are torch.float64, the weights of the network torch.float32: convert one"),
        ([ROWS.double()], "the data are torch.float64"),
        ((ROWS, LABELS, LABELS), r"a pair \(rows, conditions\), got 3 entries"),
        ([(ROWS[:8], LABELS[:3])], r"a row for each of the 8 rows of data, got \(3,\)"),
        ([], "the data are an iterable without a batch"),
        (iter(ROWS.split(20)[:3]), "the data have no batch any more: give fewer steps, or an iterable"),
    ],
)
def test_data_of_another_kind_are_refused(data: Any, words: str):
    with pytest.raises(ValueError, match=words):
        fm.fit(objective(), data, steps=4, say=quiet)


def test_a_setting_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"unknown setting 'checkpoint_evry': did you mean 'checkpoint_every'\?"):
        fm.fit(objective(), ROWS, steps=3, checkpoint_evry=5)


def test_conditions_may_be_a_tree():
    class Tree(Net):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            return super().forward(x, s, t) + cond["a"] + cond["b"][0]

    torch.manual_seed(0)
    tree = {"a": ROWS, "b": (2 * ROWS, LABELS)}
    made = fm.methods.flow_matching(fm.maps.AverageVelocity(Tree()))
    losses = [float(step.loss.value) for step in Trainer(made, (ROWS, tree), steps=3, say=quiet)]
    assert len(set(losses)) == 3


def test_the_steps_of_a_trainer_are_those_of_fit(tmp_path: Path):
    """The loop body sees the map with its EMA, which is not the trained weights; and nothing of that shows later."""
    fitted = fm.fit(objective(), ROWS, steps=6, batch=17, seed=3, learning_rate=0.02, ema_decay=0.5, say=quiet)
    trainer = Trainer(
        made := objective(),
        ROWS,
        tmp_path,
        steps=6,
        optimiser=Optimiser(batch=17, learning_rate=0.02, decay="constant", ema_decay=0.5),
        settings=Settings(seed=3),
    )
    numbers = []
    for step in trainer:
        numbers.append(step.number)
        with trainer.averaged() as flow_map:
            averaged = [value.clone() for value in flow_map.parameters()]
            assert not flow_map.training
        own = list(made.flow_map.parameters())
        assert step.number == 1 or not all(torch.equal(a, b) for a, b in zip(averaged, own, strict=True))
    assert (numbers, trainer.step, trainer.stopped) == ([1, 2, 3, 4, 5, 6], 6, None)
    trainer.finish()
    pairs = zip(fitted.parameters(), made.flow_map.parameters(), averaged, strict=True)
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in pairs)


def test_a_trainer_saves_when_it_is_told(tmp_path: Path):
    trainer = Trainer(objective(), ROWS, tmp_path, steps=5, say=quiet)
    for step in trainer:
        if step.number == 2:
            trainer.save()
            break
    again = Trainer(objective(), ROWS, tmp_path, steps=5, say=quiet)
    assert again.resume()
    assert (again.step, again.resumed_from) == (2, "map-00000002")
    assert not Trainer(objective(), ROWS, tmp_path / "new", steps=5).resume()
    with pytest.raises(ValueError, match="resume needs the folder of a training, got none"):
        Trainer(objective(), ROWS, steps=5).resume()


def test_a_folder_is_of_one_training_at_a_time(tmp_path: Path):
    held = lock(tmp_path)
    with pytest.raises(ValueError, match=r"another run is writing into .*: wait for it to end"):
        fm.fit(objective(), ROWS, tmp_path, steps=3, say=quiet)
    held.release()
    fm.fit(objective(), ROWS, tmp_path, steps=3, say=quiet)


def test_a_map_that_fit_did_not_train_is_left_alone(tmp_path: Path):
    fm.save(fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2)), tmp_path)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"holds a config\.json that fit did not write: choose another folder"):
        fm.fit(objective(), ROWS, tmp_path, steps=3, say=quiet)
    assert content(tmp_path) == before


def test_accumulated_parts_need_batches_of_the_size_that_was_given():
    with pytest.raises(ValueError, match="gradient accumulation takes batches of 16 rows, got 20"):
        fm.fit(objective(), list(ROWS.split(20)), steps=3, batch=16, accumulate=2, say=quiet)


def test_a_sigterm_saves_and_ends(tmp_path: Path):
    """And the training goes on to the bytes of one that was left alone."""
    code = """
        import sys, time, torch, flowmaps as fm
        torch.manual_seed(0)
        rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        objective = fm.methods.psd(fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2)))
        def stop():
            print("step", flush=True)
            time.sleep(0.2)
            return False
        fm.fit(objective, rows, sys.argv[1], steps=30, batch=16, device="cpu", stop=stop)
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "step" in process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        said = process.stdout.read()
        process.wait(60)
    assert process.returncode == 0
    assert said.count("SIGTERM: training stops after this step; Ctrl-C stops it at once.\n") == 1
    assert "of 30 steps (SIGTERM): call fit again to go on" in said
    (name,) = os.listdir(tmp_path / "a" / "checkpoints")
    assert 1 <= int(name.split("-")[1]) < 30
    for folder in ("a", "b"):
        torch.manual_seed(0)
        rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        made = fm.methods.psd(fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2)))
        fm.fit(made, rows, tmp_path / folder, steps=30, batch=16, device="cpu", say=quiet)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_progress_is_told_of(monkeypatch: pytest.MonkeyPatch):
    said = list[str]()
    monkeypatch.setattr(sys.modules["flowmaps.training.fit"], "REPORT_SECONDS", -1.0)
    fm.fit(objective(), ROWS, steps=9, say=said.append)
    assert any(text.startswith("step ") and "of 9: loss " in text for text in said)


# another training, wrong arguments, a user's own things ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": lambda: objective(fm.methods.psd)}, "begun with another objective"),
        ({"objective": lambda: fm.methods.lsd(fm.maps.Endpoint(Net()))}, "begun with another map, AverageVelocity"),
        ({"interpolant": fm.interpolants.Trigonometric()}, "begun with another interpolant"),
        ({"batch": 16}, "begun with another batch, 17, got 16"),
        ({"seed": 4}, "begun with another seed, 0, got 4"),
        ({"learning_rate": 0.5}, "begun with another learning_rate"),
        ({"data": ROWS + 1}, "begun with another data"),
    ],
)
@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize("ends", [False, True])
def test_a_folder_is_of_one_training(change: dict[str, Any], words: str, decay: str, ends: bool, tmp_path: Path):
    """Another map, loss, step or data is refused, while it trains and when it has ended; the folder stays as it is."""
    given = {**QUICK, "steps": 6, "decay": decay, "say": quiet}
    fm.fit(objective(), ROWS, tmp_path, **given, stop=None if ends else after(4))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    made, data = change.get("objective", objective)(), change.get("data", ROWS)
    if "interpolant" in change:
        made = objective(lambda flow_map: fm.methods.lsd(flow_map, interpolant=change["interpolant"]))
    settings = {name: value for name, value in change.items() if name not in ("objective", "data", "interpolant")}
    with pytest.raises(ValueError, match=words):
        fm.fit(made, data, tmp_path, **{**given, **settings})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    fm.fit(objective(), ROWS, tmp_path, **given)


class Own(fm.maps.FlowMap):
    """A map of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def average_velocity(self, x: Any, s: Any, t: Any, cond: Any = None) -> Any:
        return self.net(x, s, t)


class Untold(Own):
    """One whose argument is no attribute, so that no card can tell it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.scaled_by = factor


def test_a_map_of_ones_own_is_read_again(tmp_path: Path):
    torch.manual_seed(0)
    trained = fm.fit(fm.methods.lsd(Own()), ROWS, tmp_path, **QUICK, steps=3, say=quiet)
    loaded = fm.load(tmp_path)
    assert type(loaded) is Own
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_map_of_ones_own_keeps_its_weights(decay: str, tmp_path: Path):
    from safetensors.torch import load_file

    torch.manual_seed(0)
    said: list[str] = []
    given = {**QUICK, "steps": 5, "decay": decay, "say": said.append}
    trained = fm.fit(fm.methods.lsd(Untold()), ROWS, tmp_path, **given)
    assert any(
        "has only the weights, for load_state_dict; fm.load cannot rebuild the map: only maps" in text for text in said
    )
    stored = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in trained.state_dict().items())
    again = fm.fit(fm.methods.lsd(Untold()), ROWS, tmp_path, **given)
    assert all(torch.equal(value, stored[name]) for name, value in again.state_dict().items())


def test_a_trainer_is_iterated_again(tmp_path: Path):
    """After a `break` or a wish to stop it goes on; when it is done nothing is lost."""
    whole = fm.fit(objective(), ROWS, tmp_path / "a", **QUICK, steps=6, say=quiet)
    made = objective()
    optimiser = Optimiser(batch=17, learning_rate=1e-3, decay="constant")
    settings = Settings(checkpoint_every=3, log_every=1)
    trainer = Trainer(made, ROWS, tmp_path / "b", steps=6, optimiser=optimiser, settings=settings, say=quiet)
    for _ in trainer:
        break
    trainer.stop = after(2)
    assert [step.number for step in trainer] == [2, 3]
    trainer.stop = lambda: False
    assert [step.number for step in trainer] == [4, 5, 6]
    assert list(trainer) == []
    trainer.finish()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), made.flow_map.parameters(), strict=True))
    assert [line["step"] for line in log(tmp_path / "b")] == [1, 2, 3, 4, 5, 6]


def test_a_trainer_takes_its_steps_in_one_loop_at_a_time():
    """Two would take each other's steps; one that is closed or left makes room for the next."""
    trainer = Trainer(objective(), ROWS, steps=4, say=quiet)
    first, second = iter(trainer), iter(trainer)
    assert next(first).number == 1
    with pytest.raises(ValueError, match="this training is in another loop already: end that one first"):
        next(second)
    assert next(first).number == 2
    first.close()
    assert [step.number for step in trainer] == [3, 4]


def test_a_compiled_network_is_saved_without_the_compiler(tmp_path: Path):
    """Under the names that its weights have without; and a training goes on with the network compiled or not."""
    given = {**QUICK, "steps": 4, "say": quiet}
    made = fm.maps.AverageVelocity(torch.compile(Net(), backend="eager"))  # type: ignore[arg-type]
    fm.fit(fm.methods.flow_matching(made), ROWS, tmp_path / "fit", **given)
    fm.save(made, tmp_path / "saved")
    for folder in (tmp_path / "fit", tmp_path / "saved"):
        loaded = fm.load(folder, net=Net())
        pairs = zip(loaded.parameters(), made.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    again = fm.load(tmp_path / "saved", net=torch.compile(Net(), backend="eager"))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.parameters(), strict=True))
    made = fm.maps.AverageVelocity(Net())
    trained = fm.fit(fm.methods.flow_matching(made), ROWS, tmp_path / "fit", **given)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))


def test_ddp_may_look_for_unused_parameters(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    home = sys.modules["flowmaps.training.fit"]
    began = home.start

    def start(device: str, **options: Any) -> Any:
        asked.append(options["find_unused_parameters"])
        return began(device, **options)

    monkeypatch.setattr(home, "start", start)
    fm.fit(objective(), ROWS, steps=1, find_unused_parameters=True, say=quiet)
    fm.fit(objective(), ROWS, steps=1, say=quiet)
    assert asked == [True, False]


def test_checkpoints_are_not_trained_over(tmp_path: Path):
    fm.fit(objective(), ROWS, tmp_path, **QUICK, steps=6, say=quiet, stop=after(4))
    before = log(tmp_path)
    with pytest.raises(ValueError, match=r"has checkpoints of a training that has begun: call resume\(\)"):
        list(Trainer(objective(), ROWS, tmp_path, steps=6, say=quiet))
    assert log(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"clip": 0.0}, "clip must be above 0, got 0"),
        ({"decay": "cosin"}, "decay must be one of cosine, linear, constant, got cosin"),
        ({"precision": "bf16"}, "precision must be one of float32, bfloat16, float16, got bf16"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"track": ("mlflow",)}, "track must be a list, each entry of it one of tensorboard"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        fm.fit(objective(), ROWS, **{"steps": 3, "say": quiet, **settings})


def test_what_is_no_objective_is_refused():
    with pytest.raises(ValueError, match="a training needs an objective, got AverageVelocity: build one from a map"):
        fm.fit(fm.maps.AverageVelocity(Net()), ROWS, steps=3)  # type: ignore[arg-type]
    made = objective()
    made.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train: all are frozen"):
        fm.fit(made, ROWS, steps=3)


def test_an_error_of_the_data_is_not_one_of_the_folder(tmp_path: Path):
    def batches() -> Iterator[Tensor]:
        yield ROWS[:8]
        raise FileNotFoundError("image 7")

    with pytest.raises(FileNotFoundError, match="image 7"):
        fm.fit(objective(), batches(), tmp_path, steps=3, say=quiet)


def test_skipped_steps_are_told_of():
    said: list[str] = []
    batches = [ROWS[:8], torch.full((8, 3), float("nan"))]
    fm.fit(objective(), batches, steps=6, say=said.append)
    assert any("3 of 6 steps were skipped" in text for text in said)


def test_a_part_in_evaluation_mode_stays_there():
    """A frozen part with dropout, which its user has put into evaluation mode."""
    made = objective()
    made.flow_map.net.add_module("frozen", torch.nn.Dropout(0.5).eval())  # type: ignore[operator]
    trainer = Trainer(made, ROWS, steps=2, say=quiet)
    for _ in trainer:
        assert made.flow_map.training
        assert not made.flow_map.net.frozen.training  # type: ignore[union-attr]
        with trainer.averaged() as flow_map:
            assert not flow_map.training


def test_a_map_that_was_loaded_trains_with_dropout(tmp_path: Path):
    made = objective()
    made.flow_map.eval()
    for _ in Trainer(made, ROWS, steps=1, say=quiet):
        assert made.flow_map.training


def test_the_weights_in_training_are_saved_not_the_averages(tmp_path: Path):
    trainer = Trainer(objective(), ROWS, tmp_path, steps=2, say=quiet)
    for _ in trainer:
        with trainer.averaged(), pytest.raises(ValueError, match=r"not possible inside `with averaged\(\)`"):
            trainer.save()


def test_the_random_numbers_of_a_loop_are_its_own():
    """What the body draws goes on from step to step, as if nothing were trained, and changes nothing that is."""

    def trained(draws: bool) -> tuple[list[Tensor], list[Tensor]]:
        own = objective()
        own.flow_map.net.inner.insert(1, nn.Dropout(0.5))
        torch.manual_seed(3)
        drawn = [torch.rand(2) for _ in Trainer(own, ROWS, steps=4, optimiser=Optimiser(batch=8)) if draws]
        return drawn, list(own.parameters())

    torch.manual_seed(3)
    expected = [torch.rand(2) for _ in range(4)]
    (drawn, one), (_, two) = trained(True), trained(False)
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
