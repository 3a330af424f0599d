"""`flowmaps methods`: each method once, under its equation."""

from __future__ import annotations

import inspect

from program import run

from flowmaps.cli.options import Compare, Tune
from flowmaps.methods import METHODS
from flowmaps.runs.recipes import Recipe
from flowmaps.training.settings import helps_of


def test_each_method_has_a_line_under_its_equation() -> None:
    lines = run("methods").splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(listed) == set(METHODS)
    assert len(lines) - len(listed) == 11  # six headings, with empty lines between
    for name, method in METHODS.items():
        first = (inspect.getdoc(method.objective) or "").splitlines()[0]
        assert listed[name].split(None, 1)[1] == (
            f"{first} [from {method.learns_from.value}; jumps: {method.jumps.value}]"
        )
    headings = [line for line in lines if line and not line.startswith("  ")]
    place = {heading: lines.index(heading) for heading in headings}
    (of_eulerian,) = (place[heading] for heading in headings if "Eulerian equation" in heading)
    later = min((at for at in place.values() if at > of_eulerian), default=len(lines))
    assert of_eulerian < lines.index(listed["emd"]) < later


def test_the_help_of_the_options_names_it() -> None:
    for kind, option in ((Recipe, "method"), (Compare, "methods"), (Tune, "methods")):
        assert "`flowmaps methods`" in " ".join(helps_of(kind)[option].split())
