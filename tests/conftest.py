"""Shapes in signatures are checked in the test run, where neither the compiler nor a `Dual` passes through."""

from jaxtyping import install_import_hook

CHECKED = ["flowmaps.couplings", "flowmaps.samplers", "flowmaps.times"]
install_import_hook(CHECKED, "shapecheck.check")
