"""Processes share out the cells of a comparison, and take over those of a process that has ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from flowmaps.evaluation import cells
from flowmaps.evaluation.begun import check_same
from flowmaps.evaluation.cells import Cell, Cells, alone

ABOUT = {"recipe": "checkerboard", "budget_in": "optimiser steps", "budget": 5, "options": {"width": 8}}

HERE = f"process {os.getpid()} on {os.uname().nodename}"


def opened(folder: Path, methods: tuple[str, ...] = ("lmd", "psd"), seeds: tuple[int, ...] = (0, 1)) -> Cells:
    return Cells(folder, ABOUT, methods, seeds)


def work(found: Cells, said: list[str] | None = None) -> list[str]:
    """Do what is free, and give its names."""
    names = []
    for cell in found.take([].append if said is None else said.append):
        found.write(cell, [{"sampler": "map", "steps": 1, "kl": float(cell.seed)}], {"map": {"step": [1]}})
        names.append(cell.name)
    return names


def test_all_methods_of_a_seed_come_before_the_next_seed_and_nothing_is_done_twice(tmp_path: Path):
    first = opened(tmp_path / "out")
    assert work(first) == ["lmd-0", "psd-0", "lmd-1", "psd-1"]
    said: list[str] = []
    assert work(opened(tmp_path / "out"), said) == []
    assert said == ["4 of 4 trainings have their rows in compare.json already."]
    assert not list((tmp_path / "out" / "cells").glob("*-*.lock"))


def test_rows_are_joined_in_the_order_of_methods_then_seeds(tmp_path: Path):
    work(opened(tmp_path, ("psd",), (3,)))
    later = opened(tmp_path, ("lmd", "psd"), (1,))
    work(later)
    with later.joined() as rows:
        assert [(row["method"], row["seed"]) for row in rows] == [("psd", 1), ("psd", 3), ("lmd", 1)]
    content = json.loads((tmp_path / "compare.json").read_text())
    assert (content["methods"], content["seeds"]) == (["psd", "lmd"], [1, 3])
    assert content["rows"][0] == {"method": "psd", "seed": 1, "sampler": "map", "steps": 1, "kl": 1.0}


def test_methods_of_other_modules_have_files_of_their_own():
    methods = ("lsd", "own.lsd:make", "own:lsd.make", "own.lsd.make:x")
    names = {Cell(method, 0).name for method in methods}
    assert len(names) == 4
    assert not any(mark in name for name in names for mark in '<>:"/\\|?*')  # which Windows does not take


def test_rows_whose_files_are_gone_are_not_dropped(tmp_path: Path):
    found = opened(tmp_path)
    work(found)
    with found.joined():
        pass
    before = (tmp_path / "compare.json").read_text()
    assert json.loads(before)["rows"]
    for path in (tmp_path / "cells").glob("*.json"):
        path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match=r"has rows of lmd-1, psd-1, whose files are gone from .*cells: put them back"):
        opened(tmp_path, seeds=(0,))
    assert (tmp_path / "compare.json").read_text() == before
    for path in tmp_path.glob("*-*.json"):
        path.rename(tmp_path / "cells" / path.name)
    opened(tmp_path)
    (tmp_path / "cells" / "lmd-0.json").unlink()  # to train one again
    with pytest.raises(ValueError, match=r"has rows of lmd-0, whose files are gone from .*train these too"):
        opened(tmp_path, ("psd",))
    assert work(opened(tmp_path)) == ["lmd-0"]


def test_the_only_cell_is_trained_again_after_its_file_was_deleted(tmp_path: Path):
    found = opened(tmp_path, ("lmd",), (0,))
    work(found)
    with found.joined():
        pass
    found.path(Cell("lmd", 0)).unlink()
    assert work(opened(tmp_path, ("lmd",), (0,))) == ["lmd-0"]


A, B = {"diagonal_share": 0.6}, {"diagonal_share": 0.7}


def with_settings(folder: Path, settings: dict, seed: int) -> Cells:
    return Cells(folder, ABOUT, ("psd", "lmd"), (seed,), settings={"psd": settings})


def written(cell: Cell, settings: dict) -> list[dict]:
    return [{"sampler": "map", "steps": 1, "kl": 1.0, "settings": settings}] if cell.method == "psd" else []


def test_settings_hold_while_a_method_is_trained_and_once_it_is_and_not_before(tmp_path: Path):
    said = "has psd with the settings found --diagonal-share 0.6, got --diagonal-share 0.7: choose another --out"
    with_settings(tmp_path, A, 0)  # interrupted before it trained anything
    other = with_settings(tmp_path, B, 1)
    training = with_settings(tmp_path, A, 0).take(print)
    assert next(training) == Cell("psd", 0)
    with pytest.raises(ValueError, match=said):  # who comes while it is trained
        with_settings(tmp_path, B, 1)
    with pytest.raises(ValueError, match=said):  # and who had come before
        next(other.take(print))
    training.close()
    done = with_settings(tmp_path, B, 0)  # nothing was finished
    for cell in done.take(print):
        done.write(cell, written(cell, B), {})
    with pytest.raises(ValueError, match=r"found --diagonal-share 0\.7, got --diagonal-share 0\.6"):
        with_settings(tmp_path, A, 1)
    assert next(other.take(print)) == Cell("psd", 1)
    done.path(Cell("psd", 0)).unlink()
    with_settings(tmp_path, A, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None},
        {"curves": []},
        {"rows": [{"method": "lmd", "sampler": "map"}]},
        {"rows": [{"method": "lmd", "seed": 1, "sampler": "map"}]},
        {"rows": [{"method": "lmd", "seed": 0}]},
        {"rows": [3]},
    ],
)
def test_a_cell_that_was_edited_is_to_be_deleted(tmp_path: Path, change: dict):
    work(opened(tmp_path))
    path = tmp_path / "cells" / "lmd-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"lmd-0.json is damaged .*: delete it, and run again"):
        opened(tmp_path)
    path.unlink()
    assert work(opened(tmp_path)) == ["lmd-0"]


def test_a_copy_of_a_cell_does_not_count_twice(tmp_path: Path):
    found = Cells(tmp_path, {"recipe": "x", "rows": []}, ["lsd"], [0])
    found.write(Cell("lsd", 0), [], {})
    copy = tmp_path / "cells" / "lsd-0 (copy).json"
    copy.write_text((tmp_path / "cells" / "lsd-0.json").read_text())
    with pytest.raises(ValueError, match=r"copy\).json has the rows of lsd-0: call it lsd-0.json, or delete it"):
        cells.contents(tmp_path)


def test_a_cell_that_another_holds_is_left_to_it(tmp_path: Path):
    one, other, said = opened(tmp_path), opened(tmp_path), list[str]()
    held = one.take([].append)
    assert next(held) == Cell("lmd", 0)
    assert work(other, said) == ["psd-0", "lmd-1", "psd-1"]
    assert said == [f"lmd-0 is left to another process, {HERE}."]
    held.close()  # interrupted: its cell is free again
    assert work(opened(tmp_path)) == ["lmd-0"]


def _hold(folder: Path) -> None:
    """Take a cell, and never finish it."""
    held = opened(folder).take(print)
    next(held)
    (folder / "held").touch()
    time.sleep(60)


def test_a_cell_of_a_killed_process_is_taken_anew(tmp_path: Path):
    opened(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert work(opened(tmp_path, ("lmd",), (0,))) == []
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert work(opened(tmp_path, ("lmd",), (0,))) == ["lmd-0"]


def test_two_that_begin_at_once_work_in_one_comparison(tmp_path: Path):
    folder, done = tmp_path / "out", list[str]()
    threads = [threading.Thread(target=lambda: done.extend(work(opened(folder)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["lmd-0", "lmd-1", "psd-0", "psd-1"]


def test_other_options_and_other_folders_are_refused(tmp_path: Path):
    work(opened(tmp_path))
    with pytest.raises(ValueError, match="was begun with --width 8, got --width 9: join it with what it began with"):
        Cells(tmp_path, {**ABOUT, "options": {"width": 9}}, ("lmd",), (0,))
    before = {"options": {"width": 8, "compile": False, "evaluation": {"steps": [1]}}}
    now = {"options": {"width": 9, "compile": True, "evaluation": {"steps": [1, 2]}}}
    said = "begun with --width 8, --no-compile, --evaluation.steps 1, got --width 9, --compile, --evaluation.steps 1 2:"
    with pytest.raises(ValueError, match=said):
        check_same(tmp_path, before, now, {}, "go on")
    check_same(tmp_path, {"options": {"width": 8}}, {"options": {"width": 8, "draws": 1}, "fewer": []}, {}, "go on")
    with pytest.raises(ValueError, match="begun with --draws 1, got --draws 4:"):  # an earlier version had none
        check_same(tmp_path, {"options": {}}, {"options": {"draws": 4}}, {}, "go on")
    with pytest.raises(ValueError, match=r"begun with fewer \[\[8, 70\]\], got \[\]:"):
        check_same(tmp_path, {"fewer": [[8, 70]]}, {"fewer": []}, {"fewer": "fewer"}, "go on")
    said = "was begun with no --budget, --budget-steps 5, got --budget 5, no --budget-steps:"
    with pytest.raises(ValueError, match=said):
        Cells(tmp_path, {**ABOUT, "budget_in": "seconds"}, ("lmd",), (0,))
    (tmp_path / "cells" / "lmd-0.json").write_text("{")
    with pytest.raises(ValueError, match=r"lmd-0.json is damaged .*: delete it"):
        opened(tmp_path)
    (tmp_path / "compare.json").write_text('{"recipe": "checkerboard", "rows": []}')
    with pytest.raises(ValueError, match="is of an earlier version, which had one seed: choose another --out"):
        opened(tmp_path)
    (tmp_path / "compare.json").unlink()  # whose cells they are is not known
    with pytest.raises(ValueError, match="already exists and is not empty"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="there is nothing to resume"):
        Cells(tmp_path / "new", ABOUT, ("lmd",), (0,), resume=True)


def test_a_file_is_written_by_one_at_a_time_and_the_other_waits_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cells, "SECONDS_BETWEEN_TRIES", 0.01)
    path, said, order = tmp_path / "teacher", list[str](), list[str]()

    def second() -> None:
        with alone(path, said.append):
            order.append("second")

    with alone(path, said.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == [
        f"waiting for teacher, which another process trains (process {os.getpid()} on {os.uname().nodename})."
    ]
    assert list(tmp_path.iterdir()) == []
