"""The tutorials run from their first cell to their last, at small sizes, and what is committed of them is whole."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from builder import notebooks
from places import ROOT

FOLDER = ROOT / "docs" / "tutorials"
SIZES: dict[str, dict[str, Any]] = {
    "velocity_to_map": {"velocity_steps": 20, "map_steps": 20, "batch": 64, "number": 100},
    "distil_diffusers": {"ddpm_steps": 3, "warm_steps": 2, "map_steps": 2, "widths": (8, 8), "batch": 8, "many": 9},
    "which_method": {"budget": 40, "batch": 32, "width": 16, "number": 300, "bins": 8},
    "your_own_table": {"steps": 10, "batch": 32, "width": 16, "number": 60},
    "likelihood_rewards_restoration": {"ring_steps": 100, "digit_steps": 3, "digit_width": 16, "number": 100},
}
"""What stands in the cell of parameters when a test runs the notebook."""
MAX_BYTES = 400_000
QUICK = "velocity_to_map"
"""The notebook whose cells the quick tests run, without a kernel, which takes seconds to start."""


def committed(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_tutorial_runs(name: str) -> None:
    for library in ("ipykernel", "nbclient"):
        pytest.importorskip(library, reason=f"notebooks are run by {library}: pip install -e '.[dev]'")
    ran = notebooks.executed(FOLDER / f"{name}.ipynb", SIZES[name])
    cells = [cell for cell in ran.cells if cell.cell_type == "code"]
    drawn = [kinds_of(cell) for cell in cells if "parameters" not in cell.metadata.get("tags", ())]
    kept = [kinds_of(cell) for cell in committed(name)["cells"] if cell["cell_type"] == "code"]
    assert sum("image/png" in kinds for kinds in drawn) == sum("image/png" in kinds for kinds in kept) > 0


def test_the_cells_of_a_tutorial_run(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pytest.importorskip("matplotlib.pyplot", reason="the cells draw: pip install 'flowmaps[cli]'")
    figures.switch_backend("agg")
    monkeypatch.setattr(figures, "show", lambda: figures.close("all"))
    names: dict[str, Any] = {}
    for cell in committed(QUICK)["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{QUICK}.ipynb", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= SIZES[QUICK]
    assert len(names["map_losses"]) == SIZES[QUICK]["map_steps"]
    assert names["residual"].shape == (6, 2)  # which the cell has compared with the loss that is written out


def kinds_of(cell: Any) -> set[str]:
    """What a cell's outputs are."""
    return {kind for output in cell["outputs"] for kind in (output.get("data") or {output["output_type"]: ""})}


def test_each_tutorial_is_listed_and_linked() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*SIZES}
    navigation, home = ((ROOT / name).read_text(encoding="utf-8") for name in ("mkdocs.yml", "docs/index.md"))
    for name in SIZES:
        assert navigation.count(f"tutorials/{name}.md") == home.count(f"tutorials/{name}.ipynb") == 1


@pytest.mark.parametrize("name", SIZES)
def test_the_outputs_are_those_of_one_run_from_the_top(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    code = [cell for cell in committed(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    for cell in code:
        assert ("image/png" in kinds_of(cell)) == ("alt" in cell["metadata"]), "a picture needs its words, `alt`"


@pytest.mark.parametrize("name", SIZES)
def test_the_page_has_all_of_the_notebook(name: str) -> None:
    text, pictures = notebooks.as_page(FOLDER / f"{name}.ipynb")
    cells = committed(name)["cells"]
    assert text.startswith("# ")
    assert all("".join(cell["source"]) in text for cell in cells)
    assert {place for _, place in re.findall(r"!\[([^\]]+)\]\((\S+)\)", text)} == set(pictures)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert f'href="{name}.ipynb"' in text
    assert "<script" not in text
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert link in pictures or (FOLDER / link).exists(), link


def test_printed_lines_are_joined_without_those_of_progress() -> None:
    v4 = pytest.importorskip("nbformat", reason="notebooks are run by nbclient: pip install -e '.[dev]'").v4
    lines = (
        "step 1,039 of 1,500: loss 18.18, 379 s left\n",
        "the end\n",
        "of it\n",
        "step 3 of 9: loss nan, 2 s left\n",
    )
    picture = v4.new_output("display_data", {"image/png": "iVBO"})
    printed = [v4.new_output("stream", text=line) for line in lines]
    first = v4.new_code_cell("fit()", outputs=[*printed, picture, v4.new_output("stream", text="a\n")])
    second = v4.new_code_cell("fit()", outputs=[v4.new_output("stream", text=lines[0])])
    notebooks.tidied(v4.new_notebook(cells=[v4.new_markdown_cell("# A"), first, second]))
    assert [output.get("text") for output in first.outputs] == ["the end\nof it\n", None, "a\n"]
    assert second.outputs == []


def test_a_size_that_a_notebook_does_not_set_is_refused() -> None:
    pytest.importorskip("nbclient", reason="notebooks are run by nbclient: pip install -e '.[dev]'")
    with pytest.raises(ValueError, match=r"has no sizes \['stpes'\]"):
        notebooks.executed(FOLDER / f"{QUICK}.ipynb", {"stpes": 3})
