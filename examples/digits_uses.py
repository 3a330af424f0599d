"""Digits changed into other digits, and restored: a map of both orders of time beside the flow of its teacher.

    python examples/digits_uses.py --out docs/images/uses      # some ten minutes on one core

1,500 handwritten digits of 8 x 8 pixels train a velocity by class and a map of it (LMD, both orders of (s, t)); the
other 297 are inverted, carried to other classes, and restored from observations. All is compared at equal evaluations:
`restore` asks the map, or the flow of the teacher by a solver in as many steps as are left for each of its jumps. One
step of Euler is the denoiser x + (1 - t) b_t(x), and `restore` with it is PnP-Flow (2410.02423).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
from torch import Tensor

import flowmaps as fm
from flowmaps.reports import figures
from flowmaps.reports.image_grid import image_grid

TRAINED, SHOWN, SHAPE = 1_500, 10, (1, 8, 8)
BUDGETS = (8, 32, 128, 512)
"""Evaluations of the network for each restored digit."""
Forward = Callable[[Tensor], Tensor]


def digits() -> tuple[Tensor, Tensor]:
    """All digits in [-1, 1], `(1797, 64)`, in an order drawn once, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return (torch.as_tensor(pixels, dtype=torch.float32) / 8 - 1)[order], torch.as_tensor(classes)[order]


def train(x: Tensor, labels: Tensor) -> tuple[fm.maps.FlowMap, fm.maps.FlowMap]:
    """The map that has the teacher's velocity, and the map that has learned its flow."""

    def fresh() -> fm.maps.FlowMap:
        return fm.maps.AverageVelocity(fm.nn.MLP(dim=64, width=512, depth=4, classes=10))

    torch.manual_seed(0)
    options = {"batch": 256, "learning_rate": 1e-3, "decay": "cosine", "device": "cpu", "compile": False}
    teacher = fm.fit(fm.methods.flow_matching(fresh()), (x, labels), steps=3_000, **options)
    objective = fm.methods.lmd(fresh(), teacher=teacher.velocity, times=fm.times.Square())
    return teacher, fm.fit(objective, (x, labels), steps=3_000, **options)


def operators() -> dict[str, Forward]:
    """Observations of a digit `(B, 64)`, all of norm 1 at most."""
    hole = torch.ones(SHAPE)
    hole[:, 2:6, 2:6] = 0
    small, seen = fm.uses.Downsample(2, SHAPE), fm.uses.Mask(hole)
    return {
        "the middle 4 x 4 pixels hidden": lambda x: seen(x.reshape(-1, *SHAPE)),
        "averaged to 4 x 4": lambda x: small(x.reshape(-1, *SHAPE)) / small.norm(),
    }


def restored(flow: fm.maps.FlowMap, each: int, budget: int, x: Tensor, labels: Tensor, operator: Forward) -> Tensor:
    """Digits restored in `budget` evaluations, `each` of them for a jump to the data, from pixels of -1."""
    draws = 2 if budget >= 4 * each else 1
    options = {"times": budget // (each * draws), "draws": draws, "generator": torch.Generator().manual_seed(1)}
    return fm.uses.restore(flow, operator(x), operator, -torch.ones_like(x), labels, **options)


def restoration(teacher: fm.maps.FlowMap, flow_map: fm.maps.FlowMap, x: Tensor, labels: Tensor, out: Path) -> None:
    """Print PSNR by evaluations, and draw the first digits."""
    ways: dict[str, tuple[fm.maps.FlowMap, int]] = {"the map": (flow_map, 1)}
    ways["denoiser of the teacher (PnP-Flow)"] = (fm.solvers.SolverFlow(teacher.velocity, method="euler", steps=1), 1)
    for steps in (4, 16):
        ways[f"flow of the teacher, {steps} steps of Euler"] = (
            fm.solvers.SolverFlow(teacher.velocity, method="euler", steps=steps),
            steps,
        )
    pictures, names = [x[:SHOWN]], ["data"]
    for title, operator in operators().items():
        print(f"{title:<40}" + "".join(f"{budget:>10,}" for budget in BUDGETS))
        for name, (flow, each) in ways.items():
            found = {n: restored(flow, each, n, x, labels, operator) for n in BUDGETS if n >= each}
            cells = [f"{float(fm.uses.psnr(found[n], x).mean()):.1f}" if n in found else "" for n in BUDGETS]
            print(f"  {name:<38}" + "".join(f"{cell:>10}" for cell in cells), flush=True)
            if name in ("the map", "denoiser of the teacher (PnP-Flow)"):
                pictures.append(found[32][:SHOWN])
                names.append(f"{name.split(' (')[0]}\n{title}")
    print(save(pictures, names, [str(int(k)) for k in labels[:SHOWN]], out / "restoration.png"))


def transfer(flow_map: fm.maps.FlowMap, x: Tensor, labels: Tensor, out: Path) -> None:
    """Print round-trip errors, and draw one digit of each class as all classes."""
    for to in (0.0, 0.3, 0.6):
        error = fm.uses.round_trip_error(flow_map, x, labels, to=to, steps=2)
        share = float(error.mean()) / fm.uses.inversion.spread(x)
        print(f"to t = {to:g} and back in 2 + 2 jumps: {share:.3f} of the spread")
    first = torch.stack([torch.nonzero(labels == k)[0, 0] for k in range(10)])
    own, classes = x[first], torch.arange(10)
    pictures, names = [own], ["data"]
    for to in (0.0, 0.3, 0.6):
        for k in (3, 8):
            target = torch.full_like(classes, k)
            pictures.append(fm.uses.transfer(flow_map, own, classes, target, to=to, steps=2, backwards=True))
            names.append(f"as {k}\nback to t = {to:g}")
    print(save(pictures, names, [str(k) for k in range(10)], out / "transfer.png"))


def save(rows: list[Tensor], names: list[str], columns: list[str], path: Path) -> Path:
    """A picture of rows of digits."""
    pixels = ((torch.cat(rows) + 1) * 127.5).round().clamp(0, 255).byte().reshape(-1, *SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    return figures.save(
        image_grid(pixels.repeat_interleave(4, 2).repeat_interleave(4, 3), len(rows), names, columns=columns), path
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits-uses"), help="folder of the pictures")
    options = parser.parse_args()
    x, labels = digits()
    teacher, flow_map = train(x[:TRAINED], labels[:TRAINED])
    x, labels = x[TRAINED:], labels[TRAINED:]
    transfer(flow_map, x, labels, options.out)
    restoration(teacher, flow_map, x, labels, options.out)


if __name__ == "__main__":
    main()
