"""The map in the reader's browser: its points are those of torch, it moves, and it says what is missing."""

from __future__ import annotations

import base64
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from in_browser import another, browser_page, screenshot, served
from places import ROOT

import flowmaps as fm

PLAY = ROOT / "docs" / "play"


def maker() -> ModuleType:
    """docs/play/make.py."""
    spec = importlib.util.spec_from_file_location("play_make", PLAY / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_the_map_of_the_run():
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")
    session = onnxruntime.InferenceSession(str(PLAY / "board.onnx"), providers=["CPUExecutionProvider"])
    assert (PLAY / "board.onnx").stat().st_size <= 400_000
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 7):
        x, (s, t) = torch.randn(rows, 2, generator=generator), torch.rand(2, rows, generator=generator)
        found = session.run(["samples"], {"x": x.numpy(), "s": s.numpy(), "t": t.numpy()})[0]
        with torch.no_grad():
            wanted = fm.load(ROOT / "results" / "play")(x, s, t)
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=0)


def test_another_archive_than_the_registrys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = maker()

    def packed(words: list[str], **_: Any) -> Any:
        (Path(words[-1]) / "onnxruntime-web.tgz").write_bytes(b"something else")
        return make.subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(make.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(make.subprocess, "run", packed)
    with pytest.raises(ValueError, match="has the checksum"):
        make.fetch_runtime(tmp_path / "ort")
    monkeypatch.setattr(make.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match="npm is not installed"):
        make.fetch_runtime(tmp_path / "ort")
    assert not (tmp_path / "ort").exists()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """The page, loaded over http with its runtime."""
    make = maker()
    if shutil.which("npm") is None and not make.RUNTIME.exists():
        pytest.skip("needs npm, which fetches onnxruntime-web: apt-get install npm")
    make.fetch_runtime()
    with browser_page(viewport={"width": 1180, "height": 1100}) as page, served(PLAY) as address:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/index.html")
        assert page.evaluate("flowmaps.ready") is True
        assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
        yield page


def numbers(page: Any, script: str) -> torch.Tensor:
    """Points that a script gives as a Float32Array."""
    coded = page.evaluate(f"(async () => btoa(String.fromCharCode(...new Uint8Array(({script}).buffer))))()")
    return torch.from_numpy(np.frombuffer(base64.b64decode(coded), dtype=np.float32).copy()).reshape(-1, 2)


@pytest.mark.slow
def test_the_browsers_points_are_those_of_torch(page: Any):
    flow_map = fm.load(ROOT / "results" / "play")
    x0 = numbers(page, "flowmaps.noise(3)")
    assert x0.shape == (2000, 2)
    assert abs(float(x0.mean())) < 0.06
    assert float(x0.std()) == pytest.approx(1, abs=0.03)
    one = torch.ones(len(x0))
    with torch.no_grad():
        for s, t in ((0.0, 1.0), (0.3, 0.8), (0.9, 0.1), (0.5, 0.5)):
            found = numbers(page, f"await flowmaps.jump(flowmaps.noise(3), {s}, {t})")
            torch.testing.assert_close(found, flow_map(x0, s * one, t * one), atol=1e-4, rtol=0)
        for steps in (1, 2, 4, 8):
            found = numbers(page, f"(await flowmaps.walk(flowmaps.noise(3), 0, 1, {steps})).at(-1)")
            torch.testing.assert_close(found, fm.samplers.Jump(steps)(flow_map, x0), atol=1e-4, rtol=0)
        velocity = flow_map.velocity(x0, 0.25 * one)
        found = numbers(page, "(await flowmaps.walk(flowmaps.noise(3), 0.25, 0.75, 1, true)).at(-1)")
        torch.testing.assert_close(found, x0 + 0.5 * velocity, atol=1e-2, rtol=0)


@pytest.mark.slow
def test_the_page_moves_as_it_is_told(page: Any):
    flow_map, x0 = fm.load(ROOT / "results" / "play"), numbers(page, "flowmaps.noise(0)")
    zero = torch.zeros(len(x0))
    shown = "flowmaps.shown.ends.at(-1)"

    def settled() -> None:
        page.evaluate("flowmaps.set({})")

    settled()
    screenshot(page, "play-one-jump")
    before = page.locator("#plane").screenshot()
    page.locator("#s").fill("0.4")
    page.locator("#t").fill("0.8")
    settled()
    with torch.no_grad():
        wanted = flow_map(flow_map(x0, zero, zero + 0.4), zero + 0.4, zero + 0.8)
    torch.testing.assert_close(numbers(page, shown), wanted, atol=1e-4, rtol=0)
    assert page.locator("#plane").screenshot() != before
    assert page.inner_text("#caption") == "from time 0.40 to time 0.80 in 1 jump"
    page.click("#to-data")
    page.locator("#steps").fill("2")
    settled()
    torch.testing.assert_close(numbers(page, shown), fm.samplers.Jump(4)(flow_map, x0), atol=1e-4, rtol=0)
    assert "4 evaluations of the network" in page.inner_text("#cost")
    screenshot(page, "play-four-jumps")
    page.click("#by-ode")
    settled()
    assert page.inner_text("#caption") == "from noise to data in 4 Euler steps"
    screenshot(page, "play-euler")
    page.click("#by-map")
    page.click("#noise")
    settled()
    assert not torch.equal(numbers(page, "flowmaps.shown.start"), x0)
    page.click("#to-noise")
    settled()
    back = numbers(page, shown) - numbers(page, "flowmaps.noise(1)")
    assert float(back.square().sum(1).mean().sqrt()) < 0.3  # of noise of spread 1.41, there and back
    screenshot(page, "play-back-to-noise")


@pytest.mark.slow
def test_a_point_of_the_square_is_dragged_and_an_animation_ends(page: Any):
    box = page.locator("#square").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 16, box["y"] + 16)
    page.mouse.up()
    page.evaluate("flowmaps.set({})")
    assert page.evaluate("[flowmaps.state.s, flowmaps.state.t]") == [0, 1]
    page.click("#play")
    page.wait_for_function("document.querySelector('#play').textContent.includes('stop')")
    page.wait_for_function("document.querySelector('#play').textContent.includes('play')")
    assert page.evaluate("flowmaps.state.t") == 1


@pytest.mark.slow
def test_the_page_says_what_is_missing(page: Any, tmp_path: Path):
    for name in ("index.html", "play.js", "play.css"):
        shutil.copy(PLAY / name, tmp_path)
    other = another(page)
    with served(tmp_path) as address:
        other.goto(f"{address}/index.html")
        assert other.evaluate("flowmaps.ready") is False
        assert "python docs/play/make.py --runtime" in other.inner_text("#message")
    other.goto((tmp_path / "index.html").as_uri())
    assert other.evaluate("flowmaps.ready") is False
    assert "python -m http.server" in other.inner_text("#message")
    screenshot(other, "play-from-a-file")
    other.close()
