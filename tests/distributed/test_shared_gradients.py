"""The gradient of two processes, each with a part of the rows, is that of one process with all of them.

    1/2 (grad L(first part) + grad L(second part)) = grad L(all rows),    L the mean over rows

for every method, stage and network, whatever derivatives of the network are in L: what is shared is the module whose
forward is the whole loss.
"""

from __future__ import annotations

import functools

import pytest
from shared_cases import NETS, stages
from shared_gradients import Row, table
from together import together

OWN = [f"{net}:{name}" for net in NETS for name in stages(net)]
EVERY = [f"{net}:{name}" for net in NETS for name in stages(net, every=True)]
GROUPS = {"first": OWN[::2], "rest": OWN[1::2] + [case for case in EVERY if case not in OWN]}
"""The second group is slow; a group is computed at once, by two processes."""
CASES = [
    pytest.param(group, case, id=case, marks=[pytest.mark.slow] if group == "rest" else [])
    for group, cases in GROUPS.items()
    for case in cases
]


@functools.cache
def tables(group: str) -> list[dict[str, Row]]:
    """Of both processes."""
    return together(2, table, GROUPS[group])


@pytest.mark.parametrize(("group", "case"), CASES)
def test_two_processes_give_the_gradient_of_the_full_batch(group: str, case: str):
    """By DDP and by FSDP2, to 1e-6 of the largest entry; half of the rows alone would be off by more than 1e-2."""
    for rows in tables(group):
        row = rows[case]
        assert row["apart"] > 1e-2
        assert row["ddp"] < 1e-6
        assert row["fsdp"] < 1e-6
        assert row["missing"] == case.startswith("mlp-idle")
