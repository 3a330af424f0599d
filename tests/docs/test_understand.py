"""The pictures of docs/understand are drawn by their script, and each of them is on a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builder import formulas, pictures
from matplotlib.image import imread
from places import ROOT


def test_every_picture_is_drawn_by_the_script_and_on_a_page():
    drawn = {path.stem for path in pictures.FOLDER.glob("*")}
    assert drawn == set(pictures.PICTURES)
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    assert all(f"images/understand/{name}.png" in text for name in drawn)


def test_one_step_of_the_velocity_of_the_picture_ends_at_the_mean():
    """What the page says of it: at t = 0 every point goes to the mean of the data."""
    x0 = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    ends = x0 + pictures.ring().velocity(x0, torch.zeros(50))
    assert ends.norm(dim=1).max() < 1e-4


def test_trajectories_of_the_pictures_end_where_the_exact_flow_does():
    law, x0 = pictures.LINE, torch.tensor([[-1.5], [0.2], [1.7]])
    path = pictures.trajectories(law, x0, torch.linspace(0, 1, 3))
    assert path.shape == (3, 3, 1)
    torch.testing.assert_close(
        path[-1], law.flow_map(x0, torch.zeros(3), torch.ones(3), tolerance=1e-6), atol=2e-3, rtol=0
    )


@pytest.mark.slow
def test_the_pictures_are_drawn(tmp_path: Path):
    paths = pictures.draw(tmp_path, dpi=30)
    assert [path.stem for path in paths] == list(pictures.PICTURES)
    for path in paths:
        ours, committed = imread(path), imread(pictures.FOLDER / path.name)
        assert ours.std() > 0.02
        assert ours.shape[1] / ours.shape[0] == pytest.approx(committed.shape[1] / committed.shape[0], rel=0.05)


def test_a_formula_becomes_mathml():
    inline = '<span class="arithmatex">\\(X_{s,t} &lt; 1\\)</span>'
    page = f'<p>with {inline} and</p><div class="arithmatex">\\[\\frac12\\]</div>'
    found = formulas.with_mathml(page)
    assert found.count("<math") == 2
    assert "<msub>" in found
    assert "<mfrac>" in found
    assert "arithmatex" not in found


def test_a_formula_that_is_not_understood_is_refused():
    with pytest.raises(ValueError, match="write it in other commands"):
        formulas.mathml("\\nosuchcommand x", "inline")
