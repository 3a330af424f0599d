"""The options of each command, which tyro reads: a field is an option, the text below it its help."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ..runs import average as averages
from ..runs.recipes import OF_POINTS, ImageRecipe, Recipe
from ..training import settings

T = TypeVar("T")
Unused = tyro.conf.SuppressFixed[tyro.conf.Fixed[T]]
"""A field that is no option: it keeps the value of the recipe."""


@dataclass(frozen=True)
class Train:
    """Train a recipe, then measure it: a table, metrics.json, pictures and report.html in the folder --out."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; it must not exist, unless --resume is given. Only --check does without."""
    resume: bool = False
    """Go on with an interrupted run, with the options it began with."""
    resume_from: str | None = None
    """Resume from this checkpoint, such as map-00001000, or `previous` for the last but one; implies --resume."""
    import_module: str | None = None
    """Module to import first, where --teacher or --from-run is a run of another `--method MODULE:NAME`: the MODULE."""
    minutes: float | None = None
    """Stop after so many minutes of training, to go on with --resume."""
    check: bool = False
    """Dry run: check everything, print what the training will take, and write nothing."""


@dataclass(frozen=True)
class New:
    """Write a recipe file, TOML: every option of a recipe with its help, those given here set and the others as
    comments. `flowmaps train FILE --out DIR` trains it, so that a run is a file under version control."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    of: Annotated[str, tyro.conf.arg(name="recipe")]
    """Recipe that has all that the file does not set."""
    file: tyro.conf.Positional[Path] = tyro.MISSING
    """File to write, such as board.toml; it must not exist."""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained map and write them to a file."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path
    """File to write; it must not exist. .npz (arrays `x`, `labels` of classes, `condition` of --condition-columns) or
    .npy; of points also .csv, .tsv, .parquet, .feather or .xlsx, with the names and types of the columns; of images
    also .png."""
    steps: int = 4
    """Jumps from noise to data."""
    number: int | None = None
    """How many samples; 10,000 unless given, or one for each row of --condition-file, whose rows are taken in turn."""
    label: str | None = None
    """Class to sample, where the data have classes, by its name or number; all of them in turn unless given, or those
    of --condition-file if it has their column."""
    condition: tuple[str, ...] = ()
    """Of a map of --condition-columns, what all samples are conditioned on, in the units of the data: NAME=NUMBER for
    each column, as in speed=3.2,mass=1."""
    condition_file: Path | None = None
    """Table with those columns, such as the file of the training: samples are conditioned on its rows one by one. Of a
    map of --label-column alone, a table with that column: samples have its classes in its shares."""
    guidance: float | None = None
    """Guidance weight, for a map trained with `--guidance LOW HIGH`; 1 unless given."""
    noise: Path | None = None
    """File of noise to start from, drawn by --seed if left out: .npz with an array `noise`, a row a sample, as
    `flowmaps invert` writes it. Classes and conditions are its arrays `labels` and `condition` unless others are
    given."""
    seed: int = 0
    """Seed of the noise that is drawn."""
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""


@dataclass(frozen=True)
class Export:
    """Write the map of a run and its sampler to one file, ONNX or torch's .pt2, of any batch size."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run, or of a map that was saved by flowmaps.save."""
    out: Path
    """File to write, .onnx or .pt2; it must not exist."""
    steps: int = 4
    """Jumps from noise to data."""
    precision: str = "float32"
    """float32, float16 or int8, the last two by onnxruntime's tools; the error against float32 is printed."""
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""
    raw: bool = False
    """Leave samples in the network's coordinates, not pixels or the units of the data."""


@dataclass(frozen=True, kw_only=True)
class OnRows:
    """Options of the commands that use a map on rows of data."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path
    """File to write; it must not exist."""
    data: str = ""
    """Another file with columns like those of the run's data, or images of their size; the held-out rows of the run's
    own data unless given, or draws of them where none are held out."""
    number: int | None = None
    """How many rows, the first ones; 100 of the run's own data, or all rows of another file unless given."""
    label: str | None = None
    """Class of all rows, by its name or number, in the place of their own."""
    condition: tuple[str, ...] = ()
    """Of a map of --condition-columns, the conditions of all rows in the place of their own: NAME=NUMBER for each."""
    seed: int = 0
    """Seed of draws of rows and of noise."""
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""


@dataclass(frozen=True, kw_only=True)
class Invert(OnRows):
    """Take data back to noise, or to data of another class or condition, by a map trained with --times square.

    .npz gets `noise` in the network's coordinates, its `time`, `x` that comes back from it in the units of the data,
    `data`, and `error`, the distance of the two in the network's coordinates. Tables get `x`; .png data above x, of
    images.
    """

    steps: int = 4
    """Jumps to noise, and as many back to the data."""
    to: float = 0.0
    """Time to go back to: 0 is noise; the nearer to 1, the more is kept of the data."""
    as_label: str | None = None
    """Class to come back as, by its name or number; that of the data unless given."""
    as_condition: tuple[str, ...] = ()
    """Conditions to come back with, NAME=NUMBER for each; those of the data unless given."""


@dataclass(frozen=True, kw_only=True)
class Likelihood(OnRows):
    """Log densities of data, in nats: by the flow's ODE with its divergence, or by the determinants of a map's jumps.

    .npz gets `log_density`, `x`, `noise`, and of images `bits_per_dimension`; a table its rows with a column
    log_density.
    """

    by: Literal["ode", "jumps"] = "ode"
    """`ode`: of the teacher's velocity, or the map's own where it has no teacher; `jumps`: of the map itself, in few
    dimensions, for one trained with --times square."""
    steps: int = 4
    """Number of jumps, with --by jumps."""
    probes: int | None = None
    """With --by ode: random directions from which the divergence is estimated, 0 for its exact value; unless given, 0
    up to 64 dimensions and 1 beyond."""
    tolerance: float = 1e-5
    """Relative and absolute tolerance of the ODE's solver dopri5."""


@dataclass(frozen=True, kw_only=True)
class Restore(OnRows):
    """Restore data from a part of them, a blurred or a smaller form or a tomogram, by what the map knows of such data.

    .npz gets `x`, restored, `start`, what the observation alone says (A^T y / |A|^2), and `data` where they are known;
    tables get `x`; .png rows of data, start and x, of images.
    """

    operator: str
    """What was done to the data. Of images: hide:SIZE (a square of so many pixels in the middle), keep:SHARE (of the
    pixels, at random), blur:WIDTH (a Gaussian of so many pixels), downsample:FACTOR, radon:ANGLES. Of points:
    hide:COLUMN,COLUMN."""
    noise: float = 0.0
    """Standard deviation of noise that is added to the observation, in the network's units: 1 is 127.5 of pixels, or
    the standard deviation of a column."""
    observed: bool = False
    """The rows of --data have been observed through the operator already: small images of downsample, blurred ones of
    blur. What hide hides is not read; columns that are hidden may be missing."""
    times: int = 16
    """Number of times between 0 and 1 at which the map is asked."""
    draws: int = 2
    """Draws of noise at each time, averaged; each costs an evaluation."""
    strength: float = 1.0
    """Step towards the observation, in units of the longest that goes downhill, 1 / |A|^2."""


@dataclass(frozen=True)
class Encode:
    """Encode a data set of pictures by an autoencoder of diffusers, once, into a folder that --data takes."""

    vae: str
    """Folder or name on the hub of the autoencoder, or of a pipeline with one."""
    data: str
    """Pictures, as --data of `flowmaps train` has them; their classes are kept."""
    out: Path
    """Folder to write; it must not exist."""
    resolution: int = 0
    """Crop pictures to the square in their middle and average it down to this many pixels a side; 0 leaves them."""
    batch: int = 16
    """Pictures at a time."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: CUDA if there is a GPU, else the CPU."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained map again: print the table, write metrics.json, pictures and report.html into its folder."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    steps: tuple[int, ...] | None = None
    """Numbers of jumps; the recipe's unless given."""
    samples: int | None = None
    """Samples of each row; the recipe's unless given."""
    features: str | None = None
    """Network whose features of images are compared, `efficientnet-lite0:SIZE`, `inception`, or `inception:WEIGHTS`;
    the recipe's unless given."""
    seed: int | None = None
    """Seed of noise and data; the recipe's unless given."""
    certificate: bool = False
    """Print estimates of how far one-step samples are from the teacher's flow too, and draw residuals over (s, t)."""
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""


@dataclass(frozen=True)
class App:
    """Open a page in the browser: samples in a few steps beside the teacher, where points go under X_{s,t}, residuals,
    inversion and transfer, with timings. Ctrl-C ends it."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    port: int | None = None
    """Port of the page; the first free one from 7860 on unless given."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone unless given; 0.0.0.0 for the network too, without a password."""
    share: bool = False
    """Make a public address too, by Gradio's servers."""
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""


@dataclass(frozen=True)
class Average:
    """Copy a finished run with another EMA of its weights, to be sampled and evaluated."""

    folder: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path
    """Folder of the new one; it must not exist."""
    average: Annotated[averages.Average, tyro.conf.arg(name="")]
    import_module: str | None = None
    """Module to import first, of a run of `--method MODULE:NAME` or `distill --teacher MODULE:CALLABLE`: the MODULE."""
    net: str = ""
    """For a run that was trained with --net: the same `module:Class` again."""


def _hiding(kind: type, title: str, names: Container[str]) -> Any:
    """A kind of recipe without the options of some names."""
    hidden = [(f.name, Unused[settings.hints_of(kind)[f.name]], f) for f in fields(kind) if f.name in names]
    return make_dataclass(title, hidden, bases=(kind,), frozen=True)


ImageOptions = _hiding(ImageRecipe, "ImageOptions", OF_POINTS)
"""All that a run on images depends on."""
HIDDEN = ("name", "method", "teacher", "net", "lora", "from_run", "fsdp", "show_every", "checkpoint_every",
          "keep_checkpoints", "keep_checkpoints_every", "store_averages_every", "log_every", "max_skipped_steps",
          "track")  # fmt: skip
Compared = _hiding(Recipe, "Compared", HIDDEN)
"""A recipe without the options that a comparison and a search do not use."""
ComparedImages = _hiding(ImageRecipe, "ComparedImages", (*HIDDEN, *OF_POINTS))
"""The same of images."""


@dataclass(frozen=True)
class Compare:
    """Train several methods on the same data, network and budget, over several seeds: one table and one plot in --out.

    Run the command again to go on after an interruption, or at the same time in another process to share the work; with
    more methods or seeds it adds theirs.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path = field(default=Path("runs/compare"))
    """Folder to write: a new one, or one of a comparison that was begun with the same options."""
    methods: tuple[str, ...] = ("all",)
    """Methods to compare, names of `flowmaps methods` or `module:name` of your own, or `all`."""
    seeds: tuple[int, ...] = (1,)
    """How many seeds each method is trained with, from --seed on; or, two or more numbers, the seeds themselves."""
    budget: float | None = None
    """Seconds of training for each method, its teacher included, without compilation: CPU time of the process, or
    wall-clock time on a GPU; 120 unless given."""
    budget_steps: int | None = None
    """Optimiser steps of each method, its teacher's included, in the place of --budget."""
    resume: bool = False
    """Refuse to begin a new comparison: --out must have one."""


TUNED_STEPS = (1, 4)
"""Numbers of sampling steps of the score of a search, unless given."""


@dataclass(frozen=True)
class Tune:
    """Search settings of methods: the same trials, budget and space for each; --out gets study.jsonl, tuned.json,
    tune.md and tune.png. A setting that is given as an option is not searched."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path = field(default=Path("runs/tune"))
    """Folder to write; it must not exist, unless --resume is given."""
    methods: tuple[str, ...] = ("all",)
    """Methods whose settings are searched, names of `flowmaps methods` or `module:name` of your own, or `all`."""
    trials: int = 12
    """Trials for each method; the first has today's settings."""
    budget: float = 40.0
    """Seconds of training of a trial, its share of a teacher included, without compilation: CPU time of the process, or
    wall-clock time on a GPU."""
    final_seeds: int = 3
    """Seeds on which the settings found and today's are trained anew in the end."""
    resume: bool = False
    """Go on with the study in the folder, or begin it there: the same command in several processes shares the work."""


@dataclass(frozen=True)
class Methods:
    """List the methods, which --method and --methods take: name, what it is, what it learns from, which jumps."""


@dataclass(frozen=True)
class Doctor:
    """Examine a network of your own: derivatives, their cost, compilation, and the methods that can train it."""

    network: tyro.conf.Positional[str]
    """module:Class, or module:function; called without arguments it gives the network (x, s, t, cond=None)."""
    shape: str = "2"
    """Shape of a sample, such as 3,32,32."""
    classes: int | None = None
    """Number of classes, if the network takes labels as cond."""
    batch: int = 16
    """Rows of a step."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: CUDA if there is a GPU, else the CPU."""


def given_fields(words: list[str]) -> frozenset[str]:
    """The fields, such as `optimiser.learning_rate`, whose options are among the words of a command line."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    switches = [
        f"{group}{dot}{own[3:]}" for group, dot, own in (name.rpartition(".") for name in names) if own[:3] == "no_"
    ]
    return frozenset((*names, *switches))


def changed_options(recipe: Recipe, usual: Recipe) -> list[str]:
    """The words on a command line that make a recipe of its usual form: the options whose values differ."""
    words = list[str]()
    before = settings.values(usual)
    for name, value in settings.values(recipe).items():
        group, dot, field = name.rpartition(".")
        if value == before[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{group}{dot}no-{field}")
            continue
        given = list(map(str, value if isinstance(value, tuple) else (value,)))
        dashed = any(word.startswith("-") for word in given)
        words += [f"--{name}={word}" for word in given] if dashed else [f"--{name}", *given]
    return words
