"""One function for each kind of model: what it predicts, at which time, of which input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..nn.two_times import Call, plain_call
from ..shapes import Condition, like
from .calls import AzulaCall
from .conversion import Conversion, Prediction, SameClock, SigmaClock, TableClock
from .model import Model, model

Order = Literal["xt", "tx", "concatenated"]
Embedding = str | tuple[str, ...] | None
MOST_DATA_LEFT = 0.1
"""Greatest share of the data's variance at the end of a noise schedule."""
PATH_KNOTS = 1_001
"""Times at which the schedule of a path is tabulated."""


def velocity(
    net: nn.Module,
    *,
    order: Order = "xt",
    reverse: bool = False,
    time_factor: float = 1.0,
    embedding: Embedding = None,
    call: Call | None = None,
    lora: int | None = None,
) -> Model:
    """A network that returns the velocity of the linear path, such as one of torchcfm, SiT, SD3 or Flux.

    Args:
        net: the network.
        order: how it is called: `net(x, t)`, `net(t, x)`, a condition as third argument; or `net` of one tensor, x
            with t as a last column.
        reverse: its time runs from data (0) to noise, and its velocity points to the noise, as in SD3 and Flux.
        time_factor: of its time, such as 1000 for a network that takes 0..1000.
        embedding: as of `flowmaps.nn.TwoTimes`.
        call: `call(net, x, t, cond)` in the place of `order`.
        lora: rank of adapters of the student, as of `flowmaps.nn.TwoTimes`.

    Raises:
        ValueError: an unknown order, or as of `flowmaps.nn.TwoTimes`.
    """
    calls: dict[str, Call] = {"xt": plain_call, "tx": _time_first, "concatenated": _concatenated}
    if order not in calls:
        raise ValueError(f"order must be one of {', '.join(map(repr, calls))}, got {order!r}: or pass call=...")
    if not 0 < time_factor < math.inf:
        raise ValueError(f"time_factor must be above 0, got {time_factor}.")
    clock = SameClock(time_factor, reverse=reverse)
    prediction: Prediction = "reverse velocity" if reverse else "velocity"
    return model(net, Conversion(prediction, clock, call or calls[order]), embedding=embedding, lora=lora)


def flow_matching(
    net: nn.Module, path: Any, *, embedding: Embedding = None, call: Call | None = None, lora: int | None = None
) -> Model:
    """A velocity trained with Meta's `flow_matching` on one of its affine paths.

    Args:
        net: `net(x, t)`, or `net(x, t, **cond)` for a condition that is a dictionary.
        path: such as `AffineProbPath(CondOTScheduler())`, of which the `scheduler` is asked.
        embedding, call, lora: as of `velocity`.

    Raises:
        ValueError: the path has no scheduler of (alpha, sigma), or as of `flowmaps.nn.TwoTimes`.
    """
    scheduler = getattr(path, "scheduler", path)
    call = _with_extras if call is None else call
    try:
        alpha, sigma, _, _ = _coefficients(scheduler, torch.linspace(0, 1, PATH_KNOTS, dtype=torch.float64))
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{type(path).__name__} has no scheduler that returns alpha_t and sigma_t ({error}): pass an affine path."
        ) from None
    times, angles = torch.linspace(1, 0, PATH_KNOTS, dtype=torch.float64), torch.atan2(sigma, alpha).flip(0)
    clock = TableClock(angles, times, (alpha.square() + sigma.square()).sqrt().flip(0))
    return model(net, Conversion("v", clock, PathVelocity(scheduler, call)), embedding=embedding, lora=lora)


class PathVelocity(nn.Module):
    """The prediction v = cos(a) E0 - sin(a) E1 from the velocity of z = alpha x1 + sigma x0 on its own path.

    Args:
        scheduler: of `flow_matching`.
        call: calls the network, which returns d/dt of the path's z.
    """

    def __init__(self, scheduler: Any, call: Call) -> None:
        super().__init__()
        self.scheduler, self.call = scheduler, call

    def forward(self, net: nn.Module, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The prediction v at points z of the path, `(B, *shape)`."""
        a, s, da, ds = (like(value.to(z.dtype), z) for value in _coefficients(self.scheduler, t))
        u = self.call(net, z, t, cond)
        both = s * da - a * ds  # not zero: the noise falls against the data all the way
        data, noise = (s * u - ds * z) / both, (da * z - a * u) / both
        return (a * noise - s * data) / (a.square() + s.square()).sqrt()


def ddpm(
    net: nn.Module,
    alphas_cumprod: Tensor,
    *,
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
    time_factor: float = 1.0,
    learned_variance: bool = False,
    embedding: Embedding = None,
    call: Call | None = None,
    lora: int | None = None,
) -> Model:
    """A network trained with a discrete noise schedule, z = sqrt(abar_k) x1 + sqrt(1 - abar_k) x0, k = 0, 1, ...

    Between the steps the network is asked at times that are no integers. The student of a network that predicts noise
    or data learns the velocity first, by `Model.warm_start`: the factor 1 / t or 1 / (1 - t) would multiply what its
    second time adds.

    Args:
        net: `net(z, k)`, its output a tensor or what has it as `.sample`.
        alphas_cumprod: abar, `(K,)`, falling, as of a scheduler of `diffusers`.
        prediction: what it returns, in the words of `diffusers`.
        time_factor: of k, such as 1 / 1000 for a network that takes 0..1.
        learned_variance: it also returns a variance, in as many further channels; these are cut off.
        embedding, call, lora: as of `velocity`.

    Raises:
        ValueError: no schedule that falls, an unknown prediction, one that says nothing at an end of the schedule, or
            as of `flowmaps.nn.TwoTimes`.
    """
    made = DiffusersCall(learned_variance) if call is None else call
    return model(net, ddpm_conversion(alphas_cumprod, prediction, time_factor, made), embedding=embedding, lora=lora)


def ddpm_conversion(alphas_cumprod: Tensor, prediction: str, time_factor: float, call: Call) -> Conversion:
    """The conversion of `ddpm`.

    Raises:
        ValueError: as there.
    """
    names: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
    if prediction not in names:
        raise ValueError(f"prediction must be one of {', '.join(names)}, got {prediction!r}.")
    bar = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
    if bar.ndim != 1 or len(bar) < 2 or not bool((bar.diff() < 0).all()) or bar[0] > 1 or bar[-1] < 0:
        raise ValueError(f"alphas_cumprod must be (K,) and fall within [1, 0], got {tuple(bar.shape)}.")
    if bar[-1] > MOST_DATA_LEFT:
        raise ValueError(
            f"alphas_cumprod must end near 0, where noise alone is left, got {float(bar[-1]):.3g} at its end: pass the "
            "products over the steps, scheduler.alphas_cumprod, not scheduler.alphas."
        )
    angles = torch.atan2((1 - bar).sqrt(), bar.sqrt())
    clock = TableClock(angles, time_factor * torch.arange(len(bar), dtype=torch.float64))
    return Conversion(names[prediction], clock, call)


class DiffusersCall(nn.Module):
    """Calls a network as `diffusers` does: `net(z, k)`, with `class_labels` or a dictionary of arguments as condition.

    Args:
        learned_variance: cut the channels off in which it returns a variance.
    """

    def __init__(self, learned_variance: bool = False) -> None:
        super().__init__()
        self.learned_variance = learned_variance

    def forward(self, net: nn.Module, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's prediction, `(B, *shape)`, without a variance.

        Args:
            net: the network.
            z: points in its own coordinates, `(B, *shape)`.
            t: their times on its own clock, `(B,)`.
            cond: `None`, its `class_labels`, or a dictionary of further arguments.

        Raises:
            ValueError: it returns a variance too, and `learned_variance` does not say so.
        """
        options = {} if cond is None else cond if isinstance(cond, Mapping) else {"class_labels": cond}
        found = net(z, t, **options)
        out = getattr(found, "sample", found)
        out = out[0] if isinstance(out, tuple) else out
        if out.shape[1] == 2 * z.shape[1] and not self.learned_variance:
            raise ValueError(
                f"the network returns {out.shape[1]} channels for {z.shape[1]}, a variance too: pass "
                "learned_variance=True to leave it out."
            )
        return out[:, : z.shape[1]] if self.learned_variance else out


def edm(
    net: nn.Module,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    data_std: float = 0.5,
    embedding: Embedding = None,
    call: Call | None = None,
    lora: int | None = None,
) -> Model:
    """A denoiser D(x1 + sigma x0, sigma) with EDM's preconditioning, from which its student starts exactly.

    Reference: T. Karras et al., 2022, arXiv 2206.00364, table 1.

    Args:
        net: `net(x, sigma)` or `net(x, sigma, labels)`.
        sigma_min, sigma_max: noise levels between which it was trained: those of the network, or else 0.002 and 80,
            unless given.
        data_std: of the data.
        embedding, call, lora: as of `velocity`.

    Raises:
        ValueError: no interval of noise levels, or as of `flowmaps.nn.TwoTimes`.
    """
    low = sigma_min if sigma_min is not None else float(getattr(net, "sigma_min", 0) or 0.002)
    high = sigma_max if sigma_max is not None else _finite(getattr(net, "sigma_max", None), 80.0)
    if not 0 < low < high < math.inf:
        raise ValueError(f"edm needs 0 < sigma_min < sigma_max, got {low} and {high}.")
    if not 0 < data_std < math.inf:
        raise ValueError(f"edm needs data_std > 0, got {data_std}.")
    gain = math.sqrt(1 + data_std**2)
    return model(net, Conversion("sample", SigmaClock(low, high), call, gain=gain), embedding=embedding, lora=lora)


def azula(denoiser: nn.Module, *, embedding: Embedding = None, lora: int | None = None) -> Model:
    """A denoiser of `azula`, whose posterior mean is the predicted data, with its schedule z = alpha x1 + sigma x0.

    That of a `KarrasDenoiser` is an exact student; others learn the velocity first, by `Model.warm_start`.

    Args:
        denoiser: `denoiser(z, t, **cond).mean`, with `schedule(t)` in [0, 1], from data to noise.
        embedding, lora: as of `velocity`.

    Raises:
        ValueError: it has no such schedule, or as of `flowmaps.nn.TwoTimes`.
    """
    times = torch.linspace(0, 1, PATH_KNOTS, dtype=torch.float64)
    try:
        alpha, sigma = (value.expand_as(times) for value in denoiser.schedule(times))  # type: ignore[operator]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{type(denoiser).__name__} has no schedule(t) that returns alpha and sigma ({error}): pass a denoiser of "
            "azula."
        ) from None
    clock = TableClock(torch.atan2(sigma, alpha), times, (alpha.square() + sigma.square()).sqrt())
    # the output of its network is multiplied by sin(a), and sin(a) / (1 - t) = 1 / r, which is at most sqrt(2)
    exact = type(denoiser).__name__ == "KarrasDenoiser"
    gain = math.sqrt(2) if exact else None
    return model(denoiser, Conversion("sample", clock, AzulaCall(), gain=gain), embedding=embedding, lora=lora)


def _finite(value: Any, default: float) -> float:
    return float(value) if value is not None and math.isfinite(value) else default


def _time_first(net: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    return net(t, x) if cond is None else net(t, x, cond)


def _concatenated(net: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    parts = [x, *([] if cond is None else [cond]), t[:, None].to(x.dtype)]
    return net(torch.cat(parts, 1))


def _with_extras(net: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    return net(x, t, **cond) if isinstance(cond, Mapping) else plain_call(net, x, t, cond)


def _coefficients(scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = scheduler(t)
    return found.alpha_t, found.sigma_t, found.d_alpha_t, found.d_sigma_t
