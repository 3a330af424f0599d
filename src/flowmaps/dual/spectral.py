"""Fourier transforms and complex numbers.

A Fourier transform is linear, also where it takes real numbers to complex ones or back. The tangent of a complex number
is complex: `f(z + e v) = f(z) + e f'(z) v` for a holomorphic f, and for |z| and z / |z|, which are not holomorphic,

    d|z| = Re(conj(z) v) / |z|,    d(z / |z|) = (v - u Re(conj(u) v)) / |z|,    u = z / |z|.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core import Dual, composite, first_dual, linear_in_first, look_up, named, tangent_rule, values_of
from .sharing import sharing

TRANSFORMS = (
    *("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "rfft", "irfft", "rfft2", "irfft2", "rfftn", "irfftn"),
    *("hfft", "ihfft", "hfft2", "ihfft2", "hfftn", "ihfftn", "fftshift", "ifftshift"),
)

linear_in_first(*(getattr(torch.fft, name) for name in TRANSFORMS))


def _windowed(name: str) -> Any:
    """The tangent of `stft` or `istft`: linear in the signal; of a window with a tangent it is refused."""

    def derivative(y: Tensor, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Dual) or first_dual((args, kwargs)) is not None:
            raise NotImplementedError(f"torch.{name} with a window that has a tangent has no forward-mode rule.")
        return getattr(torch, name)(x.tangent, *values_of(args), **values_of(kwargs))

    return derivative


for _name in ("stft", "istft"):
    tangent_rule(*named(_name), getattr(torch._VF, _name))(_windowed(_name))  # type: ignore[attr-defined]


def unit(z: Tensor) -> Tensor:
    """`z / |z|`, 0 at 0; differentiable."""
    size = z.abs()
    return z / torch.where(size == 0, 1.0, size)


def along(z: Tensor, v: Any) -> Any:
    """`Re(conj(z) v)`: the scalar product of complex numbers as pairs of real ones."""
    return (z.conj() * v).real if z.is_complex() else z * v


@tangent_rule(*named("abs", "absolute", "__abs__"))
def _abs(y: Tensor, x: Any) -> Any:
    return along(unit(x.value), x.tangent) if x.value.is_complex() else x.tangent * x.value.sign()


@tangent_rule(*named("sgn"))
def _sgn(y: Tensor, x: Any) -> Any:
    if not x.value.is_complex():
        return None
    u, size = unit(x.value), x.value.abs()
    return (x.tangent - u * along(u, x.tangent)) / torch.where(size == 0, 1.0, size)


linear_in_first(*named("real", "imag", "conj_physical"))
for _function in named("real", "imag", "conj_physical"):
    composite(_function)(sharing(look_up(_function)))
Dual.real = property(lambda x: torch.real(x))  # type: ignore[attr-defined]
Dual.imag = property(lambda x: torch.imag(x))  # type: ignore[attr-defined]
