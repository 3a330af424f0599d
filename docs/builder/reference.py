"""The reference of the API: a page a public module, with what `public` finds."""

from __future__ import annotations

from functools import cache

from builder import public
from builder.links import ROOT

FRONT = "---\nsearch:\n  boost: 0.6\n---\n\n"
"""The guides come before the reference in a search."""
HEAD = """# Reference

Every public name, from its docstring. `fm` is `import flowmaps as fm`; `fm.maps` is the module `flowmaps.maps`.
Modules are imported when they are first used.

"""


def title(path: str) -> str:
    """The name of a module as a user writes it."""
    return path.replace(public.NAME, "fm", 1)


def shown(path: str, names: tuple[str, ...], level: int) -> str:
    """The directive that shows names of a module."""
    members = "".join(f"\n        - {name}" for name in names)
    return f"::: {path}\n    options:\n      heading_level: {level}\n      members:{members or ' false'}\n"


def page(one: public.Page) -> str:
    """The page of a module."""
    words = [FRONT + f"# {title(one.path)}"]
    if [part.path for part in one.parts] == [one.path]:
        return "\n\n".join([*words, shown(one.path, one.parts[0].names, 2)])
    own = next((part.names for part in one.parts if part.path == one.path), ())
    words.append(shown(one.path, own, 2))
    for part in one.parts:
        if part.path != one.path:
            file = part.path.rpartition(".")[2]
            words += [f"## {part.names[0] if file.startswith('_') else file}", shown(part.path, part.names, 3)]
    return "\n\n".join(words)


def first_line(path: str) -> str:
    """The first sentence of a docstring."""
    found = public.at(path).docstring
    words = " ".join(found.value.split("\n\n")[0].split()) if found else ""
    return words.replace("|", "\\|")


def index() -> str:
    """The page of all modules, and the functions of the top level."""
    lines = [HEAD + "| module | what it has |", "|---|---|"]
    lines += [
        f"| [`{title(one.path)}`]({one.file.removeprefix('reference/')}) | {first_line(one.path)} |"
        for one in public.pages()
    ]
    functions = [shown_function(path) for path in public.functions()]
    return "\n".join([*lines, "", "The [options of every command](commands/index.md) have pages of their own.", ""]) + (
        "\n## Functions of the top level\n\n" + "\n\n".join(functions)
    )


def shown_function(path: str) -> str:
    """The directive of a function of the top level, under the name that a user writes."""
    name = path.rpartition(".")[2]
    return f"### fm.{name}\n\n::: {path}\n    options:\n      show_root_heading: false\n      heading_level: 4\n"


@cache
def by_source() -> dict[str, str]:
    """The page of each module, by the path of its file, or its folder, in the repository."""
    found = {}
    for one in public.pages():
        base = "src/" + one.path.replace(".", "/")
        if (ROOT / f"{base}.py").exists():
            found[f"{base}.py"] = one.file
            continue
        found[base] = one.file
        for file in sorted((ROOT / base).glob("*.py")):
            shown_here = any(part.path.endswith(f".{file.stem}") for part in one.parts)
            if file.stem == "__init__" or shown_here:
                found.setdefault(f"{base}/{file.name}", one.file)
    return found


def pages() -> dict[str, str]:
    """Every page of the reference, by its path in the site."""
    return {"reference/index.md": index(), **{one.file: page(one) for one in public.pages()}}


def nav() -> list[dict[str, object]]:
    """The entries of the pages in the navigation."""
    return [{"Overview": "reference/index.md"}, *({title(one.path): one.file} for one in public.pages())]
