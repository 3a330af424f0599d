"""What a flow map is for, beyond fast samples.

certificates.py    how far a map's samples can be from those of its flow, from residuals; lipschitz.py, square.py
inversion.py       data to noise and back: inversion, style transfer, round-trip error
likelihood.py      log densities: by the ODE with the divergence (divergence.py), by determinants of N jumps, by a
                   learned mean divergence (mean_divergence.py: F2D2)
rewards.py         samples of the law tilted by a reward; deterministic steps of a higher reward
restoration.py     inverse problems y = A x + noise: one restored point, posterior samples; operators.py: A
posterior.py       maps from fresh noise to samples of p(x1 | x_t) or p(x1 | y); stochastic flow maps
"""

from .certificates import Certificate, Estimate, certificate
from .inversion import generate, invert, round_trip_error, transfer
from .likelihood import (
    LogLikelihood,
    bits_per_dimension,
    dequantise,
    jumps_log_likelihood,
    learned_log_likelihood,
    log_likelihood,
    sample_with_log_likelihood,
)
from .lipschitz import largest_stretching
from .mean_divergence import DivergenceMatching, WithDivergence
from .operators import Blur, Downsample, Mask, Matrix, Operator, Radon
from .posterior import AddNoise, NoisyDatum, PosteriorMatching, WithNoisyDatum, sample_posterior_map, stochastic_jumps
from .restoration import posterior_samples, psnr, restore
from .rewards import Tilted, guided_jumps, tilted_samples
from .square import ResidualSquare, residual_square

__all__ = [
    "AddNoise",
    "Blur",
    "Certificate",
    "DivergenceMatching",
    "Downsample",
    "Estimate",
    "LogLikelihood",
    "Mask",
    "Matrix",
    "NoisyDatum",
    "Operator",
    "PosteriorMatching",
    "Radon",
    "ResidualSquare",
    "Tilted",
    "WithDivergence",
    "WithNoisyDatum",
    "bits_per_dimension",
    "certificate",
    "dequantise",
    "generate",
    "guided_jumps",
    "invert",
    "jumps_log_likelihood",
    "largest_stretching",
    "learned_log_likelihood",
    "log_likelihood",
    "posterior_samples",
    "psnr",
    "residual_square",
    "restore",
    "round_trip_error",
    "sample_posterior_map",
    "sample_with_log_likelihood",
    "stochastic_jumps",
    "tilted_samples",
    "transfer",
]
