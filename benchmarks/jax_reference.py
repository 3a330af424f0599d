"""The losses of `derivatives.py` in JAX, written literally: what `jax.jit` makes of the same step on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

stop = jax.lax.stop_gradient


def net(parameters: Any, x: Any, s: Any, t: Any) -> Any:
    h = jnp.concatenate([x, s[:, None], (t - s)[:, None]], 1)
    for weight, bias in parameters[:-1]:
        h = jax.nn.gelu(h @ weight.T + bias, approximate=True)
    return h @ parameters[-1][0].T + parameters[-1][1]


def lagrangian(p: Any, x: Any, s: Any, t: Any) -> tuple[Any, Any, Any]:
    """u, d_t u and the jump."""
    u, u_dot = jax.jvp(lambda r: net(p, x, s, r), (t,), (jnp.ones_like(t),))
    return u, u_dot, x + (t - s)[:, None] * u


def lsd(p: Any, x: Any, s: Any, t: Any, split: Any) -> Any:
    u, u_dot, jump = lagrangian(p, x, s, t)
    return u + (t - s)[:, None] * u_dot - stop(net(p, jump, t, t))


def esd(p: Any, x: Any, s: Any, t: Any, split: Any) -> Any:
    b = stop(net(p, x, s, s))
    u, u_s = jax.jvp(lambda r: net(p, x, r, t), (s,), (jnp.ones_like(s),))
    u_x = stop(jax.jvp(lambda y: net(p, y, s, t), (x,), (b,))[1])
    return u - (t - s)[:, None] * u_s - b - (t - s)[:, None] * u_x


def psd(p: Any, x: Any, s: Any, t: Any, split: Any) -> Any:
    w, share = s + split * (t - s), split[:, None]
    first = net(p, x, s, w)
    second = net(p, x + (w - s)[:, None] * first, w, t)
    return net(p, x, s, t) - stop(share * first + (1 - share) * second)


def diagonal(p: Any, x0: Any, x1: Any, t: Any) -> Any:
    return net(p, (1 - t)[:, None] * x0 + t[:, None] * x1, t, t) - (x1 - x0)


def self_distilled(residual: Callable[..., Any], cut: int) -> Callable[..., Any]:
    def loss(p: Any, teacher: Any, x0: Any, x1: Any, s: Any, t: Any, split: Any) -> Any:
        x = (1 - s)[:, None] * x0 + s[:, None] * x1
        own = residual(p, x[cut:], s[cut:], t[cut:], split[cut:])
        matching = jnp.sum(diagonal(p, x0[:cut], x1[:cut], t[:cut]) ** 2) if cut else 0.0
        return (matching + jnp.sum(own**2)) / len(x0)

    return loss


def lmd(p: Any, teacher: Any, x0: Any, x1: Any, s: Any, t: Any, split: Any) -> Any:
    u, u_dot, jump = lagrangian(p, (1 - s)[:, None] * x0 + s[:, None] * x1, s, t)
    return jnp.sum((u + (t - s)[:, None] * u_dot - net(teacher, jump, t, t)) ** 2) / len(x0)


def steps(method: str, module: Any, teacher: Any, draw: Any, cut: int) -> Callable[[], float]:
    """A step on the weights of a torch module and a torch draw, waiting for the gradient."""
    losses = {"lsd": self_distilled(lsd, cut), "esd": self_distilled(esd, cut), "psd": self_distilled(psd, cut)}
    run = jax.jit(jax.value_and_grad(losses.get(method, lmd)))
    arrays = [jnp.asarray(np.array(a)) for a in (draw.x0, draw.x1, draw.s, draw.t, draw.split)]
    weights, fixed = parameters(module), parameters(teacher)

    def step() -> float:
        value, gradient = run(weights, fixed, *arrays)
        jax.block_until_ready(gradient)
        return float(value)

    return step


def parameters(module: Any) -> list[tuple[Any, Any]]:
    layers = [module.first, *module.hidden, module.last]
    return [(jnp.asarray(a.weight.detach().numpy()), jnp.asarray(a.bias.detach().numpy())) for a in layers]
