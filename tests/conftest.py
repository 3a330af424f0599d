"""Shapes in signatures are checked in the test run, in the modules through which neither the compiler nor a `Dual` goes."""

from jaxtyping import install_import_hook

CHECKED = ["flowmaps.couplings", "flowmaps.exact", "flowmaps.samplers", "flowmaps.solvers", "flowmaps.times"]
install_import_hook(CHECKED, "beartype.beartype")
