"""Integrals over time by Gauss-Legendre times, from any of them to 1 too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Quadrature(NamedTuple):
    """Times in (0, 1) and what integrals over time are made of, float64.

    Attributes:
        times: t_k, `(K,)`.
        weights: of int_0^1, `(K,)`.
        tails: of int_{t_k}^1, `(K, K)`, a row for each t_k.
    """

    times: Tensor
    weights: Tensor
    tails: Tensor

    @classmethod
    def gauss_legendre(cls, number: int) -> Quadrature:
        """Gauss-Legendre times; `tails` integrates the polynomial through the values.

        Raises:
            ValueError: `number` is not positive.
        """
        if number < 1:
            raise ValueError(f"a quadrature needs times >= 1, got {number}.")
        x, w = np.polynomial.legendre.leggauss(number)
        values = np.polynomial.legendre.legvander(x, number)
        degrees = np.arange(1, number)
        # int_x^1 P_m = (P_{m-1}(x) - P_{m+1}(x)) / (2m + 1); the coefficient of P_m is (2m + 1) / 2 sum_j w_j P_m f_j
        integrals = np.concatenate([1 - x[:, None], (values[:, degrees - 1] - values[:, degrees + 1]) / 2], 1)
        integrals[:, :1] /= 2
        tails = integrals @ (w[:, None] * values[:, :number]).T
        return cls(*(torch.from_numpy(value) for value in ((x + 1) / 2, w / 2, tails / 2)))
