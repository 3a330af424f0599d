"""Ways to take N steps with one map: equal jumps, a searched grid, noise on the way.

    python examples/sampling.py runs/checkerboard

The run is that of `make demo` (or of any `flowmaps train checkerboard`). Prints KL above its floor, in nats.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowmaps import grids, metrics
from flowmaps.exact import Checkerboard
from flowmaps.interpolants import Linear
from flowmaps.runs.folder import RunFolder
from flowmaps.samplers import GammaSampling, Jump, MultistepConsistency

NUMBER, STEPS = 250_000, (2, 3, 4)


def main(folder: Path) -> None:
    """Measure each way on the board that a run has learned."""
    run = RunFolder.open(folder)
    flow_map, source = run.load_map(), run.open_source()
    draw = torch.Generator().manual_seed(0)
    x0, fresh = torch.randn(NUMBER, 2, generator=draw), torch.randn(max(STEPS) - 1, NUMBER, 2, generator=draw)
    x1, _ = source.sample(4096, draw)
    costs = grids.semigroup_costs(flow_map, torch.randn(4096, 2, generator=draw), x1, Linear())
    board = Checkerboard()
    masses, floor = board.cell_masses(50), metrics.kl_floor(board, NUMBER, 0)

    def quality(x: torch.Tensor) -> str:
        return f"{metrics.kl(masses, source.to_data(x)) - floor:.4f}"

    table = Table("N", "equal jumps", "searched grid", "its times", "gamma 0.3", "multistep consistency")
    table.columns[3].no_wrap = True
    for n in track(STEPS, "sampling", transient=True):
        path = grids.shortest_path(costs, n)
        grid = [k / (len(costs) - 1) for k in path]
        ways = [
            quality(Jump(n)(flow_map, x0)),
            quality(Jump(grid=grid)(flow_map, x0)),
            " ".join(f"{t:.3g}" for t in grid),
            quality(GammaSampling(n, gamma=0.3)(flow_map, x0, fresh[: n - 1])),
            quality(MultistepConsistency([k / n for k in range(n)])(flow_map, x0, fresh[: n - 1])),
        ]
        table.add_row(str(n), *ways)
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} RUN      the folder of a run of the checkerboard, from `make demo`")
    main(Path(sys.argv[1]))
