"""What a process does in the tests of gradients: its part of a draw, through a shared module, and all of it alone."""

from __future__ import annotations

import copy
import time

from shared_cases import ROWS, alone, draw, gap, gradients, objective

from flowmaps.system import processes
from flowmaps.system.processes import full
from flowmaps.training.distributed import Placement, start
from flowmaps.training.state import LossModule

Row = dict[str, float]
"""Of a case: the errors under each way of sharing, how far the gradient of one part is from that of the whole, how many
weights have no gradient, and seconds of the processor."""


def table(cases: list[str]) -> dict[str, Row]:
    """The row of each NET:OBJECTIVE."""
    fsdp, ddp = start("cpu", shard=True), (start("cpu"), start("cpu", find_unused_parameters=True))
    rows = {}
    for case in cases:
        net, name = case.split(":")
        rows[case] = _row(net, name, {"ddp": ddp[net == "mlp-idle"], "fsdp": fsdp})
    return rows


def _row(net: str, name: str, kinds: dict[str, Placement]) -> Row:
    begun, made = time.process_time(), objective(net, name)
    whole = draw(made, net)
    rows = made.micro_batches(ROWS, processes.ranks())[processes.rank()]
    mine = whole.micro_batch(rows)
    expected, local = alone(made, whole), alone(made, mine)
    row = {"apart": gap(local, expected), "missing": float(sum(value is None for value in expected.values()))}
    for kind, placement in kinds.items():
        shared = copy.deepcopy(made)
        module = placement.wrap(LossModule(shared, shared.evaluate))
        module(mine).value.backward()
        row[kind] = gap({key: None if g is None else full(g) for key, g in gradients(shared).items()}, expected)
    return row | {"seconds": time.process_time() - begun}
