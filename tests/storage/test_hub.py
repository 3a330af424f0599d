"""Maps on the Hugging Face Hub, pushed and pulled by its own client against a server in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub, instead_of_the_hub
from program import run
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import AverageVelocity, Endpoint
from flowmaps.methods import METHODS
from flowmaps.storage.model_card import model_card

TINY = """--no-compile --device cpu --show-every 0 --steps 2 --teacher-steps 2 --network.width 8 --network.depth 1
    --optimiser.batch 16 --evaluation.samples 100 --evaluation.points 20 --evaluation.steps 1"""


class Own(nn.Module):
    """A network whose constructor's arguments cannot be told from it."""

    def __init__(self, secret: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, secret)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.layer(torch.cat([x, t[:, None]], 1))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, which the client takes for the Hub, with a cache of its own."""
    with instead_of_the_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(shape, generator=generator) for shape in ((5, 2), (5,), (5,)))  # type: ignore[return-value]


def test_a_map_is_pushed_and_pulled(hub: Hub, tmp_path: Path):
    flow_map = Endpoint(fm.nn.MLP(dim=2, width=8, depth=1, classes=3), floor=0.02)
    address = fm.push_to_hub(flow_map, "someone/map", private=True, interpolant=WithNoise(Linear(), 0.1))
    assert address == f"{hub.url}/someone/map/commit/{COMMIT}"
    assert hub.private == {"someone/map"}
    assert sorted(hub.files["someone/map"]) == ["README.md", "config.json", "weights.safetensors"]
    again = fm.from_pretrained("someone/map", cache_dir=tmp_path / "pulled")
    assert torch.equal(again(*batch()), flow_map(*batch()))
    (folder,) = (tmp_path / "pulled" / "models--someone--map" / "snapshots").iterdir()
    assert fm.load_interpolant(folder) == WithNoise(Linear(), 0.1)
    assert not (folder / "README.md").exists()  # what loading does not need is not fetched


def test_a_network_of_ones_own_is_made_by_a_function(hub: Hub):
    flow_map = AverageVelocity(Own(2))
    fm.push_to_hub(flow_map, "someone/own")
    assert "net=lambda: YourNetwork()" in hub.files["someone/own"]["README.md"].decode()
    assert torch.equal(fm.from_pretrained("someone/own", net=lambda: Own(2))(*batch()), flow_map(*batch()))
    assert torch.equal(fm.from_pretrained("someone/own", net=Own(2))(*batch()), flow_map(*batch()))
    with pytest.raises(ValueError, match=r"net is a network, or a function that makes one, got 7"):
        fm.from_pretrained("someone/own", net=lambda: 7)  # type: ignore[arg-type, return-value]


def test_a_run_is_pushed_with_a_card_that_samples_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{k % 7}.5,{k % 5},{'xyz'[k % 3]}" for k in range(60))
    (tmp_path / "wine.csv").write_text(f"acid,year,label\n{rows}\n")
    run("train", "points", "--data", tmp_path / "wine.csv", "--method", "lsd", "--out", "run", *TINY.split())
    fm.push_to_hub("run", "someone/wine")
    files = hub.files["someone/wine"]
    assert sorted(files) == ["README.md", "config.json", "metrics.json", "samples.png", "weights.safetensors"]
    assert str(tmp_path) not in files["config.json"].decode() + files["README.md"].decode()
    text = files["README.md"].decode()
    assert "Learned by `lsd` on `wine.csv`" in text
    assert "](samples.png)" in text
    row = json.loads(files["metrics.json"])["rows"][-1]
    (shown,) = re.findall(r"^\| map \| 1 \| 1 \| (.*) \|$", text, re.MULTILINE)
    assert f"{row['energy']:.4g}" in shown.split(" | ")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 10
    names: dict = {}
    exec(code, names)
    assert {*names["samples"]} == {"acid", "year"}
    wanted = fm.samplers.Jump(4)(fm.load("run"), names["x0"], torch.arange(16) % 3)
    assert torch.equal(names["x"], wanted)


def test_what_is_pushed_is_a_map(hub: Hub, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no folder"):
        fm.push_to_hub(tmp_path / "gone", "someone/map")
    folder = fm.save(AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1)), tmp_path / "map")
    with pytest.raises(ValueError, match=r"interpolant=... is for a map, got the folder"):
        fm.push_to_hub(folder, "someone/map", interpolant=Linear())
    (folder / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="truncated or was changed"):
        fm.push_to_hub(folder, "someone/map")
    assert not hub.files


@pytest.mark.parametrize("method", ["lmd", "consistency_training", "flow_matching", "freeflow"])
def test_the_code_of_a_card_fits_the_method(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    flow_map = AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1, classes=3, guidance=True))
    extra = {"recipe": {"name": "points", "method": method, "data": "x.npy", "guidance": [1.5, 3.0]}}
    folder = fm.save(flow_map, tmp_path / "map", extra=extra)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(extra | read(folder), str(folder)), re.DOTALL)
    names: dict = {}
    exec(code, names)
    guide = fm.shapes.GuidedCondition(torch.arange(16) % 3, torch.full((16,), 1.5))
    steps = {"lmd": 4, "flow_matching": 50}.get(method, 1)
    wanted = fm.samplers.Jump(steps)(METHODS[method].sampled(flow_map), names["x0"], guide)
    assert torch.equal(names["x"], wanted)


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_a_folder_that_is_saved_pretrained_has_its_card(tmp_path: Path):
    folder = fm.save_pretrained(
        AverageVelocity(fm.nn.UNet(1, (4, 8), width=8, multipliers=(1,), blocks=1)), tmp_path / "m"
    )
    assert "x0 = torch.randn(16, 1, 4, 8)" in (folder / "README.md").read_text()
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: flowmaps\n")
