"""The space of methods: where an objective lies in it, and what a row of it costs.

`coordinates(objective)` says in a few words which equation an objective demands, where the velocity comes from, which pairs
(s, t) it looks at, how far the first leg goes, what is detached and how residuals are weighed, all read off what the
objective is composed of. `cost(objective)` runs one step and counts evaluations.
"""

from .costs import Cost, cost
from .points import NONE, Coordinates, coordinates, off_diagonal

__all__ = ["NONE", "Coordinates", "Cost", "coordinates", "cost", "off_diagonal"]
