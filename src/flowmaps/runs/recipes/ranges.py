"""What each option of a recipe may be: the range of each number, list and text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

Rule = Callable[[Any], str | None]
"""What a value must be, in words, where it is not; else `None`."""

ROWS = 2
"""Fewest rows that a process takes at a time: an objective of two halves needs one for each."""

SCALING = 16
"""Steps in a row that the scale of a loss in float16 may take to fall from 2^14 to below 1."""


def _from(least: int, most: int) -> Rule:
    """Whole numbers; the greatest is far beyond what is of use, and below what would bring the machine down."""
    return lambda n: f"at least {least}" if n < least else f"at most {most:,}" if n > most else None


def _in(low: float, high: float, allowed: str, *, ends: str = "[]") -> Rule:
    """Numbers of an interval, whose ends belong to it or, at a round bracket, do not."""

    def rule(x: float) -> str | None:
        above = x > low if ends[0] == "(" else x >= low
        below = x < high if ends[1] == ")" else x <= high
        return None if above and below else allowed

    return rule


def _positive(most: float) -> Rule:
    return lambda x: None if 0 < x <= most else f"at most {most:g}" if x > most else "positive"


def _each(rule: Rule, allowed: str, *, least: int = 0, most: int = 16, twice: bool = True) -> Rule:
    """Lists of `least` to `most` entries that obey a rule, each written to six digits differing from the others."""

    def of_list(values: tuple[Any, ...]) -> str | None:
        if not least <= len(values) <= most:
            return allowed if len(values) < least else f"at most {most} of them: {allowed}"
        if broken := [words for value in values if (words := rule(value)) is not None]:
            return allowed if broken[0] in allowed.replace(">=", "at least") else f"{allowed}, each {broken[0]}"
        return None if twice or len({digits(value) for value in values}) == len(values) else f"{allowed}, none twice"

    return of_list


def _text(least: int, most: int) -> Rule:
    allowed = f"text of {least} to {most:,} characters that can be printed"
    return lambda text: None if least <= len(text) <= most and text.isprintable() else allowed


def digits(value: Any) -> str:
    """As the names of files have it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _weights(weights: tuple[float, ...]) -> str | None:
    good = len(weights) <= 2 and all(0 < weight <= 100 for weight in weights)
    good = good and all(low < high for low, high in pairwise(weights))
    return None if good else "none, one or two positive weights, rising, of at most 100"


COUNT, EVERY, OR_NEVER = _from(1, 10**9), _from(1, 10**9), _from(0, 10**9)
WIDTH, DEPTH, WAVES, PIXELS = _from(1, 2**16), _from(1, 1_000), _from(0, 1_000), _from(1, 2**14)
SHARE, BELOW_ONE = _in(0, 1, "from 0 to 1"), _in(0, 1, "at least 0 and below 1", ends="[)")
AT_MOST_ONE = _in(0, 1, "positive and at most 1", ends="(]")
NARROW = 12**-0.5
"""Relative width of the plain mean of all steps, the power 0 of sigma(g) = (g + 1)^(1/2) / ((g + 2) (g + 3)^(1/2)),
which falls for g >= 0 (arXiv 2312.02696)."""

RULES: dict[str, Rule] = {
    "name": _text(1, 200),
    "method": _text(1, 100),
    "data": _text(0, 4_096),
    "teacher": _text(0, 4_096),
    "from-run": _text(0, 4_096),
    "device": _text(1, 100),
    "steps": COUNT,
    "teacher-steps": COUNT,
    "from-base": SHARE,
    "late": _in(1, 10, "from 1 to 10"),
    "adaptive": SHARE,
    "guidance": _weights,
    "label-dropout": BELOW_ONE,
    "careful": AT_MOST_ONE,
    "map-rate": AT_MOST_ONE,
    "seed": _in(0, 2**32 - 1, "from 0 to 2^32 - 1"),
    "checkpoint-every": EVERY,
    "keep": _from(1, 10**6),
    "keep-every": OR_NEVER,
    "snapshot-every": EVERY,
    "show-every": OR_NEVER,
    "log-every": EVERY,
    "track": _each(lambda _: None, "some of the trackers", twice=False),
    "patience": _from(1, 10**6),
    "network.width": WIDTH,
    "network.depth": DEPTH,
    "network.time-frequencies": WAVES,
    "network.space-frequencies": WAVES,
    "network.modulation": _from(0, 2**16),
    "optimiser.batch": _from(ROWS, 2**24),
    "optimiser.accumulate": _from(1, 2**16),
    "optimiser.rate": _positive(100),
    "optimiser.warmup": _from(0, 10**9),
    "optimiser.floor": SHARE,
    "optimiser.clip": _positive(1e9),
    "optimiser.weight-decay": _in(0, 100, "from 0 to 100"),
    "optimiser.ema": BELOW_ONE,
    "optimiser.emas": _each(BELOW_ONE, "decays of averages", twice=False),
    "optimiser.widths": _each(
        _in(0.001, NARROW, f"from 0.001 to below {NARROW:.4f}, that of the plain mean", ends="[)"),
        "relative widths of averages",
        twice=False,
    ),
    "optimiser.beta2": BELOW_ONE,
    "evaluation.steps": _each(_from(1, 10**5), "one or more numbers >= 1", least=1, most=64),
    "evaluation.samples": _from(100, 10**8),
    "evaluation.points": _from(10, 10**6),
    "evaluation.chunk": _from(1, 10**9),
    "evaluation.tolerance": _in(1e-12, 0.5, "from 1e-12 to 0.5"),
    "evaluation.euler": _from(1, 10**5),
    "evaluation.reference": OR_NEVER,
    "evaluation.features": _text(1, 4_096),
    "resolution": _from(0, 2**14),
    "unet.width": WIDTH,
    "unet.multipliers": _each(_from(1, 1_024), "one or more numbers >= 1", least=1),
    "unet.blocks": _from(1, 100),
    "unet.attention": _each(PIXELS, "resolutions >= 1"),
    "unet.head": WIDTH,
    "unet.dropout": BELOW_ONE,
    "unet.patch": PIXELS,
    "unet.frequencies": WAVES,
    "dit.patch": PIXELS,
    "dit.width": WIDTH,
    "dit.depth": DEPTH,
    "dit.heads": _from(1, 2**12),
    "dit.ratio": _positive(100),
    "dit.dropout": BELOW_ONE,
    "dit.frequencies": WAVES,
}
"""What each option may be; truth values and choices need no rule. The networks check themselves what fits together."""
