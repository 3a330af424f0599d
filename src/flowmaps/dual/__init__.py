"""Forward-mode derivatives as ordinary differentiable torch code.

`jvp(fn, primals, tangents)` returns `f(x)` and `Df(x) v`; `Dual` is the pair that goes through the network, `rule` adds
a torch function, `check` compares a network's derivatives with finite differences, `agree` its value with
a plain call; `flash` turns on a fused kernel.
"""

from . import (  # noqa: F401 (the rules)
    arithmetic,
    attention,
    elementwise,
    fallback,
    functions,
    indexing,
    linear,
    matrices,
    methods,
    norms,
    recurrent,
    reductions,
    resampling,
    sampling,
    shaping,
    spectral,
)
from .agreement import agree
from .checking import check
from .core import Dual, rule, tangent_rule
from .engines import ENGINES, Engine, jvp
from .fused import flash

methods.give_methods()

__all__ = ["ENGINES", "Dual", "Engine", "agree", "check", "flash", "jvp", "rule", "tangent_rule"]
