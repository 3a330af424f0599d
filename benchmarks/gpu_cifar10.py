"""The parts of benchmarks/gpu_cifar10.sh, which says how to run them: train, pack the weights, measure, report.

A part goes on from the run folder where that is still there, with Adam's moments and all, else from the packed
weights in the folder of results; it ends in time, packs what it reached, and says what is due next. What is measured,
and what the map learns from as its teacher, are the packed weights, rounded to bf16, wherever it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_report as report
import gpu_speed as speed
import gpu_weights as weights
import torch
from gpu_fit import samples_that_fit
from gpu_plan import LENGTHS, MAPS, SAMPLES, SECOND, TEACHER, Plan, about, due, measured, say
from gpu_weights import pack, unpack

from flowmaps.cli import commands
from flowmaps.cli.terminal import watching
from flowmaps.data import Source, resolve
from flowmaps.evaluation.measure import open_features
from flowmaps.runs import plan as plans
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.run import Run
from flowmaps.system.devices import pick_device
from flowmaps.training.log import read_log

MARK = "packed.json"  # in a run folder that was made from packed weights: their card


def opened(plan: Plan, name: str) -> Run:
    """A run to go on with: in its folder if that got as far as what is packed, else from what is packed, else anew."""
    recipe, folder, found = plan.recipe(name), plan.runs / name, plan.packed(name)
    if found:
        weights.read_shards(found[0], name)  # before anything is removed
    with watching("data") as watch:
        if (state := _state(folder)) and state["step"] >= (found[1]["step"] if found else 0):
            return Run.open(recipe, folder, resume=True, say=say, watch=watch)
        shutil.rmtree(folder, ignore_errors=True)
        run = Run.open(recipe, folder, say=say, watch=watch)
    if found:
        unpack(found[0], run)
        say(f"{name} goes on from the weights packed at step {found[1]['step']:,}")
    return run


def _state(folder: Path) -> dict[str, Any] | None:
    """What the last checkpoint of a run says of itself, its step and seconds; `None` where none can be read."""
    try:
        return weights.read_state(folder)[1]
    except ValueError:
        return None


def restored(plan: Plan, name: str) -> tuple[Path, Source | None]:
    """The folder of a finished run, with its packed weights; and the data, if they were read for it.

    Raises:
        ValueError: it is not trained yet, or its files are damaged.
    """
    found, folder = plan.packed(name), plan.runs / name
    if found is None or not found[1]["done"]:
        at = f"at step {found[1]['step']:,}" if found else "not begun"
        raise ValueError(f"{name} has to be trained first, it is {at}: run gpu_cifar10.sh without a part.")
    mark = (found[0] / f"{name}.json").read_text(encoding="utf-8")
    if (folder / MARK).exists() and (folder / MARK).read_text(encoding="utf-8") == mark:
        return folder, None
    if name == "lmd":
        restored(plan, TEACHER)
    weights.read_shards(found[0], name)  # before anything is removed
    shutil.rmtree(folder, ignore_errors=True)
    run = Run.open(plan.recipe(name), folder, say=say)
    unpack(found[0], run)
    commands.follow(run)  # no step is left: it writes the map and its card
    (folder / MARK).write_text(mark, encoding="utf-8")
    return folder, run.source


def train(plan: Plan, name: str) -> None:
    """A part of training: as many steps as fit in the time."""
    if name == "lmd":
        restored(plan, TEACHER)
    folder = plan.runs / name
    if weights.finished(folder) and not (folder / MARK).exists():  # a part that was cut off before it had packed
        pack(folder, plan.out / "weights")
        report.write(plan.found(), plan.out)
        return
    run = opened(plan, name)
    before = _state(folder) or {"step": 0, "seconds": 0.0}
    part = _speed(plan, run)
    speed.begin_peak(pick_device(plan.device))
    end = time.monotonic() + plan.left()
    try:
        commands.follow(run, lambda: time.monotonic() > end)
    except KeyboardInterrupt:  # the run has saved its state: what it reached is packed
        say("interrupted")
    card = pack(folder, plan.out / "weights")
    part |= {
        "part": name,
        "first": before["step"],
        "last": card["step"],
        "seconds": card["seconds"] - before["seconds"],
    }
    part["peak_bytes"] = speed.peak(pick_device(plan.device), run.recipe, run.source, folder)
    if pace := speed.steps_a_second(read_log(folder), before["step"]):
        part["images_per_second"] = pace * part["batch"]
        part["mfu"] = pace * part["operations"] / part["ceiling"]
    found = plan.found()
    report.add_part(found, part | about(plan, name))
    report.write(found, plan.out)


def _speed(plan: Plan, run: Run) -> report.Found:
    """What a part says of its speed before it has begun.

    Raises:
        ValueError: the weights of such a network would take too much room.
    """
    parameters = sum(p.numel() for p in run.flow_map.parameters())
    weights.room(parameters, len(plan.names))
    recipe, device = run.recipe, pick_device(plan.device)
    operations = speed.operations(recipe, run.source, run.folder.path, device)
    ceiling = speed.ceiling(device, recipe.precision)
    per_image = operations / recipe.optimiser.batch / 1e9
    say(
        f"{run.folder.path.name}: {parameters / 1e6:.2f} million parameters, {per_image:.3g} Gflop an image forward "
        f"and backward; a large product in {recipe.precision} runs at {ceiling / 1e12:.1f} TFLOP/s; "
        f"{plan.left():.0f} s are left to train"
    )
    part: report.Found = {"steps": plans.resolve(recipe).stages[-1].steps, "batch": recipe.optimiser.batch}
    part |= {"parameters": parameters, "operations": operations, "ceiling": ceiling, "precision": recipe.precision}
    return part | {"images_per_second": None, "mfu": None}


def measure(plan: Plan, name: str) -> None:
    """The figures of a trained map: of as many samples as fit in the time."""
    folder, source = restored(plan, name)
    settings = plan.recipe(name).evaluation
    run = RunFolder.open(folder)
    flow_map, teacher = run.load_map().to(run.device), run.load_teacher()
    teacher = teacher and teacher.to(run.device)
    source = run.open_source() if source is None else source
    number = samples_that_fit(teacher or flow_map, source.shape, settings, plan.left())
    if number < plan.samples:
        say(f"{plan.samples:,} samples a row do not fit in {plan.left():.0f} s: {number:,} are taken")
    changes = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    commands.evaluate(folder, changes | {"samples": number}, None, source)
    rows, more = report.rows_of(folder)
    found, packed = plan.found(), plan.packed(name)
    assert packed is not None
    kept = {"step": packed[1]["step"], "files": packed[1]["files"], "samples": number, "rows": rows}
    found["measured"][name] = kept | more | about(plan, f"measure-{name}")
    plan.out.mkdir(parents=True, exist_ok=True)
    found["measured"][name]["pictures"] = report.take_pictures(folder, plan.out)
    report.write(found, plan.out)


def take(plan: Plan, folder: Path) -> None:
    """Put what a machine handed back into the results, its weights checked first.

    Raises:
        ValueError: there is nothing in it, or its weights are damaged.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not (folder / report.METRICS).exists():
        raise ValueError(f"{folder} has no {report.METRICS}: give the folder that a part wrote into, its OUT.")
    cards = [path.stem for path in files if path.parent.name == "weights" and path.suffix == ".json"]
    for name in cards:
        weights.read_shards(folder / "weights", name)
    for path in sorted(files, key=lambda path: path.suffix == ".json"):  # cards last
        target = plan.results / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in cards:
        weights.tidy(plan.results / "weights", name)


def status(plan: Plan) -> None:
    """Say what there is, and what is due."""
    for name in plan.names:
        found = plan.packed(name)
        state = "not begun" if found is None else f"step {found[1]['step']:,}" + (", done" if found[1]["done"] else "")
        say(f"{name}: {state}{', measured' if name != TEACHER and measured(plan, name) else ''}")
    last = due(plan)
    say(
        f"next: {last} (bash benchmarks/gpu_cifar10.sh)"
        if last
        else f"nothing is due: see {plan.results}/{report.PAGE}"
    )


def parse(words: Sequence[str]) -> tuple[str, Path | None, Plan]:
    """The part, the folder of `take`, and the plan."""
    parts = ("next", TEACHER, *MAPS, "measure", *(f"measure-{name}" for name in MAPS), "status", "take")
    part, *words = words if words and not words[0].startswith("-") else ("next", *words)
    if part not in parts:
        raise ValueError(f"there is no part {part!r}: choose one of {', '.join(parts)}.")
    folder = Path(words.pop(0)) if part == "take" and words and not words[0].startswith("-") else None
    parser = argparse.ArgumentParser(
        usage="gpu_cifar10.py [PART] [options, and those of the recipes]",
        description=f"{__doc__}\nPART is one of {', '.join(parts)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="that a part may take in all")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of a row of figures, at most")
    parser.add_argument("--second", choices=MAPS[1:], default=SECOND, help="the map from data alone")
    parser.add_argument("--lengths", type=int, nargs=3, default=LENGTHS, help="steps of teacher, lmd, second")
    parser.add_argument("--results", type=Path, default=Path("results/cifar10"))
    parser.add_argument("--out", type=Path, help="where what is new goes, if not into the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu-cifar10"))
    given, options = parser.parse_known_args(words)
    second = part.removeprefix("measure-")
    values = vars(given) | {"second": second if second in MAPS[1:] else given.second, "lengths": tuple(given.lengths)}
    values |= {"out": given.out or given.results, "options": tuple(options), "begun": time.monotonic()}
    return part, folder, Plan(**values)


def check(plan: Plan) -> None:
    """Refuse what cannot run, before anything heavy starts.

    Raises:
        ValueError: there is no such device, no data, or no weights of the features.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"there is no CUDA device here (torch {torch.__version__}): run it on a machine with a GPU, or try it "
            "without by DEVICE=cpu and tiny options such as --unet.width 16 --lengths 20 20 20."
        )
    pick_device(plan.device)
    if min(plan.lengths) < 2 or plan.samples < 100 or not 0 <= plan.minutes <= 8:
        raise ValueError("--lengths must be at least 2, --samples at least 100, --minutes from 0 to 8.")
    recipe = plan.recipe(TEACHER)
    resolve(recipe.data)
    open_features(recipe.evaluation.features)


def run(words: Sequence[str]) -> None:
    """Do a part."""
    part, folder, plan = parse(words)
    if part == "take":
        if folder is None:
            raise ValueError("take needs the folder that was handed back: gpu_cifar10.sh take FOLDER.")
        take(plan, folder)
    elif part != "status":
        check(plan)
        wanted = due(plan) if part in ("next", "measure") else part
        if part == "measure" and wanted and not wanted.startswith("measure"):
            raise ValueError(f"there is no trained map that was not measured: {wanted} is due first.")
        if wanted and wanted.startswith("measure-"):
            measure(plan, wanted.removeprefix("measure-"))
        elif wanted and not plan.done(wanted):
            train(plan, wanted)
        weights.check_files(*dict.fromkeys((plan.results, plan.out)))
        say(f"{time.monotonic() - plan.begun:.0f} s")
    status(plan)


def main(words: Sequence[str] | None = None) -> None:
    """Run; exits with code 2 and a line after a user's error, 130 after an interruption."""
    try:
        run(sys.argv[1:] if words is None else words)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        print(f"gpu_cifar10: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
