"""What is measured: jumps, multistep sampling, the teacher's ODE; lost samples are counted."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

from flowmaps import metrics
from flowmaps.cli.main import main
from flowmaps.data import Board, Points, Source, TableOptions, open_data
from flowmaps.evaluation.distances import FLOOR_STREAM, real_distances
from flowmaps.evaluation.rows import metrics_rows
from flowmaps.evaluation.sampling import (
    NOISE_STREAM,
    CompiledMap,
    Inputs,
    fresh_noise,
    jump_sampler,
    ode_sampler,
    sample,
)
from flowmaps.interpolants import Linear, Trigonometric
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.metrics import energy_distance, wasserstein2
from flowmaps.nn import UNet
from flowmaps.runs import recipes
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import Evaluation
from flowmaps.samplers import Jump, MultistepConsistency
from flowmaps.storage import models
from flowmaps.system.seeds import generator

SMALL = Evaluation(steps=(1, 3), samples=1300, points=50, batch=400)


class Scaling(FlowMap):
    """X_{s,t}(x) = a x whatever s and t, its diagonal zero; not finite for rows with x_1 above `most`."""

    def __init__(self, factor: float = 0.5, most: float = math.inf) -> None:
        super().__init__()
        self.factor, self.most = factor, most

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.where(x[:, :1] > self.most, math.nan, self.factor * x)

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def board() -> Source:
    return open_data("checkerboard")


def uniform(steps: int) -> MultistepConsistency:
    return MultistepConsistency([k / steps for k in range(steps)], Linear())


def planned(method: str = "lsd", settings: Evaluation = SMALL) -> Plan:
    return resolve(dataclasses.replace(recipes.checkerboard(), method=method, compile=False, evaluation=settings))


JUMPS, TO_DATA = planned(), planned("consistency_training")


def table(flow_map: FlowMap, source: Source, plan: Plan = JUMPS, **options):
    found = list(metrics_rows(plan, flow_map, None, source, 5, **options))
    return [row for _, row, _ in found], [sampled for *_, sampled in found]


def test_a_map_of_jumps_to_the_data_adds_fresh_noise_between_them(board: Source):
    rows, drawn = table(Scaling(), board, TO_DATA)
    assert [(row["sampler"], row["steps"], row["nfe"], row.get("fresh_noise")) for row in rows] == [
        ("map", 1, 1, None),
        ("map", 3, 3, True),
    ]
    x0 = torch.randn(1300, 2, generator=generator(5, NOISE_STREAM))
    z = fresh_noise(uniform(3), (1300, 2), 5)
    assert z is not None
    expected = x0 / 2  # (3) with alpha = 1 - t, beta = t at t = 1/3, 2/3
    for k, t in enumerate((1 / 3, 2 / 3)):
        expected = ((1 - t) * z[k] + t * expected) / 2
    torch.testing.assert_close(drawn[0].x, x0 / 2)
    torch.testing.assert_close(drawn[1].x, expected)


def test_without_a_teacher_the_flow_is_said_to_be_the_maps_own(board: Source):
    alone = list(metrics_rows(JUMPS, Scaling(), None, board, 5, solvers=("euler",)))
    beside = list(metrics_rows(JUMPS, Scaling(), Scaling(), board, 5, solvers=("euler",)))
    assert [(title, row.get("velocity")) for title, row, _ in (alone[0], beside[0])] == [
        ("own ODE, euler", "own"),
        ("teacher, euler", None),
    ]


def test_without_rows_of_the_ode_its_points_are_still_what_the_map_is_measured_against(board: Source):
    asked = []

    class Counted(Scaling):
        def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            asked.append(len(x))
            return super().average_velocity(x, s, t, cond)

    options = {"solvers": ("euler",), "ode_rows": False}
    whole = [row for _, row, _ in metrics_rows(JUMPS, Scaling(), Scaling(0.3), board, 5, solvers=("euler",))]
    found = [row for _, row, _ in metrics_rows(JUMPS, Scaling(), Counted(0.3), board, 5, **options)]
    assert [row["sampler"] for row in found] == ["map", "map"]
    assert [{**row, "seconds": 0} for row in found] == [{**row, "seconds": 0} for row in whole[1:]]
    assert set(found[0]) >= {"other_cell", "other_cell_teacher"}
    assert sum(asked) == SMALL.points * SMALL.solver_steps < SMALL.samples * SMALL.solver_steps


def test_a_map_whose_own_ode_has_no_solution_is_measured_all_the_same(tmp_path: Path):
    class Stiff(Scaling):
        def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.full_like(x, math.nan)

    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(211, 3)))
    rows, _ = table(Stiff(), open_data(str(tmp_path / "points.npy")), JUMPS, solvers=())
    assert [row["sampler"] for row in rows] == ["map", "map"]
    assert all("energy" in row and "map_error" not in row for row in rows)


def test_a_row_of_fewer_samples_has_the_first_ones_and_no_floor(board: Source):
    whole, drawn = table(Scaling(), board, TO_DATA)
    found, fewer = table(Scaling(), board, TO_DATA, fewer={3: 800})
    assert [len(samples.x) for samples in fewer] == [row["samples"] for row in found] == [1300, 800]
    torch.testing.assert_close(fewer[1].x, drawn[1].x[:800])
    assert ["kl_floor" in row for row in found] == [True, False]
    assert found[1]["kl"] == metrics.kl(board.exact.cell_masses(50), fewer[1].x) != whole[1]["kl"]
    assert found[1]["w2"] == whole[1]["w2"]


@pytest.mark.parametrize("most", [1.0, -math.inf])
def test_an_ode_that_cannot_be_solved_everywhere_loses_no_row_of_the_map(board: Source, most: float):
    class Escaping(Scaling):
        def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.where(x[:, :1] > most, math.nan, torch.zeros_like(x))

    options = {"solvers": ("euler",), "ode_rows": False}
    whole = [row for _, row, _ in metrics_rows(JUMPS, Scaling(), Escaping(), board, 5, solvers=("euler",))]
    found = [row for _, row, _ in metrics_rows(JUMPS, Scaling(), Escaping(), board, 5, **options)]
    assert whole[0]["lost"] > 0
    assert [{**row, "seconds": 0} for row in found] == [{**row, "seconds": 0} for row in whole[1:]]


def test_fresh_noise_is_the_same_however_it_is_cut_and_never_that_of_another_row(board: Source):
    _, (_, by_four_hundred) = table(Scaling(), board, TO_DATA)
    _, (_, at_once) = table(Scaling(), board, planned("consistency_training", dataclasses.replace(SMALL, batch=5000)))
    torch.testing.assert_close(by_four_hundred.x, at_once.x)
    z = fresh_noise(uniform(3), (1300, 2), 5)
    assert z is not None
    assert len(z.flatten().unique()) == z.numel()
    assert fresh_noise(uniform(1), (1300, 2), 5) is None


def test_samples_by_fresh_noise_are_no_jumps_of_the_flow(board: Source):
    rows, _ = table(Scaling(), board, TO_DATA)
    assert ["map_error" in row for row in rows] == [True, False]
    assert all("kl" in row for row in rows)


@pytest.mark.slow
def test_a_map_of_jumps_to_the_data_has_no_ode_of_its_own_but_its_teacher_has(board: Source):
    rows, _ = table(Scaling(), board)
    assert [row.get("solver") for row in rows] == ["dopri5", "euler", None, None]
    rows, _ = table(Scaling(), board, solvers=("dopri5",))
    assert [row.get("solver") for row in rows] == ["dopri5", None, None]
    found = list(metrics_rows(TO_DATA, Scaling(), Scaling(), board, 5))
    assert [row.get("solver") for _, row, _ in found] == ["dopri5", "euler", None, None]


def test_without_a_law_and_without_an_ode_there_is_no_map_error(tmp_path: Path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(211, 3)))
    rows, _ = table(Scaling(), open_data(str(tmp_path / "points.npy")), TO_DATA)
    assert all("energy" in row and "map_error" not in row for row in rows)


def test_only_methods_of_jumps_to_the_data_add_fresh_noise():
    recipe = dataclasses.replace(recipes.checkerboard(), interpolant="trigonometric")
    fresh = MultistepConsistency([0, 0.25, 0.5, 0.75], Trigonometric())
    for method, in_four in (("lsd", Jump(4)), ("consistency_training", fresh)):
        plan = resolve(dataclasses.replace(recipe, method=method))
        assert (plan.sampler(1), plan.sampler(4)) == (Jump(1), in_four)


def test_lost_samples_are_counted_and_cost(board: Source):
    assert isinstance(board, Board)
    (whole, *_), _ = table(Scaling(1e-3), board, solvers=())
    (some, *_), (sampled, *_) = table(Scaling(1e-3, most=1.5), board, solvers=())
    number = int((~sampled.x.isfinite()).any(1).sum())
    assert 0 < number < 1300
    assert "lost" not in whole
    assert some["lost"] == number
    assert some["kl"] > whole["kl"]  # all fall into four cells
    assert some["w2"] > whole["w2"]
    (far,), _ = table(Scaling(1e30), board, planned("lsd", dataclasses.replace(SMALL, steps=(1,))), solvers=())
    assert far["lost"] == 1300
    assert not {"kl", "w2", "map_error"} & set(far)


def test_a_velocity_that_no_step_resolves_loses_all_samples(board: Source):
    class Broken(Scaling):
        def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.full_like(x, math.nan)

    rows, _ = table(Broken(), board, solvers=("dopri5",))
    assert rows[0]["lost"] == 1300
    assert "kl" not in rows[0]
    assert "kl" in rows[1]


def test_train_and_sample_add_fresh_noise_where_the_method_needs_it(tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "samples.npy"
    options = """--no-compile --steps 3 --teacher-steps 1 --network.width 8 --network.depth 2 --optimiser.batch 16
    --evaluation.samples 300 --evaluation.points 30 --evaluation.steps 1 3""".split()  # noqa: SIM905
    main(["train", "checkerboard", "--method", "consistency_training", "--out", str(run), *options])
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    rows = [(row["sampler"], row["steps"], row.get("fresh_noise")) for row in rows]
    assert rows == [("map", 1, None), ("map", 3, True)]
    assert "jumps to t = 1 alone" in (run / "report.html").read_text()
    assert not (run / "trajectories.png").exists()
    main(["sample", str(run), "--steps", "3", "--number", "211", "--out", str(out)])
    flow_map = models.load(run)
    x0 = torch.randn(211, 2, generator=generator(0, NOISE_STREAM))
    noise = fresh_noise(uniform(3), x0.shape, 0)
    expected = open_data("checkerboard").to_data(uniform(3)(flow_map, x0, noise))
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-6)


def test_a_map_is_compiled_once_for_all_samplers():
    """Whatever the layout of images, and whether s and t are one tensor or views of a number."""
    compiled = list[Any]()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    flow_map = AverageVelocity(UNet(3, 8, width=8, multipliers=(1,), blocks=1, classes=3)).eval()
    once = CompiledMap(flow_map, backend).eval()
    inputs = Inputs(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)
    for sampler, plain in (
        (jump_sampler(once, Jump(3)), jump_sampler(flow_map, Jump(3))),
        (ode_sampler(once.velocity, method="heun2", steps=2), ode_sampler(flow_map.velocity, method="heun2", steps=2)),
        (ode_sampler(once.velocity), ode_sampler(flow_map.velocity)),
    ):
        found, wanted = (sample(s, inputs, chunk=6, device=torch.device("cpu")).x for s in (sampler, plain))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(compiled) == 1


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_distances_between_real_rows_stand_beside_those_of_samples(tmp_path: Path, held_out: float):
    data = np.random.default_rng(0).normal(size=(200, 3)) * [1.0, 10.0, 0.1]
    np.save(tmp_path / "a.npy", data)
    source = open_data(str(tmp_path / "a.npy"), table=TableOptions(held_out=held_out))
    assert isinstance(source, Points)
    rows, _ = table(Scaling(), source, planned(settings=dataclasses.replace(SMALL, points=100)))
    order = torch.randperm(len(source.data), generator=generator(5, FLOOR_STREAM))
    number = 50 if held_out else 100
    others = source.data[order[100:]] if source.held_out is None else source.held_out
    w2 = wasserstein2(source.data[order[:number]], others)  # columns are standardised already
    energy = energy_distance(source.data[order[:number]], others)
    for row in rows:
        assert row["w2_floor"] == pytest.approx(w2, rel=1e-6)
        assert row["energy_floor"] == pytest.approx(energy, rel=1e-6)
    own = [row for row in rows if row["sampler"] == "map"]  # of half the width and less; the ODE's are N(0, 1)
    assert all(row["w2"] > row["w2_floor"] > 0 for row in own)
    assert all(row["energy"] > 2 * abs(row["energy_floor"]) for row in own)


def test_of_fewer_real_rows_than_samples_the_energy_distance_alone_is_told(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(200, 3)))
    source = open_data(str(tmp_path / "a.npy"))
    assert isinstance(source, Points)
    assert {*real_distances(source, 101, 0)} == {"energy_floor"}
    assert {*real_distances(source, 100, 0)} == {"w2_floor", "sliced_w2_floor", "energy_floor"}


@pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")
def test_of_a_single_row_there_are_no_distances_between_rows(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    source = open_data(str(tmp_path / "a.npy"))
    assert isinstance(source, Points)
    assert real_distances(source, 100, 0) == {}


@pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")
def test_rows_are_compared_together_with_their_conditions(tmp_path: Path):
    """Columns to learn that are all the same leave the distances of the conditions."""
    pandas.DataFrame({"x": np.ones(40), "c": np.arange(40.0) ** 2}).to_csv(tmp_path / "a.csv", index=False)
    options = TableOptions(condition_columns=("c",), held_out=0.25, keep_columns=("x",))
    source = open_data(str(tmp_path / "a.csv"), table=options)
    assert isinstance(source, Points)
    order = torch.randperm(30, generator=generator(0, FLOOR_STREAM))[:10]
    assert source.numbers is not None
    own, held = source.numbers[order].sort(dim=0).values, source.held_out_cond.sort(dim=0).values  # type: ignore[union-attr]
    expected = float((own - held).square().mean().sqrt())  # on a line, by sorting
    assert real_distances(source, 100, 0)["w2_floor"] == pytest.approx(expected, rel=1e-6)


def test_points_of_the_checkerboard_are_counted_in_other_cells_than_the_flows(board: Source):
    recipe = dataclasses.replace(recipes.checkerboard(), method="lsd", compile=False)
    plan = resolve(dataclasses.replace(recipe, evaluation=dataclasses.replace(SMALL, steps=(1,), samples=64_000)))
    rows = [row for _, row, _ in metrics_rows(plan, Scaling(), Scaling(), board, 0, solvers=("euler",))]
    ode, jump = rows  # the ODE of a velocity of zero stays at the noise, the map halves it
    x0 = torch.randn(64_000, 2, generator=generator(0, NOISE_STREAM))[: SMALL.points].double()
    end = board.exact.flow_map(x0, torch.zeros(len(x0)).double(), torch.ones(len(x0)).double())  # type: ignore[attr-defined]
    noise, half, exact = (board.exact.nearest_cell(x) for x in (x0, x0 / 2, end))  # type: ignore[attr-defined]
    assert ode["other_cell"] == pytest.approx(float((noise != exact).double().mean()))
    assert "other_cell_teacher" not in ode
    assert jump["other_cell"] == pytest.approx(float((half != exact).double().mean()))
    assert jump["other_cell_teacher"] == pytest.approx(float((half != noise).double().mean()))
    assert len({ode["other_cell"], jump["other_cell"], jump["other_cell_teacher"], 0.0}) == 4
    assert jump["kl_64000"] == jump["kl"]
