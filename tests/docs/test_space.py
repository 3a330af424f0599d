"""The space of methods: each lies where its paper says, costs what one counts by hand, and is a composition."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import space
import torch
from cases import METHODS

import flowmaps as fm
from flowmaps import losses, methods, times
from flowmaps.couplings import MinibatchOT, Paired
from flowmaps.equations import Eulerian, Semigroup, Stop
from flowmaps.guidance import Guidance
from flowmaps.interpolants import Linear, Trigonometric, VarianceExploding
from flowmaps.maps import AverageVelocity, FlowMap, Target
from flowmaps.objectives import MapMatching, Objective, RoundTrip, Sum
from flowmaps.velocities import FromMap

SOURCE = Path(fm.__file__).parent
NAMES = list(methods.METHODS)


def new_map(**options: int) -> AverageVelocity:
    """A map of the plane."""
    return AverageVelocity(fm.nn.MLP(dim=2, width=32, **options))


def build(name: str, flow_map: FlowMap | None = None, **options: object) -> Objective:
    """A method with its paper's options."""
    method = vars(methods)[name]
    if "teacher" in inspect.signature(method).parameters and name not in ("split_meanflow", "anyflow"):
        options = {"teacher": new_map().velocity, **options}
    if flow_map is None:
        flow_map = fm.maps.Trigonometric(fm.nn.MLP(dim=2, width=32)) if name in ("sct", "scd") else new_map()
    return method(flow_map, **options)


# where a method lies --------------------------------------------------------------------------------------------------

LAGRANGIAN, EULERIAN, SEMIGROUP = "Lagrangian", "Eulerian", "Semigroup"
ALL = "all but u"
NONE = space.NONE
# equation, velocity, pairs, stop, diagonal: the columns of the table in section 3 of mathematics.md
TABLE: dict[str, tuple[str, str, str, str, str]] = {
    "flow_matching": ("velocity", "dI", "s = t", NONE, "all rows"),
    "reflow": ("velocity", "dI", "s = t", NONE, "all rows"),
    "lmd": (LAGRANGIAN, "teacher", "square", "nothing", NONE),
    "emd": (EULERIAN, "teacher", "square", "nothing", NONE),
    "fmm": (LAGRANGIAN, "dI", "square", "nothing", NONE),
    "pfmm": (SEMIGROUP, "frozen", "square", ALL, NONE),
    "progressive_distillation": (SEMIGROUP, "frozen, renewed", "cells of a grid", ALL, NONE),
    "eulerian_estimation": (EULERIAN, "dI", "s <= t", "velocity, d/dx", NONE),
    "lsd": (LAGRANGIAN, "itself", "s <= t", "velocity", "75%"),
    "esd": (EULERIAN, "itself", "s <= t", "velocity, d/dx", "75%"),
    "slim_lsd": (LAGRANGIAN, "itself", "s <= t", ALL, "75%"),
    "slim_esd": (EULERIAN, "itself", "s <= t", ALL, "75%"),
    "tvm": (LAGRANGIAN, "average 0.99", "s <= t, long", "velocity", "50%"),
    "psd": (SEMIGROUP, "itself", "s <= t", ALL, "75%"),
    "consistency_training": (SEMIGROUP, "dI", "t = 1, grid", ALL, NONE),  # an Eulerian equation of a finite step
    "improved_consistency_training": (SEMIGROUP, "dI", "t = 1, log-normal, grid", ALL, NONE),
    "easy_consistency_tuning": (SEMIGROUP, "dI", "t = 1, log-normal", ALL, NONE),
    "consistency_distillation": (SEMIGROUP, "teacher, solved", "t = 1, grid", ALL, NONE),
    "sct": (EULERIAN, "dI", "t = 1, log-normal", ALL, NONE),
    "scd": (EULERIAN, "teacher", "t = 1, log-normal", ALL, NONE),
    "ctm": (SEMIGROUP, "teacher, solved", "s <= t", ALL, "beside, all rows"),
    "shortcut": (SEMIGROUP, "itself", "dyadic", ALL, "75%"),
    "meanflow": (EULERIAN, "dI", "s <= t, logit-normal", ALL, "75%"),
    "improved_meanflow": (EULERIAN, "dI, along itself", "s <= t, logit-normal", ALL, "50%"),
    "pixel_meanflow": (EULERIAN, "dI, along itself", "s <= t, logit-normal", ALL, "50%"),
    "anyflow": (EULERIAN, "dI", "t = 1 or s <= t", ALL, "50%"),
    "soflow": (SEMIGROUP, "dI", "s <= t, each logit-normal", ALL, "75%"),
    "facm": (EULERIAN, "teacher", "t = 1, log-normal", ALL, "50%, teacher"),
    "alphaflow": (SEMIGROUP, "dI", "s <= t, logit-normal", ALL, "25%"),
    "split_meanflow": (SEMIGROUP, "itself", "s <= t", ALL, "50%"),
    "ayf_emd": (EULERIAN, "teacher", "s <= t, length first", ALL, NONE),
    "ayf_lmd": (LAGRANGIAN, "teacher", "s <= t, length first", ALL, NONE),
    "freeflow": (LAGRANGIAN, "teacher", "s = 0", ALL, NONE),  # the whole right-hand side, not the velocity alone
    "neural_operator": (SEMIGROUP, "teacher, solved", "square", ALL, NONE),
}
REST: dict[str, dict[str, str]] = {
    "fmm": {"compared": "u and X", "legs": "derivative in t"},
    "pfmm": {"legs": "4 jumps", "split": "1/4", "target": "frozen", "compared": "X"},
    "progressive_distillation": {"legs": "two jumps", "split": "1/2", "target": "frozen, renewed"},
    "psd": {"legs": "two jumps", "split": "uniform", "target": "itself"},
    "shortcut": {"legs": "two jumps", "split": "1/2"},
    "split_meanflow": {"split": "uniform"},
    "alphaflow": {"legs": "velocity, then a jump", "split": "1 to 0.005", "weight": "l / (|r|^2 + c)"},
    "anyflow": {"weight": "1 / (|r|^2 + c)", "legs": "derivative in (x, s)"},
    "soflow": {"legs": "velocity, then a jump", "split": "0.1 to 0.002", "weight": "l / (|r|^2 + c l^2)"},
    "facm": {"legs": "derivative in (x, s)", "weight": "Huber, weighed"},
    "meanflow": {"weight": "1 / (|r|^2 + c)", "legs": "derivative in (x, s)"},
    "consistency_training": {"split": "one cell", "compared": "X", "weight": "1"},
    "improved_consistency_training": {"split": "one cell", "weight": "pseudo-Huber / noise"},
    "easy_consistency_tuning": {"split": "shrinks", "weight": "pseudo-Huber / noise"},
    "ctm": {"compared": "X at the data end", "split": "uniform"},
    "sct": {
        "path": "trigonometric",
        "tangent": "normalised, warmed up to 1",
        "weight": "learned",
        "compared": "output",
    },
    "scd": {"path": "trigonometric", "tangent": "normalised, warmed up to 1", "weight": "learned"},
    "ayf_emd": {"tangent": "normalised, warmed up to 0.99"},
    "ayf_lmd": {"tangent": "normalised, warmed up to 0.99"},
    "freeflow": {"coupling": "noise alone", "weight": "1 / (|r|^2 + c)"},
    "reflow": {"coupling": "noise, solved"},
    "neural_operator": {"legs": "velocity", "split": "all the way", "target": NONE, "compared": "X"},
}


def test_the_table_has_every_method() -> None:
    assert set(TABLE) == set(NAMES)


@pytest.mark.parametrize("name", TABLE)
def test_a_method_lies_where_its_paper_says(name: str) -> None:
    at = space.coordinates(build(name))
    assert (at.equation, at.velocity, at.pairs, at.stop, at.diagonal) == TABLE[name]
    for axis, word in REST.get(name, {}).items():
        assert vars(at)[axis] == word, axis


@pytest.mark.parametrize(
    ("name", "options", "axis", "word"),
    [
        ("lmd", {"stop": Stop.VELOCITY}, "stop", "velocity"),
        ("lmd", {"interpolant": VarianceExploding()}, "path", "variance exploding"),
        ("lmd", {"guidance": Guidance(2.0, classes=3)}, "velocity", "teacher, guided"),
        ("lmd", {"times": times.Mixture(times.FromBase(), times.Square())}, "pairs", "s = 0 or square"),
        ("lmd", {"coupling": MinibatchOT()}, "coupling", "optimal in the batch"),
        ("lmd", {"coupling": Paired()}, "coupling", "given"),
        ("lmd", {"weight": losses.Adaptive(0.5)}, "weight", "1 / (|r|^2 + c)^0.5"),
        ("lmd", {"weight": losses.Power(-1)}, "weight", "|t - s|^-1"),
        ("lmd", {"weight": losses.StripWeight(0.5)}, "weight", "strip weight"),
        ("fmm", {"times": times.Strip(0.25)}, "pairs", "strip"),
        ("lsd", {"times": times.TowardsData(times.Triangle())}, "pairs", "s <= t, late"),
        ("ayf_emd", {"times": times.Triangle()}, "pairs", "s <= t"),
        ("ayf_emd", {"normalise": None}, "tangent", "warmed up to 0.99"),
        ("meanflow", {"guidance": Guidance(2.0, classes=3)}, "velocity", "dI, guided"),
        ("psd", {"midpoint": True}, "split", "1/2"),
        ("psd", {"stop": Stop.NONE}, "stop", "nothing"),
        ("alphaflow", {"alpha": 0.5}, "split", "0.5"),
        ("alphaflow", {"velocity_first": False}, "velocity", "itself"),
        ("alphaflow", {"weight": losses.SplitPower(-1.0)}, "weight", "l^-1"),
        ("lsd", {"distance": losses.PseudoHuber(0.1)}, "weight", "pseudo-Huber"),
        ("meanflow", {"distance": losses.absolute, "weight": losses.SplitPower(1)}, "weight", "l L1"),
        (
            "consistency_training",
            {"distance": losses.Perceptual(min), "weight": losses.PerNoise(Linear())},
            "weight",
            "perceptual / noise",
        ),
        ("split_meanflow", {"teacher": torch.sin}, "diagonal", "50%, teacher"),
    ],
)
def test_an_option_moves_the_point(name: str, options: dict, axis: str, word: str) -> None:
    assert vars(space.coordinates(build(name, **options)))[axis] == word


def test_the_target_is_named() -> None:
    flow_map = new_map()
    average = Target(flow_map, decay=0.95)
    assert space.coordinates(build("consistency_training", flow_map, target=average)).target == "average 0.95"
    assert space.coordinates(build("shortcut", flow_map, target=average)).velocity == "average 0.95"
    assert space.coordinates(build("pfmm", flow_map, frozen=new_map())).target == "frozen"
    other = MapMatching(flow_map, Linear(), Semigroup(), FromMap(new_map()), times=times.Square())
    assert space.coordinates(other).target == "another map"


def test_a_finite_step_is_named() -> None:
    objective = MapMatching(new_map(), Linear(), Eulerian(Stop.TARGET, step=0.1), times=times.ToData())
    at = space.coordinates(objective)
    assert (at.legs, at.split) == ("velocity, then a jump", "step 0.1")


@pytest.mark.parametrize("name", METHODS)
def test_every_case_has_a_point(name: str) -> None:
    flow_map = fm.maps.Trigonometric(fm.nn.MLP(dim=2, width=8))
    objective = METHODS[name](
        flow_map, velocity=new_map().velocity, frozen=Target(flow_map), interpolant=Trigonometric()
    )
    assert all(isinstance(word, str) and word for word in vars(space.coordinates(objective)).values())


def test_psd_and_split_meanflow_differ_in_the_share_alone() -> None:
    one, two = vars(space.coordinates(build("psd"))), vars(space.coordinates(build("split_meanflow")))
    assert {axis for axis in one if one[axis] != two[axis]} == {"diagonal"}


def test_an_unknown_objective_is_refused() -> None:
    class Other(Objective):
        def evaluate(self, draw):
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"no coordinates are known for a Other: add it to docs/space/points\.py"):
        space.coordinates(Other(new_map(), Linear(), times=times.Square()))


# what a method costs --------------------------------------------------------------------------------------------------

# forward, gradient, derivative, teacher, teacher with a gradient; by hand, then the work: an evaluation is 1, with a
# gradient 3, a derivative as much again, without one of the tangent 1
COUNTS: dict[str, tuple[tuple[int, int, int, int, int], float]] = {
    "flow_matching": ((0, 1, 0, 0, 0), 3),
    "reflow": ((0, 1, 0, 16, 0), 3 + 16),  # rk4, four steps
    "lmd": ((0, 0, 1, 0, 1), 6 + 2),  # u and d_t u; b at the jump, backwards to its input
    "emd": ((0, 0, 1, 1, 0), 6 + 1),
    "fmm": ((0, 1, 1, 0, 0), 3 + 6),  # the pull-back, the jump with its derivative
    "lsd": ((1, 0, 1, 0, 0), 6 + 1),
    "esd": ((1, 0, 2, 0, 0), 6 + 2 + 1),  # d_s with a gradient, grad u . b without
    "slim_lsd": ((1, 0, 1, 0, 0), 3 + 1 + 1),  # of the derivative no gradient
    "slim_esd": ((1, 0, 1, 0, 0), 3 + 1 + 1),
    "tvm": ((1, 0, 1, 0, 0), 6 + 1),
    "anyflow": ((2, 1, 0, 0, 0), 3 + 2),  # two evaluations on either side
    "soflow": ((1, 1, 0, 0, 0), 3 + 1),
    "pixel_meanflow": ((1, 0, 1, 0, 0), 3 + 1 + 1),
    "facm": ((0, 0, 1, 1, 0), 3 + 1 + 1),
    "psd": ((2, 1, 0, 0, 0), 3 + 2),
    "pfmm": ((4, 1, 0, 0, 0), 3 + 4),
    "meanflow": ((0, 0, 1, 0, 0), 3 + 1),
    "improved_meanflow": ((1, 0, 1, 0, 0), 3 + 1 + 1),
    "alphaflow": ((1, 1, 0, 0, 0), 3 + 1),
    "consistency_training": ((1, 1, 0, 0, 0), 3 + 1),
    "consistency_distillation": ((1, 1, 0, 2, 0), 3 + 1 + 2),  # one step of Heun's
    "ctm": ((2, 3, 0, 8, 0), 3 + 2 + 1 + 1 + 8 + 3),  # jump, carried; second leg, carried; four of Heun; the diagonal
    "neural_operator": ((0, 1, 0, 16, 0), 3 + 16),
    "freeflow": ((0, 0, 1, 1, 0), 3 + 1 + 1),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_row_costs_what_one_counts(name: str) -> None:
    cost = space.cost(build(name, new_map(depth=6)))
    counts, work = COUNTS[name]
    assert (cost.forward, cost.gradient, cost.derivative, cost.teacher, cost.teacher_gradient) == counts
    teacher = new_map(depth=6)
    if counts[3] or counts[4]:
        cost = space.cost(build(name, new_map(depth=6), teacher=teacher.velocity))
    assert cost.work == pytest.approx(work, rel=0.02)  # the first layer has no gradient to its input


def test_counting_changes_nothing() -> None:
    objective = build("lsd")
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, again = space.cost(objective), space.cost(objective, torch.zeros(6, 2))
    assert first == again  # a row's cost is the same in any batch
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert all(not module._forward_hooks for module in objective.modules())


def test_a_sum_and_a_round_trip_have_points() -> None:
    flow_map = new_map()
    trip = RoundTrip(flow_map, Linear())
    assert space.coordinates(Sum([trip, trip])) == space.coordinates(trip)


# what the picture's last lines say ------------------------------------------------------------------------------------

PLAIN = {"times": times.Triangle(), "diagonal": times.Diagonal(), "share": 0.5}


def gradients(*objectives: Objective) -> list[torch.Tensor]:
    """The gradients of objectives of one map on one draw of noise and times, each as one vector, in float64."""
    x1 = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors = []
    for objective in objectives:
        generator = torch.Generator().manual_seed(2)
        loss = objective.double()(x1, generator=generator).value
        parameters = list(objective.flow_map.parameters())
        vectors.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return vectors


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """The difference of two vectors in units of the second."""
    return float((one - two).norm() / two.norm())


def test_alphaflow_with_a_leg_of_its_own_is_psd_at_the_midpoint() -> None:
    flow_map, unit = new_map(), losses.Constant()
    one, two = gradients(
        methods.alphaflow(flow_map, alpha=0.5, velocity_first=False, weight=unit, **PLAIN),
        methods.psd(flow_map, midpoint=True, weight=unit, **PLAIN),
    )
    assert apart(one, two) < 1e-12


def test_alphaflow_tends_to_meanflow() -> None:
    flow_map, share = new_map(), {**PLAIN, "share": 1e-9}  # one row on the diagonal, which has no alpha
    unit = losses.Constant()
    limit = methods.meanflow(flow_map, weight=unit, **share)
    far, near = (methods.alphaflow(flow_map, alpha=a, weight=losses.SplitPower(-1.0), **share) for a in (1e-2, 1e-3))
    far.first.weight = near.first.weight = unit
    one, two, three = gradients(far, near, limit)
    assert apart(two, three) < 2e-3
    assert apart(one, three) == pytest.approx(10 * apart(two, three), rel=0.1)  # of first order in alpha


def test_consistency_training_tends_to_the_eulerian_equation() -> None:
    flow_map, weight, law = new_map(), losses.Chain(losses.Power(2), losses.SplitPower(-1.0)), times.ToData()
    limit = MapMatching(flow_map, Linear(), Eulerian(Stop.TARGET), times=law, weight=losses.Power(2))
    far, near = (methods.consistency_training(flow_map, cells=n, times=law, weight=weight) for n in (200, 2000))
    one, two, three = gradients(far, near, limit)
    assert apart(two, three) < 1e-2
    assert apart(one, three) == pytest.approx(10 * apart(two, three), rel=0.2)  # of first order in the cell


# a method is a composition --------------------------------------------------------------------------------------------


def trees(*patterns: str) -> dict[str, ast.Module]:
    """Syntax trees of files of the library."""
    return {str(path): ast.parse(path.read_text()) for pattern in patterns for path in SOURCE.glob(pattern)}


def test_no_method_has_more_than_twenty_lines_of_code() -> None:
    found = set()
    for path, tree in trees("methods/*.py").items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in NAMES:
                found.add(node.name)
                first, last = node.body[1], node.body[-1]  # after the docstring
                assert last.end_lineno - first.lineno + 1 <= 20, (path, node.name)
    assert found == set(NAMES)


def test_no_string_chooses_mathematics() -> None:
    files = trees("methods/*.py", "equations.py", "objectives/*.py")
    assert len(files) >= 10
    for path, tree in files.items():
        for node in ast.walk(tree):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides += [node.value] if isinstance(node, ast.MatchValue) else []
            sides = [side for side in sides if not isinstance(side, ast.Call)]  # options.get("...") is not None
            words = [leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
            if [word for word in words if isinstance(word, str)]:
                text = ast.unparse(node)
                assert text == "'weight' in rest", f"{path}:{node.lineno}: {text}"  # whether an option is given


def test_a_law_of_time_is_named() -> None:
    assert space.coordinates(build("lmd", times=times.Snapped(times.Square(), 4))).pairs == "square, grid"
