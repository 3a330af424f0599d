"""Any recipe that is accepted trains, and none that is wrong is accepted, whichever of its options is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import pytest
import safetensors.torch
import torch
from amount import cases
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import flowmaps as fm
from flowmaps.methods import METHODS
from flowmaps.nn import MLP, DiT, UNet
from flowmaps.runs import recipes
from flowmaps.runs.plan import resolve
from flowmaps.runs.preflight import preflight
from flowmaps.runs.recipes import (
    DiTNetwork,
    Evaluation,
    ImageRecipe,
    Network,
    Optimiser,
    Recipe,
    UNetNetwork,
)
from flowmaps.runs.recipes.checks import RENAMED
from flowmaps.runs.run import Run
from flowmaps.training import settings as checked
from flowmaps.training.log import read_log

SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
LEAST = 0.6  # of recipes drawn, that are accepted
PICTURE = ImageRecipe("picture")
PLAIN = Recipe("plain")
R = TypeVar("R", bound=Recipe)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of points and of images, each with classes and without."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    points, images = rng.normal(5, 2, (40, 2)), rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for name, x in (("points", points), ("images", images)):
        np.savez(folder / f"{name}.npz", x=x)
        np.savez(folder / f"{name}-classes.npz", x=x, labels=np.arange(40) % 3)
    return folder


# recipes -------------------------------------------------------------------------------------------------------------


@st.composite
def optimisers(draw: st.DrawFn) -> Optimiser:
    kind: Any = draw(st.sampled_from(["adam", "adamw", "radam", "muon"]))
    accumulate = draw(st.integers(1, 3))
    return Optimiser(
        kind=kind,
        batch=accumulate * draw(st.sampled_from([2, 4, 8])),
        accumulate=accumulate,
        learning_rate=draw(st.sampled_from([1e-4, 1e-3])),
        warmup=draw(st.integers(0, 3)),
        decay=draw(st.sampled_from(["cosine", "linear", "constant"])),
        final_rate_scale=draw(st.sampled_from([0.0, 0.1, 1.0])),
        clip=draw(st.sampled_from([0.1, 10.0])),
        weight_decay=0.0 if kind == "adam" else draw(st.sampled_from([0.0, 0.1])),
        ema_decay=draw(st.sampled_from([0.0, 0.9])),
        ema_decays=draw(st.sampled_from([(), (0.5,), (0.99, 0.5)])),
        ema_widths=draw(st.sampled_from([(), (0.1,), (0.05, 0.28)])),
        beta2=draw(st.sampled_from([0.0, 0.99])),
    )


def common(folder: Path, name: str) -> dict[str, st.SearchStrategy[Any]]:
    """Strategies of the options that recipes of points and of images share."""
    share = st.sampled_from([0.0, 0.25, 1.0])
    return {
        "name": st.just(name),
        "method": st.sampled_from(list(METHODS)),
        "data": st.sampled_from([str(folder / f"{name}.npz"), str(folder / f"{name}-classes.npz")]),
        "steps": st.integers(1, 3),
        "teacher_steps": st.integers(1, 3),
        "interpolant": st.sampled_from(["linear", "trigonometric", "variance-preserving"]),
        "times": st.sampled_from(["triangle", "square"]),
        "from_noise_share": share,
        "velocity_time_power": st.sampled_from([1.0, 2.5]),
        "adaptive_power": share,
        "guidance": st.sampled_from([(), (), (1.0,), (2.0,), (1.0, 3.0)]),
        "label_dropout": st.sampled_from([0.1, 0.9, 0.0]),
        "unstable_rate_scale": st.sampled_from([0.25, 1.0]),
        "map_rate_scale": st.sampled_from([0.1, 1.0]),
        "learned_weight": st.booleans(),
        "stop_gradient": st.sampled_from(["velocity", "target"]),
        "precision": st.sampled_from(["float32", "float32", "bfloat16", "float16"]),
        "seed": st.sampled_from([0, 0, 2**32 - 1]),
        "device": st.just("cpu"),
        "fsdp": st.booleans(),
        "compile": st.just(False),
        "checkpoint_every": st.integers(1, 4),
        "keep_checkpoints": st.integers(1, 3),
        "keep_checkpoints_every": st.sampled_from([0, 12]),
        "store_averages_every": st.integers(1, 4),
        "show_every": st.just(0),  # pictures have tests of their own
        "log_every": st.just(1),
        "max_skipped_steps": st.sampled_from([16, 20]),
        "optimiser": optimisers(),
    }


OF_SOME_METHODS: dict[str, st.SearchStrategy[Any]] = {
    "diagonal_share": st.sampled_from(["own", 0.5]),
    "target_decay": st.sampled_from(["own", 0.0, 0.9]),
    "mean_weight": st.sampled_from(["auto", "constant", "paper"]),
}


def of_points(folder: Path) -> st.SearchStrategy[Recipe]:
    sizes = {"width": st.just(8), "depth": st.integers(1, 3), "residual": st.booleans()}
    sizes |= {"time_frequencies": st.integers(0, 2), "space_frequencies": st.integers(0, 1)}
    network = st.builds(Network, **sizes, modulation=st.sampled_from([0, 4]))
    evaluation = st.just(Evaluation(samples=100, points=10))
    return st.builds(Recipe, **common(folder, "points"), network=network, evaluation=evaluation, **OF_SOME_METHODS).map(
        fitting
    )


def of_images(folder: Path) -> st.SearchStrategy[ImageRecipe]:
    share, attention = st.sampled_from([0.0, 0.5]), st.sampled_from([(), (4,), (2, 4)])
    unet = st.builds(UNetNetwork, width=st.just(8), multipliers=st.sampled_from([(1,), (1, 2)]), blocks=st.just(1),
                     attention=attention, head=st.just(8), dropout=share, patch=st.sampled_from([1, 2]),
                     frequencies=st.integers(0, 2))  # fmt: skip
    dit = st.builds(DiTNetwork, patch=st.sampled_from([2, 4]), width=st.just(8), depth=st.integers(1, 2),
                    heads=st.integers(1, 2), ratio=st.just(2.0), dropout=share,
                    frequencies=st.integers(0, 2), norm=st.sampled_from(["layer", "rms"]))  # fmt: skip
    own = {"backbone": st.sampled_from(["unet", "dit"]), "resolution": st.sampled_from([0, 4])}
    own |= {name: st.booleans() for name in ("flips", "labels", "activation_checkpointing")}
    return st.builds(ImageRecipe, **common(folder, "images"), **own, unet=unet, dit=dit, **OF_SOME_METHODS).map(fitting)


def fitting(recipe: R) -> R:
    """The recipe without what it is known to be refused for: options that the function of its method has not and, most
    of the time, guidance where there are no classes."""
    takes = METHODS[recipe.method].takes
    options = {"diagonal_share": "share", "target_decay": "target"}
    own: dict[str, Any] = {name: "own" for name, option in options.items() if not takes(option)}
    recipe = dataclasses.replace(recipe, **own)
    labelled = "classes" in recipe.data and getattr(recipe, "labels", True)
    return recipe if labelled or recipe.seed else dataclasses.replace(recipe, guidance=())


def accepted_train(drawn: st.SearchStrategy[Any], number: int) -> None:
    """So many recipes that are accepted train, and they are most of those that are drawn."""
    tried: list[bool] = []

    def law(recipe: Recipe) -> None:
        try:
            preflight(recipe)
        except ValueError:
            tried.append(False)
            assume(False)
        tried.append(True)
        runs_to_its_end(recipe)

    settings(max_examples=number, **SETTINGS)(given(drawn)(law))()
    assert sum(tried) >= number
    assert sum(tried) >= LEAST * len(tried)


def runs_to_its_end(recipe: Recipe) -> None:
    """Each stage takes its steps, and each loss is finite."""
    with tempfile.TemporaryDirectory() as folder:
        list(Run.open(recipe, Path(folder), say=lambda _: None).train())
        lines = read_log(Path(folder))
    steps = [(line["stage"], line["step"]) for line in lines if "step" in line]
    assert steps == [(stage.name, k + 1) for stage in resolve(recipe).stages for k in range(stage.steps)]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_recipes_of_points_that_are_accepted_train(data: Path) -> None:
    accepted_train(of_points(data), cases(70, 0.1))


def test_recipes_of_images_that_are_accepted_train(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmaps.runs.preflight.open_features", lambda _: None)
    accepted_train(of_images(data), cases(30, 0.1))


# what is wrong -------------------------------------------------------------------------------------------------------

NUMBERS: list[Any] = [-1, 10**30, -(10**30), math.nan, math.inf, -math.inf, True, None, "3", (), [1]]


def wrong(hint: Any) -> st.SearchStrategy[Any]:
    """Values that no option of this annotation takes."""
    if get_origin(hint) is Annotated:
        return wrong(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):  # what none of its types takes
        return st.sampled_from([*(value for value in NUMBERS if value != "3"), "3x", "other", 1e10, -0.5, b"x"])
    if get_origin(hint) is Literal:
        return st.sampled_from(["", "other", 1, None, ("adam",)]) | st.text(max_size=3)
    if get_origin(hint) is tuple:
        entries = wrong(get_args(hint)[0]).filter(lambda entry: entry != ())
        return st.sampled_from([None, "12", 1, True, (0.1,) * 1_000]) | st.tuples(entries) | st.lists(entries)
    if hint is bool:
        return st.sampled_from([0, 1, "true", None, ()])
    if hint is int:
        return st.sampled_from([*NUMBERS, 1.0, 2.5]) | st.floats() | st.integers(max_value=-1)
    if hint is float:
        return st.sampled_from(NUMBERS) | st.floats(max_value=-1e-300, exclude_max=True) | st.floats(min_value=1e10)
    if hint is str:
        return st.sampled_from([1, None, True, "\0", "a\nb", "x" * 10_000, b"x", ("x",)])
    return st.sampled_from([None, 1, "adam", ()])  # a group of options


def replaced(recipe: Any, name: str, value: Any) -> Any:
    """A recipe with another value of an option such as `optimiser.learning_rate`."""
    head, _, rest = name.replace("-", "_").partition(".")
    return dataclasses.replace(recipe, **{head: replaced(getattr(recipe, head), rest, value) if rest else value})


def refused(recipe: Recipe, data: Path) -> str:
    """Why a recipe is refused, of which nothing is left on the disk."""
    with pytest.raises(ValueError) as error:
        resolve(recipe)
    with pytest.raises(ValueError):
        Run.open(recipe, data / "run")
    assert not (data / "run").exists()
    return str(error.value)


OPTIONS = [(base, name, hint) for base in (PLAIN, PICTURE) for name, _, hint in checked.options(base)]
GROUPS = [(base, field.name, dict) for base in (PLAIN, PICTURE) for field in dataclasses.fields(base)
          if dataclasses.is_dataclass(getattr(base, field.name))]  # fmt: skip


@pytest.mark.parametrize(
    "base, name, hint", OPTIONS + GROUPS, ids=[f"{base.name}-{name}" for base, name, _ in OPTIONS + GROUPS]
)
def test_no_option_takes_a_wrong_value(data: Path, base: Recipe, name: str, hint: Any) -> None:
    """Whatever fields a recipe has: one without a rule would fail here."""

    def law(value: Any) -> None:
        recipe = replaced(base, name, value)
        said = refused(recipe, data)
        assert said.startswith(f"--{name} must be ")
        assert "\n" not in said
        assert len(said) < 600
        entries = value if isinstance(value, tuple) else (value,)
        if isinstance(value, list) or any(isinstance(entry, bytes) for entry in entries):  # JSON has neither
            return
        card = json.loads(json.dumps(dataclasses.asdict(recipe)))
        with pytest.raises(ValueError, match=rf"config.json has no recipe that this version reads: --{name} must be "):
            recipes.from_dict(card)

    settings(max_examples=cases(12, 0.5), **SETTINGS)(given(wrong(hint))(law))()


def test_every_option_of_a_recipe_is_broken_above() -> None:
    """Flattened by another way: the leaves of the nested dictionaries."""
    for base in (PLAIN, PICTURE):
        names = {name.replace("-", "_") for own, name, _ in OPTIONS if own is base}
        assert names == flat(dataclasses.asdict(base)).keys()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"optimiser.batch": 30, "optimiser.accumulate": 4}, "--optimiser.batch must be a multiple of 4"),
        (
            {"optimiser.batch": 4, "optimiser.accumulate": 4},
            "must be a multiple of 4 and at least 8, 2 rows for each",
        ),
        ({"optimiser.weight-decay": 0.1}, "--optimiser.kind adam decays no weights, got --optimiser.weight-decay 0.1"),
        (
            {"optimiser.kind": "adamw", "optimiser.weight-decay": 50.0, "optimiser.learning-rate": 0.02},
            "must be below 1, got 50",
        ),
        (
            {"optimiser.ema_decays": (0.9, 0.999)},
            "--optimiser.ema-decays must be other decays than --optimiser.ema-decay, got 0.999",
        ),
        ({"optimiser.ema_decays": (0.9, 0.9)}, "--optimiser.ema-decays must be without repeats, got (0.9, 0.9)"),
        (
            {"optimiser.ema_widths": (0.1, 0.1000000001)},
            "--optimiser.ema-widths must be without repeats, got (0.1, 0.1",
        ),
        (
            {"optimiser.ema_widths": (0.3,)},
            "--optimiser.ema-widths must be a list, each entry of it at least 1e-06 and at most 0.288675",
        ),
        ({"optimiser.kind": "sgd"}, "--optimiser.kind must be one of adam, adamw, radam, muon, got sgd"),
        ({"keep-checkpoints-every": 1_500}, "--keep-checkpoints-every must be a multiple of --checkpoint-every"),
        ({"track": ("wandb", "wandb")}, "--track must be without repeats"),
        (
            {"precision": "float16", "max-skipped-steps": 3},
            "--max-skipped-steps must be at least 16 with --precision float16",
        ),
        ({"guidance": (2.0, 2.0)}, "--guidance must be rising, got (2.0, 2.0)"),
        ({"guidance": (0.5, -2.0)}, "--guidance must be a list, each entry of it above 0, got (0.5, -2.0)"),
        ({"guidance": (1.0, 2.0, 3.0)}, "--guidance must be no longer than 2, got (1.0, 2.0, 3.0)"),
        ({"guidance": (2.0,), "label-dropout": 0.0}, "--label-dropout must be positive with --guidance"),
        ({"network.depth": 10**9}, "--network.depth must be at most 1,000, got 1000000000"),
        (
            {"evaluation.steps": (1, 10**9)},
            "steps must be a list, each entry of it at most 100,000, got (1,",
        ),
        ({"steps": True}, "--steps must be a whole number, got True"),
        ({"track": ("mlflow",)}, "--track must be a list, each entry of it one of tensorboard, wandb, trackio"),
        ({"diagonal_share": 0.5}, "lmd has no share of rows on the diagonal, got --diagonal-share 0.5: leave it out."),
        ({"target_decay": 0.0}, "lmd has no target map, got --target-decay 0: leave it out."),
        ({"diagonal_share": 1.0}, "--diagonal-share must be above 0 and below 1, got 1.0"),
        ({"target_decay": "average"}, "--target-decay must be a number or one of own, got average"),
        ({"method": "lsd", "teacher": "run"}, "lsd has no teacher, got --teacher run: leave it out"),
    ],
)
def test_options_that_contradict_each_other(data: Path, changes: dict[str, Any], said: str) -> None:
    recipe: Any = dataclasses.replace(PLAIN, data="checkerboard")
    resolve(recipe)
    for name, value in changes.items():
        recipe = replaced(recipe, name, value)
    assert said in refused(recipe, data)


def test_processes_share_the_rows_of_a_step_evenly() -> None:
    recipe = dataclasses.replace(PLAIN, optimiser=Optimiser(batch=24, accumulate=2))
    for processes in (1, 2, 3, 6):
        resolve(recipe, processes)
    with pytest.raises(
        ValueError, match=r"multiple of 10 and at least 20, 2 rows for each of 5 processes x 2 parts, got 24"
    ):
        resolve(recipe, 5)
    with pytest.raises(ValueError, match="at least 48, 2 rows for each of 12 processes x 2 parts"):
        resolve(recipe, 12)


def test_a_run_of_before_an_option_has_its_default() -> None:
    old = dataclasses.asdict(PICTURE)
    for name in ("keep_checkpoints", "show_every", "track", "max_skipped_steps", "fsdp"):
        del old[name]
    for name in ("kind", "accumulate", "ema_decays", "ema_widths", "weight_decay"):
        del old["optimiser"][name]
    assert recipes.from_dict(json.loads(json.dumps(old))) == PICTURE


def test_a_run_of_images_of_before_any_were_held_out_holds_out_none() -> None:
    """The share of tables stood in its config.json, and was not used."""
    old = dataclasses.asdict(PICTURE) | {"held_out": 0.1}
    del old["condition_columns"]
    assert recipes.from_dict(json.loads(json.dumps(old))).held_out == 0
    old["condition_columns"] = []
    assert recipes.from_dict(json.loads(json.dumps(old))).held_out == 0.1


RESULTS = sorted((Path(__file__).parents[2] / "results").glob("*/config.json"))
COMMITTED = [path for path in RESULTS if "rate" in json.loads(path.read_text())["recipe"]["optimiser"]]


@pytest.mark.parametrize("path", COMMITTED, ids=[path.parent.name for path in COMMITTED])
def test_runs_of_before_the_options_were_renamed_are_read(path: Path, tmp_path: Path) -> None:
    """Each value under its new name, and the map with weights under the names that they had."""
    card = json.loads(path.read_text())
    recipe: Any = recipes.from_dict(card["recipe"])
    for name, value in flat(card["recipe"]).items():
        group, _, field = RENAMED.get(name, name).rpartition(".")
        assert json.loads(json.dumps(getattr(getattr(recipe, group) if group else recipe, field))) == value
    described = card["map"]["net"]
    net = {"UNet": UNet, "DiT": DiT, "MLP": MLP}[described["class"]](**described["arguments"])
    weights = {f"net.{name}": torch.randn(value.shape) for name, value in net.state_dict().items()}
    names = hashlib.sha256("\n".join(f"{name} {tuple(value.shape)}" for name, value in weights.items()).encode())
    assert names.hexdigest()[:16] == "3f7f9606fa2d2a16"  # of the version before the options were renamed
    content = safetensors.torch.save(weights)
    (tmp_path / "weights.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(card | {"sha256": hashlib.sha256(content).hexdigest()}))
    loaded = fm.load(tmp_path).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by names such as `optimiser.learning_rate`."""
    pairs = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in values.items()]
    return {name: value for pair in pairs for name, value in pair.items()}


def test_every_name_of_before_is_read_and_none_beside_its_new_one() -> None:
    now = {name.replace("-", "_") for _, name, _ in OPTIONS}
    assert set(RENAMED.values()) <= now
    assert not set(RENAMED) & now
    old = json.loads(json.dumps(dataclasses.asdict(PICTURE)))
    for before, after in RENAMED.items():
        group, _, name = after.rpartition(".")
        values = old[group] if group else old
        values[before.rpartition(".")[2]] = values.pop(name)
    assert recipes.from_dict(old) == PICTURE
    old["optimiser"]["learning_rate"] = 0.1
    with pytest.raises(ValueError, match=r"both optimiser.learning_rate and its old name optimiser.rate are given"):
        recipes.from_dict(old)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda card: card.pop("optimiser"), "it has no optimiser"),
        (lambda card: card.pop("name"), "it has no name"),
        (lambda card: card["network"].update(wdith=3), "it has network.wdith, which is no option"),
        (lambda card: card.update(network=[8]), "--network must be the options of a Network, got [8]"),
        (lambda card: card["optimiser"].update(batch="64"), "--optimiser.batch must be a whole number, got 64"),
        (lambda card: card["optimiser"].update(ema_decays=[[0.9]]), "each entry of it a number, got ([0.9],)"),
        (lambda card: card.update(guidance=[True]), "each entry of it a number, got (True,)"),
    ],
)
def test_a_card_that_was_tampered_with_is_refused(spoil: Any, said: str) -> None:
    card = dataclasses.asdict(PLAIN)
    spoil(card)
    with pytest.raises(ValueError) as error:
        recipes.from_dict(json.loads(json.dumps(card)))
    assert said in str(error.value)
