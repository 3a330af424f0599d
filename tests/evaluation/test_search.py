"""The search of settings: what acts on which method, the same proposals after a kill, and what is found."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowmaps.data import open_data
from flowmaps.evaluation import budget, results, search, space
from flowmaps.evaluation.results import Result, score_of
from flowmaps.evaluation.search import Search
from flowmaps.maps import FlowMap
from flowmaps.methods import METHODS, LearnsFrom, Method, flow_matching
from flowmaps.runs.changes import of_stage
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import Recipe, checkerboard, found
from flowmaps.runs.recipes.found import Options, fields_of, with_options
from flowmaps.training.optimisers import Optimiser


def plan_of(method: str, **changed: Any) -> Plan:
    return resolve(replace(checkerboard(), method=method, **changed))


def tiny() -> Recipe:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    evaluation = replace(recipe.evaluation, steps=(1, 3), samples=300, points=30)
    return replace(recipe, compile=False, network=network, optimiser=Optimiser(batch=16), evaluation=evaluation)


# the space -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_setting_acts_on_the_method_and_leaves_its_shared_teacher_alone(method: str):
    plan = plan_of(method)
    settings = space.space_of(plan)
    assert (settings[0].field == "map_rate_scale") == (METHODS[method].learns_from is LearnsFrom.TEACHER)
    for one in settings:
        others = one.values or (one.low, one.high)
        assert one.low <= one.today <= one.high if not one.values else one.today in one.values
        for value in set(others) - {one.today}:
            other = resolve(with_options(plan.recipe, {one.field: value}))
            assert (of_stage(other), other.stages[-1].optimiser) != (of_stage(plan), plan.stages[-1].optimiser)
            if "teacher" in plan.method.stages and one.field != "learned_weight":
                assert (of_stage(other, 0), other.stages[0].optimiser) == (of_stage(plan, 0), plan.stages[0].optimiser)


@pytest.mark.parametrize("method", METHODS)
def test_todays_settings_are_those_of_the_recipe(method: str):
    plan = plan_of(method)
    today = resolve(with_options(plan.recipe, space.today_of(space.space_of(plan))))
    assert of_stage(today) == of_stage(plan)
    assert [stage.optimiser for stage in today.stages] == [stage.optimiser for stage in plan.stages]


def test_the_space_follows_from_what_a_method_takes():
    def fields(method: str) -> set[str]:
        return {one.field for one in space.space_of(plan_of(method))}

    off_diagonal = {"learned_weight", "adaptive_power", "from_noise_share"}
    assert fields("lsd") == {"optimiser.learning_rate", "diagonal_share", "target_decay", *off_diagonal}
    assert fields("lmd") == {"map_rate_scale", *off_diagonal}
    assert fields("meanflow") == {"optimiser.learning_rate", "diagonal_share", "learned_weight", "mean_weight"}
    assert fields("sct") == {"optimiser.learning_rate"}


def test_rates_have_one_range_whatever_a_method_makes_of_the_rate():
    for method in ("lmd", "ayf_emd", "lsd", "esd", "anyflow"):
        plan = plan_of(method)
        rate, base = space.space_of(plan)[0], plan.recipe.optimiser.learning_rate
        for value, bound in ((rate.low, base / 16), (rate.high, 2 * base)):
            (*_, last) = resolve(with_options(plan.recipe, {rate.field: value})).stages
            assert last.optimiser.learning_rate == pytest.approx(bound)


def test_a_setting_that_is_fixed_is_not_searched_and_one_out_of_range_widens_it():
    fixed = {one.field for one in space.space_of(plan_of("lsd"), {"adaptive_power", "learned_weight"})}
    assert not {"adaptive_power", "learned_weight"} & fixed
    by_field = {one.field: one for one in space.space_of(plan_of("lsd", diagonal_share=0.97))}
    assert (by_field["diagonal_share"].today, by_field["diagonal_share"].high) == (0.97, 0.97)


def test_a_term_that_has_every_nth_step_leaves_shares_that_have_rows_for_it():
    for every, least in ((1, 0.1), (2, 0.5), (3, 0.67), (4, 0.75)):
        plan = plan_of("lsd", off_diagonal_every=every)
        by_field = {one.field: one for one in space.space_of(plan)}
        assert by_field["diagonal_share"].low == least
        of_stage(resolve(with_options(plan.recipe, {"diagonal_share": least})))  # which builds the objective


def test_a_share_that_the_objective_has_not_is_not_searched(monkeypatch: pytest.MonkeyPatch):
    def with_share(flow_map: FlowMap, share: float = 0.5, **options: Any) -> Any:
        return flow_matching(flow_map, **options)

    monkeypatch.setitem(sys.modules, "of_a_user", SimpleNamespace(with_share=Method(with_share)))
    fields = {one.field for one in space.space_of(plan_of("of_a_user:with_share"))}
    assert "diagonal_share" not in fields


def test_the_average_of_a_target_is_searched_both_ways():
    by_method = {name: {one.field: one.values for one in space.space_of(plan_of(name))} for name in ("lsd", "tvm")}
    assert by_method["lsd"]["target_decay"] == ("own", 0.99)
    assert by_method["tvm"]["target_decay"] == ("own", 0.0)  # whose own is an average


# proposals -----------------------------------------------------------------------------------------------------------


def proposals(number: int, seed: int = 0, method: str = "lsd") -> list[Options]:
    settings, trials = space.space_of(plan_of(method)), list[tuple[Options, float]]()
    for _ in range(number):
        options = space.propose(settings, trials, method, seed)
        trials.append((options, score(options)))
    return [options for options, _ in trials]


def score(options: Options) -> float:
    """Best at a rate of 0.002; infinite above 0.012, as of a training that diverged."""
    rate = options["optimiser.learning_rate"]
    return math.inf if rate > 0.012 else abs(math.log(rate / 0.002)) + options.get("adaptive_power", 0.5)


def test_proposals_are_a_function_of_seed_method_and_the_trials_before():
    made = proposals(8)
    assert made == proposals(8)
    assert made[0] == space.today_of(space.space_of(plan_of("lsd")))
    settings = space.space_of(plan_of("lsd"))
    before = [(options, score(options)) for options in made[:5]]
    assert space.propose(settings, before, "lsd", 0) == made[5]
    others = [space.propose(settings, before, name, seed) for name, seed in (("lsd", 1), ("psd", 0))]
    assert made[5] not in others
    assert others[0] != others[1]


def test_proposals_are_in_range_of_three_digits_and_conditional():
    settings = {one.field: one for one in space.space_of(plan_of("lsd"))}
    for options in proposals(12):
        assert ("adaptive_power" in options) != options["learned_weight"]
        for field, value in options.items():
            one = settings[field]
            assert value in one.values if one.values else one.low <= value <= one.high
            assert value == (float(f"{value:.3g}") if isinstance(value, float) else value)
        resolve(with_options(plan_of("lsd").recipe, options))


def test_the_search_comes_closer():
    scores = list(map(score, proposals(25)))
    assert min(scores[3:]) < 0.6 * min(scores[:3])


# scores --------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_geometric_mean_of_the_metric_of_the_data():
    rows = [
        {"sampler": "teacher", "kl": 9.0},
        *({"sampler": "map", "kl": x + 0.01, "kl_floor": 0.01} for x in (0.4, 0.1)),
    ]
    assert score_of(rows) == pytest.approx(0.2)
    below = {"sampler": "map", "kl": 0.001, "kl_floor": 0.01}
    assert score_of([below]) == pytest.approx(0.001)  # a tenth of the floor
    assert score_of([{"sampler": "map", "energy": x} for x in (0.9, 0.1)]) == pytest.approx(0.3)
    assert score_of([{"sampler": "map", "energy": -0.1}]) == pytest.approx(results.LEAST)
    assert score_of([{"sampler": "map", "energy": x, "energy_floor": -3e-7} for x in (-0.1, 2e-7, 3e-7)]) == (
        pytest.approx(3e-7)  # in small units too, noise counts as noise, not as a record
    )
    assert score_of([{"sampler": "map", "energy": 0.4, "energy_floor": 0.1}]) == pytest.approx(0.4)
    assert score_of([{"sampler": "map", "fd": x} for x in (80.0, 20.0)]) == pytest.approx(40.0)
    assert score_of([{"sampler": "map", "fd": x, "fd_floor": 9.0} for x in (89.0, 29.0)]) == pytest.approx(40.0)
    assert score_of([{"sampler": "map", "fd": 8.0, "fd_floor": 9.0}]) == pytest.approx(0.9)
    assert score_of([{"sampler": "map", "fd": -1e-7}]) == pytest.approx(results.LEAST)


def test_a_map_without_a_metric_has_no_score():
    assert score_of([]) is None
    assert score_of([{"sampler": "map", "lost": 3}, {"sampler": "map", "energy": 1.0}]) is None


def row(settings: Options, score: float | None, **more: Any) -> dict[str, Any]:
    return {"settings": settings, "score": score, "seconds": 2.0, "rows": [], **more}


def test_what_was_found_is_chosen_by_the_final_seeds():
    a, b = {"from_noise_share": 0.25}, {"from_noise_share": 0.5}
    trials = [row(a, 0.3, trial=0), row({}, None, trial=1), row(b, 0.2, trial=2)]
    finals = [row(s, x, seed=k) for s, xs in ((b, (0.2, 0.4)), (a, (0.5, 0.41))) for k, x in enumerate(xs)]
    found_better = Result(trials, finals).summary(fields_of(checkerboard()))
    assert found_better["better"]
    assert found_better["settings"] == b
    assert found_better["final"]["found"] == pytest.approx({"seeds": 2, "mean": 0.3, "spread": 0.02**0.5})
    assert (found_better["trial"], found_better["diverged"], found_better["seconds"]) == (2, 1, 14.0)
    worse = Result(trials, [row(b, 0.9, seed=0), row(a, 0.3, seed=0)]).summary(fields_of(checkerboard()))
    assert not worse["better"]
    assert worse["settings"] == {}
    once = Result(trials, [*finals, row(b, 0.41, seed=2), row(a, 0.4, seed=2)])
    assert not once.better  # by the mean it would be
    never = [row(s, x, seed=k) for s, xs in ((b, (0.2, None)), (a, (None, None))) for k, x in enumerate(xs)]
    assert Result(trials, never).better  # which diverges less often
    lost = Result(trials, [row(b, None, seed=0), row(a, 0.3, seed=0)])
    assert not lost.better
    assert Result(trials, []).better  # without final seeds by the score alone
    lucky = [row(a, x, seed=k) for k, x in ((0, 0.3), (1, 0.9), (2, 0.9))]
    assert not Result(trials, [*lucky, row(b, 0.4, seed=0)]).better  # by the seeds that both have
    assert not Result(trials, [row(b, 0.4, seed=0)]).better  # today's are not trained anew yet
    assert not Result(trials, finals, 3).better  # nor on all seeds
    assert not Result(trials, [], 3).better


# trials, killed and resumed ------------------------------------------------------------------------------------------


def train(self: Search, plan: Plan, settings: Options, seed: int, watch: Any) -> dict[str, Any]:
    """A training whose score is a function of settings and seed."""
    value = score(settings) + 1e-6 * seed
    rows = [{"sampler": "map", "kl": value, "kl_floor": 0.0}] if math.isfinite(value) else []
    return {"score": score_of(rows), "seconds": 1.0, "rows": rows}


def run(folder: Path, *methods: str, trials: int = 6, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(Search(tiny(), methods or ("lsd",), folder, trials=trials, budget=0.2, **options).run())


def test_a_search_that_was_killed_goes_on_to_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    whole = run(tmp_path / "whole")
    assert [("trial" in line, line.get("trial", line.get("seed"))) for _, line in whole[:7]] == [
        *((True, k) for k in range(6)), (False, 0)]  # fmt: skip
    calls = []

    def killed(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(Search, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    before = Search(tiny(), ("lsd",), tmp_path / "cut", budget=0.2, resume=True).file.rows()
    assert [line["trial"] for line in before] == [0, 1, 2]
    monkeypatch.setattr(Search, "_train", train)
    rest = run(tmp_path / "cut", resume=True)
    assert before + [line for _, line in rest] == [line for _, line in whole]
    assert run(tmp_path / "cut", resume=True) == []
    more = run(tmp_path / "cut", trials=8, resume=True)
    assert [line["trial"] for _, line in more if "trial" in line] == [6, 7]


def test_scores_are_those_of_today_whatever_the_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    lines = [line for _, line in run(tmp_path / "x") if "trial" in line]
    path = tmp_path / "x" / "study.jsonl"
    about, *rows = map(json.loads, path.read_text().splitlines())
    path.write_text("".join(json.dumps(row) + "\n" for row in (about, *({**row, "score": 7.0} for row in rows))))
    result = Search(tiny(), ("lsd",), tmp_path / "x", budget=0.2, resume=True).results()["lsd"]
    assert [row["score"] for row in result.trials] == [line["score"] for line in lines]


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths}
import test_search
from flowmaps.evaluation.search import Search
def slow(*arguments):
    print("training", flush=True)
    time.sleep(0.2)
    return test_search.train(*arguments)
Search._train = slow
test_search.run(Path(sys.argv[1]), resume=True)
"""


@pytest.mark.slow  # each process imports torch
def test_a_process_that_is_killed_outright_leaves_a_study_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = KILLED.format(paths=[str(Path(__file__).parent)])
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline() == "training\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(Search, "_train", train)
    rest = run(tmp_path / "cut", resume=True)
    assert next(line["trial"] for _, line in rest if "trial" in line) == 3
    lines = [json.loads(line) for line in (tmp_path / "cut" / "study.jsonl").read_text().splitlines()[1:]]
    assert lines == [line for _, line in run(tmp_path / "whole")]


def test_settings_found_before_that_are_not_searched_stay_in_what_is_found():
    found_before = {"draws": 4, "from_noise_share": 0.4}
    trials = [
        row({"from_noise_share": 0.4}, 0.3, trial=0, found=found_before),
        row({"from_noise_share": 0.5}, 0.2, trial=1),
    ]
    assert Result(trials, []).summary(fields_of(checkerboard()))["settings"] == {"draws": 4, "from_noise_share": 0.5}


def test_a_trial_that_cannot_be_measured_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def measure(*_: Any, **__: Any) -> Any:
        raise ValueError("no metric takes these samples")

    monkeypatch.setattr(search, "train_method", lambda *_, **__: (None, None, {"ms_per_step": 1.0}))
    monkeypatch.setattr(search, "measure_method", measure)
    ((_, line),) = Search(tiny(), ("lsd",), tmp_path, trials=1, budget=0.2, final_seeds=0).run()
    assert (line["score"], line["reason"]) == (None, "no metric takes these samples")


def test_processes_share_the_methods_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    said, other = [], Search(tiny(), ("lsd", "psd"), tmp_path, trials=2, budget=0.2, final_seeds=0)
    held = other.file.take("lsd")
    assert held is not None
    second = Search(tiny(), ("lsd", "psd"), tmp_path, trials=2, budget=0.2, final_seeds=0, resume=True)
    with held:
        taken = [name for name, _ in second.run(say=said.append)]
    assert (taken, said) == (
        ["psd", "psd"],
        ["lsd: searched by another process; once that has ended, run the command with --resume."],
    )
    assert [name for name, _ in other.run()] == ["lsd", "lsd"]
    assert {name: len(result.trials) for name, result in other.results().items()} == {"lsd": 2, "psd": 2}


def test_what_a_process_that_ended_had_held_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    search = Search(tiny(), ("lsd", "psd"), tmp_path, trials=1, budget=0.2, final_seeds=0)
    held = search.file.take("lsd")
    assert held is not None
    taken = []
    with held:
        running = search.run()
        taken.append(next(running)[0])
    taken += [name for name, _ in running]
    assert taken == ["psd", "lsd"]


def test_a_study_goes_on_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    run(tmp_path, trials=1, final_seeds=0)
    with pytest.raises(ValueError, match=r"begun with --budget 0.2, got --budget 0.4: resume with what it began with"):
        Search(tiny(), ("lsd",), tmp_path, budget=0.4, resume=True)
    with pytest.raises(ValueError, match="begun with --seed 0, got --seed 5"):
        Search(replace(tiny(), seed=5), ("lsd",), tmp_path, budget=0.2, resume=True)
    other = replace(tiny(), network=replace(tiny().network, width=9))
    with pytest.raises(ValueError, match=r"begun with --network.width 8, got --network.width 9"):
        Search(other, ("lsd",), tmp_path, budget=0.2, resume=True)
    with pytest.raises(ValueError, match="is not empty: choose another --out, or go on with --resume"):
        Search(tiny(), ("lsd",), tmp_path, budget=0.2)
    with pytest.raises(ValueError, match=r"begun with these fields given as options, \[\], got \['adaptive_power'\]"):
        Search(tiny(), ("lsd",), tmp_path, budget=0.2, resume=True, given=("adaptive_power",))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match=r"is not empty: choose another --out\.$"):  # --resume cannot go on with it
        Search(tiny(), ("lsd",), tmp_path / "other", budget=0.2, resume=True)
    whole = (tmp_path / "study.jsonl").read_bytes()
    for damaged in (b'{"recipe"', whole + b"{}\n", whole + b'{"method": "lsd", "trial": 1}\n', whole + b"\xff\n"):
        (tmp_path / "study.jsonl").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"study.jsonl is damaged .*restore it, or choose another --out"):
            Search(tiny(), ("lsd",), tmp_path, budget=0.2, resume=True).results()


@pytest.mark.parametrize("final_seeds", [0, 1])
def test_another_search_of_the_folder_with_more_seeds_changes_nothing_of_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final_seeds: int
):
    monkeypatch.setattr(Search, "_train", train)
    first = Search(tiny(), ("lsd",), tmp_path, trials=6, budget=0.2, final_seeds=final_seeds)
    list(first.run())
    assert first.results()["lsd"].better
    second = Search(tiny(), ("psd",), tmp_path, trials=1, budget=0.2, final_seeds=3, resume=True)
    assert second.results()["lsd"].better
    list(second.run())
    assert second.results()["lsd"].better
    more = Search(tiny(), ("lsd",), tmp_path, trials=6, budget=0.2, final_seeds=3, resume=True)
    assert not more.results()["lsd"].better  # not yet
    list(more.run())
    assert more.results()["lsd"].better


def test_what_another_search_has_not_trained_anew_yet_is_not_called_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Search, "_train", train)
    other = Search(tiny(), ("lsd",), tmp_path, trials=6, budget=0.2, final_seeds=2)
    mine = Search(tiny(), ("psd",), tmp_path, trials=1, budget=0.2, final_seeds=2, resume=True)
    running, better = other.run(), []
    for _ in running:
        better.append(mine.results()["lsd"].better)
    assert better == [False] * 9 + [True]  # six trials, two seeds of what was found, two of today's
    assert mine.results()["lsd"].best is not mine.results()["lsd"].today


def test_a_search_that_cannot_be_measured_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "train_method", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(search, "evaluation_inputs", refuse)
    broken = Search(tiny(), ("lsd",), tmp_path, trials=1, budget=0.2)
    with pytest.raises(ValueError, match="no such features"):
        list(broken.run())
    assert broken.file.rows() == []


def refuse(*_: Any, **__: Any) -> Any:
    raise ValueError("no such features")


def test_a_study_keeps_the_settings_that_were_found_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Search, "_train", train)
    monkeypatch.setitem(found.FOUND, "checkerboard", {"lsd": {"adaptive_power": 0.3}})
    ((_, first),) = run(tmp_path, trials=1, final_seeds=0)
    assert first["settings"]["adaptive_power"] == 0.3
    monkeypatch.setitem(found.FOUND, "checkerboard", {})
    again = Search(tiny(), ("lsd",), tmp_path, trials=2, budget=0.2, final_seeds=0, resume=True)
    assert len(list(again.run())) == 1
    entry = again.results()["lsd"].summary(fields_of(tiny()))
    assert entry["today"]["adaptive_power"] == 0.3
    kept = Search(tiny(), ("lsd",), tmp_path / "fixed", trials=1, budget=0.2, final_seeds=0, given=("adaptive_power",))
    assert "adaptive_power" not in next(kept.run())[1]["settings"]


# real trainings ------------------------------------------------------------------------------------------------------


def test_a_teacher_is_trained_once_for_a_seed_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, stages = budget.train_stage, []

    def train_stage(plan: Plan, stage: Any, *others: Any, **options: Any) -> Any:
        stages.append((plan.method.name, stage.name, plan.recipe.seed, others[2]))
        return whole(plan, stage, *others, **options)

    monkeypatch.setattr(budget, "train_stage", train_stage)
    lines = run(tmp_path, "lmd", "emd", trials=1, final_seeds=1, given=("learned_weight",))
    teachers = [entry for entry in stages if entry[1] == "teacher"]
    assert [(method, seed) for method, _, seed, _ in teachers] == [("lmd", 1000), ("lmd", 0)]
    assert [seconds for _, stage, _, seconds in stages if stage == "map"] == pytest.approx([0.16] * len(lines))
    assert all(line["score"] > 0 and [row["steps"] for row in line["rows"]] == [1, 3] for _, line in lines)
    assert len(list((tmp_path / "teachers").glob("*.safetensors"))) == 2


def test_seconds_are_those_of_the_processor_and_a_trial_that_diverged_is_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def diverge(plan: Plan, source: Any, budget: float, folder: Path, **_: Any) -> Any:
        return None, None, {"ms_per_step": 1.0, "diverged": True}

    monkeypatch.setattr(search, "train_method", diverge)
    made = Search(tiny(), ("lsd",), tmp_path, trials=5, budget=0.2, final_seeds=1)
    lines = [line for _, line in made.run()]
    assert made.clock == "process_time"
    assert all(line["score"] is None and line["diverged"] for line in lines)
    result = made.results()["lsd"]
    assert (result.best, result.better) == (result.today, False)
    assert made.source.shape == open_data("checkerboard").shape
