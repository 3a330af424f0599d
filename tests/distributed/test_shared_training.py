"""Two processes train alike with copies of the weights (DDP) and with shares of them (FSDP2), and never disagree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from shared_training import CASES, STEPS, Left, everything
from together import together

SPOILT = [name for name, case in CASES.items() if case.bad is not None]
MUON = [name for name, case in CASES.items() if case.settings.kind == "muon"]
Table = list[dict[str, dict[str, Left]]]


@pytest.fixture(scope="module")
def tables() -> Table:
    """Of both processes."""
    return together(2, everything)


def gap(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], start: str = "") -> float:
    """The largest difference between tensors of one name, as a share of the largest entry of each."""
    assert found.keys() == expected.keys()
    gaps = [
        float(np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-12))
        for name, value in expected.items()
        if name.startswith(start) and value.size
    ]
    assert gaps
    return max(gaps)


@pytest.mark.parametrize("name", CASES)
def test_copies_and_shares_train_alike(tables: Table, name: str):
    """Weights, averages, targets and moments after five steps, and the norm of each gradient before it was clipped.

    Muon makes matrices orthogonal in bfloat16, in sums whose order differs: their last digit is 4e-3.
    """
    for table in tables:
        ddp, fsdp = table[name]["ddp"], table[name]["fsdp"]
        assert gap(fsdp.tensors, ddp.tensors) < (2e-3 if name in MUON else 1e-6)
        kinds = {key.split(".")[0] for key in ddp.tensors}
        assert {"parameter", "average", "optimiser"} <= kinds
        assert ("target" in kinds) == (name == "dit-target")
        assert (ddp.factor != 1) == name.startswith("float16")
        close = 2e-2 if name in MUON else 1e-5
        assert fsdp.norms == pytest.approx(ddp.norms, rel=close, nan_ok=True)
        assert max(ddp.moved) > 1e-3
        if name == "mlp-adam":
            averages = {key.split("/")[0] for key in ddp.tensors if key.startswith("average")}
            assert averages == {"average.decay-0.9", "average.decay-0.5", "average.width-0.1"}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_processes_have_the_same_weights_to_the_bit(tables: Table, name: str, kind: str):
    """Though each has rows of its own."""
    one, other = (table[name][kind] for table in tables)
    for key, value in one.tensors.items():
        np.testing.assert_array_equal(other.tensors[key], value, err_msg=key)
    assert other.norms == pytest.approx(one.norms, rel=0, abs=0, nan_ok=True)
    assert all(a != b for a, b in zip(one.losses, other.losses, strict=True))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_meet_once_a_step(tables: Table, name: str, kind: str):
    """However many parts it has."""
    assert [table[name][kind].meetings for table in tables] == [STEPS, STEPS]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", SPOILT)
def test_a_gradient_that_is_not_finite_in_one_process_is_a_step_that_all_skip(tables: Table, name: str, kind: str):
    """The third step leaves all weights as they were, and training goes on."""
    for table in tables:
        left = table[name][kind]
        assert left.skipped == 1
        assert [math.isfinite(norm) for norm in left.norms] == [True, True, False, True, True]
        assert [moved > 0 for moved in left.moved] == [True, True, False, True, True]
        assert all(np.isfinite(value).all() for value in left.tensors.values())
    assert sum(math.isfinite(table[name][kind].losses[2]) for table in tables) == 1


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_half_precision_is_close_to_float32_and_not_the_same(tables: Table, kind: str):
    """By autocast; float16 with a scale of the loss, which changes nothing but the rounding."""
    for table in tables:
        exact = table["float32"][kind]
        for name, close in (("bfloat16", 3e-2), ("float16", 3e-3)):
            found = table[name][kind]
            ratios = [a / b - 1 for a, b in zip(found.losses, exact.losses, strict=True)]
            assert 0 < max(map(abs, ratios)) < close
            assert found.skipped == 0
        assert table["float16"][kind].factor == 2.0**14


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_scale_that_is_too_large_is_halved_until_gradients_are_finite(tables: Table, kind: str):
    for table in tables:
        left = table["float16-overflow"][kind]
        lost = sum(not math.isfinite(norm) for norm in left.norms)
        assert 0 < lost < STEPS
        assert left.skipped == lost
        assert left.factor == 2.0 ** (14 - lost)
        assert [moved > 0 for moved in left.moved] == [math.isfinite(norm) for norm in left.norms]
