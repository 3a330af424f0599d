"""Reconstruct power-function averages of any width from those that a run stored (post-hoc EMA).

Averages are linear in their profiles, so weights averaged with p = sum_j c_j p_j are sum_j c_j theta_j. The profile of
a target is matched by those of the stored averages, each with a step and a width of its own, in least squares,

    min_c int (p(tau) - sum_j c_j p_j(tau))^2 dtau    such that    sum_j c_j = 1,

for which only inner products are needed. For power functions of the exponents a, b at the times r <= t they are

    int_0^r (a + 1) tau^a / r^{a + 1}  (b + 1) tau^b / t^{b + 1} dtau = (a + 1) (b + 1) / (a + b + 1)  (r / t)^b / t.

Because the coefficients sum to 1, constant weights are reproduced exactly even when the fit is poor.

Karras et al., Analyzing and improving the training dynamics of diffusion models, 2024, arXiv 2312.02696 (appendix C,
without the condition).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..storage import cards
from ..storage.models import load_tensors
from .averages import FOLDER, exponent

MAX_HEADER_LETTERS = 10_000  # of what a stored average says of itself
MAX_STEP = 2**53


@dataclass(frozen=True, order=True)
class Profile:
    """A power-function average: the number of steps that it is over, and its relative width.

    Raises:
        ValueError: there is no such step or width.
    """

    step: int
    width: float

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"an average is over one step at least, got step {self.step}: count steps from 1.")
        if self.step > MAX_STEP:
            raise ValueError(f"an average is over at most {MAX_STEP} steps, got step {self.step}: count steps from 1.")
        exponent(self.width)


def stored(folder: Path, stage: str) -> dict[Profile, Path]:
    """The files of the averages that a stage of a run has stored, by step and width; only their headers are read.

    Args:
        folder: of the run.
        stage: name of the stage.

    Raises:
        ValueError: there are none, or one is damaged.
    """
    paths = sorted((folder / FOLDER).glob(f"{glob.escape(stage)}-width-*.safetensors"))
    if not paths:
        raise ValueError(
            f"{folder / FOLDER} has no stored averages of the stage {stage!r}: train with --optimiser.ema-widths "
            "0.05 0.1, which stores them."
        )
    found = {_profile_of(path): path for path in paths}
    return dict(sorted(found.items()))


def fit_coefficients(profiles: Iterable[Profile], target: Profile) -> tuple[Tensor, float]:
    """The coefficients with which stored profiles best approximate a target.

    Args:
        profiles: N stored ones.
        target: the profile to approximate.

    Returns:
        The coefficients (N,), float64, their sum 1; and the relative error of the fit, the norm of what is left of the
        target over the norm of the target, from 0 (to about 1e-8, where float64 ends).
    """
    profiles = list(profiles)
    gram, onto = _products(profiles, profiles), _products(profiles, [target])[:, 0]
    # profiles and target of norm 1: what is solved for is the coefficients times `lengths`
    norms, size = gram.diagonal().sqrt(), _products([target], [target])[0, 0].sqrt()
    gram, onto, lengths = gram / norms / norms[:, None], onto / norms / size, norms / size
    inverse = torch.linalg.pinv(gram, hermitian=True)  # pseudo-inverse: stable for nearly collinear profiles
    free, along = inverse @ onto, inverse @ (1 / lengths)
    scaled = free + along * (1 - (free / lengths).sum()) / (along / lengths).sum()
    left = 1 - 2 * scaled @ onto + scaled @ gram @ scaled
    return scaled / lengths, left.clamp(min=0).sqrt().item()


def relative_error(folder: Path, stage: str, width: float, step: int | None = None) -> float:
    """How far the profile of an average is from what `reconstruct` makes of it, as a share of its norm.

    With tens of stored averages it is less than 0.01 for widths between theirs, at the step of one of them. It grows
    for narrower widths, for much wider ones, and between two of their steps. Arguments and errors as there; no weights
    are read.
    """
    kept = stored(folder, stage)
    return fit_coefficients(kept, _target(folder, kept, width, step))[1]


def reconstruct(folder: Path, stage: str, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The power-function average of any width, made of the stored ones of a run, read one file after the other.

    Args:
        folder: of the run.
        stage: name of the stage, such as `map` or `teacher`.
        width: relative width, in [1e-6, 12^{-1/2}].
        step: the average is over the steps up to this one; those up to the last stored average unless given.

    Returns:
        The weights by the names of the parameters, in the type in which they were stored. Sums are in float64.

    Raises:
        ValueError: there are no stored averages, or they are damaged or of different networks; the width is out of
            range, or the step is after the last stored average.
    """
    kept = stored(folder, stage)
    coefficients, _ = fit_coefficients(kept, _target(folder, kept, width, step))
    first, total, types = next(iter(kept.values())), {}, {}
    for path, coefficient in zip(kept.values(), coefficients.tolist(), strict=True):
        tensors, _ = load_tensors(path)
        if not total:
            total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in tensors.items()}
            types = {name: value.dtype for name, value in tensors.items()}
        if not all(value.dtype in cards.TYPES for value in tensors.values()):
            raise ValueError(f"{path} holds something else than weights: restore it, or move it away and do without.")
        if {name: v.shape for name, v in tensors.items()} != {name: v.shape for name, v in total.items()}:
            raise ValueError(
                f"{path} and {first.name} are of different networks: keep the averages of one run in {path.parent}, "
                "move the others away."
            )
        for name, value in tensors.items():
            total[name].add_(value, alpha=coefficient)
    return {name: total.pop(name).to(kind) for name, kind in types.items()}  # no second copy of all


def _target(folder: Path, kept: dict[Profile, Path], width: float, step: int | None) -> Profile:
    """The average that is asked for, checked against what there is."""
    last = max(profile.step for profile in kept)
    if step is not None and step > last:
        raise ValueError(
            f"the last average in {folder / FOLDER} is of step {last}, got step {step}: ask for one up to {last}."
        )
    return Profile(last if step is None else step, width)


def _profile_of(path: Path) -> Profile:
    """The step and the width in a header.

    Raises:
        ValueError: the file is damaged, or something else.
    """
    try:
        if not path.is_file():  # also rejects named pipes; reading one would block
            raise ValueError("it is no file")
        with safe_open(path, framework="pt") as file:
            said = file.metadata()["flowmaps"]
        if len(said) > MAX_HEADER_LETTERS:
            raise ValueError(f"its description has {len(said):,} letters, at most {MAX_HEADER_LETTERS:,} are allowed")
        about = cards.parse(said)
        if type(about["step"]) is not int or not cards.is_number(about["width"]):
            raise ValueError("its step or its width is no number")
        return Profile(about["step"], float(about["width"]))
    except (SafetensorError, ValueError, *cards.BUILD_ERRORS) as error:
        raise ValueError(
            f"{path} is no stored average, or is damaged ({cards.reason(error)}): restore it, or move it away "
            "and do without."
        ) from None


def _products(first: list[Profile], second: list[Profile]) -> Tensor:
    """Inner products of profiles, (N, M), float64."""
    r, a = _columns(first)
    t, b = _columns(second)
    r, a, t, b = r[:, None], a[:, None], t[None], b[None]
    earlier, later = torch.minimum(r, t), torch.maximum(r, t)
    return (a + 1) * (b + 1) / (a + b + 1) * (earlier / later) ** torch.where(r <= t, b, a) / later


def _columns(profiles: list[Profile]) -> tuple[Tensor, Tensor]:
    """Steps and exponents, (N,) each, float64."""
    steps = torch.tensor([profile.step for profile in profiles], dtype=torch.float64)
    return steps, torch.tensor([exponent(profile.width) for profile in profiles], dtype=torch.float64)
