"""An average of the weights that nobody kept comes back from stored ones, and a fit that is poor says so."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from safetensors import torch as safetensors
from torch import Tensor

from flowmaps.storage.models import load_tensors, save_tensors
from flowmaps.training import averages, reconstruct
from flowmaps.training.averages import Averages, exponent
from flowmaps.training.reconstruct import Profile, fit_coefficients

NAMES = ["weight", "bias"]
Walk = tuple[Path, dict[tuple[int, float], list[Tensor]]]


def test_what_is_kept_is_found_again_exactly() -> None:
    profiles = [Profile(step, width) for step in range(50, 1001, 50) for width in (0.05, 0.1)]
    for index in (0, 7, 39):
        coefficients, error = fit_coefficients(profiles, profiles[index])
        torch.testing.assert_close(coefficients, torch.eye(40, dtype=torch.float64)[index], rtol=0, atol=1e-9)
        assert error < 1e-7


@pytest.mark.parametrize("target", [Profile(1000, 0.03), Profile(430, 0.07), Profile(1000, 0.25), Profile(30, 0.01)])
def test_a_fit_is_the_best_by_quadrature(target: Profile) -> None:
    profiles = [Profile(step, width) for step in (250, 500, 1000) for width in (0.05, 0.1)]
    tau = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100

    def sampled(profile: Profile) -> Tensor:
        gamma = exponent(profile.width)
        return (tau <= profile.step) * (gamma + 1) / profile.step * (tau / profile.step) ** gamma

    columns, wanted = torch.stack([sampled(profile) for profile in profiles], 1), sampled(target)
    # the condition by hand: all but the last coefficient are free, the last makes up the sum
    free = torch.linalg.lstsq(columns[:, :-1] - columns[:, -1:], (wanted - columns[:, -1])[:, None]).solution[:, 0]
    best = torch.cat([free, 1 - free.sum(0, keepdim=True)])
    coefficients, error = fit_coefficients(profiles, target)
    torch.testing.assert_close(coefficients, best, rtol=1e-3, atol=1e-3)
    left = (wanted - columns @ coefficients).norm() / wanted.norm()
    assert error == pytest.approx(left.item(), rel=1e-3)


def test_the_errors_are_those_in_the_docs() -> None:
    text = (ROOT / "docs" / "averages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \|$", text, re.M)
    assert len(rows) == 7
    for count, column in ((20, 1), (100, 2)):
        profiles = [Profile(1000 * k, width) for k in range(1, count + 1) for width in (0.05, 0.1)]
        for row in rows:
            _, error = fit_coefficients(profiles, Profile(1000 * count, float(row[0])))
            assert f"{error:.{len(row[column]) - 2}f}" == row[column]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """A run whose weights are a random walk, with 20 stored averages of two widths; and others tracked directly."""
    folder, others = tmp_path_factory.mktemp("run"), (0.06, 0.075, 0.12, 0.2)
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(7, 5, generator=generator), torch.randn(7, generator=generator)]
    kept, tracked = Averages(parameters, [0.9], [0.05, 0.1]), Averages(parameters, [0.9], others)
    seen: dict[tuple[int, float], list[Tensor]] = {}
    for step in range(1, 1001):
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        kept.update(parameters, step)
        tracked.update(parameters, step)
        if step % 50 == 0:
            averages.store(folder, "map", step, NAMES, kept)
        if step in (625, 1000):
            seen |= {(step, width): [v.clone() for v in tracked.values[f"width-{width:g}"]] for width in others}
    return folder, seen


def apart(one: dict[str, Tensor], other: list[Tensor]) -> float:
    """Relative distance of two sets of weights."""
    left = sum((one[name] - value).square().sum().item() for name, value in zip(NAMES, other, strict=True))
    return math.sqrt(left / sum(value.square().sum().item() for value in other))


def nearest(folder: Path, wanted: list[Tensor]) -> float:
    """How near a stored average comes, the best of all."""
    return min(apart(load_tensors(path)[0], wanted) for path in reconstruct.stored(folder, "map").values())


@pytest.mark.parametrize("width, within", [(0.06, 1e-4), (0.075, 1e-4), (0.12, 1e-4), (0.2, 2e-3)])
def test_a_width_that_was_not_kept_comes_back(walk: Walk, width: float, within: float) -> None:
    folder, seen = walk
    made = reconstruct.reconstruct(folder, "map", width)
    assert apart(made, seen[1000, width]) < min(within, nearest(folder, seen[1000, width]) / 100)
    assert made["weight"].dtype == torch.float32
    assert reconstruct.relative_error(folder, "map", width) < 0.02


def test_between_two_stored_averages_it_comes_back_less_well(walk: Walk) -> None:
    folder, seen = walk
    made, wanted = reconstruct.reconstruct(folder, "map", 0.075, step=625), seen[625, 0.075]
    assert apart(made, wanted) < min(0.01, nearest(folder, wanted) / 5)
    assert reconstruct.relative_error(folder, "map", 0.075, step=625) > 0.1  # no stored profile ends there


def test_a_poor_fit_says_so(walk: Walk) -> None:
    folder, _ = walk
    errors = [reconstruct.relative_error(folder, "map", width) for width in (0.075, 0.03, 0.01)]
    assert errors[0] < 0.01 < errors[1] < 0.1 < errors[2]


def test_weights_that_never_moved_come_back_whatever_the_fit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(7, 5, generator=generator), torch.randn(7, generator=generator)]
    kept = Averages(parameters, [0.9], [0.05])
    averages.store(tmp_path, "map", 10, NAMES, kept)
    averages.store(tmp_path, "map", 20, NAMES, kept)
    assert reconstruct.relative_error(tmp_path, "map", 0.28) > 0.5
    assert apart(reconstruct.reconstruct(tmp_path, "map", 0.28), parameters) < 1e-6


def small_run(folder: Path) -> Path:
    for step, width in ((10, 0.05), (20, 0.1)):
        kept = Averages([torch.ones(3), torch.ones(2)], [0.9], [width])
        averages.store(folder, "map", step, NAMES, kept)
    return folder / "averages" / "map-width-0.05-00000010.safetensors"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def make_plain(path: Path) -> None:
    path.write_bytes(safetensors.save({"weight": torch.ones(3)}))


def make_early(path: Path) -> None:
    save_tensors(path, {"weight": torch.ones(3), "bias": torch.ones(2)}, {"step": 0, "width": 0.05})


def rename(path: Path) -> None:
    save_tensors(path, {"weight": torch.ones(3), "shift": torch.ones(2)}, {"step": 10, "width": 0.05})


def reshape(path: Path) -> None:
    save_tensors(path, {"weight": torch.ones(3), "bias": torch.ones(1)}, {"step": 10, "width": 0.05})


@pytest.mark.parametrize(
    "about",
    [
        '{"step": Infinity, "width": 0.05}',
        '{"step": 1e400, "width": 0.05}',
        f'{{"step": {10**400}, "width": 0.05}}',
        f'{{"step": {2**60}, "width": 0.05}}',
        '{"step": 10.5, "width": 0.05}',
        '{"step": true, "width": 0.05}',
        '{"step": 10, "width": 1e-200}',
        '{"step": 10, "width": NaN}',
        '{"step": 10, "width": "0.05"}',
        '{"step": 10, "width": 1e400}',
        f'{{"step": 10, "width": 0.05, "more": "{"x" * 10_000}"}}',
        "[" * 100_000,
        "9" * 5_000,
        "[]",
    ],
)
def test_what_a_file_says_of_itself(about: str, tmp_path: Path) -> None:
    path = small_run(tmp_path)
    safetensors.save_file({"weight": torch.ones(3), "bias": torch.ones(2)}, path, metadata={"flowmaps": about})
    with pytest.raises(ValueError, match=r"no stored average, or is damaged .*: restore it, or move it") as said:
        reconstruct.stored(tmp_path, "map")
    assert len(str(said.value)) < 700


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_file_of_what_are_no_weights(kind: torch.dtype, tmp_path: Path) -> None:
    path = small_run(tmp_path)
    save_tensors(path, {"weight": torch.ones(3).to(kind), "bias": torch.ones(2)}, {"step": 10, "width": 0.05})
    with pytest.raises(ValueError, match=r"00000010.safetensors holds something else than weights: rest"):
        reconstruct.reconstruct(tmp_path, "map", 0.07)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = small_run(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"is no stored average, or is damaged \(it is no file\)"):
        reconstruct.reconstruct(tmp_path, "map", 0.07)


@given(st.lists(st.tuples(st.integers(1, 2**53), st.floats(1e-6, averages.MAX_WIDTH)), min_size=2, max_size=9))
@settings(max_examples=100, deadline=None)
def test_a_fit_to_any_profiles_is_of_numbers_that_add_up(drawn: list[tuple[int, float]]) -> None:
    target, *profiles = [Profile(*each) for each in drawn]
    coefficients, error = fit_coefficients(profiles, target)
    assert coefficients.isfinite().all()
    assert math.isfinite(error)
    assert coefficients.sum().item() == pytest.approx(1, abs=1e-6 * (1 + coefficients.abs().sum().item()))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (truncate, "map-width-0.05-00000010.safetensors is no stored average, or is damaged ("),
        (lengthen, "map-width-0.05-00000010.safetensors is no stored average, or is damaged ("),
        (make_plain, "is no stored average, or is damaged (TypeError: "),
        (make_early, "an average is over one step at least, got step 0: count steps from 1"),
        (
            rename,
            "map-width-0.1-00000020.safetensors and map-width-0.05-00000010.safetensors are of different networks",
        ),
        (reshape, "are of different networks: keep the averages of one run in"),
    ],
)
def test_files_that_are_spoilt(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    spoil(small_run(tmp_path))
    with pytest.raises(ValueError, match=re.escape(words)):
        reconstruct.reconstruct(tmp_path, "map", 0.07)


@pytest.mark.parametrize(
    "stage, width, step, words",
    [
        (
            "teacher",
            0.07,
            None,
            "has no stored averages of the stage 'teacher': train with --optimiser.ema-widths 0.05 0.1",
        ),
        ("map", 0.3, None, "a relative width is more than 0 and at most 0.288675 (the mean of all steps), got 0.3"),
        ("map", 0.07, 21, "averages is of step 20, got step 21: ask for one up to 20."),
        ("map", 1e-200, None, "a relative width is at least 1e-06, a millionth of the training, got 1e-200: try 0.05."),
        ("map", 0.07, 0, "an average is over one step at least, got step 0"),
    ],
)
def test_what_cannot_be_made(stage: str, width: float, step: int | None, words: str, tmp_path: Path) -> None:
    small_run(tmp_path)
    for ask in (reconstruct.reconstruct, reconstruct.relative_error):
        with pytest.raises(ValueError, match=re.escape(words)):
            ask(tmp_path, stage, width, step)
