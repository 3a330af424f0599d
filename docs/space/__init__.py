"""The space of methods: where an objective lies in it, and what a row of it costs.

`coordinates(objective)` says in a few words which equation an objective uses, where the velocity comes from, which
pairs (s, t) are drawn, how long the first leg is, what is detached, and which distance and weight residuals have.
All of it is read off the parts of the objective. `cost(objective)` counts evaluations of the networks in one step.
"""

from .costs import Cost, cost
from .points import NONE, Coordinates, coordinates, off_diagonal

__all__ = ["NONE", "Coordinates", "Cost", "coordinates", "cost", "off_diagonal"]
