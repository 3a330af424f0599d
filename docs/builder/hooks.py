"""Hooks of mkdocs: pages that are made of the code, pages from outside docs, links between them, formulas."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from builder import commands, formulas, links, notebooks, reference

SOURCES: dict[str, str] = {}
"""The path in the repository of each page that is not in docs, by its path in the site."""
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
"""What the plugin `offline` would have pages fetch, for the search of pages that are opened from the disk."""
PLACES = {"REFERENCE": reference.nav, "COMMANDS": commands.nav, "METHODS": commands.methods_nav}
"""What takes the place of a word of mkdocs.yml's navigation."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    config.nav = _filled(config.nav)
    return config


def _filled(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_filled(one) for one in entry]
    if isinstance(entry, dict):
        return {name: _filled(one) for name, one in entry.items()}
    return PLACES[entry]() if entry in PLACES else entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the code, those from outside docs, and what pages link to."""
    for place, text in {**reference.pages(), **commands.pages()}.items():
        files.append(File.generated(config, place, content=text))
    for path, place in links.ROOT_PAGES.items():
        _add(path, place, files, config)
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        _add_notebook(file.src_uri, files, config)
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    waiting = [(SOURCES.get(path.removeprefix("docs/"), path), text) for path, text in waiting]
    known = reference.by_source()
    while waiting:
        page, text = waiting.pop()
        for target in links.targets(text):
            path, _ = links.file_of(target, page)
            place = links.on_site(path, known)
            if place is None or files.get_file_from_path(place) is not None or not place.startswith("source/"):
                continue
            _add(path, place, files, config)
            if path.endswith(".md"):
                waiting.append((path, links.as_page(path)))
    return files


def _add(path: str, place: str, files: Files, config: MkDocsConfig) -> None:
    """A file of the repository as a page or a picture of the site."""
    if PurePosixPath(path).suffix in links.PICTURES:
        files.append(File.generated(config, place, abs_src_path=str(links.ROOT / path)))
        return
    SOURCES[place] = path
    files.append(File.generated(config, place, content=links.as_page(path)))


def _add_notebook(place: str, files: Files, config: MkDocsConfig) -> None:
    """A notebook of docs as a page with its pictures; the file itself stays beside them, to be downloaded."""
    text, pictures = notebooks.as_page(links.DOCS / place)
    page = links.page_of_notebook(place)
    SOURCES[page] = f"docs/{place}"
    files.append(File.generated(config, page, content=text))
    for name, picture in pictures.items():
        files.append(File.generated(config, str(PurePosixPath(place).with_name(name)), content=picture))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links by paths in the repository into links of the site."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    source = SOURCES.get(place, f"docs/{place}")
    if place.startswith("source/"):
        page.meta["search"] = {"exclude": True}
        if not source.endswith(".md"):
            return markdown
    return links.rewritten(markdown, source, place, reference.by_source())


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the formulas."""
    return formulas.with_mathml(html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the script for searches from the site, and not from elsewhere."""
    return output.replace(SHIM, f'<script src="{get_relative_url("assets/worker.js", page.url)}"></script>')


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The page of an error has no search."""
    return output_content.replace(SHIM, "")
