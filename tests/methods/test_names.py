"""A method is known by its `Method` alone: nothing else in the package knows one by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from flowmaps.methods import METHODS, Jumps, LearnsFrom, Method

SOURCE = ROOT / "src" / "flowmaps"
ALLOWED = (SOURCE / "methods", SOURCE / "runs" / "recipes")


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a file that are no docstrings, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if not any(path.is_relative_to(home) for home in ALLOWED)]


def test_no_method_is_known_by_its_name_outside_methods_and_recipes():
    named = [
        f"{path.relative_to(SOURCE)}:{line}: {text!r}"
        for path in files()
        for line, text in strings(path)
        if text in METHODS
    ]
    assert not named


def test_nothing_asks_whether_a_method_is_one_of_several():
    """`recipe.method in (...)` and the like: a field of `Method` says it."""
    compared = [
        (path, node)
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops)
    ]
    asked = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}"
        for path, node in compared
        if ast.unparse(node.left).endswith("recipe.method")
    ]
    assert not asked


def test_the_walk_sees_names_where_they_are_allowed():
    """So that the first test can fail."""
    found = {text for home in ALLOWED for path in home.rglob("*.py") for _, text in strings(path)}
    assert len(found & METHODS.keys()) > 20


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_a_method_says_of_itself_is_consistent(method: Method):
    assert METHODS[method.name] is method
    assert method.distils is (method.learns_from is LearnsFrom.TEACHER)
    assert method.stages[-1] == "map"
    assert len(method.stages) == (1 if method.learns_from is LearnsFrom.DATA else 2)
    if method.jumps is Jumps.TO_DATA:
        assert len(method.sampler(4, METHODS["sct"].interpolant).grid) == 4  # type: ignore[arg-type]
