"""A thousand damaged folders, or a share of them: each is used or refused in one line; nothing is executed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amount import cases
from mutations import MUTATORS
from run_cases import kill
from watching import GUARD

import flowmaps as fm
from flowmaps.cli import commands, sampling
from flowmaps.data import Source, fingerprint
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import Endpoint
from flowmaps.nn import MLP
from flowmaps.reports import report
from flowmaps.runs.average import Average
from flowmaps.runs.folder import RunFolder, open_source
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Evaluation, ImageEvaluation, ImageRecipe, Network, Optimiser, Recipe, UNetNetwork
from flowmaps.runs.run import Run
from flowmaps.training.log import read_log
from flowmaps.training.settings import values

FEW = {"samples": 100, "points": 10, "batch": 50, "steps": (1,), "solver_steps": 1, "solver_tolerance": 0.1}
SECONDS = {"evaluate": 10.0}
"""Of this process, that a use may take; others 2."""
FOREVER = 30.0
"""Seconds by the clock: what takes longer waits for something."""
MEMORY = 2**31  # bytes beyond what this process has at the start


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever would take gigabytes fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# five folders ---------------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"steps": 4, "teacher_steps": 2, "compile": False, "device": "cpu", "log_every": 1}
TINY |= {"checkpoint_every": 1, "keep_checkpoints": 2, "store_averages_every": 1, "show_every": 0}
OPTIMISER = Optimiser(batch=8, ema_decays=(0.5,), ema_widths=(0.1,))
POINTS = Recipe(
    "tiny", data="checkerboard", network=Network(width=8, depth=2), optimiser=OPTIMISER, **TINY,
    evaluation=Evaluation(**FEW),
)  # fmt: skip
UNET = UNetNetwork(width=8, multipliers=(1,), blocks=1, attention=(), head=8, patch=2, dropout=0.0)
IMAGES = ImageRecipe(
    "tiny-images", method="flow_matching", unet=UNET, optimiser=OPTIMISER, **TINY,
    evaluation=ImageEvaluation(**FEW, features="efficientnet-lite0:32"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Base:
    """A whole folder, and what it was made of."""

    folder: Path
    recipe: Recipe | None = None
    source: Source | None = None
    data_sha256: str | None = None


def trained(recipe: Recipe, folder: Path) -> dict[str, Base]:
    """A run that was killed with two checkpoints, and the same when it has been trained and measured."""
    name, steps = folder.name, sum(stage.steps for stage in resolve(recipe).stages)
    halted = folder.with_name(f"halted {name}")
    kill(Run.open(recipe, halted, say=str), steps - 1)
    shutil.copytree(halted, folder)
    for _ in Run.open(recipe, folder, resume=True, say=str).train():
        pass
    (folder / "metrics.json").write_text('{"recipe": "tiny", "rows": [{"sampler": "map", "steps": 1, "nfe": 1}]}\n')
    made = Base(folder, recipe, open_source(recipe), fingerprint(recipe.data))
    assert len(list((halted / "checkpoints").iterdir())) == 2
    assert len(list((folder / "averages").iterdir())) > 3
    return {name: made, halted.name: dataclasses.replace(made, folder=halted)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("bases")
    pixels = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    np.save(root / "pixels.npy", pixels)
    images = dataclasses.replace(IMAGES, data=str(root / "pixels.npy"))
    torch.manual_seed(0)
    path = WithNoise(Linear(), 0.3)
    saved = fm.save(Endpoint(MLP(3, width=8, classes=4)), root / "saved", interpolant=path, extra={"note": ["a", 1]})
    made = trained(POINTS, root / "points") | trained(images, root / "images")
    for name, base in made.items():  # annotations are executed too, once
        shutil.copytree(base.folder, root / "first" / name / "run")
        (root / "first" / name / "out").mkdir()
        for use in uses(base, root / "first" / name / "run", whole=True).values():
            complaint(use)
    return made | {"saved": Base(saved)}


NAMES = ["points", "images", "halted points", "halted images", "saved"]

# what is done with each -----------------------------------------------------------------------------------------------

Use = Callable[[], Any]


def uses(base: Base, folder: Path, whole: bool) -> dict[str, Use]:
    """What a user may do with a folder; with `whole` what takes a second too."""

    def shown() -> None:
        run = RunFolder.open(folder)
        rows = [{"sampler": "map", "steps": 1, "nfe": 1}]
        out = folder.parent / "out"
        report.write(out, run.recipe.name, values(run.recipe), rows, {}, notes=commands.notes(run))

    def load_maps() -> None:
        run = RunFolder.open(folder)
        run.load_map()
        run.load_teacher()

    def resume() -> None:
        with contextlib.closing(Run.open(recipe, folder, resume=True, say=str).train()) as steps:
            next(steps)

    recipe = base.recipe or POINTS
    found: dict[str, Use] = {
        "load": lambda: fm.load(folder),
        "load_interpolant": lambda: fm.load_interpolant(folder),
        "read_recipe": lambda: RunFolder.open(folder).recipe,
        "read_log": lambda: read_log(folder),
        "load_maps": load_maps,
        "check_resumable": lambda: RunFolder.open(folder).check_resumable(resolve(recipe), base.data_sha256),
        "sample": lambda: sampling.sample(folder, folder.parent / "out" / "x.npz", number=3),
        "report": shown,
        "average": lambda: sampling.average(folder, folder.parent / "out" / "width", Average(width=0.08)),
        "resume": resume,
    }
    more: dict[str, Use] = {
        "average of a decay": lambda: sampling.average(folder, folder.parent / "out" / "decay", Average(decay=0.5)),
        "evaluate": lambda: commands.evaluate(RunFolder.open(folder), FEW, None),
    }
    return found | (more if whole else {})


class Late(BaseException):
    """A use waits for something that does not come, so that this process takes no time at all."""


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """End what waits."""

    def ring(*_: object) -> None:
        raise Late(f"{FOREVER} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, FOREVER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def complaint(use: Use, seconds: float = 60.0) -> str | None:
    """What is wrong with how a folder is used: not refused in one line, or not in time."""
    begun = time.process_time()
    try:
        with alarm(), contextlib.redirect_stdout(io.StringIO()):
            use()
    except (ValueError, OSError) as error:
        words = str(error)
        if type(error) is not ValueError and not isinstance(error, OSError):
            return f"{type(error).__name__}: {words[:200]}"
        if not words or len(words) > 1_000 or not words.isprintable():
            return f"no clear line: {words[:200]!r}"
    except BaseException as error:  # of Rust's too, which is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
        return f"{type(error).__name__}: {str(error)[:200]} in {where}"
    took = time.process_time() - begun
    return f"took {took:.1f} s" if took > seconds else None


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that need no network of their own."""
    import image_cases

    for module in ("runs.preflight", "evaluation.measure"):
        monkeypatch.setattr(f"flowmaps.{module}.open_features", lambda spec: image_cases.Means())


@pytest.mark.parametrize("name", NAMES)
def test_whole_folders_are_used(bases: dict[str, Base], name: str, tmp_path: Path):
    """What is refused below is refused for its damage."""
    base = bases[name]
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "out").mkdir()
    allowed = {
        "saved": {"load", "load_interpolant", "read_log"},
        "halted": {"read_recipe", "read_log", "check_resumable", "resume", "report"},
    }.get(name.split()[0])
    for use, call in uses(base, tmp_path / "run", whole=True).items():
        with contextlib.redirect_stdout(io.StringIO()):
            if use in allowed if allowed else use not in ("check_resumable", "resume"):
                call()
            else:
                with pytest.raises(
                    ValueError, match=r"has finished training|no recipe|did not finish|has no interpolant"
                ):
                    call()


def test_a_use_that_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though it takes no time of this process."""
    monkeypatch.setattr("test_fuzzed_folders.FOREVER", 0.2)
    os.mkfifo(tmp_path / "pipe")
    assert (complaint((tmp_path / "pipe").read_bytes) or "").startswith("Late: 0.2 s")


def test_the_guard_sees_what_is_forbidden(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with GUARD.on(tmp_path / "run") as seen:
        (tmp_path / "run" / "own").write_text("")
        assert not seen
        exec("1")
        pickle.loads(b"cos\ngetcwd\n.")
        os.system("true")
        (tmp_path / "escape").write_text("")
        os.rename(tmp_path / "escape", tmp_path / "run" / "taken")
    assert [words.split()[0] for words in seen] == ["exec", "pickle.find_class", "os.system", "open", "os.rename"]


@pytest.mark.parametrize("kind", MUTATORS)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_folders_are_used_or_refused_in_one_line(
    bases: dict[str, Base], name: str, kind: str, tmp_path: Path, little_memory: None
):
    base, (mutate, of_all), wrong = bases[name], MUTATORS[kind], []
    number = cases(of_all, 0.05)
    for seed in range(number):
        place = tmp_path / str(seed)
        shutil.copytree(base.folder, place / "run")
        (place / "out").mkdir()
        rng = random.Random(f"{name} {kind} {seed}")
        said = mutate(rng, place / "run")
        with GUARD.on(place) as seen:
            for use, call in uses(base, place / "run", whole=seed % 25 == 0).items():
                if (words := complaint(call, SECONDS.get(use, 2.0))) is not None:
                    wrong.append(f"{seed} ({said}): {use}: {words}")
        wrong += [f"{seed} ({said}): {event}" for event in seen]
        shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {number}:\n" + "\n".join(wrong)
