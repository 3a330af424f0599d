"""Links of the pages: which file of the repository each leads to, and the page or file of the site that stands for it.

A page of docs links as on GitHub, by paths in the repository: `../results/README.md#digits`, `../src/flowmaps/nn/`. The
site has pages for what lies in docs, notebooks among it; for the rest

    CONTRIBUTING.md, results/README.md, ...     a page of its own (`ROOT_PAGES`)
    src/flowmaps/maps.py, src/flowmaps/uses/    the page of the reference, if the module has one
    other text files that a page links to       a page with the file in it, under source/
    pictures                                    a copy, under source/
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "results/README.md": "results.md",
}
"""Files outside docs that are pages of the site."""
PICTURES = {".png", ".svg", ".gif", ".jpg"}
LANGUAGES = {".py": "python", ".sh": "bash", ".json": "json", ".jsonl": "json", ".toml": "toml", ".yml": "yaml"}
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))")
FENCE = re.compile(r"^(?P<indent> *)(?P<mark>```+|~~~+).*?^(?P=indent)(?P=mark) *$", re.M | re.S)


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """A text of Markdown with what is outside its fenced blocks changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def targets(text: str) -> Iterator[str]:
    """The targets of the links and pictures of a page, those to other sites left out."""
    for match in LINK.finditer(FENCE.sub("", text)):
        if not is_elsewhere(match["target"]):
            yield match["target"]


def is_elsewhere(target: str) -> bool:
    """Whether a link leads to another site."""
    return re.match(r"[a-z]+:", target) is not None


def file_of(target: str, page: str) -> tuple[str, str]:
    """The file of the repository that a link leads to, by its path there, and the anchor.

    Args:
        target: the link, such as `../results/README.md#digits`.
        page: path in the repository of the page that has it.
    """
    path, _, anchor = target.partition("#")
    if not path:
        return page, anchor
    return os.path.normpath(os.path.join(os.path.dirname(page), path)).replace(os.sep, "/"), anchor


def on_site(path: str, reference: dict[str, str]) -> str | None:
    """The path in the site of a file of the repository; `None` for a file that the site does not have yet.

    Args:
        path: of the file, in the repository.
        reference: page of the reference of each module that has one, by the path of its file or folder.
    """
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path in reference:
        return reference[path]
    if path.startswith("docs/") and PurePosixPath(path).suffix != ".py":
        return page_of_notebook(path.removeprefix("docs/"))
    if (ROOT / path).is_file():
        as_it_is = PurePosixPath(path).suffix in {*PICTURES, ".md"}
        return f"source/{path}" if as_it_is else f"source/{path}.md"
    return None


def page_of_notebook(place: str) -> str:
    """The path in the site of the page of a notebook, by the path of its file; other paths stay as they are."""
    return f"{place.removesuffix('.ipynb')}.md" if place.endswith(".ipynb") else place


def rewritten(text: str, page: str, place: str, reference: dict[str, str]) -> str:
    """A page whose links lead to pages and files of the site.

    Args:
        text: the page.
        page: its path in the repository.
        place: its path in the site.
        reference: as in `on_site`.
    """

    def lead(match: re.Match[str]) -> str:
        if is_elsewhere(match["target"]):
            return match[0]
        path, anchor = file_of(match["target"], page)
        goal = on_site(path, reference)
        if goal is None:
            return match[0]  # mkdocs says that it leads nowhere
        link = place.rpartition("/")[2] if goal == place else os.path.relpath(goal, os.path.dirname(place) or ".")
        return f"{match['before']}{link.replace(os.sep, '/')}{'#' + anchor if anchor else ''}{match['after']}"

    return outside_fences(text, lambda part: LINK.sub(lead, part))


def as_page(path: str) -> str:
    """A text file of the repository as a page."""
    content, suffix = (ROOT / path).read_text(encoding="utf-8"), PurePosixPath(path).suffix
    if suffix == ".md":
        return content
    mark = "`" * (max((len(run) for run in re.findall(r"`{3,}", content)), default=2) + 1)
    return f"# {path}\n\n{mark}{LANGUAGES.get(suffix, 'text')}\n{content.rstrip()}\n{mark}\n"


def slug(heading: str) -> str:
    """The anchor of a heading, as on GitHub and on the site."""
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    words = re.sub(r"<[^>]*>", "", unicodedata.normalize("NFC", words)).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """The anchors of a page."""
    plain = FENCE.sub("", text)
    return {slug(heading) for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)?$", plain, re.M)} | set(
        re.findall(r'<a (?:id|name)="([^"]+)"', plain)
    )
