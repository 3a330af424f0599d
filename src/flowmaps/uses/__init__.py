"""What a flow map is for, beyond fast samples.

certificates.py    how far a map's samples can be from those of its flow, from residuals; lipschitz.py, square.py
inversion.py       data to noise and back: inversion, style transfer, round-trip error
likelihood.py      log densities: by the ODE with the divergence (divergence.py), by determinants of N jumps, by a
                   learned mean divergence (mean_divergence.py: F2D2)
"""

from .certificates import Certificate, Estimate, certificate
from .inversion import invert, round_trip_error, transfer
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
from .square import Square, residual_square

__all__ = [
    "Certificate",
    "DivergenceMatching",
    "Estimate",
    "LogLikelihood",
    "Square",
    "WithDivergence",
    "bits_per_dimension",
    "certificate",
    "dequantise",
    "invert",
    "jumps_log_likelihood",
    "largest_stretching",
    "learned_log_likelihood",
    "log_likelihood",
    "residual_square",
    "round_trip_error",
    "sample_with_log_likelihood",
    "transfer",
]
