"""The pages of the site: their links and anchors, their place in the navigation, and the names and options they say.

All of it without mkdocs, which says the same of the built site (`make docs`).
"""

from __future__ import annotations

import importlib
import re
from functools import cache

import pytest
from builder import commands, links, notebooks, public, reference
from places import ROOT

from flowmaps.cli.main import main

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.ipynb"))
PAGES = [*DOCS, *NOTEBOOKS, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "results/README.md"]
OF_OTHERS = {
    "pip": ("--no-deps", "--extra-index-url"),
    "torchrun": ("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--shutdown-timeout"),
    "accelerate": ("--num_processes", "--use_fsdp"),
    "tensorboard": ("--logdir",),
    "benchmarks/derivatives.py": ("--rounds", "--share", "--profile"),
    "benchmarks/image_metrics.py": ("--numbers",),
    "benchmarks/class_agreement.py": ("--solver-steps", "--dopri5"),
    "benchmarks/paper_table.py": ("--rows", "--width"),
    "examples/ddpm_cifar10": ("--reference",),
    "examples/image_uses.py": ("--run",),
    "docs/make.py": ("--costs",),
    "docs/play/make.py": ("--map", "--runtime"),
}
"""Options in the pages that are of other programs."""


@cache
def text_of(page: str) -> str:
    if page.endswith(".ipynb"):
        text, pictures = notebooks.as_page(ROOT / page)
        return re.sub(r"!\[.*?\]\((.*?)\)", lambda link: "" if link[1] in pictures else link[0], text)
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_their_headings(page: str):
    for target in links.targets(text_of(page)):
        path, anchor = links.file_of(target, page)
        assert (ROOT / path).exists(), f"{page} links to {target}, which is not there"
        assert links.on_site(path, reference.by_source()) is not None, f"{page} links to {target}, not on the site"
        if anchor:
            assert path.endswith(".md"), target
            assert anchor in links.anchors(text_of(path)), f"{page} links to {target}, which has no such heading"


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](b.md#c) `x`\n```\n[no](link.md)\n```\n![p](../p.png)\n[else](https://x.org)\n"
    assert list(links.targets(text)) == ["b.md#c", "../p.png"]
    assert links.file_of("../p.png#a", "docs/uses/x.md") == ("docs/p.png", "a")
    assert links.on_site("docs/nothing.py", {}) is None
    assert links.anchors("# A `b` [c](d.md), e\n```\n# no\n```\n") == {"a-b-c-e"}
    rewritten = links.rewritten("[a](../../README.md#b) [b](../gpu.md)", "docs/uses/x.md", "uses/x.md", {})
    assert rewritten == "[a](../source/README.md#b) [b](../gpu.md)"


def test_every_page_has_its_place_in_the_navigation():
    nav = set(re.findall(r"([\w/.]+\.md)\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]))
    methods = {page for page in DOCS if page.startswith("docs/methods/")}
    assert nav == {page.removeprefix("docs/") for page in {*DOCS} - methods} | {
        *links.ROOT_PAGES.values(),
        *(links.page_of_notebook(page.removeprefix("docs/")) for page in NOTEBOOKS),
    }
    listed = re.findall(r"methods/(\w+)\.md", repr(commands.methods_nav()))
    assert sorted(listed) == sorted(page.split("/")[-1].removesuffix(".md") for page in methods)


def test_options_in_the_pages_are_options_of_the_program():
    known = commands.all_options() | {name for names in OF_OTHERS.values() for name in names}
    assert len(known) > 150
    said = {}
    for page in PAGES:
        if page != "CHANGELOG.md":  # which names what there was
            for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text_of(page)):
                said.setdefault(name, page)
    groups = {name.rpartition(".")[0] for name in known}
    assert not {name: page for name, page in said.items() if name not in known and name not in groups}


def resolved(name: str) -> object:
    """What a dotted name of the package stands for."""
    found: object = importlib.import_module("flowmaps")
    path = "flowmaps"
    for part in name.split(".")[1:]:
        path += f".{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(path)
    return found


def test_names_in_the_pages_are_names_of_the_package():
    names = {}
    for page in PAGES:
        for name in re.findall(
            r"\b(?:fm|flowmaps)(?:\.[A-Za-z_]\w*)+", text_of(page) if page != "CHANGELOG.md" else ""
        ):
            names.setdefault(name.removesuffix(".json"), page)
    assert len(names) > 100
    wrong = []
    for name, page in names.items():
        try:
            resolved(name)
        except (AttributeError, ModuleNotFoundError):
            wrong.append((page, name))
    assert not wrong


def test_every_command_has_a_page_with_its_options(capsys: pytest.CaptureFixture[str]):
    pages = commands.pages()
    with pytest.raises(SystemExit):
        main(["no-command"])
    names = re.search(r"one of (.*?)\.?$", capsys.readouterr().err.strip())
    assert names is not None
    for name in names[1].split(", "):
        assert f"reference/commands/{name}.md" in pages, f"flowmaps {name} is not in flowmaps --help"
    train = pages["reference/commands/train.md"]
    assert all(f"`{name}`" in train for name in ("--optimiser.learning-rate", "--unet.width", "--check"))
    assert "| `--steps` `INT` | `4` | Jumps from noise to data. |" in pages["reference/commands/sample.md"]


def test_every_public_name_is_in_the_reference():
    shown = {f"{part.path}.{name}" for page in public.pages() for part in page.parts for name in part.names}
    package = importlib.import_module("flowmaps")
    assert {*public.modules()} <= {*dir(package)}
    for name in public.modules():
        module = getattr(package, name)
        for each in getattr(module, "__all__", ()):
            kind = getattr(module, each)
            if isinstance(kind, type) or callable(kind):
                assert any(path.endswith(f".{each}") for path in shown), f"{name}.{each}"
    tops = {path.rpartition(".")[2] for path in public.functions()}
    assert tops == {name for name in dir(package) if callable(getattr(package, name)) and not name.startswith("_")}
    pages = reference.pages()
    assert "        - AverageVelocity\n" in pages["reference/maps.md"]
    assert "### fm.fit\n\n::: flowmaps.training.fit.fit" in pages["reference/index.md"]
