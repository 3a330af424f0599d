"""The page "Data" does what it says: its code and its commands are run in their order, with short trainings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from places import ROOT
from program import refused, run

pytestmark = pytest.mark.slow  # all follow the whole page, once
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
SHORT = "--no-compile --device cpu --show-every 0 --optimiser.batch 32 --evaluation.samples 100 --evaluation.steps 1"
POINTS = f"{SHORT} --steps 20 --teacher-steps 20 --network.width 16 --network.depth 2 --evaluation.points 50"
IMAGES = f"{SHORT} --steps 2 --teacher-steps 2 --unet.width 8 --unet.blocks 1 --unet.head 8 --evaluation.points 50"
IMAGES += " --precision float32 --evaluation.features efficientnet-lite0:32"


def words_of(line: str) -> list[str]:
    """A command of the page, with a shorter training."""
    words = shlex.split(line)[1:]
    short = {"points": POINTS, "images": IMAGES}
    return [*words, *shlex.split(short[words[1]])] if words[0] == "train" else words


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the page was followed, and what each command printed."""
    folder, said, names = tmp_path_factory.mktemp("data"), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, text in BLOCKS:
            if kind == "python":
                exec(compile(text, "data.md", "exec"), names)  # its assertions are the tests
                continue
            for line in text.strip().splitlines():
                said[line] = run(*words_of(line))
    return folder, said


def test_the_page_is_followed_to_its_end(done: tuple[Path, dict[str, str]]):
    folder, said = done
    assert len(said) == 12
    assert {path.name for path in (folder / "runs").iterdir()} == {"wine", "diabetes", "filled", "tiles"}


def test_the_dry_run_says_what_the_page_shows(done: tuple[Path, dict[str, str]]):
    _, said = done
    (shown,) = re.findall(r"```\n(data .*?)```", PAGE, re.DOTALL)
    printed = next(text for line, text in said.items() if "--check" in line)
    for line in shown.splitlines():
        assert line.strip() in printed.replace("wine.csv", "wine.csv") or line.strip() == "..."


def test_the_advice_for_text_is_that_of_the_page(
    done: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(done[0])
    error = refused(capsys, "train", "points", "--data", "wine.csv", "--check", "--no-compile")
    for advice in ("--label-column cultivar", "--categories cultivar", "--drop-columns cultivar"):
        assert advice in error
        run("train", "points", "--data", "wine.csv", "--check", "--no-compile", *advice.split())  # and it works
