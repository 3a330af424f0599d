"""Tables with classes of unequal shares, from the command line: classes in turn, or in the shares of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from program import refused, run

OPTIONS = """--label-column site --no-compile --device cpu --show-every 0 --network.width 8 --network.depth 2
    --optimiser.batch 64 --steps 2 --teacher-steps 2"""
SHARES = {"Basel": 50, "Bern": 28, "Chur": 15, "Genf": 7}


@pytest.fixture(scope="module")
def of_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is conditioned on classes of unequal shares, of a file that is sorted by them."""
    folder, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    sites = pandas.DataFrame({"site": np.repeat([*SHARES], [*SHARES.values()])})
    sites.assign(x=rng.normal(size=100), z=rng.normal(size=100)).to_csv(folder / "a.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowmaps.cli.commands.evaluate", lambda *_: None)
        run("train", "points", "--data", folder / "a.csv", "--out", folder / "run", *OPTIONS.split())
    return folder


def test_classes_in_turn_are_told_of_with_the_way_to_the_shares_of_the_data(of_sites: Path, tmp_path: Path):
    said = run("sample", of_sites / "run", "--out", tmp_path / "a.csv", "--number", "80")
    assert "20 of each class; for the shares of the data: --condition-file FILE" in said
    assert pandas.read_csv(tmp_path / "a.csv").site.value_counts().tolist() == [20] * 4
    said = run("sample", of_sites / "run", "--out", tmp_path / "b.csv", "--number", "81")
    assert "20 or 21 of each class" in said
    said = run("sample", of_sites / "run", "--out", tmp_path / "c.csv", "--number", "8", "--label", "Bern")
    assert "of each class" not in said


def test_a_file_gives_classes_in_its_shares(of_sites: Path, tmp_path: Path):
    words = ["sample", of_sites / "run", "--condition-file", of_sites / "a.csv"]
    said = run(*words, "--out", tmp_path / "all.csv")
    assert pandas.read_csv(tmp_path / "all.csv").site.value_counts().to_dict() == SHARES
    assert "of each class" not in said
    run(*words, "--out", tmp_path / "many.csv", "--number", "1000")
    many = pandas.read_csv(tmp_path / "many.csv").site.value_counts().to_dict()
    assert many == {name: 10 * share for name, share in SHARES.items()}
    for seed in (0, 1):  # a part of a file that is sorted by its classes has them all
        run(*words, "--out", tmp_path / f"{seed}.csv", "--number", "40", "--seed", seed)
        few = pandas.read_csv(tmp_path / f"{seed}.csv").site.value_counts()
        assert few.sum() == 40
        assert few["Basel"] == pytest.approx(20, abs=10)
        assert few["Chur"] >= 1
    first, other = (pandas.read_csv(tmp_path / f"{seed}.csv").site for seed in (0, 1))
    assert not first.equals(other)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--condition", "site=Basel"], "'site' is the column of the classes: pass --label Basel in the place of"),
        (["--condition", "Basel"], "not conditioned on numbers: pass --label CLASS for one class, and leave out"),
        (["--condition-file", "other.csv"], "no column 'site', on whose classes this map is conditioned (it has x, z)"),
        (["--condition-file", "new.csv"], "line 3: column 'site' is 'Zug', and the map has learned the classes Basel,"),
        (["--condition-file", "gap.csv"], "line 3: column 'site' is missing: mend it there, take such rows out, or"),
        (["--condition-file", "new.csv", "--label", "Bern"], "both give classes: leave one out"),
    ],
)
def test_classes_that_are_refused(
    of_sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    for name, content in {"other": "x,z\n1,2\n", "new": "site\nBern\nZug\n", "gap": "site,x\nBern,1\n,2\n"}.items():
        (tmp_path / f"{name}.csv").write_text(content)
    assert said in refused(capsys, "sample", of_sites / "run", "--out", "x.csv", *options)
