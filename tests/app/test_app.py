"""What the page shows is what the map does: samples, jumps, residuals, inversion; and what a map cannot do is said."""

from __future__ import annotations

import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import app_cases
import pytest
import torch
from app_cases import BOTH_ORDERS
from program import refused

import flowmaps as fm
from flowmaps.app import carrying, jumps, panels, samples, server, squares
from flowmaps.app.opened import Asked, OpenRun
from flowmaps.evaluation.sampling import RunSampler
from flowmaps.shapes import GuidedCondition
from flowmaps.system.seeds import generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def board(folder: Path) -> Path:
    return app_cases.trained(BOTH_ORDERS, folder / "board")


@pytest.fixture(scope="module")
def classes(folder: Path) -> Path:
    """A run of five columns in three classes, with a range of guidance weights."""
    return app_cases.points(folder, 5, classes=True, guidance=(1.0, 3.0))


# samples


def test_samples_are_those_of_the_command_beside_the_teachers_flow(board: Path):
    run, asked = OpenRun(board), Asked(seed=3, number=40)
    drawn = list(samples.same_noise(run, asked, (1, 3)))
    assert [one.title for one in drawn] == ["1 step", "3 steps", "teacher, dopri5"]
    assert [one.samples.nfe for one in drawn[:2]] == [1, 3]
    for one, steps in zip(drawn, (1, 3), strict=False):
        wanted, _ = RunSampler(board).sample(steps, 40, seed=3)
        torch.testing.assert_close(one.samples.x, wanted)
    flow = fm.solvers.SolverFlow(fm.load(board / "teacher").velocity, rtol=1e-8, atol=1e-8)
    zero = torch.zeros(40)
    wanted = flow(run.inputs(asked).x0, zero, zero + 1).detach()
    torch.testing.assert_close(drawn[2].samples.x, wanted, atol=1e-3, rtol=0)


def test_without_a_teacher_the_flow_is_the_maps_own(board: Path, tmp_path: Path):
    copied = shutil.copytree(board, tmp_path / "run")
    shutil.rmtree(copied / "teacher")
    run = OpenRun(copied)
    flow = run.flow()
    assert flow is not None
    assert flow[1] == "the map's own velocity"
    x, t = torch.randn(7, 2), torch.full((7,), 0.4)
    torch.testing.assert_close(flow[0].velocity(x, t), fm.load(copied).velocity(x, t))
    drawn = list(samples.same_noise(run, Asked(number=9), (1,)))
    assert [(one.title, one.solved) for one in drawn] == [("1 step", False), ("own ODE, dopri5", True)]


def test_timings_say_how_many_times_faster(board: Path):
    drawn = list(samples.same_noise(OpenRun(board), Asked(number=20), (2,)))
    rows = samples.timings(drawn)
    assert [row[0] for row in rows] == ["2 steps", "teacher, dopri5"]
    ratio = drawn[1].samples.seconds / drawn[0].samples.seconds
    assert float(rows[0][3].replace(",", "")) == pytest.approx(ratio, rel=0.01)
    assert rows[1][3] == ""


@pytest.mark.parametrize(
    "asked, steps, said",
    [
        (Asked(), (), "choose a number of steps"),
        (Asked(), (0,), "steps must be from 1 to 128 here, got 0"),
        (Asked(number=30_000), (1,), "the number of samples must be from 1 to 20,000 here, got 30,000"),
        (Asked(label="2"), (1,), "these data have no classes, got --label 2"),
        (Asked(guidance=2.0), (1,), "this map takes no guidance weight"),
    ],
)
def test_what_is_out_of_range_is_refused(board: Path, asked: Asked, steps: tuple[int, ...], said: str):
    with pytest.raises(ValueError, match=said):
        list(samples.same_noise(OpenRun(board), asked, steps))


def test_the_weight_of_guidance_and_the_class_reach_the_map_and_its_teacher(classes: Path):
    run, asked = OpenRun(classes), Asked(number=12, label="1", guidance=2.5)
    drawn = list(samples.same_noise(run, asked, (2,)))
    wanted, labels = RunSampler(classes).sample(2, 12, label="1", guidance=2.5)
    torch.testing.assert_close(drawn[0].samples.x, wanted)
    assert labels is not None
    flow = run.flow(2.5)
    assert flow is not None
    teacher = fm.load(classes / "teacher")
    x, t = torch.randn(12, 5), torch.rand(12)
    none = teacher.velocity(x, t)
    guided = none + 2.5 * (teacher.velocity(x, t, labels) - none)
    torch.testing.assert_close(flow[0].velocity(x, t, labels), guided)
    with pytest.raises(ValueError, match="--guidance must be from 1 to 3, got 5"):
        run.inputs(replace(asked, guidance=5.0))


# jumps


def test_points_go_where_the_map_takes_them(board: Path):
    run = OpenRun(board)
    found = jumps.jump(run, Asked(seed=2, number=60), 0.3, 0.8)
    flow_map, s, zero = fm.load(board), torch.full((60,), 0.3), torch.zeros(60)
    x0 = torch.randn(60, 2, generator=generator(2, 1))
    with torch.no_grad():
        torch.testing.assert_close(found.start, flow_map(x0, zero, s))
        torch.testing.assert_close(found.end, flow_map(found.start, s, zero + 0.8))
    assert found.map_paths.shape == (jumps.PATH_TIMES, jumps.PATHS, 2)
    torch.testing.assert_close(found.map_paths[0], found.start[: jumps.PATHS])
    torch.testing.assert_close(found.map_paths[-1], found.end[: jumps.PATHS])
    flow = fm.solvers.SolverFlow(fm.load(board / "teacher").velocity, rtol=1e-8, atol=1e-8)
    few = found.start[: jumps.PATHS]
    wanted = flow(few, s[: jumps.PATHS], zero[: jumps.PATHS] + 0.8).detach()
    assert found.flow_paths is not None
    torch.testing.assert_close(found.flow_paths[-1], wanted, atol=2e-3, rtol=0)


def test_backwards_jumps_undo_nothing_but_time(board: Path):
    found = jumps.jump(OpenRun(board), Asked(number=60), 1.0, 0.25)
    assert found.times[0] == 1
    assert found.times[-1] == 0.25
    assert found.flow_paths is not None
    still = jumps.jump(OpenRun(board), Asked(number=60), 0.5, 0.5)
    torch.testing.assert_close(still.end, still.start)
    assert still.flow_paths is None


def card_of(folder: Path, new: Path, **changes: str) -> Path:
    """A copy of a run whose card says something else: what a map may do stands there."""
    card = shutil.copytree(folder, new) / "config.json"
    text = card.read_text()
    for name, value in changes.items():
        old = {"method": '"lmd"', "times": '"square"'}[name]
        assert f'"{name}": {old}' in text
        text = text.replace(f'"{name}": {old}', f'"{name}": "{value}"')
    card.write_text(text)
    return new


@pytest.mark.parametrize(
    "changes, s, t, said",
    [
        ({"times": "triangle"}, 0.5, 0.1, r"was never trained backwards.* train it with --times square"),
        ({"method": "consistency_training"}, 0.0, 0.5, "consistency_training learned jumps from any time to the data"),
        ({"method": "freeflow"}, 0.5, 1.0, "freeflow learned jumps from noise, s = 0: take s = 0"),
        ({}, 0.0, 1.5, "s and t must be from 0"),
    ],
)
def test_a_jump_that_was_not_learned_is_refused(
    board: Path, tmp_path: Path, changes: dict[str, str], s: float, t: float, said: str
):
    run = OpenRun(card_of(board, tmp_path / "other", **changes))
    with pytest.raises(ValueError, match=said):
        jumps.jump(run, Asked(), s, t)


def test_points_of_a_map_to_the_data_are_noised_data(classes: Path, tmp_path: Path):
    run = OpenRun(card_of(classes, tmp_path / "consistency", method="consistency_training"))
    found = jumps.jump(run, Asked(number=200, label="2", guidance=2.0), 0.9, 1.0)
    x1 = (found.start - 0.1 * found.noise) / 0.9
    data = run.source().data[2::3]  # type: ignore[attr-defined]
    nearest = torch.cdist(x1, data, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert nearest.max() < 1e-4
    assert isinstance(found.cond, GuidedCondition)
    assert found.cond.cond.unique().tolist() == [2]


def test_a_class_of_no_rows_is_refused_and_a_rare_one_is_found(classes: Path):
    run = OpenRun(card_of(classes, classes.parent / "rare", method="consistency_training"))
    source = run.source()
    labels = torch.zeros(90, dtype=torch.int64)
    labels[17] = 1
    source.labels = labels  # type: ignore[attr-defined]
    found = jumps.jump(run, Asked(number=20, label="1", guidance=2.0), 0.9, 1.0)
    x1 = (found.start - 0.1 * found.noise) / 0.9
    torch.testing.assert_close(x1, source.data[17].expand(20, 5), atol=1e-4, rtol=0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="none of 16,384 draws of the data is of class 2: choose another class"):
        jumps.jump(run, Asked(number=20, label="2", guidance=2.0), 0.9, 1.0)


def test_a_flow_that_cannot_be_solved_leaves_the_maps_own_jumps(board: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> None:
        raise ValueError("no step resolves it")

    monkeypatch.setattr(jumps, "_flow_paths", failing)
    found = jumps.jump(OpenRun(board), Asked(number=60), 0.0, 1.0)
    assert found.flow_paths is None
    assert found.unsolved == "no step resolves it"
    assert found.map_paths.isfinite().all()


# residuals, inversion


def test_residuals_are_of_the_class_that_is_asked_for(classes: Path):
    run = OpenRun(classes)
    found = squares.square(run, Asked(label="1", guidance=2.0))
    drawn = run.data(squares.ROWS, 0, "1")
    assert drawn is not None
    assert drawn[1].unique().tolist() == [1]  # type: ignore[union-attr]
    cond = GuidedCondition(drawn[1], torch.full((squares.ROWS,), 2.0))
    x0 = run.inputs(Asked(guidance=2.0), squares.ROWS).x0
    wanted = fm.uses.residual_square(
        fm.load(classes), x0, drawn[0], cond=cond, interpolant=fm.interpolants.Linear(), number=squares.TIMES
    )
    torch.testing.assert_close(found.semigroup, wanted.semigroup)


def test_residuals_are_those_of_the_library_on_noised_data(board: Path):
    run, shares = OpenRun(board), list[float]()
    found = squares.square(run, Asked(seed=4), lambda _, share: shares.append(share))
    drawn = run.data(squares.ROWS, 4)
    assert drawn is not None
    x0 = run.inputs(Asked(seed=4), squares.ROWS).x0
    wanted = fm.uses.residual_square(fm.load(board), x0, drawn[0], interpolant=fm.interpolants.Linear())
    torch.testing.assert_close(found.semigroup, wanted.semigroup)
    torch.testing.assert_close(found.round_trip, wanted.round_trip)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_velocity_alone_has_no_square(board: Path, tmp_path: Path):
    run = OpenRun(card_of(board, tmp_path / "velocity", method="flow_matching"))
    with pytest.raises(ValueError, match="the jumps of this flow_matching are none"):
        squares.square(run, Asked())


def test_data_go_to_noise_and_come_back_as_another_class(classes: Path):
    run = OpenRun(classes)
    found = carrying.carry(run, Asked(guidance=2.0), steps=2, to=0.1, target="0")
    flow_map, n = fm.load(classes), len(found.data)
    weight = torch.full((n,), 2.0)
    assert found.labels is not None
    with torch.no_grad():
        noise = fm.uses.invert(
            flow_map, found.data, GuidedCondition(found.labels, weight), to=0.1, steps=2, backwards=True
        )
        other = GuidedCondition(torch.zeros(n, dtype=torch.int64), weight)
        back = fm.uses.generate(flow_map, noise, other, start=0.1, steps=2)
    torch.testing.assert_close(found.noise, noise)
    torch.testing.assert_close(found.back, back)
    assert found.error is None
    assert found.text().endswith("they come back as 0")


def test_what_comes_back_is_compared_with_the_data(board: Path):
    found = carrying.carry(OpenRun(board), Asked(), steps=1)
    distance = (found.back - found.data).square().sum(1).mean().sqrt()
    assert found.error == pytest.approx(float(distance) / fm.uses.inversion.spread(found.data))


def test_a_map_of_one_order_is_refused_in_the_words_of_the_command(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = card_of(board, tmp_path / "other", times="triangle")
    said = refused(capsys, "invert", other, "--out", tmp_path / "z.npz")
    with pytest.raises(ValueError) as raised:
        carrying.carry(OpenRun(other), Asked())
    assert said == f"flowmaps: {' '.join(str(raised.value).split())}\n"


# pictures


def shown(figure: object) -> list[torch.Tensor]:
    """The points that each panel of a figure shows."""
    return [
        torch.from_numpy(cloud.get_offsets().data)
        for ax in figure.axes
        for cloud in ax.collections  # type: ignore[attr-defined]
    ]


def test_two_columns_of_many_are_shown_in_the_units_of_the_data(classes: Path):
    run = OpenRun(classes)
    drawn = list(samples.same_noise(run, Asked(number=30), (1,), beside=False))
    figure = panels.samples(run, drawn, (3, 1))
    data, made = shown(figure)
    torch.testing.assert_close(made, run.units.to_data(drawn[0].samples.x)[:, [3, 1]].double())
    assert 70 < data.min() < data.max() < 130
    assert [ax.get_xlabel() for ax in figure.axes if ax.collections] == ["column 4"] * 2


def test_points_of_one_dimension_are_histograms_and_lines_over_time(folder: Path):
    run = OpenRun(app_cases.points(folder, 1))
    drawn = list(samples.same_noise(run, Asked(number=50), (1, 2)))
    figure = panels.samples(run, drawn)
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [one.partition(",")[0] for one in words] == ["data", "1 step", "2 steps", "teacher"]
    found = jumps.jump(run, Asked(number=50), 0.0, 1.0)
    of_flow, of_map = panels.jumped(run, found).axes[0].collections
    x = run.units.to_data(found.map_paths)[:, 0, 0].double()
    line = torch.from_numpy(of_map.get_paths()[0].vertices)
    torch.testing.assert_close(line, torch.stack([found.times.double(), x], 1))
    assert len(of_flow.get_paths()) == jumps.PATHS


def test_without_its_data_a_run_is_sampled_all_the_same(classes: Path, folder: Path):
    hidden = (folder / "5.npz").rename(folder / "hidden.npz")
    try:
        run = OpenRun(classes)
        drawn = list(samples.same_noise(run, Asked(number=30), (1,), beside=False))
        assert len(shown(panels.samples(run, drawn))) == 1
        assert squares.square(run, Asked(number=30)).semigroup.isfinite().all()
        with pytest.raises((ValueError, OSError), match=r"5\.npz"):
            carrying.carry(run, Asked())
    finally:
        hidden.rename(folder / "5.npz")


# the folder, the port, the package


def test_a_folder_is_refused_in_the_words_of_sample(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "import_gradio", lambda: None)
    training = shutil.copytree(board, tmp_path / "training")
    (training / "weights.safetensors").unlink()
    for path in (tmp_path / "nothing", tmp_path, training):
        assert refused(capsys, "app", path) == refused(capsys, "sample", path, "--out", tmp_path / "x.npz")


def test_a_port_that_is_taken_is_refused_and_another_is_found():
    with socket.create_server((server.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken by another program: pass another --port"):
            server.free_port(port=port)
    assert server.free_port(port=port) == port
    assert server.PORT <= server.free_port() < server.PORT + server.PORTS
    with pytest.raises(ValueError, match="--port must be from 1 to 65535, got 70000"):
        server.free_port(port=70_000)
    with pytest.raises(ValueError, match="--host must be an IPv4 address or a name, got ::1"):
        server.serve(None, host="::1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"this machine has no address 192\.0\.2\.1"):
        server.free_port("192.0.2.1")


def test_without_gradio_a_line_says_how_it_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(capsys, "app", tmp_path).endswith("not installed: pip install 'flowmaps[app]'.\n")
