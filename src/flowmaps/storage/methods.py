"""Methods by the text that a recipe and a card have: a name of `flowmaps.methods`, or `module:name` of somebody's own.

No card is a reason to import anything, nor to call any function that happens to be imported: a module that the user of
this process has not named is asked for (`--import-module`). Where the user names a method,
`flowmaps.runs.own_networks.load_method` imports its module first.
"""

from __future__ import annotations

import inspect
import operator
import sys
from typing import Any

from ..methods import METHODS, Method
from ..system.names import choose

PASSED = ("interpolant", "draws")
"""Options that a recipe passes to every method."""
NAMED = set[str]()
"""Modules that the user of this process has named. Of another one a `Method` is taken, which was made to be one, and no
function."""
VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def method_of(text: str) -> Method:
    """The method of a text.

    Args:
        text: a name of `flowmaps.methods`, or `module:name`, where `name` is a `Method` of a module that is imported,
            or a function, which is wrapped in one, of a module that the user has named.

    Raises:
        ValueError: there is no such method, or its module is to be named first.
    """
    if ":" not in text:
        return choose("method", text, METHODS)
    module, _, name = text.partition(":")
    unnamed = ValueError(
        f"the method {text} is of a module that is not imported: import it first, with --import-module {module}."
    )
    if module not in sys.modules:
        raise unnamed
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except AttributeError:
        raise ValueError(f"the module {module} has no {name or 'method without a name'}: {_NAMES}.") from None
    if module not in NAMED and not isinstance(found, Method):
        raise unnamed
    return _as_method(text, found)


_NAMES = "name a Method of it, or a function (flow_map, **options) that returns an objective"


def _as_method(text: str, found: Any) -> Method:
    """A method of somebody's own: as it is, or the function's."""
    function = found.objective if isinstance(found, Method) else found
    if not inspect.isfunction(function):
        raise ValueError(f"{text} is of the type {type(function).__name__}, and no method: {_NAMES}.")
    taken = inspect.signature(function).parameters
    missing = [option for option in PASSED if option not in taken]
    if missing and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise ValueError(f"{text} takes no {missing[0]}, which a recipe passes to every method: add **options.")
    needed = [name for name, one in [*taken.items()][1:] if one.default is one.empty and one.kind not in VARIADIC]
    if needed and set(needed) != {"teacher"}:
        raise ValueError(f"{text} has no default for {needed[0]}: give it one, with which a run is compared.")
    return found if isinstance(found, Method) else Method(function)


def known(text: str) -> Method | None:
    """The method of a text, or `None` where there is none in this process."""
    try:
        return method_of(text)
    except ValueError:
        return None
