"""Laws of data whose velocities and flow maps are known exactly: teachers, and the reference of the tests.

Each has `sample`, `log_density(x, t=None)`, `velocity(x, t, cond=None)` = b_t(x) and `flow_map(x, s, t)` = X_{s,t}(x),
for every interpolant, noisy ones too, and a Gaussian base. Velocities and closed-form maps are ordinary differentiable
torch operations in the dtype and on the device of `x`. `mean_gradient` checks a method against the map of a Gaussian.
"""

from .checkerboard import Checkerboard
from .gaussian import Gaussian
from .mean_gradient import MeanGradient, mean_gradient
from .mixture import GaussianMixture

__all__ = ["Checkerboard", "Gaussian", "GaussianMixture", "MeanGradient", "mean_gradient"]
