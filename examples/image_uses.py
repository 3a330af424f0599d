"""Images changed into other classes, and restored: a map beside the flow of its teacher, at equal evaluations.

    python examples/image_uses.py --out docs/images/uses                          # digits: some ten minutes on one core
    python examples/image_uses.py --run results/gpu/lmd --out docs/images/uses    # CIFAR-10, of a run: some ten more

Without `--run`, 1,500 handwritten digits of 8 x 8 pixels train a velocity by class and a map of it (LMD, both orders of
(s, t)), and the other 297 are taken. A run brings its map, its teacher and its data, of which held-out ones are taken;
where its map was not trained backwards, images go back by the teacher's ODE.

`restore` asks the map, or the flow of the teacher by a solver in as many steps as are left for each of its jumps. One
step of Euler is the denoiser x + (1 - t) b_t(x), and `restore` with it is PnP-Flow (2410.02423).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import flowmaps as fm
from flowmaps.reports import figures
from flowmaps.reports.image_grid import image_grid

TRAINED, SHOWN = 1_500, 10
BUDGETS = (8, 32, 128, 512)
"""Evaluations of the network for each restored image."""
BACK = (0.0, 0.3, 0.6)
"""Times to which images are taken back."""


class Subject(NamedTuple):
    """A map, its teacher, and images in [-1, 1] that neither has seen, `(N, *shape)`, with their classes."""

    flow_map: fm.maps.FlowMap
    teacher: fm.maps.FlowMap
    x: Tensor
    labels: Tensor
    names: tuple[str, ...]
    targets: tuple[int, int]
    backwards: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 8, 8) if self.x.ndim == 2 else tuple(self.x.shape[1:])  # type: ignore[return-value]


def digits(steps: int, number: int | None) -> Subject:
    """A velocity of digits by class and a map of it, trained here."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    def fresh() -> fm.maps.FlowMap:
        return fm.maps.AverageVelocity(fm.nn.MLP(dim=64, width=512, depth=4, classes=10))

    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x, labels = (torch.as_tensor(pixels, dtype=torch.float32) / 8 - 1)[order], torch.as_tensor(classes)[order]
    torch.manual_seed(0)
    rows = x[:TRAINED], labels[:TRAINED]
    options = {"batch": 256, "learning_rate": 1e-3, "decay": "cosine", "device": "cpu", "compile": False}
    teacher = fm.fit(fm.methods.flow_matching(fresh()), rows, steps=steps, **options)
    objective = fm.methods.lmd(fresh(), teacher=teacher.velocity, times=fm.times.Square())
    flow_map = fm.fit(objective, rows, steps=steps, **options)
    kept = slice(TRAINED, None if number is None else TRAINED + number)
    return Subject(flow_map, teacher, x[kept], labels[kept], tuple("0123456789"), (3, 8), True)


def of_run(folder: Path, number: int) -> Subject:
    """The map, the teacher and data of a run of images, on this machine's processor."""
    from flowmaps.runs.folder import RunFolder

    run = RunFolder.open(folder)
    source = run.open_source().to("cpu")
    x, labels = source.reference(number, torch.Generator().manual_seed(0))
    if not isinstance(labels, Tensor) or not source.units.pixels:
        raise SystemExit(f"{folder} is no run of images with classes")
    flow_map, teacher = (fm.load(path) for path in (folder, folder / "teacher"))
    names = source.units.names or tuple(map(str, range(source.units.classes or 0)))
    return Subject(flow_map, teacher, x, labels, names, (len(names) // 3, len(names) - 1), run.plan.both_orders)


def operators(shape: tuple[int, int, int]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Observations of images, all of norm 1 at most."""
    side, quarter = shape[1], shape[1] // 4
    hole = torch.ones(shape)
    hole[:, quarter:-quarter, quarter:-quarter] = 0
    small, seen = fm.uses.Downsample(2, shape), fm.uses.Mask(hole)
    return {
        f"middle {side // 2} x {side // 2} hidden": lambda x: seen(x.reshape(-1, *shape)),
        f"averaged to {side // 2} x {side // 2}": lambda x: small(x.reshape(-1, *shape)) / small.norm(),
    }


def restored(
    of: Subject, flow: fm.maps.FlowMap, each: int, budget: int, operator: Callable[[Tensor], Tensor]
) -> Tensor:
    """Images restored in `budget` evaluations, `each` of them for a jump to the data, from pixels of -1 or 0."""
    draws = 2 if budget >= 4 * each else 1
    options = {"times": budget // (each * draws), "draws": draws, "generator": torch.Generator().manual_seed(1)}
    start = -torch.ones_like(of.x) if of.x.ndim == 2 else torch.zeros_like(of.x)
    return fm.uses.restore(flow, operator(of.x), operator, start, of.labels, **options)


def restoration(of: Subject, budgets: tuple[int, ...], path: Path) -> None:
    """Print PSNR by evaluations, and draw the first images."""

    def euler(steps: int) -> tuple[fm.maps.FlowMap, int]:
        return fm.solvers.SolverFlow(of.teacher.velocity, method="euler", steps=steps), steps

    ways: dict[str, tuple[fm.maps.FlowMap, int]] = {"the map": (of.flow_map, 1)}
    ways |= {"denoiser of the teacher (PnP-Flow)": euler(1)}
    ways |= {f"flow of the teacher, {steps} steps of Euler": euler(steps) for steps in (4, 16)}
    shown = 32 if 32 in budgets else budgets[-1]
    pictures, names = [of.x[:SHOWN]], ["data"]
    for title, operator in operators(of.shape).items():
        print(f"{title:<40}" + "".join(f"{budget:>10,}" for budget in budgets))
        for name, (flow, each) in ways.items():
            found = {n: restored(of, flow, each, n, operator) for n in budgets if n >= each}
            cells = [f"{float(fm.uses.psnr(found[n], of.x).mean()):.1f}" if n in found else "" for n in budgets]
            print(f"  {name:<38}" + "".join(f"{cell:>10}" for cell in cells), flush=True)
            if each == 1:
                pictures.append(found[shown][:SHOWN])
                names.append(f"{name.split(' (')[0]}\n{title}")
    print(save(of, pictures, names, [of.names[k] for k in of.labels[:SHOWN].tolist()], path))


def transfer(of: Subject, path: Path) -> None:
    """Print round-trip errors, and draw one image of each class as two others."""

    def back(x: Tensor, labels: Tensor, to: float) -> Tensor:
        if of.backwards:
            return fm.uses.invert(of.flow_map, x, labels, to=to, steps=2, backwards=True)
        one = torch.ones(len(x))
        solved = fm.solvers.SolverFlow(of.teacher.velocity, method="midpoint", steps=20)
        return solved(x, one, one * to, labels).detach()

    def forth(z: Tensor, labels: Tensor, to: float) -> Tensor:
        return fm.uses.generate(of.flow_map, z, labels, start=to, steps=2)

    first = torch.stack([torch.nonzero(of.labels == k)[0, 0] for k in range(len(of.names)) if (of.labels == k).any()])
    own, labels = of.x[first], of.labels[first]
    pictures, names = [own], ["data"]
    for to in BACK:
        z = back(of.x, of.labels, to)
        share = fm.uses.inversion.relative_error(forth(z, of.labels, to), of.x)
        way = "2 jumps" if of.backwards else "40 evaluations of the teacher"
        print(f"to t = {to:g} in {way} and back in 2 jumps: {share:.3f} of the spread", flush=True)
        for k in of.targets:
            pictures.append(forth(z[first], torch.full_like(labels, k), to))
            names.append(f"as {of.names[k]}\nback to t = {to:g}")
    print(save(of, pictures, names, [of.names[k] for k in labels.tolist()], path))


def save(of: Subject, rows: list[Tensor], names: list[str], columns: list[str], path: Path) -> Path:
    """A picture of rows of images."""
    pixels = ((torch.cat(rows) + 1) * 127.5).round().clamp(0, 255).byte().reshape(-1, *of.shape)
    times = 32 // of.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    large = pixels.repeat_interleave(times, 2).repeat_interleave(times, 3) if times > 1 else pixels
    return figures.save(image_grid(large, len(rows), names, columns=columns), path)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/image-uses"), help="folder of the pictures")
    parser.add_argument("--run", type=Path, help="a run of images with classes, instead of digits trained here")
    parser.add_argument("--number", type=int, help="images; all 297 digits, 40 of a run")
    parser.add_argument("--steps", type=int, default=3_000, help="of each training on digits")
    parser.add_argument("--budgets", type=int, nargs="+", help="evaluations an image; 8 32 128 512, of a run 8 32 128")
    options = parser.parse_args(given)
    if options.run is None:
        of, budgets, mark = digits(options.steps, options.number), BUDGETS, ""
    else:
        of, budgets, mark = of_run(options.run, options.number or 40), BUDGETS[:-1], "-cifar10"
    with torch.no_grad():
        transfer(of, options.out / f"transfer{mark}.png")
    restoration(of, tuple(options.budgets or budgets), options.out / f"restoration{mark}.png")


if __name__ == "__main__":
    main()
