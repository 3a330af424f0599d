"""The page of `flowmaps app` in a real browser: it loads nothing from elsewhere, draws, and says what it cannot do."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import app_cases
import numpy as np
import pytest
from in_browser import another, browser_page, screenshot
from PIL import Image
from places import ROOT

from flowmaps.app import panels, samples, server
from flowmaps.app.opened import Asked, OpenRun
from flowmaps.app.page import png

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[app]'")


POINTS = 300  # so that the teacher is solved in a second or two


@pytest.fixture(scope="module", autouse=True)
def few_points() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowmaps.app.page.POINTS", POINTS)
        yield


@pytest.fixture(scope="module")
def run() -> OpenRun:
    return OpenRun(ROOT / "results" / "play")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_page(viewport={"width": 1280, "height": 1000}) as page:
        yield page


@pytest.fixture(scope="module")
def page(browser: Any, run: OpenRun) -> Iterator[Any]:
    """The page of the map of the docs, whose run has a teacher and both orders of time."""
    gradio, address = server.serve(run)
    asked: list[str] = []
    browser.on("request", lambda request: asked.append(request.url))
    browser.goto(address)
    yield browser
    gradio.close(verbose=False)
    assert address.startswith(f"http://{server.HOST}:")
    assert all(url.startswith((address, address.replace("http", "ws"), "data:", "blob:")) for url in asked), asked


def picture(page: Any, name: str) -> np.ndarray:
    """The picture of a tab, as its server sent it."""
    source = page.locator(f"#{name}-picture img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def wait_for(page: Any, name: str, words: str) -> str:
    """Wait until the line below a picture has some words."""
    page.wait_for_function(f"document.querySelector('#{name}-said')?.innerText.includes({words!r})")
    return page.inner_text(f"#{name}-said")


def test_samples_are_drawn_beside_the_teacher_with_their_times(page: Any, run: OpenRun):
    page.wait_for_function("document.querySelector('#timings')?.innerText.includes('teacher')")
    table = page.inner_text("#timings")
    assert all(words in table for words in ("1 step", "2 steps", "4 steps", "8 steps", "teacher, dopri5", "ms"))
    wait_for(page, "samples", f"{POINTS} points by each sampler, from the same noise, of seed 0")
    drawn = list(samples.same_noise(run, Asked(number=POINTS)))
    wanted = np.asarray(png(panels.samples(run, drawn)).convert("RGB"))
    page.wait_for_timeout(1_000)  # the picture comes after the table
    found = picture(page, "samples")
    assert found.shape == wanted.shape
    assert (found != wanted).mean() < 0.01  # the titles have other times
    screenshot(page, "app-samples")
    first = page.locator("#samples-picture img").get_attribute("src")
    page.click("#new-noise")
    wait_for(page, "samples", "of seed 1")
    page.wait_for_function(f"document.querySelector('#samples-picture img').getAttribute('src') !== {first!r}")
    assert (picture(page, "samples") != found).mean() > 0.01


def test_points_go_where_the_sliders_say(page: Any):
    page.get_by_role("tab", name="Where points go").click()
    wait_for(page, "jumps", "from s = 0 to t = 1")
    whole = picture(page, "jumps")
    page.locator("#s input[type=number]").fill("0.8")
    page.locator("#s input[type=number]").press("Enter")
    page.locator("#t input[type=number]").fill("0.2")
    page.locator("#t input[type=number]").press("Enter")
    assert re.search(r": [\d.]+ m?s", wait_for(page, "jumps", "from s = 0.8 to t = 0.2"))
    assert (picture(page, "jumps") != whole).mean() > 0.01
    screenshot(page, "app-jumps")


def test_residuals_and_inversion_are_drawn(page: Any):
    page.get_by_role("tab", name="Residuals").click()
    page.click("#measure")
    wait_for(page, "residuals", "noise of seed")
    assert picture(page, "residuals").std() > 20
    screenshot(page, "app-residuals")
    page.get_by_role("tab", name="To noise and back").click()
    page.click("#carry")
    said = wait_for(page, "carried", "they come back with an error of")
    assert 0 < float(re.findall(r"error of ([\d.]+)", said)[0]) < 0.15
    screenshot(page, "app-back-to-noise")


def test_a_refusal_is_the_line_of_the_command_and_leaves_the_picture(browser: Any, page: Any, tmp_path: Path):
    folder = app_cases.points(tmp_path, 5, classes=True, guidance=(1.0, 3.0), times="triangle")
    gradio, address = server.serve(OpenRun(folder))
    try:
        other = another(browser)
        other.goto(address)
        wait_for(other, "samples", "of seed 0")
        assert other.locator("#class").is_visible()
        assert other.locator("#guidance").is_visible()
        screenshot(other, "app-columns")
        other.get_by_role("tab", name="To noise and back").click()
        other.click("#carry")
        assert "was never trained backwards, from data to noise" in wait_for(other, "carried", "--times square")
        assert other.locator("#carried-picture img").count() == 0
        other.close()
    finally:
        gradio.close(verbose=False)


def test_images_are_drawn_from_the_same_noise(browser: Any, page: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowmaps.app.opened.IMAGES", 2)
    gradio, address = server.serve(OpenRun(ROOT / "results" / "gpu" / "lmd"))
    try:
        other = another(browser)
        other.goto(address)
        assert not other.locator("#beside input").is_checked()  # it takes a minute on a CPU
        wait_for(other, "samples", "2 images by each sampler")
        screenshot(other, "app-images")
        other.get_by_role("tab", name="To noise and back").click()
        other.click("#carry")
        assert "was never trained backwards" in wait_for(other, "carried", "--times square")
        other.close()
    finally:
        gradio.close(verbose=False)
