"""What is public, read from the source: the names that `flowmaps` gives, and those that its modules give.

A name is public if `flowmaps/__init__.py` names it, or if a module that is public has it: a package by its `__init__`,
a file by all that it defines without a leading underscore. A module from which a page of docs imports is public too.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache

import griffe

from builder.links import DOCS, ROOT
from builder.names import OneNameEach

NAME = "flowmaps"


@cache
def package() -> griffe.Module:
    """The package, read without importing it."""
    found = griffe.load(
        NAME,
        search_paths=[ROOT / "src"],
        allow_inspection=False,
        resolve_aliases=True,
        docstring_parser="google",
        extensions=griffe.load_extensions(OneNameEach),
    )
    assert isinstance(found, griffe.Module)
    return found


@dataclass(frozen=True)
class Part:
    """A module of the reference, and what it shows of it.

    Args:
        path: of the module, such as `flowmaps.uses.rewards`.
        names: what is shown, in the order of the file.
    """

    path: str
    names: tuple[str, ...]


@dataclass
class Page:
    """A page of the reference: a module, or a package with the parts of its files."""

    path: str
    parts: list[Part] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its path in the site."""
        return f"reference/{self.path.removeprefix(NAME + '.').replace('.', '/')}.md"


def own_names(module: griffe.Module) -> tuple[str, ...]:
    """What a file defines without a leading underscore; attributes where they have a docstring."""
    return tuple(
        name
        for name, member in module.members.items()
        if not name.startswith("_")
        and not member.is_alias
        and not member.is_module
        and (not member.is_attribute or member.docstring)
    )


def given(module: griffe.Module) -> dict[str, griffe.Object]:
    """What the `__init__` of a package gives, by name; the modules among it too."""
    listed = set(map(str, module.exports or ()))
    found: dict[str, griffe.Object] = {}
    for name, member in module.members.items():
        if name.startswith("_") or (listed and name not in listed):
            continue
        path = module.imports.get(name, "")
        if path.startswith(f"{module.path}.") and path.endswith(f".{name}"):  # a function may have the name of its file
            member = at(path)
        target = member.final_target if isinstance(member, griffe.Alias) else member
        if target.path.startswith(NAME) and (listed or not target.is_module):
            found[name] = target
    return found


def at(path: str) -> griffe.Object:
    """The object of a path, such as `flowmaps.maps.FlowMap`."""
    found = package()[path.removeprefix(f"{NAME}.")]
    return found.final_target if isinstance(found, griffe.Alias) else found


@cache
def modules() -> tuple[str, ...]:
    """The modules that `flowmaps/__init__.py` names, for type checkers."""
    tree = ast.parse((ROOT / "src" / NAME / "__init__.py").read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and not node.module]
    return tuple(sorted(alias.name for node in relative for alias in node.names))


@cache
def pages() -> tuple[Page, ...]:
    """The pages of the reference, in the order of the names of their modules."""
    found: dict[str, Page] = {}
    for name in modules():
        _add(f"{NAME}.{name}", found)
    for path in sorted(imported_by_docs()):
        if not _is_shown(path, found):
            _add(path, found)
    return tuple(found.values())


def _add(path: str, found: dict[str, Page]) -> None:
    module = at(path)
    page = found[path] = Page(path)
    if not module.is_init_module:
        page.parts.append(Part(path, own_names(module)))
        return
    parts: dict[str, list[str]] = {}
    for target in given(module).values():
        if target.is_module:
            _add(target.path, found)
        else:
            assert target.parent is not None
            parts.setdefault(target.parent.path, []).append(target.name)
    for parent in sorted(parts, key=lambda parent: (parent != path, parent)):
        order = list(at(parent).members)
        page.parts.append(Part(parent, tuple(sorted(parts[parent], key=order.index))))


def _is_shown(path: str, found: dict[str, Page]) -> bool:
    """Whether all that docs import from a module is on a page already."""
    shown = {f"{part.path}.{name}" for page in found.values() for part in page.parts for name in part.names}
    return path in found or all(at(name).path in shown for name in imported_by_docs()[path])


@cache
def functions() -> tuple[str, ...]:
    """The functions of the top level, by the paths of those that they are."""
    module = package()
    mine = {name: path for name, path in module.imports.items() if path.startswith(f"{NAME}.")}
    return tuple(sorted(path for name, path in mine.items() if path != f"{NAME}.{name}" and path.endswith(f".{name}")))


@cache
def imported_by_docs() -> dict[str, tuple[str, ...]]:
    """The modules from which the code of docs imports, with what it takes from each, as it may be found."""
    found: dict[str, set[str]] = {}
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for path, names in re.findall(rf"^from ({NAME}[\w.]*) import ([\w, ]+)", block, re.M):
                for name in map(str.strip, names.split(",")):
                    if not at(f"{path}.{name}").is_module:
                        found.setdefault(path, set()).add(f"{path}.{name}")
    return {path: tuple(sorted(names)) for path, names in found.items()}
