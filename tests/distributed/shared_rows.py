"""What a process does in the tests of rows: the draws of some steps, unbroken and resumed."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from shared_cases import NETS, SETTINGS, objective

from flowmaps.objectives import SplitRows
from flowmaps.training.distributed import start
from flowmaps.training.loop import train
from flowmaps.training.state import State, begin
from flowmaps.velocities import RandomInputs

STEPS, BREAK = 6, 2
Drawn = dict[str, np.ndarray]


def drawn(batch: int, name: str = "lsd", shard: bool = False) -> tuple[list[Drawn], list[Drawn], int]:
    """Draws of all steps; of the steps after `BREAK` in a training that goes on from there; rows of the first part."""
    placement, settings = start("cpu", shard=shard), replace(SETTINGS, batch=batch)
    source, made = NETS["mlp"].source(), objective("mlp", name)

    def fresh() -> State:
        return begin(copy.deepcopy(made), settings, placement=placement)

    state, kept, whole = fresh(), None, []
    for step in train(state, source, settings, steps=STEPS, seed=5):
        whole.append(_arrays(step.draw))
        if step.number == BREAK:
            kept = {key: value.detach().clone() for key, value in state.tensors().items()}, state.about()
    state = fresh()
    assert kept is not None
    tensors, about = kept
    state.restore(tensors, about)
    resumed = [_arrays(step.draw) for step in train(state, source, settings, steps=STEPS, seed=5)]
    return whole, resumed, made.rows_of_first(len(whole[0]["s"])) if isinstance(made, SplitRows) else 0


def _arrays(draw: RandomInputs) -> Drawn:
    return {name: getattr(draw, name).numpy() for name in ("x0", "x1", "s", "t", "split")}
