"""What a recipe is made of: frozen dataclasses, each field of which is an option of `flowmaps train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le, Len, Predicate

from ...data.options import TableOptions
from ...interpolants import InterpolantName
from ...system.names import printable
from ...training.optimisers import Optimiser
from ...training.settings import Count, CountOrZero, Settings, Share, ShareBelowOne

Width = Annotated[int, Ge(1), Le(2**16)]
Depth = Annotated[int, Ge(1), Le(1_000)]
Frequencies = Annotated[int, Ge(0), Le(1_000)]
Samples = Annotated[int, Ge(100), Le(10**8)]
Points = Annotated[int, Ge(10), Le(10**6)]
Factor = Annotated[float, Gt(0), Le(100)]
SolverSteps = Annotated[int, Ge(1), Le(10**5)]
Word = Annotated[str, Len(1, 200), Predicate(printable)]
PathOrEmpty = Annotated[str, Len(0, 4_096), Predicate(printable)]


def rising(numbers: tuple[float, ...]) -> bool:
    """Whether each number of a list is above the one before it."""
    return all(low < high for low, high in pairwise(numbers))


@dataclass(frozen=True)
class Network:
    """The multilayer perceptron; its fields are those of `flowmaps.nn.MLP`."""

    width: Width = 128
    """Hidden width."""
    depth: Depth = 4
    """Hidden layers."""
    residual: bool = True
    """Add each hidden layer to its input."""
    time_frequencies: Frequencies = 4
    """Frequencies of the features of s and t - s."""
    space_frequencies: Frequencies = 0
    """Frequencies of the features of x; 0 for plain x."""
    modulation: Annotated[int, Ge(0), Le(2**16)] = 32
    """Width of the embedding of (s, t) that scales and shifts each layer; 0 for none."""


@dataclass(frozen=True)
class Evaluation:
    """Settings of the evaluation after training."""

    steps: Annotated[tuple[Annotated[int, Ge(1), Le(10**5)], ...], Len(1, 64)] = (1, 2, 4, 8)
    """Numbers of sampling steps to evaluate."""
    samples: Samples = 250_000
    """Samples from which KL is estimated."""
    points: Points = 5_000
    """Samples from which W2, energy distance and map error are estimated."""
    batch: Count = 10_000
    """Batch size of sampling."""
    solver_tolerance: Annotated[float, Interval(ge=1e-12, le=0.5)] = 1e-5
    """Relative and absolute tolerance of dopri5 for the teacher's ODE."""
    solver_steps: SolverSteps = 80
    """Steps of the Euler solver for the teacher's ODE."""


@dataclass(frozen=True)
class Task:
    """What is learned, by which method, from which data and teacher."""

    name: Word
    """Name of the recipe."""
    method: Word = "lmd"
    """Method that learns the map: a name that `flowmaps methods` lists, such as lmd; or `module:name` of your own, a
    `Method` or a function (flow_map, **options) that returns an objective (docs/extend.md)."""
    data: PathOrEmpty = ""
    """Points: `checkerboard`, `digits` or a file with one point a row (.npy, .npz, .csv, .tsv, .parquet, .feather,
    .xlsx). Images: `cifar10`, `imagenet32`, a folder, an archive, an array file, or `user/name` of the Hugging Face
    hub (docs/data.md)."""
    steps: Count = 6_000
    """Optimiser steps of the map; a method without a teacher takes those of --teacher-steps too, unless --steps is
    given."""
    teacher_steps: CountOrZero = 6_000
    """Optimiser steps of the teacher, for a method that needs one. A method without a teacher trains its map for this
    many steps more, unless --steps is given. With --teacher none is trained: a student of a model of another library
    that does not predict its velocity learns it first, in so many steps."""
    warm_up_steps: CountOrZero = 0
    """Optimiser steps of a warm-up before the method (CMT, arXiv 2509.24526): the map learns jumps between points of
    trajectories that are solved from noise with the teacher's velocity. For a method without a teacher one is trained
    first, for --teacher-steps, which are then not added to the map's. 0 for none."""
    interpolant: InterpolantName = "linear"
    """Interpolant between noise and data."""
    times: Literal["triangle", "square"] = "triangle"
    """Times (s, t) of a distillation, or of a self-distillation off the diagonal: `triangle` (s <= t) is enough to
    sample; `square` also learns to encode data. The defaults in `fm.methods` are the methods' own: the square for
    lmd, emd and fmm, the triangle for lsd, esd and psd."""
    from_noise_share: Share = 0.25
    """Share of the rows with s = 0, where sampling starts: of lmd, ayf_lmd, emd, ayf_emd, ctm, neural_operator and
    pfmm, and off the diagonal of lsd, slim_lsd, esd, slim_esd, psd and split_meanflow; the default in `fm.methods` is
    none."""
    velocity_time_power: Annotated[float, Interval(ge=1, le=10)] = 1.0
    """Exponent p that moves the times of velocity matching to the data, t <- 1 - (1 - t)^p; 1 for uniform times."""
    adaptive_power: Share = 0.5
    """Power of the adaptive weight of lmd, emd and neural_operator, and off the diagonal of lsd, slim_lsd, esd,
    slim_esd, psd, tvm, shortcut and split_meanflow; 0 for none, the default in `fm.methods`. 0.5 keeps the boundaries
    between modes sharp."""
    guidance: Annotated[tuple[Annotated[float, Gt(0), Le(100)], ...], Len(0, 2), Predicate(rising)] = ()
    """Guidance weights to learn, for data with classes or --condition-columns: none; one weight; or the lowest and the
    highest, between which `flowmaps sample --guidance` chooses. 1 means no guidance."""
    label_dropout: ShareBelowOne = 0.1
    """Share of the rows whose label, and numbers of --condition-columns, are dropped, with --guidance."""
    draws: Annotated[int, Ge(1), Le(1_024)] = 1
    """Draws of noise and times for each row of data in a batch: a step's loss has --optimiser.batch times this many
    rows."""
    off_diagonal_every: Annotated[int, Ge(1), Le(1_024)] = 1
    """For a self-distillation: put all rows with s != t into one of so many steps, and rows with s = t alone into the
    others; the share of each over all steps stays the same."""
    unstable_rate_scale: Factor = 0.25
    """Factor on the learning rate of methods that are unstable at the full rate (esd, meanflow, sct, ayf_emd, ...)."""
    map_rate_scale: Factor = 1.0
    """Factor on the learning rate of a map that learns from a teacher."""
    diagonal_share: Annotated[float, Interval(gt=0, lt=1)] | Literal["own"] = "own"
    """Share of the rows at s = t, of a method that has rows on and off the diagonal; `own` is the method's."""
    target_decay: ShareBelowOne | Literal["own"] = "own"
    """Decay of the EMA of the map from which a method takes its target, such as 0.99 for lsd; 0 takes it from the map
    itself; `own` is the method's."""
    mean_weight: Literal["auto", "constant", "paper"] = "auto"
    """Weight of meanflow and other methods whose residual has the noise of dI: `constant` learns its mean, `paper` is
    the weight of the method's paper, in most cases adaptive; `auto` takes `constant` for points, `paper` for images."""
    learned_weight: bool = False
    """Multiply the loss at (s, t) by a learned weight w_{s,t}, for methods without a weight of their own."""
    teacher: PathOrEmpty = ""
    """Teacher of a method that learns from one: folder of a finished run, or a folder or name of diffusers, or
    module:callable; by default one is trained first."""
    net: PathOrEmpty = ""
    """Network of your own in the place of the recipe's, `module:Class`, or a function without arguments that returns
    it: called as net(x, s, t, cond), it returns a tensor like x (docs/networks.md)."""
    lora: Annotated[int, Ge(0), Le(2**12)] = 0
    """Rank of LoRA adapters (peft): of the network of a --teacher from another library, train only these and the second
    time; 0 trains it all."""
    from_run: PathOrEmpty = ""
    """Folder of a finished run from whose weights the map starts; a method whose first stage trains a velocity or
    a strip uses these weights and leaves that stage out."""
    stop_gradient: Literal["velocity", "target"] = "velocity"
    """Stop-gradient of lmd and emd: on the teacher's velocity, or on the whole target of the equation, which halves the
    cost of a step; the default in `fm.methods` is none."""


@dataclass(frozen=True)
class Recipe(Settings, TableOptions, Task):
    """All options of a run: those of its task, then how it is trained and evaluated."""

    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = field(default=0, kw_only=True)
    """Seed of weights, batches, times and samples."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = field(default="float32", kw_only=True)  # type: ignore[assignment]
    """Type in which networks compute while training (autocast); weights, times and measurements stay in float32. With
    float16 the loss is scaled. `auto` takes bfloat16 if a few timed steps are faster in it, and stays at its choice."""
    device: Word = "auto"
    """cpu, cuda, cuda:1, mps, or auto: CUDA if there is a GPU, else the CPU."""
    compile: bool = field(default=True, kw_only=True)
    """Compile the objective (a minute at the start, twice the speed afterwards); off where no compiler is found, and
    for images on a CPU."""
    fsdp: bool = False
    """With several processes, shard weights, optimiser state and EMAs among them (FSDP2) instead of a copy in each
    (DDP)."""
    show_every: CountOrZero = 2_000
    """Steps between pictures of samples while training; 0 for none."""
    network: Network = field(default_factory=Network)
    optimiser: Optimiser = field(default_factory=Optimiser)
    evaluation: Evaluation = field(default_factory=Evaluation)
