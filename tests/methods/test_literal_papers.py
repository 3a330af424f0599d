"""Value and gradient of the methods of all other papers than FMM and SD are the papers' formulas, written literally.

Each formula keeps its paper's own weight, normalisation, warm-up and target, and where it says much, its paper's own
letters: time that runs from data to noise, sigma, the tangent g. In these papers t is our start: t = 1 - s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import AVERAGE, INTERPOLANTS, MAPS, METHODS, Network, Parametrisation, generator
from papers import DIM, ROWS, Paper, assert_same, build, squares, teacher
from test_literal import LITERAL
from torch import Tensor
from torch.func import jvp

from flowmaps import losses, methods, times
from flowmaps.couplings import Independent, Normal
from flowmaps.interpolants import Interpolant, Linear, VarianceExploding, WithNoise
from flowmaps.maps import AverageVelocity, Target
from flowmaps.nn import MLP
from flowmaps.objectives import MapMatching, SplitRows, Sum, VelocityMatching
from flowmaps.times import ToData

PROGRESS = 0.03
"""Training has just begun: derivatives are being warmed up."""

Formula = Callable[[Paper], Tensor]
"""The weighted loss of each row, `(B,)`."""


def cut(share: float) -> int:
    """How many of the rows are on the diagonal."""
    return round(share * ROWS)


def beside(share: float, diagonal: Formula, off_diagonal: Formula) -> Formula:
    """The first share of the rows on the diagonal, the rest off it."""
    n = cut(share)
    return lambda p: torch.cat([diagonal(p.rows(slice(None, n))), off_diagonal(p.rows(slice(n, None)))])


def matching(p: Paper) -> Tensor:
    """|v_t(I_t) - dI_t|^2."""
    return squares(p.v(p.I(p.draw.t), p.draw.t) - p.dI(p.draw.t))


def matching_teacher(p: Paper) -> Tensor:
    """|v_t(I_t) - b_t(I_t)|^2."""
    return squares(p.v(p.I(p.draw.t), p.draw.t) - p.b(p.I(p.draw.t), p.draw.t))


def adaptive(distance: Tensor, c: float = 1e-3) -> Tensor:
    """sg(1 / (|D|^2 + c)) |D|^2 (MeanFlow, section 4.3, p = 1)."""
    return distance / (distance.detach() + c)


# solvers, by hand -----------------------------------------------------------------------------------------------------


def euler(p: Paper, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return x + (t - s)[:, None] * p.b(x, s)


def heun(p: Paper, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """One step of Heun's method."""
    h = (t - s)[:, None]
    k1 = p.b(x, s)
    return x + h / 2 * (k1 + p.b(x + h * k1, t))


def kutta(p: Paper, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """One step of Kutta's method of order four."""
    h, middle = (t - s)[:, None], (s + t) / 2
    k1 = p.b(x, s)
    k2 = p.b(x + h / 2 * k1, middle)
    k3 = p.b(x + h / 2 * k2, middle)
    k4 = p.b(x + h * k3, t)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def solve(step: Callable[..., Tensor], number: int) -> Callable[..., Tensor]:
    """That many equal steps."""

    def solver(p: Paper, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        for k in range(number):
            x = step(p, x, s + k / number * (t - s), s + (k + 1) / number * (t - s))
        return x

    return solver


# the formulas ---------------------------------------------------------------------------------------------------------


def consistency(cells: int, lead: Callable[[Paper, Tensor, Tensor, Tensor], Tensor], average: bool = False) -> Formula:
    """|f(x_s, s) - sg f(x_w, w)|^2, f(., s) = X_{s,1}, w one cell nearer to the data (2303.01469, algorithms 2 and 3).

    lambda = 1, the released choice. In training the neighbour is on the path of the same pair; in distillation one step
    of the teacher's solver leads there. f of the neighbour has the average of the weights where there is one.
    """

    def formula(p: Paper) -> Tensor:
        s, one = p.draw.s, torch.ones_like(p.draw.s)
        assert torch.equal(p.draw.t, one)
        torch.testing.assert_close(s * cells, (s * cells).round(), rtol=0, atol=1e-9)  # on the grid
        w = torch.round(s * cells + 1) / cells
        neighbour = lead(p, p.I(s), s, w)
        target = p.held(p.frozen if average else p.net, neighbour, w, one).detach()  # type: ignore[arg-type]
        return squares(p.X(p.I(s), s, one) - target)

    return formula


def on_path(p: Paper, x: Tensor, s: Tensor, w: Tensor) -> Tensor:
    """I_w of the same pair."""
    return p.I(w)


def noise(path: Interpolant, t: Tensor) -> Tensor:
    """The deviation of the noise in I_t, for a standard normal base."""
    return (path.alpha(t) ** 2 + path.gamma(t) ** 2).sqrt()


def sigma(path: Interpolant, t: Tensor) -> Tensor:
    """Noise to signal, the papers' sigma: x = x1 + sigma z is I_t / beta_t."""
    return noise(path, t) / path.beta(t)


def improved_consistency(p: Paper) -> Tensor:
    """(sqrt(|f(x_s, s) - sg f(x_w, w)|^2 + c^2) - c) / (sigma_s - sigma_w), c = 0.03 (2310.14189, equations 8, 9)."""
    d = consistency(6, on_path)(p)
    w = torch.round(p.draw.s * 6 + 1) / 6
    here, after = (sigma(p.interpolant, r) for r in (p.draw.s, w))  # the paper's grid ends at 80
    return ((d + 0.03**2).sqrt() - 0.03) / torch.maximum(here - after, 1e-4 * here).clamp_max(80.0)


def easy_consistency(p: Paper) -> Tensor:
    """|f(x_t, t) - sg f(x_r, r)| / (t - r), r = max(0, t (1 - n(t) / q^a)), t and r being sigma (2406.14548).

    n(t) = 1 + 8 sigmoid(-t), q = 2, a = 1 in the first eighth of training. The norm is smoothed at 1e-4.
    """
    s, one, path = p.draw.s, torch.ones_like(p.draw.s), p.interpolant
    t = sigma(path, s)
    r = (t * (1 - (1 + 8 / (1 + torch.exp(t))) / 2)).clamp_min(0)
    w = at_noise(path, r)
    d = squares(p.X(p.I(s), s, one) - p.held(p.net, p.I(w), w, one).detach())
    return ((d + 1e-8).sqrt() - 1e-4) / (t - r).clamp_max(80.0)


def at_noise(path: Interpolant, ratio: Tensor) -> Tensor:
    """The time at which noise to signal is `ratio`, by halving an interval."""
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    for _ in range(80):
        middle = (low + high) / 2
        early = noise(path, middle) > ratio * path.beta(middle)
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return torch.where(ratio == 0, 1.0, high)


def progressive_distillation(p: Paper) -> Tensor:
    """max(SNR, 1) |x~ - x^|^2, x~ such that one step of DDIM along it lands where two of the teacher's do (2202.00512).

    x~ = (z'' - (sigma'' / sigma) z) / (alpha'' - (sigma'' / sigma) alpha), and the student's x^ likewise from where it
    lands; the paper's alpha_t is our beta, its sigma_t the noise, SNR = alpha^2 / sigma^2 at the start.
    """
    s, t = p.draw.s, p.draw.t
    torch.testing.assert_close(t - s, torch.full_like(s, 1 / 8), rtol=0, atol=1e-12)
    z, path = p.I(s), p.interpolant
    two = p.held(p.frozen, p.held(p.frozen, z, s, (s + t) / 2), (s + t) / 2, t).detach()  # type: ignore[arg-type]
    alpha, sigma, alpha2, sigma2 = path.beta(s), noise(path, s), path.beta(t), noise(path, t)
    ratio = (sigma2 / sigma)[:, None]

    def denoiser(landing: Tensor) -> Tensor:
        return (landing - ratio * z) / (alpha2[:, None] - ratio * alpha[:, None])

    snr = (alpha / sigma) ** 2
    return snr.clamp_min(1) * squares(denoiser(two) - denoiser(p.X(z, s, t)))


def neural_operator(p: Paper) -> Tensor:
    """|X_{s,t}(I_s) - solver_{s,t}(I_s)|^2, three steps of Kutta's."""
    s, t = p.draw.s, p.draw.t
    return squares(p.X(p.I(s), s, t) - solve(kutta, 3)(p, p.I(s), s, t).detach())


def ctm(solver: Callable[..., Tensor], average: bool, factor: float = 1.0) -> Formula:
    """|Xsg_{t,1}(X_{s,t}(I_s)) - Xsg_{t,1}(Xsg_{w,t}(solver_{s,w}(I_s)))|^2 + factor |v_t(I_t) - dI_t|^2 (2310.02279).

    The outer jump takes no gradient in its weights, and hands on that of its input.
    """

    def formula(p: Paper) -> Tensor:
        s, t, one = p.draw.s, p.draw.t, torch.ones_like(p.draw.s)
        w, net = s + p.draw.split * (t - s), p.frozen if average else p.net
        assert net is not None
        carried = p.held(net, p.X(p.I(s), s, t), t, one)
        target = p.held(net, p.held(net, solver(p, p.I(s), s, w), w, t), t, one).detach()
        return squares(carried - target) + factor * matching(p)

    return formula


def shortcut(levels: int, average: bool) -> Formula:
    """|u_{s,s+d}(x) - sg (u_{s,s+d/2}(x) + u_{s+d/2,s+d}(x + d/2 u_{s,s+d/2}(x))) / 2|^2 (2410.12557, equation 5).

    d = 1, 1/2, ..., and legs of the least length are the velocity.
    """

    def formula(p: Paper) -> Tensor:
        s, d = p.draw.s, p.draw.t - p.draw.s
        short = (d / 2 <= 2.0**-levels + 1e-12)[:, None]
        q = Paper(p.frozen, p.case, p.interpolant, p.draw) if average else p  # type: ignore[arg-type]

        def leg(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return torch.where(short, q.v(x, s), q.u(x, s, t))

        one = leg(p.I(s), s, s + d / 2)
        two = leg(p.I(s) + d[:, None] / 2 * one, s + d / 2, s + d)
        return squares(p.u(p.I(s), s, s + d) - ((one + two) / 2).detach())

    return formula


def split_meanflow(p: Paper) -> Tensor:
    """(t - r) u(z_t, r, t) = (s - r) u(z_s, r, s) + (t - s) u(z_t, s, t), s = (1 - l) t + l r (2507.16884).

    z_s = z_t - (t - s) u(z_t, s, t); in the paper's time, from data to noise, where u is ours with the other sign.
    """
    t, r, share = 1 - p.draw.s, 1 - p.draw.t, p.draw.split
    s = (1 - share) * t + share * r

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return -p.u(z, 1 - t, 1 - r)

    z = p.I(1 - t)
    first = u(z, s, t)
    second = u(z - (t - s)[:, None] * first, r, s)
    target = ((t - s)[:, None] * first + (s - r)[:, None] * second) / (t - r)[:, None]
    return squares(u(z, r, t) - target.detach())


def reversed_time(p: Paper) -> tuple[Any, ...]:
    """z_t, u(z, r, t), dz/dt and (t, r) of MeanFlow's time, from data to noise."""
    t, r = 1 - p.draw.s, 1 - p.draw.t

    def z(t: Tensor) -> Tensor:
        return p.I(1 - t)  # (1 - t) x + t e where the path is linear

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return -p.u(z, 1 - t, 1 - r)  # z_r = z_t - (t - r) u

    return z(t), u, jvp(z, (t,), (torch.ones_like(t),))[1], t, r


def meanflow_diagonal(p: Paper) -> Tensor:
    """r = t: |u(z, t, t) - v|^2, with its weight."""
    z, _, v, t, _ = reversed_time(p)
    return adaptive(squares(-p.v(z, 1 - t) - v))


def meanflow(p: Paper) -> Tensor:
    """u_tgt = v - (t - r) (v . grad u + d_t u), |u(z, r, t) - sg u_tgt|^2 (2505.13447, equation 11)."""
    z, u, v, t, r = reversed_time(p)
    change = jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[1]
    target = v - (t - r)[:, None] * change
    return adaptive(squares(u(z, r, t) - target.detach()))


def improved_meanflow(p: Paper) -> Tensor:
    """V = u + (t - r) sg(du/dt along u(z, t, t)), |V - v|^2 (2512.02012, equation 12)."""
    z, u, v, t, r = reversed_time(p)
    change = jvp(u, (z, r, t), (-p.v(z, 1 - t), torch.zeros_like(r), torch.ones_like(t)))[1]
    compound = u(z, r, t) + (t - r)[:, None] * change.detach()
    return adaptive(squares(compound - v))


def alphaflow(own: bool, definition: bool = False, alpha: float = 0.3) -> Formula:
    """sg(a / (|D|^2 + c)) |D|^2, D = u_{s,t}(I_s) - sg(a v~ + (1 - a) u_{w,t}(I_s + (w - s) v~)) (2510.20771).

    w = s + a (t - s); v~ = (I_w - I_s) / (w - s), which is dI where the path is linear, or u_{s,w}(I_s). The weight of
    definition 1 is 1 / a.
    """

    def formula(p: Paper) -> Tensor:
        s, t = p.draw.s, p.draw.t
        w, x = s + alpha * (t - s), p.I(s)
        shift = p.u(x, s, w) if own else (p.I(w) - x) / (w - s)[:, None]
        landing = x + (w - s)[:, None] * shift
        second = (1 - alpha) * p.u(landing, w, t) if alpha < 1 else 0
        d = squares(p.u(x, s, t) - (alpha * shift + second).detach())
        return d / alpha if definition else alpha * adaptive(d)

    return formula


def soflow(p: Paper) -> Tensor:
    """w <f, (f(x_t, t, s) - f(x_l, l, s)) / (t - l)> per unit of b(t, s) (2512.15657, algorithm 1, its gradient).

    f(x, t, s) = X, x_l = x_t + v (l - t), which is on the path of the pair where that is linear; l = t + 0.3 (s - t) in
    the time from data to noise; w = 1 / (|.|^2 + 0.01).
    As a value: w |q|^2 l / 2 with q the quotient over the length of the jump.
    """
    share, h, x = 0.3, (p.draw.t - p.draw.s)[:, None], p.I(p.draw.s)
    w, same = p.draw.s + share * h[:, 0], h == 0
    jump, after = p.X(x, p.draw.s, p.draw.t), p.X(p.I(w), w, p.draw.t).detach()
    quotient = (jump - after) / torch.where(same, 1.0, h) / share
    v = p.v(x, p.draw.s)
    limit = (v - v.detach()) / share + v.detach() - p.dI(p.draw.s)  # of a quotient whose second jump is detached
    q = squares(torch.where(same, limit, quotient))
    return 0.5 * share * q / (q.detach() + 0.01)


def soflow_diagonal(p: Paper) -> Tensor:
    """|v_t(I_t) - dI_t|^2 / (. + 0.01)."""
    return adaptive(matching(p), 0.01)


def lagrangian_average(p: Paper) -> Tensor:
    """|df(x_t, t, s) / ds - sg F_avg(f(x_t, t, s), s, s)|^2 (2511.19797, equation 12), the average is the other net."""
    x = p.I(p.draw.s)
    end = p.X(x, p.draw.s, p.draw.t).detach()
    q = Paper(p.frozen, p.case, p.interpolant, p.draw)  # type: ignore[arg-type]
    return squares(p.d_t(x) - q.v(end, p.draw.t).detach())


def anyflow(p: Paper) -> Tensor:
    """MeanFlow's residual, its weight 1 / (loss + 1e-5) (2605.13724)."""
    z, u, v, t, r = reversed_time(p)
    change = jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[1]
    return adaptive(squares(u(z, r, t) - (v - (t - r)[:, None] * change).detach()), 1e-5)


def anyflow_taught(p: Paper) -> Tensor:
    """The same along the teacher's velocity: u - (v + (t - s) du) is -dX along v."""
    x, s = p.I(p.draw.s), p.draw.s
    u = p.u(x, s, p.draw.t)
    return adaptive(squares(u - (u + p.d_s(x) + p.grad(x, p.b(x, s))).detach()), 1e-5)


def facm(taught: bool) -> Formula:
    """(1 - t^0.5) cos(pi t / 2) d / (d + c)^0.5, d the Huber distance of F - v - (1 - t) dF/dt (2507.03738)."""

    def formula(p: Paper) -> Tensor:
        s, x = p.draw.s, p.I(p.draw.s)
        assert bool((p.draw.t == 1).all())
        v = p.b(x, s) if taught else p.dI(s)
        u = p.u(x, s, p.draw.t)
        g = u - (u + p.d_s(x) + p.grad(x, v)).detach()  # dX = (1 - t) dF/dt - F + v along v
        d = torch.nn.functional.huber_loss(g, torch.zeros_like(g), reduction="none").sum(1) * 2
        return (1 - s.sqrt()) * torch.cos(math.pi * s / 2) * d * (d.detach() + 1e-3) ** -0.5

    return formula


def normalised(g: Tensor, c: float | None) -> Tensor:
    """g / (|g| + c)."""
    return g if c is None else g / (g.norm(dim=1, keepdim=True) + c)


def reading(p: Paper, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """v, what a tangent is a step of, and A, what multiplies it: u and 1, as in Align your flow (2506.14603).

    For a trigonometric map v = pi / 2 net and A = grad X_{s,t} while net is held fixed, cos(pi (t - s) / 2): as in sCM
    (2410.11081), where t = 1.
    """
    s, t = p.draw.s, p.draw.t
    if p.case is not MAPS["trigonometric"]:
        return p.u(x, s, t), lambda y: y
    out = p.net(x, s, t, p.draw.cond)
    return p.case.velocity(out, x, s), lambda y: jvp(lambda x: p.case.jump(out.detach(), x, s, t), (x,), (y,))[1]


def tangent(c: float | None, count: float, taught: bool) -> Formula:
    """|v - sg(v - A g / (|A g| + c))|^2, g = A (v - b) + k (r - A (v - b)), r = -dX_{s,t}(x_s) / ds along b.

    With v = u and A = 1, g = (u - b) - k (t - s) Du. Without c it is |u - sg(u - g)|^2.
    """

    def formula(p: Paper) -> Tensor:
        s, x = p.draw.s, p.I(p.draw.s)
        b = p.b(x, s) if taught else p.dI(s)
        v, A = reading(p, x)
        stable, whole = A(v.detach() - b), -(p.d_s(x) + p.grad(x, b))
        g = (stable + count * (whole - stable)).detach()
        if c is None:
            u = p.u(x, s, p.draw.t)
            return squares(u - (u - g).detach())
        return squares(v - (v.detach() - normalised(A(g), c).detach()))

    return formula


def ayf_lmd(c: float | None, count: float) -> Formula:
    """|v - sg(v - A g / (|A g| + c))|^2, g = u + k (t - s) d_t u - b_t(X_{s,t}), (t - s) d_t u = d_t X - u."""

    def formula(p: Paper) -> Tensor:
        s, t = p.draw.s, p.draw.t
        x = p.I(s)
        u = p.u(x, s, t)
        g = (u + count * (p.d_t(x) - u) - p.b(p.X(x, s, t), t)).detach()
        if c is None:
            return squares(u - (u - g).detach())
        v, A = reading(p, x)
        return squares(v - (v - normalised(A(g), c)).detach())

    return formula


def freeflow(p: Paper) -> Tensor:
    """|u_{0,t}(x0) - sg(b_t(X_{0,t}(x0)) - t d_t u_{0,t}(x0))|^2 from noise alone (2511.19428)."""
    s, t, x0 = p.draw.s, p.draw.t, p.draw.x0
    assert not p.draw.x1.any()
    assert not s.any()
    u = p.u(x0, s, t)
    target = p.b(p.X(x0, s, t), t) - (p.d_t(x0) - u)
    return adaptive(squares(u - target.detach()), 1e-2)


def reflow(p: Paper) -> Tensor:
    """|v_t(I_t) - dI_t|^2 on the pairs (x0, solver_{0,1}(x0)), five steps of Kutta's (2209.03003)."""
    zero = torch.zeros_like(p.draw.t)
    torch.testing.assert_close(p.draw.x1, solve(kutta, 5)(p, p.draw.x0, zero, 1 + zero), rtol=1e-12, atol=1e-12)
    return matching(p)


WARM = 0.99 * PROGRESS / 0.1
PAPERS: dict[str, Formula] = {
    "reflow": reflow,
    "freeflow": freeflow,
    "ayf_lmd": ayf_lmd(0.1, WARM),
    "ayf_lmd-bare": ayf_lmd(None, WARM),
    "progressive_distillation": progressive_distillation,
    "neural_operator": neural_operator,
    "ctm": ctm(heun, False, 0.7),
    "ctm-target": ctm(solve(kutta, 2), True),
    "shortcut": beside(0.75, matching, shortcut(3, False)),
    "shortcut-target": beside(0.75, matching, shortcut(7, True)),
    "split_meanflow": beside(0.5, matching, split_meanflow),
    "split_meanflow-taught": beside(0.5, matching_teacher, split_meanflow),
    "meanflow": beside(0.75, meanflow_diagonal, meanflow),
    "improved_meanflow": beside(0.5, meanflow_diagonal, improved_meanflow),
    "pixel_meanflow": beside(0.5, meanflow_diagonal, improved_meanflow),
    "tvm": beside(0.5, matching, lagrangian_average),
    "anyflow": beside(0.5, matching, anyflow),
    "anyflow-taught": beside(0.5, matching_teacher, anyflow_taught),
    "soflow": beside(0.75, soflow_diagonal, soflow),
    "facm": beside(0.5, matching, facm(False)),
    "facm-taught": beside(0.5, matching_teacher, facm(True)),
    "alphaflow": beside(0.25, meanflow_diagonal, alphaflow(False)),
    "alphaflow-own": beside(0.25, meanflow_diagonal, alphaflow(True)),
    "ayf_emd": tangent(0.1, WARM, True),
    "ayf_emd-bare": tangent(None, WARM, True),
    "sct": tangent(0.05 * math.pi, PROGRESS / 0.1, False),
    "scd": tangent(0.05 * math.pi, PROGRESS / 0.1, True),
    "scd-bare": tangent(None, PROGRESS / 0.1, True),
    "consistency_training": consistency(6, on_path),
    "consistency_training-target": consistency(6, on_path, True),
    "improved_consistency_training": improved_consistency,
    "easy_consistency_tuning": easy_consistency,
    "consistency_distillation": consistency(6, heun),
    "consistency_distillation-target": consistency(5, euler, True),
}


def test_every_method_has_its_formula():
    """Here, or with those of FMM and SD in test_literal.py."""
    assert {*LITERAL, *PAPERS} == set(METHODS)
    assert not LITERAL.keys() & PAPERS.keys()


def options(name: str) -> dict[str, Any]:
    """A learned weight starts as 1, exp(0) d + 0, and is tested below."""
    return {"weight": losses.Constant()} if name.startswith("sc") else {}


@pytest.mark.parametrize("interpolant", INTERPOLANTS.values(), ids=INTERPOLANTS)
@pytest.mark.parametrize("name", PAPERS)
def test_method_on_every_interpolant(name: str, interpolant: Interpolant):
    objective, paper = build(name, AVERAGE, interpolant, PROGRESS, **options(name))
    for part in objective.modules():  # the papers have no weight there; test_literal has that of an unbounded speed
        if isinstance(part, VelocityMatching) and isinstance(part.weight, losses.PerSpeed):
            part.weight = losses.Constant()
    assert_same(objective, paper, PAPERS[name](paper).mean())


@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("name", PAPERS)
def test_method_on_every_map(name: str, case: Parametrisation):
    path = WithNoise(Linear())
    objective, paper = build(name, case, path, PROGRESS, **options(name))
    assert_same(objective, paper, PAPERS[name](paper).mean())


# in the papers' own letters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [1.0, 0.5])
@pytest.mark.parametrize("progress", [0.0, PROGRESS, 1.0])
@pytest.mark.parametrize("name", ["sct", "scd"])
def test_scm_is_algorithm_1(name: str, progress: float, deviation: float):
    """Algorithm 1 of 2410.11081: F of (x / sd, tp), tp = arctan(e^tau / sd) in [0, pi / 2], x = cos(tp) x1 + sin(tp) z.

        g = -cos^2(tp) (sd F - dx/dtp) - r cos(tp) sin(tp) (x + sd dF/dtp),    g <- g / (|g| + 0.1)
        L = e^w / D |F_theta - F - g|^2 - w

    Our map is X_{s,1} = cos(tp) x + sin(tp) net with s = 1 - 2 tp / pi and net = -sd F; our loss is of v = pi / 2 net,
    whose step is -pi / 2 sd times that of F: its value is theirs, and its gradient pi / 2 sd times theirs. Our learned
    weight is e^-w d + w, so that w of theirs is ln D - w, and the loss theirs + ln D.
    """
    net, rng, sd = Network(DIM, 1), generator(5), deviation
    given = {} if name == "sct" else {"teacher": teacher}
    objective = METHODS[name].function(MAPS["trigonometric"].build(net), coupling=Independent(Normal(sd)), **given)
    objective = objective.double()
    torch.nn.init.normal_(objective.weight.net[-1].weight, generator=generator(9))
    x1, cond = torch.randn(2, ROWS, DIM, generator=rng).double().unbind(0)
    cond = cond[:, :2]
    draw = objective.draw(x1, cond=cond, generator=rng, progress=progress)
    z, s, r, D = draw.x0, draw.s, min(1.0, progress / 0.1), DIM

    def F(scaled: Tensor, tp: Tensor) -> Tensor:
        return -net(sd * scaled, 1 - 2 * tp / math.pi, torch.ones_like(tp), cond) / sd

    tp = math.pi / 2 * (1 - s)
    cos, sin = torch.cos(tp)[:, None], torch.sin(tp)[:, None]
    x = cos * x1 + sin * z
    dx = cos * z - sin * x1 if name == "sct" else -2 / math.pi * teacher(x, s, cond)
    old, dF = jvp(F, (x / sd, tp), (dx / sd, torch.ones_like(tp)))
    g = -(cos**2) * (sd * old - dx) - r * cos * sin * (x + sd * dF)
    g = (g / (g.norm(dim=1, keepdim=True) + 0.1)).detach()
    w = math.log(D) - objective.weight(torch.zeros_like(s), s, torch.ones_like(s))
    theirs = (w.exp() / D * squares(F(x / sd, tp) - old.detach() - g) - w).mean()

    ours = objective.evaluate(draw).value
    torch.testing.assert_close(ours, theirs + math.log(D), rtol=1e-10, atol=1e-10)
    for part, factor in ((net, math.pi / 2 * sd), (objective.weight, 1.0)):
        parameters = list(part.parameters())
        got = torch.autograd.grad(ours, parameters, retain_graph=True)
        wanted = torch.autograd.grad(theirs, parameters, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, factor * b, rtol=1e-9, atol=1e-9)


def karras(number: int, smallest: float = 0.0, largest: float = 80.0, rho: float = 7.0) -> Tensor:
    """sigma_i = (smin^(1/rho) + (i - 1) / (N - 1) (smax^(1/rho) - smin^(1/rho)))^rho, i = 1..N, as `(N,)`."""
    low, high = smallest ** (1 / rho), largest ** (1 / rho)
    return (low + torch.arange(number).double() / (number - 1) * (high - low)) ** rho


@pytest.mark.parametrize("cells", [3, 17])
@pytest.mark.parametrize("name", ["consistency_training", "improved_consistency_training"])
def test_consistency_training_in_sigma(name: str, cells: int):
    """|f(x1 + sigma_{n+1} z, sigma_{n+1}) - sg f(x1 + sigma_n z, sigma_n)|^2 on Karras's grid (2303.01469).

    f(., sigma) = X_{s,1} of the variance-exploding path with sigma = 80 (1 - s)^7; improved consistency training has
    the weight 1 / (sigma_{n+1} - sigma_n) and the distance sqrt(|.|^2 + c^2) - c besides.
    """
    path, net, rng = VarianceExploding(), Network(DIM, 1), generator(5)
    improved = name != "consistency_training"
    law: dict[str, Any] = {"times": times.Snapped(ToData(), cells)} if improved else {}
    if improved:  # in units of the data: the base has deviation 80
        law |= {"distance": losses.PseudoHuber(0.02), "weight": losses.PerNoise(path, scale=80.0)}
    flow_map, coupling = AVERAGE.build(net), Independent(Normal(80.0))
    objective = getattr(methods, name)(flow_map, cells=cells, interpolant=path, coupling=coupling, **law)
    x1, cond = torch.randn(2, ROWS, DIM, generator=rng).double().unbind(0)
    cond = cond[:, :2]
    draw = objective.draw(x1, cond=cond, generator=rng)
    sigma, z = karras(cells + 1), draw.x0 / 80
    assert abs(float(draw.x0.std()) - 80) < 40
    n = cells - 1 - (draw.s * cells).round().long()  # the larger sigma is that of the start

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        s = 1 - (sigma / 80) ** (1 / 7)
        return AVERAGE.jump(net(x, s, torch.ones_like(s), cond), x, s, torch.ones_like(s))

    noisy, clean = sigma[n + 1], sigma[n]
    residual = f(x1 + noisy[:, None] * z, noisy) - f(x1 + clean[:, None] * z, clean).detach()
    loss = squares(residual)
    if improved:
        loss = ((loss + 0.02**2).sqrt() - 0.02) / (noisy - clean)
    assert_same(objective, Paper(net, AVERAGE, path, draw), loss.mean(), 1e-8)


def test_improved_consistency_training_as_it_is_on_edms_path():
    """lambda = 1 / (sigma_{n+1} - sigma_n) up to one factor for all rows."""
    objective, _ = build("improved_consistency_training", AVERAGE, VarianceExploding())
    s, one = torch.arange(6).double() / 6, torch.ones(6).double()
    got = objective.weight(objective.distance((1 - s)[:, None]), s, one, 1 / (6 * (1 - s)))
    sigma = 80 * (1 - s) ** 7
    wanted = ((((1 - s) ** 2 + 0.03**2).sqrt()) - 0.03) / (sigma - 80 * (1 - s - 1 / 6) ** 7)
    torch.testing.assert_close(got / got[0], wanted / wanted[0], rtol=1e-6, atol=0)


def test_consistency_distillation_is_heun_in_sigma_where_time_is_linear_in_sigma():
    """x <- x + (sigma' - sigma) (d + d') / 2 along dx/dsigma, on the path sigma = 5 (1 - s)."""
    path = VarianceExploding(5.0, 1.0)
    objective, paper = build("consistency_distillation", AVERAGE, path)

    def heun_in_sigma(p: Paper, x: Tensor, s: Tensor, w: Tensor) -> Tensor:
        sigma, sigma2 = 5 * (1 - s)[:, None], 5 * (1 - w)[:, None]
        slope = -p.b(x, s) / 5
        return x + (sigma2 - sigma) * (slope - p.b(x + (sigma2 - sigma) * slope, w) / 5) / 2

    assert_same(objective, paper, consistency(6, heun_in_sigma)(paper).mean())


@pytest.mark.parametrize(
    "own, alpha", [(False, 1.0), (False, 0.5), (False, 0.005), (True, 0.5), (True, 0.005)]
)  # own at 1 compares u with itself
def test_alphaflow_by_its_definition(own: bool, alpha: float):
    """a^-1 |u_{s,t}(I_s) - sg(a v~ + (1 - a) u_{w,t}(I_s + (w - s) v~))|^2, v~ = dI where the path is linear."""
    net, rng = Network(DIM, 1), generator(5)
    objective = methods.alphaflow(
        AVERAGE.build(net), alpha=alpha, velocity_first=not own, weight=losses.SplitPower(-1.0)
    )
    assert isinstance(objective, SplitRows)
    x1, cond = torch.randn(ROWS, DIM, generator=rng).double(), torch.randn(ROWS, 2, generator=rng).double()
    draw = objective.second.draw(x1, cond=cond, generator=rng)
    p = Paper(net, AVERAGE, Linear(), draw)
    loss = alphaflow(own, True, alpha)(p)
    if not own:
        s, t, x, v = draw.s, draw.t, p.I(draw.s), draw.x1 - draw.x0
        w = s + alpha * (t - s)
        rest = (1 - alpha) * p.u(x + (w - s)[:, None] * v, w, t) if alpha < 1 else 0
        literal = squares(p.u(x, s, t) - (alpha * v + rest).detach()) / alpha
        torch.testing.assert_close(loss, literal, rtol=1e-7, atol=1e-9)
    assert_same(objective.second, p, loss.mean(), 1e-8)


def test_alphaflow_by_its_definition_on_the_diagonal():
    """a^-1 belongs to the rows off the diagonal: on it the weight is 1."""
    net, rng = Network(DIM, 1), generator(5)
    objective = methods.alphaflow(AVERAGE.build(net), alpha=0.3, weight=losses.SplitPower(-1.0))
    x1, cond = torch.randn(ROWS, DIM, generator=rng).double(), torch.randn(ROWS, 2, generator=rng).double()
    paper = Paper(net, AVERAGE, Linear(), objective.draw(x1, cond=cond, generator=rng))
    assert_same(objective, paper, beside(0.25, matching, alphaflow(False, True))(paper).mean())


def test_an_average_follows_the_map():
    """theta- <- mu theta- + (1 - mu) theta after each step, and then the loss is that with the new average."""
    net = Network(DIM, 1)
    flow_map = AVERAGE.build(net)
    frozen = Target(AVERAGE.build(Network(DIM, 2)), decay=0.9)
    objective = methods.consistency_training(flow_map, cells=6, target=frozen)
    objective.step(0.1)
    average = Network(DIM, 2)
    with torch.no_grad():
        for old, new in zip(average.parameters(), net.parameters(), strict=True):
            old.copy_(0.9 * old + 0.1 * new)
    rng = generator(5)
    x1, cond = torch.randn(ROWS, DIM, generator=rng).double(), torch.randn(ROWS, 2, generator=rng).double()
    draw = objective.draw(x1, cond=cond, generator=rng, progress=0.1)
    paper = Paper(net, AVERAGE, Linear(), draw, average)
    assert_same(objective, paper, consistency(6, on_path, True)(paper).mean())


# parts, and laws of the times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPERS)
def test_parts_are_the_unweighted_residuals(name: str):
    """Their mean is the loss with weight 1 (CTM's diagonal term, whose factor is not in its part, aside).

    Where the residual is normalised the part is the residual as it was before; of a distance of jumps it is still of u.
    """
    plain: dict[str, Any] = {"weight": losses.Constant(1.0)}
    jumps = name in ("improved_consistency_training", "easy_consistency_tuning")
    plain |= {"distance": losses.squared} if jumps or name.startswith("facm") else {}
    objective, paper = build(name, AVERAGE, Linear(), PROGRESS, **plain)
    loss = objective.evaluate(paper.draw)
    assert all(part.shape == (ROWS,) and not part.requires_grad for part in loss.parts.values())
    parts = dict(loss.parts)
    if isinstance(objective, Sum):
        torch.testing.assert_close(parts["diagonal"], matching(paper).detach(), rtol=1e-9, atol=1e-9)
        parts["diagonal"] = parts["diagonal"] * objective.scales[1]
    total = sum(parts.values())
    assert isinstance(total, Tensor)
    if isinstance(objective, MapMatching) and (c := objective.equation.normalise) is not None:
        total = (total.sqrt() / (total.sqrt() + c)).square()
    if jumps:
        total = total * (paper.draw.t - paper.draw.s) ** 2
    torch.testing.assert_close(total.mean(), loss.value.detach(), rtol=1e-12, atol=0)


MANY = 20_000


def drawn(method: Callable[..., Any], **given: Any) -> tuple[Tensor, Tensor]:
    """Many times s and t of a method."""
    objective = method(AVERAGE.build(Network(2, 1)), **given)
    draw = objective.draw(torch.zeros(MANY, 2, dtype=torch.float64), generator=generator(2), progress=1.0)
    return draw.s, draw.t


def assert_law(values: Tensor, cdf: Callable[[Tensor], Tensor]) -> None:
    """Kolmogorov and Smirnov's distance, at the level of one in ten thousand."""
    ranks = (torch.arange(len(values)) + 0.5) / len(values)
    assert float((cdf(values.sort().values) - ranks).abs().max()) < 2.2 / len(values) ** 0.5


def normal(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.special.ndtr((y - mean) / std)


@pytest.mark.parametrize("name", ["sct", "scd"])
def test_scm_draws_a_log_normal_ratio(name: str):
    """tan(tp) = e^tau / sigma_d, tau ~ N(-1, 1.4^2), at the paper's sigma_d = 1/2; and t = 1."""
    given = {} if name == "sct" else {"teacher": teacher}
    s, t = drawn(getattr(methods, name), **given)
    assert bool((t == 1).all())
    assert_law(torch.log(torch.tan(math.pi / 2 * (1 - s))), normal(-1.0 + math.log(2), 1.4))


@pytest.mark.parametrize("name, share", [("meanflow", 0.75), ("improved_meanflow", 0.5), ("alphaflow", 0.25)])
def test_meanflow_draws_two_logit_normal_times(name: str, share: float):
    """Two of logit-normal(-0.4, 1) in the time from data to noise, t the larger, r the smaller; on the diagonal one."""
    s, t = drawn(getattr(methods, name))
    n = round(share * MANY)
    assert torch.equal(s[:n], t[:n])
    assert bool((s[n:] < t[n:]).all())
    later, sooner = torch.logit(1 - s), torch.logit(1 - t)
    one = normal(-0.4, 1.0)
    assert_law(later[:n], one)
    assert_law(later[n:], lambda y: one(y) ** 2)
    assert_law(sooner[n:], lambda y: 1 - (1 - one(y)) ** 2)


def test_tvm_draws_a_long_gap_then_its_end():
    """gap logit-normal(-0.8, 1), end logit-normal(-0.4, 1) below 1 - gap in the time from data to noise; 0 <= s."""
    s, t = drawn(methods.tvm)
    n = MANY // 2
    assert torch.equal(s[:n], t[:n])
    assert_law(torch.logit(1 - t[:n]), normal(-0.4, 1.0))
    gap, end, law = t[n:] - s[n:], 1 - t[n:], normal(-0.4, 1.0)
    assert_law(torch.logit(gap), normal(-0.8, 1.0))
    below = law(torch.logit(end)) / law(torch.logit(1 - gap))  # uniform, given the gap
    assert_law(below.clamp(0, 1), lambda x: x)
    assert float((s[n:] + gap + end - 1).abs().max()) < 1e-12
    assert float(s.min()) >= 0


@pytest.mark.parametrize("leg", [0, -0.1, 1.1, math.nan])
def test_soflow_refuses_a_first_leg_out_of_range(leg: float):
    with pytest.raises(ValueError, match=r"soflow needs first_leg in \(0, 1\], got"):
        methods.soflow(AverageVelocity(MLP(2)), first_leg=leg)


def test_soflow_draws_start_and_end_by_their_own_numbers():
    """t logit-normal(0.2, 0.8), s the smaller of t and logit-normal(-1, 0.8), in the time from data to noise."""
    s, t = drawn(methods.soflow)
    n = 3 * MANY // 4
    assert_law(torch.logit(1 - s[:n]), normal(-0.2, 1.0))
    start, end = normal(0.2, 0.8), normal(-1.0, 0.8)
    assert bool((s <= t).all())
    assert_law(torch.logit(1 - s[n:]), start)
    assert_law(torch.logit(1 - t[n:]), lambda y: 1 - (1 - start(y)) * (1 - end(y)))


def test_facm_draws_a_log_normal_angle():
    """1 - t = 2 / pi arctan(sigma), ln sigma ~ N(-0.8, 1.6^2), for the anchor too."""
    s, t = drawn(methods.facm)
    n = MANY // 2
    assert torch.equal(s[:n], t[:n])
    assert bool((t[n:] == 1).all())
    for part in (s[:n], s[n:]):
        assert_law(torch.log(torch.tan(math.pi / 2 * (1 - part))), normal(-0.8, 1.6))


def test_anyflow_draws_half_of_its_jumps_to_the_data():
    s, t = drawn(methods.anyflow)
    n = MANY // 2
    assert torch.equal(s[:n], t[:n])
    to_data = t[n:] == 1
    assert abs(float(to_data.double().mean()) - 0.5) < 4 * 0.5 / n**0.5
    assert_law(s[n:][to_data], lambda x: x)
    assert_law(t[n:][~to_data], lambda x: x * x)


def test_easy_consistency_tuning_draws_a_log_normal_ratio():
    s, _ = drawn(methods.easy_consistency_tuning)
    assert_law(torch.log((1 - s) / s), normal(-1.1, 2.0))


def test_easy_consistency_tuning_draws_in_units_of_the_data_on_edms_path():
    """sigma = 80 (1 - s)^7: ln sigma ~ N(-1.1, 2^2), as far as sigma < 80."""
    given = {"interpolant": VarianceExploding(), "coupling": Independent(Normal(80.0))}
    s, _ = drawn(methods.easy_consistency_tuning, **given)
    assert abs(float(torch.log(80 * (1 - s) ** 7).median()) + 1.1) < 0.1


def test_improved_consistency_training_draws_a_discrete_log_normal_ratio():
    """p(sigma_i) in proportion to the mass of the cell that starts there (2310.14189, equation 10)."""
    s, _ = drawn(methods.improved_consistency_training, cells=10)
    cell = (10 * s).round().long()
    ends = torch.linspace(0, 1, 11).double()
    mass = normal(-1.1, 2.0)(torch.log((1 - ends) / ends)).diff().neg()
    counts = torch.bincount(cell, minlength=10) / MANY
    assert float((counts - mass).abs().max()) < 4 * 0.5 / MANY**0.5


def test_shortcut_draws_dyadic_lengths_alike():
    """d = 1, 1/2, ..., 1/64 for a seventh of the rows off the diagonal each, s uniform on the multiples of d."""
    s, t = drawn(methods.shortcut)
    s, d = s[15_000:], (t - s)[15_000:]
    k = torch.log2(d).neg()
    assert torch.equal(k, k.round())
    assert torch.equal(s / d, (s / d).round())
    counts = torch.bincount(k.long(), minlength=7) / len(k)
    assert counts.shape == (7,)
    assert float((counts - 1 / 7).abs().max()) < 4 * 0.35 / len(k) ** 0.5
    cells = torch.bincount((s[k == 2] * 4).long(), minlength=4)
    assert float((cells / cells.sum() - 1 / 4).abs().max()) < 4 * 0.44 / float(cells.sum()) ** 0.5
