"""A thousand damaged folders: each is used or refused in one line; nothing is executed, nothing written elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import random
import resource
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import MUTATORS

import flowmaps as fm
from flowmaps import commands, folders, initial, plans, report, sampling
from flowmaps.data import Source
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import Endpoint
from flowmaps.nn import MLP
from flowmaps.recipes import Evaluation, ImageEvaluation, ImageRecipe, Network, Optimiser, Recipe, UNetNetwork
from flowmaps.runs import Run

FEW = {"samples": 100, "points": 10, "chunk": 50, "steps": (1,), "euler": 1, "tolerance": 0.1}
SECONDS = {"evaluate": 10.0}
"""Of this process, that a use may take; others 2."""
MEMORY = 2**31  # bytes beyond what this process has at the start

# what may not happen --------------------------------------------------------------------------------------------------

FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn", "subprocess.Popen"}
FORBIDDEN |= {"pickle.find_class", "ctypes.dlopen", "code.__new__", "function.__new__"}
FORBIDDEN |= {"socket.connect", "socket.getaddrinfo", "urllib.Request", "ftplib.connect", "http.client.connect"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.symlink", "os.link", "os.truncate"}
LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), os.path.dirname(fm.__file__))
)
"""Modules may be imported late; what else is executed is not from a file, or from another."""


class Guard:
    """Watches what Python does while it is on: hooks cannot be removed."""

    def __init__(self) -> None:
        self.inside, self.seen, self.hooked = "", list[str](), False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.inside:
            return
        if event == "exec":
            if not os.path.realpath(given[0].co_filename).startswith(LIBRARIES):
                self.seen.append(f"{event} of {given[0].co_filename}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {given!r:.200}")
        elif (event == "open" and _writes(*given)) or event in CHANGES:
            paths = given[: 1 + (event in ("os.rename", "os.symlink", "os.link"))]
            outside = [path for path in paths if isinstance(path, (str, bytes, os.PathLike)) and not self._own(path)]
            self.seen += [f"{event} {path!r}" for path in outside]

    def _own(self, path: str | bytes | os.PathLike) -> bool:
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith(self.inside + os.sep) or path in (os.devnull, "/dev/tty")

    @contextlib.contextmanager
    def on(self, inside: Path) -> Iterator[list[str]]:
        """What was seen that is forbidden, writing outside a folder among it."""
        if not self.hooked:
            sys.addaudithook(self)
            self.hooked = True
        self.inside, self.seen = os.path.realpath(inside), []
        try:
            yield self.seen
        finally:
            self.inside = ""


def _writes(path: Any, mode: Any, flags: Any) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


GUARD = Guard()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever would take gigabytes fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# three folders --------------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"steps": 2, "teacher_steps": 2, "compile": False, "device": "cpu", "log_every": 1}
POINTS = Recipe(
    "tiny", data="checkerboard", network=Network(width=8, depth=2), optimiser=Optimiser(batch=8), **TINY,
    evaluation=Evaluation(**FEW),
)  # fmt: skip
UNET = UNetNetwork(width=8, multipliers=(1,), blocks=1, attention=(), head=8, patch=2, dropout=0.0)
IMAGES = ImageRecipe(
    "tiny-images", method="flow_matching", unet=UNET, optimiser=Optimiser(batch=8), **TINY,
    evaluation=ImageEvaluation(**FEW, features="efficientnet-lite0:32"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Base:
    """A whole folder, and what it was made of."""

    folder: Path
    recipe: Recipe | None = None
    source: Source | None = None
    described: dict[str, Any] = dataclasses.field(default_factory=dict)


def finished(recipe: Recipe, folder: Path) -> Base:
    """A run as it is when it has been trained and measured."""
    source, described = folders.source_of(recipe), folders.describe(recipe)
    flow_map, path = initial.new_map(recipe, source.shape, source.classes), plans.interpolant(recipe)
    extra = {**described, "seconds": 1.5, "units": dataclasses.asdict(source.units)}
    fm.save(flow_map, folder, interpolant=path, extra=extra)
    if recipe.method in plans.DISTILLED:
        fm.save(flow_map, folder / "teacher", interpolant=path, extra=extra)
    line = '{"stage": "map", "step": %d, "loss": 1.5, "diagonal": 1.0, "norm": null, "rate": 0.01, "seconds": 0.1}\n'
    (folder / "log.jsonl").write_text(line % 1 + line % 2)
    (folder / "metrics.json").write_text('{"recipe": "tiny", "rows": [{"sampler": "map", "steps": 1, "nfe": 1}]}\n')
    return Base(folder, recipe, source, described)


def unfinish(folder: Path) -> None:
    """Make of a finished run one that was interrupted."""
    for name in ("weights.safetensors", "metrics.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("bases")
    pixels = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    np.save(root / "pixels.npy", pixels)
    images = dataclasses.replace(IMAGES, data=str(root / "pixels.npy"))
    torch.manual_seed(0)
    path = WithNoise(Linear(), 0.3)
    saved = fm.save(Endpoint(MLP(3, width=8, classes=4)), root / "saved", interpolant=path, extra={"note": ["a", 1]})
    made = {"points": finished(POINTS, root / "points"), "images": finished(images, root / "images")}
    for name, base in made.items():  # annotations are executed too, once
        shutil.copytree(base.folder, root / "first" / name)
        (root / "first" / "out").mkdir(exist_ok=True)
        for late in (False, True):
            if late:
                unfinish(root / "first" / name)
            for use in uses(base, root / "first" / name, whole=not late).values():
                complaint(use)
    return made | {"saved": Base(saved)}


# what is done with each -----------------------------------------------------------------------------------------------

Use = Callable[[], Any]


def uses(base: Base, folder: Path, whole: bool) -> dict[str, Use]:
    """What a user may do with a folder; with `whole` what takes a second too."""

    def shown() -> None:
        recipe = folders.read_recipe(folder)
        rows = [{"sampler": "map", "steps": 1, "nfe": 1}]
        out = folder.parent / "out"
        report.write(out, recipe.name, dataclasses.asdict(recipe), rows, {}, commands.notes(recipe, folder))

    recipe, described = base.recipe or POINTS, base.described
    found: dict[str, Use] = {
        "load": lambda: fm.load(folder),
        "load_interpolant": lambda: fm.load_interpolant(folder),
        "read_recipe": lambda: folders.read_recipe(folder),
        "read_log": lambda: folders.read_log(folder),
        "load_run": lambda: folders.load_run(folder),
        "check_resumable": lambda: folders.check_resumable(folder, recipe, described),
        "sample": lambda: sampling.sample(folder, folder.parent / "out" / "x.npz", 4, 3, None, 0),
        "report": shown,
        "resume": lambda: Run.open(recipe, folder, resume=True, say=str)._lock.release(),  # type: ignore[union-attr]
    }
    return found | ({"evaluate": lambda: commands.evaluate(folder, FEW, None)} if whole else {})


def complaint(use: Use, seconds: float = 60.0) -> str | None:
    """What is wrong with how a folder is used: not refused in one line, or not in time."""
    begun = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
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

    for module in ("commands", "measure"):
        monkeypatch.setattr(f"flowmaps.{module}.open_features", lambda spec: image_cases.Means())


@pytest.mark.parametrize("name", ["points", "images", "saved"])
def test_whole_folders_are_used(bases: dict[str, Base], name: str, tmp_path: Path):
    """What is refused below is refused for its damage."""
    base = bases[name]
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "out").mkdir()
    for use, call in uses(base, tmp_path / "run", whole=True).items():
        refused = use in ("check_resumable", "resume") or (name == "saved" and not use.startswith(("load", "read_log")))
        with contextlib.redirect_stdout(io.StringIO()):
            if refused or (name == "saved" and use == "load_run"):
                with pytest.raises(ValueError, match=r"has finished training|no recipe"):
                    call()
            else:
                call()


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
@pytest.mark.parametrize("name", ["points", "images", "saved"])
def test_damaged_folders_are_used_or_refused_in_one_line(
    bases: dict[str, Base], name: str, kind: str, tmp_path: Path, little_memory: None
):
    base, (mutate, number), wrong = bases[name], MUTATORS[kind], []
    for seed in range(number):
        place = tmp_path / str(seed)
        shutil.copytree(base.folder, place / "run")
        (place / "out").mkdir()
        rng = random.Random(f"{name} {kind} {seed}")
        if base.recipe is not None and kind != "tensors" and rng.random() < 0.2:
            unfinish(place / "run")
        said = mutate(rng, place / "run")
        with GUARD.on(place) as seen:
            for use, call in uses(base, place / "run", whole=seed % 25 == 0).items():
                if (words := complaint(call, SECONDS.get(use, 2.0))) is not None:
                    wrong.append(f"{seed} ({said}): {use}: {words}")
        wrong += [f"{seed} ({said}): {event}" for event in seen]
        shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {number}:\n" + "\n".join(wrong)
