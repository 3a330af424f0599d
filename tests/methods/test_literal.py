"""Value and gradient of the methods of FMM and SD are the papers' formulas, written literally.

The other papers' methods are in `test_literal_papers.py`; what the formulas are written with, in `papers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from cases import (
    AVERAGE,
    DERIVATIVES,
    ENGINES,
    EQUATIONS,
    INTERPOLANTS,
    MAPS,
    METHODS,
    Network,
    Parametrisation,
    generator,
)
from papers import CLOSE, DIAGONAL, DIM, ROWS, Paper, assert_same, build, squares, teacher
from torch import Tensor

from flowmaps import losses, methods
from flowmaps.equations import Eulerian, Lagrangian, Semigroup, Stop
from flowmaps.interpolants import Interpolant, Linear, VariancePreserving, WithNoise
from flowmaps.maps import Target
from flowmaps.objectives import SplitRows, Sum
from flowmaps.times import FromBase, Strip, Triangle
from flowmaps.velocities import FromMap, FromTeacher, RandomInputs

# the formulas: each returns |residual|^2 of each row, one array for each term -----------------------------------------


def flow_matching(p: Paper) -> list[Tensor]:
    """|v_t(I_t) - dI_t|^2."""
    t = p.draw.t
    return [squares(p.v(p.I(t), t) - p.dI(t))]


def lmd_none(p: Paper) -> list[Tensor]:
    """|d_t X_{s,t}(I_s) - b_t(X_{s,t}(I_s))|^2 (FMM, corollary 3.7)."""
    s, t = p.draw.s, p.draw.t
    return [squares(p.d_t(p.I(s)) - p.b(p.X(p.I(s), s, t), t))]


def lmd_velocity(p: Paper) -> list[Tensor]:
    """|d_t X_{s,t}(I_s) - sg b_t(X_{s,t}(I_s))|^2."""
    s, t = p.draw.s, p.draw.t
    return [squares(p.d_t(p.I(s)) - p.b(p.X(p.I(s), s, t), t).detach())]


def lmd_target(p: Paper) -> list[Tensor]:
    """|u - sg(b_t(X) - (t - s) d_t u)|^2, (t - s) d_t u = d_t X - u."""
    s, t = p.draw.s, p.draw.t
    x = p.I(s)
    u = p.u(x, s, t)
    return [squares(u - (p.b(p.X(x, s, t), t) - (p.d_t(x) - u)).detach())]


def emd_none(p: Paper) -> list[Tensor]:
    """|d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s)|^2 (FMM, corollary 3.8)."""
    x = p.I(p.draw.s)
    return [squares(p.d_s(x) + p.grad(x, p.b(x, p.draw.s)))]


def emd_tangent(p: Paper) -> list[Tensor]:
    """|d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) b_s(I_s))|^2."""
    x = p.I(p.draw.s)
    return [squares(p.d_s(x) + p.grad(x, p.b(x, p.draw.s)).detach())]


def emd_target(p: Paper) -> list[Tensor]:
    """|u - sg(b_s + (t - s) D u)|^2, the right-hand side being u + d_s X + grad X b_s."""
    s, t = p.draw.s, p.draw.t
    x = p.I(s)
    u = p.u(x, s, t)
    return [squares(u - (u + p.d_s(x) + p.grad(x, p.b(x, s))).detach())]


def fmm(p: Paper) -> list[Tensor]:
    """|d_t X_{s,t}(X_{t,s}(I_t)) - dI_t|^2 and |X_{s,t}(X_{t,s}(I_t)) - I_t|^2 (FMM, proposition 3.11)."""
    s, t = p.draw.s, p.draw.t
    back = p.X(p.I(t), t, s)
    return [squares(p.d_t(back) - p.dI(t)), squares(p.X(back, s, t) - p.I(t))]


def pfmm(legs: int) -> Callable[[Paper], list[Tensor]]:
    """|X_{s,t}(I_s) - (Xc_{t_{K-1},t_K} o ... o Xc_{t_0,t_1})(I_s)|^2, t_k = s + (k / K)(t - s) (FMM, lemma 3.13)."""

    def formula(p: Paper) -> list[Tensor]:
        s, t = p.draw.s, p.draw.t
        x = p.I(s)
        for k in range(legs):
            x = p.Xc(x, s + k / legs * (t - s), s + (k + 1) / legs * (t - s))
        return [squares(p.X(p.I(s), s, t) - x)]

    return formula


def eulerian_estimation(p: Paper) -> list[Tensor]:
    """|d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) dI_s)|^2 (FMM, section 3.6)."""
    x = p.I(p.draw.s)
    return [squares(p.d_s(x) + p.grad(x, p.dI(p.draw.s)).detach())]


def lsd(p: Paper) -> list[Tensor]:
    """|d_t X_{s,t}(I_s) - sg v_t(X_{s,t}(I_s))|^2 (SD, equation 94)."""
    s, t = p.draw.s, p.draw.t
    return [squares(p.d_t(p.I(s)) - p.v(p.X(p.I(s), s, t), t).detach())]


def lsd_none(p: Paper) -> list[Tensor]:
    """The same without stop-gradient."""
    s, t = p.draw.s, p.draw.t
    return [squares(p.d_t(p.I(s)) - p.v(p.X(p.I(s), s, t), t))]


def slim_lsd(p: Paper) -> list[Tensor]:
    """|u + sg((t - s) d_t u - v_t(X_{s,t}(I_s)))|^2 (2609.16222), with (t - s) d_t u = d_t X - u."""
    s, t = p.draw.s, p.draw.t
    x = p.I(s)
    u = p.u(x, s, t)
    return [squares(u + (p.d_t(x) - u - p.v(p.X(x, s, t), t)).detach())]


def slim_esd(p: Paper) -> list[Tensor]:
    """|u - sg(v_s + (t - s) D u)|^2 (2609.16222), the right-hand side being u + d_s X + grad X v_s."""
    s, t = p.draw.s, p.draw.t
    x = p.I(s)
    u = p.u(x, s, t)
    return [squares(u - (u + p.d_s(x) + p.grad(x, p.v(x, s))).detach())]


def esd(p: Paper) -> list[Tensor]:
    """|d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) v_s(I_s))|^2."""
    x = p.I(p.draw.s)
    return [squares(p.d_s(x) + p.grad(x, p.v(x, p.draw.s)).detach())]


def esd_velocity(p: Paper) -> list[Tensor]:
    """|d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) sg v_s(I_s)|^2."""
    x = p.I(p.draw.s)
    return [squares(p.d_s(x) + p.grad(x, p.v(x, p.draw.s).detach()))]


def psd(midpoint: bool) -> Callable[[Paper], list[Tensor]]:
    """|u_{s,t}(I_s) - sg(l u_{s,w}(I_s) + (1 - l) u_{w,t}(X_{s,w}(I_s)))|^2, w = s + l (t - s), as jumps."""

    def formula(p: Paper) -> list[Tensor]:
        s, t = p.draw.s, p.draw.t
        x = p.I(s)
        w = (s + t) / 2 if midpoint else s + p.draw.split * (t - s)
        two = p.X(p.X(x, s, w), w, t).detach()
        return [squares(p.X(x, s, t) - two) / (t - s) ** 2]

    return formula


LITERAL: dict[str, Callable[[Paper], list[Tensor]]] = {
    "flow_matching": flow_matching,
    "lmd-none": lmd_none,
    "lmd-velocity": lmd_velocity,
    "lmd-tangent": lmd_velocity,
    "lmd-target": lmd_target,
    "emd-none": emd_none,
    "emd-velocity": emd_none,  # b has no parameters: the same gradient
    "emd-tangent": emd_tangent,
    "emd-target": emd_target,
    "fmm": fmm,
    "pfmm-2": pfmm(2),
    "pfmm-4": pfmm(4),
    "eulerian_estimation": eulerian_estimation,
    "lsd": lsd,
    "lsd-none": lsd_none,
    "esd": esd,
    "esd-velocity": esd_velocity,
    "slim_lsd": slim_lsd,
    "slim_esd": slim_esd,
    "psd-uniform": psd(False),
    "psd-midpoint": psd(True),
}
SELF = ("lsd", "lsd-none", "esd", "esd-velocity", "slim_lsd", "slim_esd", "psd-uniform", "psd-midpoint")
"""Self-distillation: eight of the eleven rows match the velocity, the loss is the mean over all rows."""


def literal_terms(name: str, p: Paper) -> list[Tensor]:
    """|residual|^2 of each row, a list of terms to be added, before weights."""
    if name not in SELF:
        return LITERAL[name](p)
    off_diagonal = LITERAL[name](p.rows(slice(DIAGONAL, None)))[0]
    return [torch.cat([flow_matching(p.rows(slice(None, DIAGONAL)))[0], off_diagonal])]


@pytest.mark.parametrize("interpolant", INTERPOLANTS.values(), ids=INTERPOLANTS)
@pytest.mark.parametrize("name", LITERAL)
def test_method_on_every_interpolant(name: str, interpolant: Interpolant):
    objective, paper = build(name, AVERAGE, interpolant)
    distance = sum(literal_terms(name, paper))
    assert isinstance(distance, Tensor)
    if isinstance(getattr(interpolant, "path", interpolant), VariancePreserving):  # its speed has no bound
        rows, t = {"flow_matching": ROWS}.get(name, DIAGONAL if name in SELF else 0), paper.draw.t
        speed = interpolant.alpha_dot(t) ** 2 + interpolant.beta_dot(t) ** 2 + interpolant.gamma_dot(t) ** 2
        distance = torch.cat([(distance / speed)[:rows], distance[rows:]])
    assert_same(objective, paper, distance.mean())


@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("name", LITERAL)
def test_method_on_every_map(name: str, case: Parametrisation):
    objective, paper = build(name, case, WithNoise(Linear()))
    terms = literal_terms(name, paper)
    assert_same(objective, paper, sum(terms).mean())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LITERAL)
def test_parts_are_the_unweighted_residuals(name: str):
    objective, paper = build(name, AVERAGE, Linear(), weight=losses.Constant(7.0))
    parts = objective.evaluate(paper.draw).parts
    terms = literal_terms(name, paper)
    if name.startswith("pfmm"):  # a weight that is given takes the place of (t - s)^2
        terms = [term / (paper.draw.t - paper.draw.s) ** 2 for term in terms]
    assert all(part.shape == (ROWS,) and not part.requires_grad for part in parts.values())
    total = sum(parts.values())
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total, sum(terms), rtol=CLOSE, atol=CLOSE)
    if name == "fmm":
        torch.testing.assert_close(parts["lagrangian"], terms[0], rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(parts["round_trip"], terms[1], rtol=CLOSE, atol=CLOSE)
    if name in SELF:
        assert not parts["diagonal"][DIAGONAL:].any()
        assert bool((parts["diagonal"][:DIAGONAL] > 0).all())


def test_pfmm_without_a_frozen_map_takes_a_copy_of_the_map_as_it_is():
    net = Network(DIM, 1)
    flow_map = AVERAGE.build(net)
    objective = methods.pfmm(flow_map, legs=3)
    draw = objective.draw(
        torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(0)),
        cond=torch.ones(ROWS, 2, dtype=torch.float64),
        generator=generator(1),
    )
    with torch.no_grad():
        net.last.weight.mul_(1.5)  # training goes on: the copy stays
    paper = Paper(net, AVERAGE, Linear(), draw, Network(DIM, 1))
    assert_same(objective, paper, sum(pfmm(3)(paper)).mean())  # type: ignore[union-attr]


def test_pfmm_keeps_the_frozen_map_that_the_caller_refreshes():
    flow_map = AVERAGE.build(Network(DIM, 1))
    frozen = Target(AVERAGE.build(Network(DIM, 2)))
    objective = methods.pfmm(flow_map, frozen=frozen, legs=2)
    draw = objective.draw(
        torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(0)),
        cond=torch.ones(ROWS, 2, dtype=torch.float64),
        generator=generator(1),
    )
    frozen.copy_from(AVERAGE.build(Network(DIM, 3)))
    paper = Paper(flow_map.net, AVERAGE, Linear(), draw, Network(DIM, 3))  # type: ignore[arg-type]
    assert_same(objective, paper, pfmm(2)(paper)[0].mean())


# weights --------------------------------------------------------------------------------------------------------------


def learned() -> losses.Learned:
    """A learned weight that has learned something."""
    weight = losses.Learned(5).double()
    torch.nn.init.normal_(weight.net[-1].weight, generator=generator(9))  # type: ignore[arg-type]
    torch.nn.init.constant_(weight.net[-1].bias, 0.3)  # type: ignore[arg-type]
    return weight


def by_hand(weight: losses.Weight, d: Tensor, s: Tensor, t: Tensor, share: Tensor) -> Tensor:
    """The weighted distances, from the formulas; those of a path are of the linear one."""
    match weight:
        case losses.Constant():
            return 2.5 * d
        case losses.StripWeight():
            return d * ((t - s).abs() <= 0.3)
        case losses.Power():
            return d * (t - s).abs() ** 1.5
        case losses.Adaptive():
            return d / (d.detach() + 0.02) ** 0.75
        case losses.Learned():
            w = weight.net(torch.cat([weight.time(s), weight.time(t)], 1)).squeeze(1)
            return d / w.exp() + w
        case losses.PerNoise():
            sigma, after = ((1 / r - 1).clamp_max(80.0) for r in (s, s + share * (t - s)))  # the linear path's
            return d / torch.maximum(sigma - after, 1e-4 * sigma)
        case losses.SplitPower():
            return d / share
        case losses.Chain():
            return d / (d.detach() + 1e-3) / share
        case losses.PerSpeed():  # of the variance-preserving path
            return d * (1 - t**2)
        case losses.TowardsNoise():
            return d * (1 - s.sqrt()) * torch.cos(math.pi * s / 2)
        case losses.TruncatedSNR():
            return d * torch.maximum(s**2, (1 - s) ** 2)
    raise NotImplementedError(type(weight).__name__)


WEIGHTS: dict[str, Callable[[], losses.Weight]] = {
    "constant": lambda: losses.Constant(2.5),
    "per-speed": lambda: losses.PerSpeed(VariancePreserving()),
    "strip": lambda: losses.StripWeight(0.3),
    "power": lambda: losses.Power(1.5),
    "adaptive": lambda: losses.Adaptive(0.75, 0.02),
    "learned": learned,
    "per-noise": lambda: losses.PerNoise(Linear()),
    "split-power": lambda: losses.SplitPower(-1.0),
    "chain": lambda: losses.Chain(losses.Adaptive(), losses.SplitPower(-1.0)),
    "towards-noise": losses.TowardsNoise,
    "truncated-snr": lambda: losses.TruncatedSNR(Linear()),
}


def test_each_weight_is_listed():
    own = {kind for kind in losses.Weight.__subclasses__() if kind.__module__ == losses.__name__}
    assert {type(build()) for build in WEIGHTS.values()} == own


def refused(name: str, module: losses.Weight) -> None:
    """What a user would do with a weight that does not fit."""
    objective, paper = build(name, AVERAGE, Linear(), **on_all_rows(name, module))
    objective.evaluate(paper.draw)


def on_all_rows(name: str, module: losses.Weight) -> dict[str, losses.Weight]:
    """A weight on all rows: those of the diagonal of a self-distillation have one of their own."""
    return {"weight": module, **({"diagonal_weight": module} if name in SELF else {})}


@pytest.mark.parametrize("name", ["lmd-none", "lmd-velocity", "fmm", "lsd", "psd-uniform"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(weight: Callable[[], losses.Weight], name: str):
    """w_{s,t} multiplies the whole of a row's loss: both terms of FMM together."""
    module = weight()
    vanishing = isinstance(module, losses.Power) and name in SELF
    lonely = isinstance(module, (losses.PerNoise, losses.SplitPower, losses.Chain)) and not name.startswith("psd")
    if vanishing or lonely:  # refused: no velocity would be learned; there is no first leg
        with pytest.raises(ValueError, match="vanishes at s = t" if vanishing else "composition of two legs"):
            refused(name, module)
        return
    objective, paper = build(name, AVERAGE, Linear(), **on_all_rows(name, module))
    distance = sum(literal_terms(name, paper))
    assert isinstance(distance, Tensor)
    share = paper.draw.split.clone()
    if name in SELF:
        share[:DIAGONAL] = 1  # no first leg on the diagonal
    assert_same(objective, paper, by_hand(module, distance, paper.draw.s, paper.draw.t, share).mean())


@pytest.mark.parametrize("name", SELF)
def test_a_weight_is_off_the_diagonal_alone(name: str):
    """An adaptive one, a function of the noise of dI, would learn a mode of dI in the place of its mean."""
    one, two = losses.Adaptive(0.75, 0.02), losses.Constant(3.0)
    for given, factor in (({"weight": one}, 1.0), ({"weight": one, "diagonal_weight": two}, 3.0)):
        objective, paper = build(name, AVERAGE, Linear(), **given)
        distance = sum(literal_terms(name, paper))
        assert isinstance(distance, Tensor)
        weighted = by_hand(one, distance, paper.draw.s, paper.draw.t, paper.draw.split)
        weighted = torch.cat([factor * distance[:DIAGONAL], weighted[DIAGONAL:]])
        assert_same(objective, paper, weighted.mean())


@pytest.mark.parametrize("name", ["lsd", "esd", "slim_lsd", "slim_esd", "psd-uniform"])
def test_the_other_side_may_be_an_average(name: str):
    """`target=`: the velocity at the far end, at the start, or the legs, of a map that follows."""
    net, other = Network(DIM, 1), AVERAGE.build(Network(DIM, 2))
    target = Target(other, decay=0.9)
    objective = METHODS[name].function(AVERAGE.build(net), target=target)
    assert objective.moving_targets() == [target]
    rng = generator(5)
    x1, cond = torch.randn(ROWS, DIM, generator=rng).double(), torch.randn(ROWS, 2, generator=rng).double()
    draw = objective.draw(x1, cond=cond, generator=rng, progress=0.0).rows(slice(DIAGONAL, ROWS))
    part = objective.second
    x = Linear().point(draw.x0, draw.x1, draw.s)
    split = None if part.split is None else draw.split
    expected = part.equation(part.flow_map, x, draw.s, draw.t, FromMap(other), split, cond=draw.cond).value
    own = part.equation(part.flow_map, x, draw.s, draw.t, FromMap(part.flow_map), split, cond=draw.cond).value
    found = part.evaluate(draw).value
    torch.testing.assert_close(found, squares(expected).mean())
    assert abs(float((found - squares(own).mean()).detach())) > 1e-4


# distances ------------------------------------------------------------------------------------------------------------

DISTANCES: dict[str, tuple[losses.Distance, Callable[[Tensor], Tensor]]] = {
    "pseudo-huber": (losses.PseudoHuber(0.2), lambda d: (d + 0.2**2).sqrt() - 0.2),
    "cauchy": (losses.Cauchy(0.3), lambda d: torch.log(1 + d / (2 * 0.3**2))),
    "function": (lambda r: squares(r) ** 2, lambda d: d**2),
}


@pytest.mark.parametrize("name", ["lmd-none", "lmd-velocity", "fmm", "lsd", "psd-uniform"])
@pytest.mark.parametrize("kind", DISTANCES)
def test_distances(kind: str, name: str):
    """The distance of each residual, diagonal and not, and of both terms of FMM; parts are squared norms as ever."""
    distance, formula = DISTANCES[kind]
    objective, paper = build(name, AVERAGE, Linear(), distance=distance)
    terms = literal_terms(name, paper)
    assert_same(objective, paper, sum(formula(term) for term in terms).mean())  # type: ignore[union-attr]
    total = sum(objective.evaluate(paper.draw).parts.values())
    torch.testing.assert_close(total, sum(terms), rtol=CLOSE, atol=CLOSE)


# engines --------------------------------------------------------------------------------------------------------------


def sides(name: str, case: Parametrisation, stop: Stop, engine: str) -> tuple[Tensor, list[Tensor], Tensor]:
    """Residual at random points, and the gradients of a loss in the parameters and in x."""
    net = Network(DIM, 4)
    rng = generator(6)
    x = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng).requires_grad_()
    s, t = 0.9 * torch.rand(2, ROWS, dtype=torch.float64, generator=rng)
    cond = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    residual = EQUATIONS[name](stop, engine)(case.build(net), x, s, t, FromTeacher(teacher), cond=cond)
    loss = (residual.prediction * torch.cos(residual.target)).sum()
    gradients = torch.autograd.grad(loss, [*net.parameters(), x], materialize_grads=True)
    return residual.value.detach(), list(gradients), residual.target.detach()


@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("stop", Stop, ids=lambda stop: stop.value)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_engines_agree(name: str, stop: Stop, case: Parametrisation):
    """On both sides of the residual, and on where gradients stop."""
    results = {engine: sides(name, case, stop, engine) for engine in ENGINES}
    for engine, tolerance in {"torch": 1e-11, "finite-difference": 1e-7}.items():
        for got, wanted in zip(results[engine][::2], results["dual"][::2], strict=True):
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
        for got, wanted in zip(results[engine][1], results["dual"][1], strict=True):
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * float(1 + wanted.abs().max()))


# the two sides of each equation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("stop", [Stop.NONE, Stop.VELOCITY, Stop.TARGET], ids=lambda stop: stop.value)
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_a_finite_eulerian_step_compares_two_jumps(case: Parametrisation, stop: Stop, step: float):
    """(X_{s,t}(x) - X_{s+d,t}(x + d b_s)) / d, d of length `step` towards t, and no further."""
    rng = generator(8)
    x1 = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng)
    s, t = 0.9 * torch.rand(2, ROWS, dtype=torch.float64, generator=rng)
    cond = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    net = Network(DIM, 1)
    p = Paper(net, case, Linear(), RandomInputs(x1, x1, None, s, t, s, cond))
    d = torch.sign(t - s) * torch.minimum((t - s).abs(), torch.full_like(s, step))
    x, b = x1, teacher(x1, s, cond)
    landing = x + d[:, None] * b
    ahead = torch.where((s + d == t)[:, None], landing, p.X(landing, s + d, t))
    wanted = (p.X(x, s, t) - ahead) / d[:, None]
    residual = Eulerian(stop, step=step)(case.build(net), x, s, t, teacher, cond=cond)
    torch.testing.assert_close(residual.value, wanted, rtol=1e-9, atol=1e-9)

    if stop is Stop.TARGET:  # u - sg(...): the gradient goes through X_{s,t}(x) / (t - s) alone
        wanted = (p.X(x, s, t) - p.X(x, s, t).detach()) / (t - s)[:, None] + wanted.detach()
    got = torch.autograd.grad(residual.value.square().sum(), list(net.parameters()))
    for ours, theirs in zip(got, torch.autograd.grad(wanted.square().sum(), list(net.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(1 + theirs.abs().max()))


@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_the_finite_eulerian_step_tends_to_the_derivative_linearly(case: Parametrisation):
    rng = generator(2)
    x = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng)
    low = 0.4 * torch.rand(ROWS, dtype=torch.float64, generator=rng)
    order = torch.arange(ROWS) % 2 == 0  # both orders of time
    s, t = torch.where(order, low, low + 0.5), torch.where(order, low + 0.5, low)
    cond = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    flow_map = case.build(Network(DIM, 1))
    exact = Eulerian()(flow_map, x, s, t, teacher, cond=cond).value
    steps = (4e-4, 2e-4, 1e-4)
    differences = [Eulerian(step=d)(flow_map, x, s, t, teacher, cond=cond).value - exact for d in steps]
    errors = [float(difference.detach().norm()) for difference in differences]
    assert errors[2] < 1e-3 * float(exact.detach().norm())
    for coarse, fine in pairwise(errors):
        assert 1.98 < coarse / fine < 2.02


@pytest.mark.parametrize("legs", [2, 3, 5])
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_semigroup_compares_one_jump_with_many(case: Parametrisation, legs: int):
    rng = generator(2)
    x = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng)
    s, t = 0.9 * torch.rand(2, ROWS, dtype=torch.float64, generator=rng)
    cond = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    net = Network(DIM, 1)
    p = Paper(net, case, Linear(), RandomInputs(x, x, None, s, t, s, cond))
    y = x
    for k in range(legs):
        y = p.X(y, s + k / legs * (t - s), s + (k + 1) / legs * (t - s))
    residual = Semigroup(legs=legs)(case.build(net), x, s, t, teacher, cond=cond)
    torch.testing.assert_close(residual.value, (p.X(x, s, t) - y) / (t - s)[:, None], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_lagrangian_hands_over_its_jump(case: Parametrisation):
    rng = generator(2)
    x = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng)
    s, t = 0.9 * torch.rand(2, ROWS, dtype=torch.float64, generator=rng)
    cond = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    flow_map = case.build(Network(DIM, 1))
    jump = Lagrangian()(flow_map, x, s, t, teacher, cond=cond).jump
    assert jump is not None
    torch.testing.assert_close(jump, flow_map(x, s, t, cond), rtol=1e-13, atol=1e-13)


def test_the_self_distillation_draw_has_three_quarters_on_the_diagonal_and_the_rest_ordered():
    for name in SELF:
        _, paper = build(name, AVERAGE, Linear())
        s, t = paper.draw.s, paper.draw.t
        assert bool((s[:DIAGONAL] == t[:DIAGONAL]).all())
        assert bool((s[DIAGONAL:] < t[DIAGONAL:]).all())


def test_a_sum_of_objectives_adds_values_and_parts():
    """Parts of one name add up, and the parts stay unweighted."""
    objective, paper = build("lmd-velocity", AVERAGE, Linear())
    other = METHODS["lmd-none"](objective.flow_map, velocity=teacher)
    flow = METHODS["flow_matching"](objective.flow_map)
    total = Sum([objective, flow, other], [1.0, 3.0, 0.5])
    terms = [lmd_velocity(paper)[0], flow_matching(paper)[0], lmd_none(paper)[0]]
    assert_same(total, paper, (terms[0] + 3 * terms[1] + 0.5 * terms[2]).mean())
    parts = total.evaluate(paper.draw).parts
    torch.testing.assert_close(parts["lagrangian"], terms[0] + terms[2], rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(parts["diagonal"], terms[1], rtol=CLOSE, atol=CLOSE)


def test_a_split_of_objectives_of_one_name_keeps_each_row():
    objective, paper = build("lmd-velocity", AVERAGE, Linear())
    other = METHODS["lmd-target"](objective.flow_map, velocity=teacher)
    split = SplitRows(objective, other, share=0.3)  # three of eleven rows
    three = lmd_velocity(paper.rows(slice(None, 3)))[0]
    rest = lmd_target(paper.rows(slice(3, None)))[0]
    assert_same(split, paper, torch.cat([three, rest]).mean())
    part = split.evaluate(paper.draw).parts["lagrangian"]
    torch.testing.assert_close(part, torch.cat([three, rest]), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", ["lsd", "esd", "psd-midpoint"])
def test_self_distillation_on_given_laws_of_times(name: str):
    laws = {"times": Strip(0.2, ordered=True), "diagonal": FromBase()}
    objective, paper = build(name, AVERAGE, Linear(), **laws)
    s, t = paper.draw.s, paper.draw.t
    assert not s[:DIAGONAL].any()
    assert bool((t[DIAGONAL:] - s[DIAGONAL:] <= 0.2).all())
    assert_same(objective, paper, literal_terms(name, paper)[0].mean())


def test_lmd_on_a_given_law_of_times():
    objective, paper = build("lmd-none", AVERAGE, Linear(), times=Triangle())
    assert bool((paper.draw.s <= paper.draw.t).all())
    assert_same(objective, paper, lmd_none(paper)[0].mean())
