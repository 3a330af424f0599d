"""The space of methods: where an objective lies in it, and what a row of it costs.

`point(objective)` says in short words which equation an objective demands, where the velocity comes from, which pairs
(s, t) it looks at, how far the first leg goes, what is detached and how residuals are weighed, all read off what the
objective is composed of. `cost(objective)` runs one step and counts evaluations.
"""

from .costs import Cost, cost
from .points import NONE, Point, off_diagonal, point

__all__ = ["NONE", "Cost", "Point", "cost", "off_diagonal", "point"]
