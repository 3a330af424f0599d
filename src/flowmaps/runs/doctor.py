"""A network of the user's own examined: whether derivatives along it are right, what they cost, which methods fit.

Each engine takes one step of

    loss = mean (u + d_t u)^2,    u = net(x, s, t),

value, derivative in t and gradient of both, beside a plain forward and backward pass of mean u^2.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .. import dual
from ..dual.survey import Survey, survey
from ..maps import call_network
from ..methods import METHODS, Method
from ..system.memory import peak
from ..system.processes import first_line
from ..system.progress import Watch, quiet

CHECKED_ROWS = 8
"""Rows of a comparison with differences, and of a trial of a method, at most."""
ROUNDS = 5
"""Timed steps of each engine."""
FAILURES = (
    ValueError,
    NotImplementedError,
    TypeError,
    RuntimeError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
)
"""What a network of anybody's may raise."""


@dataclass(frozen=True)
class Cost:
    """Of a step, relative to a plain forward and backward pass; or why it cannot be taken."""

    time: float = 0.0
    memory: float | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        name: of the network's class.
        parameters: how many numbers it learns.
        survey: how its functions are differentiated.
        error: the largest relative error of the value, the derivative, and the gradient of both; `None` if they are
            wrong or missing, which `fault` then says.
        notes: warnings of the comparison.
        plain: seconds and bytes of a plain forward and backward pass.
        costs: of a step by each engine.
        compiled: whether a step by `dual` compiles in one graph, in words.
        methods: the reason why a method cannot train it, empty if it can, for each.
    """

    name: str
    parameters: int
    survey: Survey
    error: float | None
    fault: str
    notes: tuple[str, ...]
    plain: tuple[float, int | None]
    costs: dict[str, Cost]
    compiled: str
    methods: dict[str, str]


class ExaminedNetwork:
    """A network with a batch of inputs drawn from a fixed seed.

    Args:
        network: `(x, s, t, cond=None) -> like x`, times `(B,)`.
        shape: of a sample.
        classes: number of classes, if it takes labels.
        batch: rows.
        device: where it runs.
    """

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], classes: int | None, batch: int, device: torch.device
    ) -> None:
        self.network, self.shape, self.classes, self.batch = network.to(device), shape, classes, batch
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, *shape, generator=generator).to(device)
        self.s, self.t = (a + 0.45 * torch.rand(batch, generator=generator).to(device) for a in (0.0, 0.5))
        labels = None if classes is None else torch.arange(batch) % classes
        self.cond = None if labels is None else labels.to(device)
        self.device = device

    def check_call(self) -> None:
        """Raise an error if the network cannot be called, or returns another shape."""
        try:
            with torch.no_grad():
                call_network(self.network, self.x, self.s, self.t, self.cond)
        except FAILURES as error:
            raise ValueError(
                f"{type(self.network).__name__} cannot be called as net(x, s, t, cond) with x of shape "
                f"{tuple(self.x.shape)} ({type(error).__name__}: {first_line(error)}): give --shape, and --classes "
                "if it takes labels; a network of one time has to be given a second one."
            ) from error

    def along(self, engine: dual.Engine, stopped: bool = False) -> Tensor:
        """The loss of a step by an engine; `stopped`: without a gradient through the derivative."""

        def of_time(t: Any) -> Any:
            return call_network(self.network, self.x, self.s, t, self.cond)

        pair = dual.jvp(of_time, (self.t,), (torch.ones_like(self.t),), engine=engine, detach_tangent=stopped)
        return (pair[0] + pair[1]).square().mean()

    def plain(self) -> Tensor:
        """The loss of a step without a derivative."""
        return call_network(self.network, self.x, self.s, self.t, self.cond).square().mean()

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """In all parameters, zero where the loss does not depend on one."""
        learned = [p for p in self.network.parameters() if p.requires_grad]
        return list(torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True))

    def rows(self, count: int) -> ExaminedNetwork:
        """The same with fewer rows."""
        return ExaminedNetwork(self.network, self.shape, self.classes, min(count, self.batch), self.device)


def examine(examined: ExaminedNetwork, watch: Watch = quiet) -> Diagnosis:
    """Examine a network; it is left as it is.

    Args:
        examined: the network and a batch.
        watch: progress callback.

    Raises:
        ValueError: the network cannot be called.
    """
    examined = copy.copy(examined)
    examined.network = copy.deepcopy(examined.network)
    examined.check_call()
    few, net = examined.rows(CHECKED_ROWS), examined.network
    watch("functions", 0.0)
    surveyed = survey(lambda t: net(few.x, few.s, t, few.cond), (few.t,), (torch.ones_like(few.t),))
    watch("gradient", 0.1)
    error, fault, notes = _checked(few)
    watch("cost", 0.3)
    plain, costs = _costs(examined)
    watch("compilation", 0.6)
    compiled = _compiled(few) if not costs["dual"].refusal else "not tried: dual refuses it"
    can_train = {}
    for number, (name, method) in enumerate(METHODS.items()):
        watch(f"method {name}", 0.8 + 0.2 * number / len(METHODS))
        can_train[name] = _trial(method, few, wrong=error is None)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return Diagnosis(
        type(net).__name__, parameters, surveyed, error, fault, notes, plain, costs, compiled, can_train
    )  # fmt: skip


def _checked(examined: ExaminedNetwork) -> tuple[float | None, str, tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", ".* at or near a kink")
        try:
            error = dual.check(examined.network, examined.x, examined.s, examined.t, examined.cond)
        except FAILURES as wrong:
            return None, " ".join(str(wrong).split()), ()
    return error, "", tuple(str(w.message) for w in caught)


ENGINES: dict[str, Callable[[ExaminedNetwork], Tensor]] = {
    "dual": lambda p: p.along("dual"),
    "dual, no gradient through it": lambda p: p.along("dual", stopped=True),
    "torch": lambda p: p.along("torch"),
    "finite-difference": lambda p: p.along("finite-difference"),
}
"""A step by each engine; the second is that of methods that stop the gradient of their target."""


def _costs(examined: ExaminedNetwork) -> tuple[tuple[float, int | None], dict[str, Cost]]:
    """Seconds and bytes of a plain pass, and the cost of each engine relative to it; the engines take turns."""
    losses = {"plain": ExaminedNetwork.plain, **ENGINES}
    refusals, memory, times = dict[str, str](), dict[str, int | None](), {name: list[float]() for name in losses}
    for name, loss in losses.items():
        try:
            examined.gradient(loss(examined))
            memory[name] = peak(lambda loss=loss: examined.gradient(loss(examined)), examined.device)
        except FAILURES as error:
            if name == "plain":
                raise ValueError(f"a plain forward and backward pass fails: {first_line(error)}") from error
            refusals[name] = _one_line(error)
    for _ in range(ROUNDS):
        for name in losses.keys() - refusals.keys():
            times[name].append(_seconds(lambda loss=losses[name]: examined.gradient(loss(examined)), examined.device))
    usual, used = statistics.median(times["plain"]), memory["plain"]
    costs = {name: Cost(refusal=words) for name, words in refusals.items()}
    for name in ENGINES.keys() - refusals.keys():
        bytes_ = memory[name]
        share = None if bytes_ is None or not used else bytes_ / used
        costs[name] = Cost(statistics.median(times[name]) / usual, share)
    return (usual, used), {name: costs[name] for name in ENGINES}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _compiled(examined: ExaminedNetwork) -> str:
    """Whether a step by `dual` is traced in one graph, and is the same; without the minutes that its kernels take."""
    torch.compiler.reset()
    start, seed = time.perf_counter(), torch.random.get_rng_state()
    try:
        loss = torch.compile(examined.along, backend="aot_eager", fullgraph=True)("dual")
        found = examined.gradient(loss)
    except Exception as error:  # the compiler raises errors of many classes
        return f"not in one graph ({_one_line(error)})"
    torch.random.set_rng_state(seed)
    expected = examined.gradient(examined.along("dual"))
    size = max([float(g.norm()) for g in expected] + [1e-12])
    apart = max([float((a - b).norm()) for a, b in zip(found, expected, strict=True)] + [0.0]) / size
    if not apart < 1e-3:
        return f"in one graph, but its gradient is off by {apart:.2g}: train without compilation"
    return f"in one graph, traced in {time.perf_counter() - start:.0f} s, the same gradient"


def _trial(method: Method, examined: ExaminedNetwork, wrong: bool) -> str:
    """Why a method cannot train the network, empty if it can: one loss and gradient of a few rows.

    Args:
        method: the method.
        examined: the network.
        wrong: whether derivatives along the network are, so that no method with a derivative can.
    """
    given: dict[str, Any] = {}
    if method.distils and not method.copies_teacher:
        given["teacher"] = lambda x, t, cond=None: -x
    try:
        objective = method.objective(method.flow_map(examined.network), **given).to(examined.device)
        rng = torch.Generator(examined.device).manual_seed(0)
        draw = objective.draw(examined.x, cond=examined.cond, generator=rng, progress=0.5)
        with mock.patch.object(dual, "jvp", wraps=dual.jvp) as derivative:
            loss = objective.evaluate(draw).value
        slopes = examined.gradient(loss)
    except FAILURES as error:
        return _one_line(error)
    if wrong and derivative.called:
        return "its loss has a derivative along the network, which is wrong (above)"
    if not all(bool(torch.isfinite(g).all()) for g in (loss, *slopes)):
        return "its loss or gradient is not finite"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
