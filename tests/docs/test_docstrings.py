"""Every public name has a docstring, whose arguments, returns and errors fit its signature.

Public is what has no leading underscore, in every module of the package. griffe reads the source, and parses the
docstrings as the reference of the site does.
"""

from __future__ import annotations

import ast
import builtins
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import cache

import griffe
from builder import public

COUNTS = {"module": 240, "class": 300, "function": 650, "method": 450, "property": 80}
"""At least so many public names there are: a walk that misses some would find nothing wrong with them."""
SHARED = {
    "flowmaps.methods": {"flow_map", "options"},  # the docstring of the package and `Options` say what these are
    "flowmaps.objectives": {"common"},  # `Common` does
}
"""Arguments that the functions and classes of a package share."""


def walk(thing: griffe.Object) -> Iterator[griffe.Object]:
    """All public objects below one, itself first."""
    yield thing
    for name, member in thing.members.items():
        if member.is_alias or name.startswith("_"):
            continue
        if member.is_module or member.is_class:
            yield from walk(member)
        elif member.is_function or "property" in member.labels:
            yield member


@cache
def everything() -> tuple[griffe.Object, ...]:
    return tuple(walk(public.package()))


def kind(thing: griffe.Object) -> str:
    if thing.is_function:
        return "method" if thing.parent.is_class else "function"
    return "property" if thing.is_attribute else thing.kind.value


def bases(thing: griffe.Object) -> list[griffe.Object]:
    """The bases of a class in the package."""
    return [base for base in thing.mro() if base.path.startswith("flowmaps.")] if thing.is_class else []


def documented(thing: griffe.Object) -> bool:
    """Whether an object, or the method that it overrides, has a docstring."""
    overridden = (
        [base.members[thing.name] for base in bases(thing.parent) if thing.name in base.members] if thing.parent else []
    )
    return any(one.docstring is not None for one in (thing, *overridden))


def section(thing: griffe.Object, wanted: griffe.DocstringSectionKind) -> list:
    """What a docstring says in a section; nothing where it has none."""
    parsed = thing.docstring.parse("google", warnings=False) if thing.docstring else []
    return [entry for part in parsed if part.kind is wanted for entry in part.value]


def given(thing: griffe.Object) -> list[str]:
    """The arguments of a function or a class."""
    return [one.name.lstrip("*") for one in thing.parameters if one.name not in ("self", "cls")]


def described(thing: griffe.Object) -> list[str]:
    """The arguments that a docstring describes."""
    return [entry.name.lstrip("*") for entry in section(thing, griffe.DocstringSectionKind.parameters)]


def called() -> list[griffe.Object]:
    """Functions and classes whose docstring describes arguments."""
    return [thing for thing in everything() if (thing.is_function or thing.is_class) and described(thing)]


def test_every_public_name_has_a_docstring():
    counts = Counter(map(kind, everything()))
    print(dict(counts))
    assert all(counts[name] >= least for name, least in COUNTS.items()), counts
    assert not [thing.path for thing in everything() if not documented(thing)]


def test_arguments_are_those_of_the_signature_in_its_order():
    assert len(called()) > 380
    wrong = [
        (thing.path, described(thing))
        for thing in called()
        if described(thing) != [name for name in given(thing) if name in described(thing)]
    ]
    assert not wrong


def test_a_docstring_that_describes_arguments_describes_all():
    """Those that a base class describes, or all functions of a package share, may be left out."""
    for thing in called():
        known = {name for base in bases(thing) for name in described(base)}
        known |= {name for package, names in SHARED.items() if thing.path.startswith(f"{package}.") for name in names}
        left_out = set(given(thing)) - set(described(thing)) - known
        assert not left_out, f"{thing.path} says nothing of {sorted(left_out)}"


def test_what_returns_nothing_describes_no_return():
    returning = [thing for thing in everything() if section(thing, griffe.DocstringSectionKind.returns)]
    assert len(returning) > 50
    assert not [thing.path for thing in returning if thing.is_function and str(thing.returns) == "None"]


def raised(function: griffe.Object) -> set[str]:
    """The built-in errors that the body of a function raises itself."""
    tree = ast.parse(textwrap.dedent(function.source))
    found = {
        ast.unparse(getattr(node.exc, "func", node.exc))
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc
    }
    return {name for name in found if isinstance(getattr(builtins, name, None), type)} - {
        "AssertionError",
        "StopIteration",
    }


def maker(thing: griffe.Object) -> griffe.Object | None:
    """The function that runs when a function or a class is called."""
    return thing if thing.is_function else thing.members.get("__init__") or thing.members.get("__post_init__")


def in_reference() -> list[griffe.Object]:
    """Functions, classes and methods of the reference that have a docstring of their own."""
    shown = {f"{part.path}.{name}" for page in public.pages() for part in page.parts for name in part.names}
    shown |= set(public.functions())
    own = [thing for thing in everything() if (thing.is_function or thing.is_class) and thing.docstring]
    return [thing for thing in own if thing.path in shown or (thing.parent and thing.parent.path in shown)]


def test_errors_that_a_name_of_the_reference_raises_are_described():
    unsaid = []
    for thing in in_reference():
        function = maker(thing)
        if function is None or not isinstance(function, griffe.Function) or not function.source:
            continue
        said = {
            str(one.annotation)
            for part in (thing, function)
            for one in section(part, griffe.DocstringSectionKind.raises)
        }
        if raised(function) - said:
            unsaid.append((thing.path, raised(function) - said))
    assert len(in_reference()) > 300
    assert not unsaid


def test_errors_that_are_described_are_errors():
    for thing in everything():
        for entry in section(thing, griffe.DocstringSectionKind.raises):
            for name in str(entry.annotation).strip("()").split(", "):
                known = isinstance(getattr(builtins, name, None), type) or name in thing.module.members
                assert known, f"{thing.path} describes {name}"
