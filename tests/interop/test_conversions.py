"""Models of other libraries, played by closed forms: they become the exact velocity of the linear path."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps import interop
from flowmaps.interop import Model
from flowmaps.shapes import like

WEIGHTS, MEANS = [0.5, 0.3, 0.2], [[1.0, 0.5], [-0.7, 0.2], [0.0, -1.0]]
SPREAD = 0.1 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
MIXTURE, ON_COSINE = (
    fm.exact.GaussianMixture(WEIGHTS, torch.tensor(MEANS, dtype=torch.float64), SPREAD, interpolant=path)
    for path in (fm.interpolants.Linear(), fm.interpolants.Trigonometric())
)
BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def denoise(y: Tensor, sigma: Tensor) -> Tensor:
    """E[x1 | x1 + sigma x0 = y]."""
    t = 1 / (1 + sigma)
    return MIXTURE.denoiser(like(t, y) * y, t)


class Played(nn.Module):
    """A model by closed form: `predict(z, time)`, and a layer for the second time that has no effect at first.

    Args:
        predict: what the network returns.
        size: of what the layer adds.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], size: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.predict, self.size = predict, size
        self.time_embed = nn.Linear(1, 16, bias=False).double()
        self.head = nn.Linear(16, 2, bias=False).double()

    def forward(self, z: Tensor, time: Tensor, *_: Tensor) -> Tensor:
        return self.predict(z, time) + self.size * self.head(self.time_embed(0 * time[:, None]))


def vp(z: Tensor, bar: Tensor) -> tuple[Tensor, Tensor]:
    """Data and noise that z = sqrt(bar) x1 + sqrt(1 - bar) x0 is expected to be made of."""
    a, s = like(bar.sqrt(), z), like((1 - bar).sqrt(), z)
    data = denoise(z / a, ((1 - bar) / bar).sqrt())
    return data, (z - a * data) / s


def bar_at(k: Tensor) -> Tensor:
    """The schedule between its steps, at equal angles."""
    angles = torch.atan2((1 - BAR).sqrt(), BAR.sqrt())
    low = k.floor().long().clamp(0, 998)
    return torch.cos(angles[low] + (k - low) * (angles[low + 1] - angles[low])).square()


def noise(z: Tensor, k: Tensor) -> Tensor:
    return vp(z, bar_at(k))[1]


def data(z: Tensor, k: Tensor) -> Tensor:
    return vp(z, bar_at(k))[0]


def v(z: Tensor, k: Tensor) -> Tensor:
    bar = bar_at(k)
    found = vp(z, bar)
    return like(bar.sqrt(), z) * found[1] - like((1 - bar).sqrt(), z) * found[0]


def linear(x: Tensor, t: Tensor) -> Tensor:
    return MIXTURE.velocity(x, t)


class Cosine:
    """A scheduler as those of flow_matching: z = sin(pi t / 2) x1 + cos(pi t / 2) x0."""

    def __call__(self, t: Tensor) -> SimpleNamespace:
        a, s, half = torch.sin(0.5 * math.pi * t), torch.cos(0.5 * math.pi * t), 0.5 * math.pi
        return SimpleNamespace(alpha_t=a, sigma_t=s, d_alpha_t=half * s, d_sigma_t=-half * a)


class Straight:
    """CondOT: z = t x1 + (1 - t) x0."""

    def __call__(self, t: Tensor) -> SimpleNamespace:
        one = torch.ones_like(t)
        return SimpleNamespace(alpha_t=t, sigma_t=1 - t, d_alpha_t=one, d_sigma_t=-one)


MODELS: dict[str, Callable[[], Model]] = {
    "velocity": lambda: interop.velocity(Played(linear)),
    "velocity, time first": lambda: interop.velocity(Swapped(linear), order="tx"),
    "velocity, from data to noise in 0..1000": lambda: interop.velocity(
        Played(lambda x, t: -linear(x, 1 - t / 1000)), reverse=True, time_factor=1000
    ),
    "flow_matching, CondOT": lambda: interop.flow_matching(Played(linear), SimpleNamespace(scheduler=Straight())),
    "flow_matching, cosine": lambda: interop.flow_matching(
        Played(ON_COSINE.velocity), SimpleNamespace(scheduler=Cosine())
    ),
    "ddpm, epsilon": lambda: interop.ddpm(Played(noise), BAR),
    "ddpm, sample": lambda: interop.ddpm(Played(data), BAR, prediction="sample"),
    "ddpm, v": lambda: interop.ddpm(Played(v), BAR, prediction="v_prediction"),
    "ddpm, times in 0..1": lambda: interop.ddpm(Played(lambda z, k: noise(z, 1000 * k)), BAR, time_factor=1e-3),
    "edm": lambda: interop.edm(Played(denoise)),
}


class Swapped(Played):
    """A network of (t, x)."""

    def forward(self, time: Tensor, z: Tensor, *_: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(z, time)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


def points(model: Model, rows: int = 7) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    low, high = max(model.low, 0.02), min(model.high, 0.98)
    t = low + (high - low) * torch.rand(rows, dtype=torch.float64, generator=rng)
    x0, x1 = torch.randn(2, rows, 2, dtype=torch.float64, generator=rng)
    return (1 - t[:, None]) * x0 + t[:, None] * x1, t


def test_a_teacher_is_the_velocity_of_the_linear_path(model: Model):
    """To the accuracy of a table of 1,000 steps where there is one."""
    x, t = points(model)
    torch.testing.assert_close(model.teacher(x, t), MIXTURE.velocity(x, t), rtol=1e-5, atol=1e-5)


def test_a_teacher_follows_the_exact_flow_from_noise_to_data(model: Model):
    """At all times, also those beyond its schedule, whose ends are as near to 0 and 1 as it goes."""
    x0 = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    flow = fm.solvers.SolverFlow(model.teacher, method="rk4", steps=200)
    exact = MIXTURE.flow_map(x0, zero, one)
    with torch.no_grad():
        assert float((flow(x0, zero, one) - exact).abs().max()) < 0.05


def test_an_exact_student_has_the_velocity_of_the_teacher_whatever_its_weights_of_the_second_time(model: Model):
    if not model.exact:
        pytest.skip("its student learns the velocity by warm_start")
    x, s = points(model)
    t = s.flip(0)
    torch.testing.assert_close(model.student.velocity(x, s), model.teacher(x, s), rtol=1e-12, atol=1e-12)
    jump = model.student.average_velocity(x, s, t)
    torch.testing.assert_close(jump, model.teacher(x, s), rtol=1e-12, atol=1e-12)
    (slot,) = (m for m in model.student.modules() if type(m).__name__ == "SecondTime")
    nn.init.normal_(slot.last.weight)
    assert float((model.student.average_velocity(x, s, t) - jump).detach().abs().max()) > 1e-3
    torch.testing.assert_close(model.student.velocity(x, s), model.teacher(x, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ddpm, v", "edm", "flow_matching, cosine", "velocity"])
def test_derivatives_in_the_first_time_are_right(name: str):
    """The Eulerian equation differentiates in s, through the model's own clock."""
    model = MODELS[name]()
    x, s = points(model)
    fn = lambda r: model.student.average_velocity(x, r, s.flip(0))  # noqa: E731
    h = 1e-5
    _, found = fm.dual.jvp(fn, (s,), (torch.ones_like(s),))
    rough = (fn(s + h) - fn(s - h)) / (2 * h)
    torch.testing.assert_close(found, rough, rtol=2e-2 if name == "ddpm, v" else 1e-5, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_of_the_caller_is_left_as_it_is(name: str):
    """A student is made of a copy."""
    net = Played(noise)
    before = copy.deepcopy(net.state_dict())
    made = interop.ddpm(net, BAR)
    nn.init.ones_(next(p for n, p in made.student.named_parameters() if n.endswith("time_embed.layer.weight")))
    assert isinstance(net.time_embed, nn.Linear)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_only_badly_scaled_students_need_a_warm_start():
    needs = {name for name, make in MODELS.items() if not make().exact}
    assert needs == {"ddpm, epsilon", "ddpm, sample", "ddpm, times in 0..1"}


def test_a_warm_start_teaches_the_velocity():
    """A network that predicts noise, on a path where its velocity is 150 times what it returns."""
    made = interop.ddpm(Trained(), BAR.float(), embedding="0")
    assert not made.exact
    x1 = MIXTURE.sample(4_000, torch.Generator().manual_seed(0)).float()
    exact = lambda x, t, cond=None: MIXTURE.velocity(x.double(), t.double()).to(x.dtype)  # noqa: E731
    made.teacher.forward = exact  # type: ignore[method-assign]
    x, t = (value.float() for value in points(made, 500))

    def gap() -> float:
        return float((made.student.velocity(x, t) - exact(x, t)).detach().square().mean())

    before = gap()
    made.warm_start(x1, 400, batch=256, learning_rate=3e-3, device="cpu", say=lambda _: None)
    assert gap() < 0.25 * before


class Trained(nn.Sequential):
    """A small network of (z, k)."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, z: Tensor, k: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([z, k[:, None] / 1000], 1))


def test_a_student_is_read_back_into_one_of_the_same_call(tmp_path: Path):
    saved, other = (interop.velocity(Played(linear)) for _ in range(2))
    (slot,) = (m for m in saved.student.modules() if type(m).__name__ == "SecondTime")
    nn.init.normal_(slot.last.weight)
    saved.save(tmp_path / "mine")
    loaded = fm.load(tmp_path / "mine", net=other.student.net)  # type: ignore[arg-type]
    x, s = points(saved)
    torch.testing.assert_close(loaded(x, s, s.flip(0)), saved.student(x, s, s.flip(0)), rtol=0, atol=0)


class Net(nn.Module):
    """A network of a user's own, of (x, t), whose constructor's arguments are its attributes."""

    def __init__(self, dim: int = 2, width: int = 8, *, swapped: bool = False) -> None:
        super().__init__()
        self.dim, self.width, self.swapped = dim, width, swapped
        self.time_embed = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.first, self.last = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        x, t = (t, x) if self.swapped else (x, t)
        return self.last(torch.tanh(self.first(x) + self.time_embed(t[:, None])))


def own_call(net: nn.Module, x: Tensor, t: Tensor, cond: object) -> Tensor:
    return net(x, 0.5 * t)


STORED: dict[str, Callable[[], Model]] = {
    "velocity": lambda: interop.velocity(Net()),
    "velocity, time first": lambda: interop.velocity(Net(swapped=True), order="tx"),
    "velocity, reversed": lambda: interop.velocity(Net(), reverse=True, time_factor=1000),
    "velocity, two layers": lambda: interop.velocity(Net(), embedding=("time_embed.0", "first")),
    "ddpm, epsilon": lambda: interop.ddpm(Net(), BAR),
    "ddpm, v": lambda: interop.ddpm(Net(), BAR, prediction="v_prediction", learned_variance=False),
    "edm": lambda: interop.edm(Net(), sigma_max=20.0, data_std=0.7),
}


def moved(made: Model) -> fm.maps.FlowMap:
    """A student after some training, with the same weights each time."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in made.student.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=rng))
    return made.student


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_student_of_a_known_network_is_read_back_without_it(name: str, kind: torch.dtype, tmp_path: Path):
    """The clock, what is predicted and how it is called stand in the card."""
    made = STORED[name]()
    student = moved(made).to(kind)
    x, s = (value.to(kind) for value in points(made))
    expected = student(x, s, s.flip(0))  # a call leaves nothing behind that changes the card
    made.save(tmp_path / "mine")
    loaded = fm.load(tmp_path / "mine")
    assert torch.equal(loaded(x, s, s.flip(0)), expected)
    assert loaded.net.embeddings == student.net.embeddings  # type: ignore[union-attr]


def test_a_schedule_of_flow_matching_is_read_back(tmp_path: Path):
    schedulers = pytest.importorskip(
        "flow_matching.path.scheduler", reason="flow_matching is not installed: pip install --no-deps flow_matching"
    )
    made = interop.flow_matching(Net(), schedulers.PolynomialConvexScheduler(2.0))
    student = moved(made)
    made.save(tmp_path / "mine")
    x, s = (value.float() for value in points(made))
    assert torch.equal(fm.load(tmp_path / "mine")(x, s, s.flip(0)), student(x, s, s.flip(0)))


def test_a_call_of_a_users_own_is_given_by_hand(tmp_path: Path):
    made = interop.velocity(Net(), call=own_call)
    student = moved(made)
    made.save(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"own_call' of its user's own: pass .* or pass classes=\[\.\.\.\]"):
        fm.load(tmp_path / "mine")
    x, s = (value.float() for value in points(made))
    loaded = fm.load(tmp_path / "mine", classes=[own_call])  # type: ignore[list-item]
    assert torch.equal(loaded(x, s, s.flip(0)), student(x, s, s.flip(0)))
    interop.velocity(Net(), call=lambda net, x, t, cond: net(x, t)).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"of its user's own: pass load\(folder, net=...\)\.$"):
        fm.load(tmp_path / "other")


@pytest.mark.slow
def test_a_student_of_diffusers_is_read_back_by_another_process(tmp_path: Path):
    """Which has not imported diffusers."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[test]'")
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    made = interop.ddpm(net, BAR, prediction="v_prediction")
    made.save(tmp_path / "mine")
    x, s, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.5]), torch.tensor([0.9, 0.7])
    torch.save((x, s, t, made.student.eval()(x, s, t).detach()), tmp_path / "rows.pt")
    code = """
import sys, torch, flowmaps as fm
flow_map = fm.load(sys.argv[1] + "/mine")
x, s, t, expected = torch.load(sys.argv[1] + "/rows.pt")
torch.testing.assert_close(flow_map(x, s, t), expected)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


# refusals -------------------------------------------------------------------------------------------------------------


REFUSED: dict[str, Callable[[], Model]] = {
    r"is for a torch.nn.Module, .* got function: pass the network itself, .* call=lambda net, x": lambda: (
        interop.velocity(lambda x, t: x)  # type: ignore[arg-type]
    ),
    "order must be one of 'xt', 'tx', 'concatenated', got 'x'": lambda: interop.velocity(Played(linear), order="x"),  # type: ignore[arg-type]
    "alphas_cumprod must be .* and fall": lambda: interop.ddpm(Played(noise), BAR.flip(0)),
    "one of epsilon, sample, v_prediction, got 'score'": lambda: interop.ddpm(Played(noise), BAR, prediction="score"),  # type: ignore[arg-type]
    "nothing of the velocity at noise alone": lambda: interop.ddpm(Played(noise), torch.linspace(0.999, 0, 50)),
    "at data alone": lambda: interop.ddpm(Played(data), torch.linspace(1, 0.05, 50), prediction="sample"),
    "0 < sigma_min < sigma_max, got 2 and 1": lambda: interop.edm(Played(denoise), sigma_min=2, sigma_max=1),
    "end near 0, .* got 0.98 at its end: pass .*scheduler.alphas_cumprod": lambda: interop.ddpm(
        Played(noise), 1 - torch.linspace(1e-4, 0.02, 1000)
    ),
    "time_factor must be above 0, got 0": lambda: interop.velocity(Played(linear), time_factor=0),
    "data_std > 0, got -1": lambda: interop.edm(Played(denoise), data_std=-1),
    "object has no scheduler": lambda: interop.flow_matching(Played(linear), object()),
    "no layer of Sequential .* first linear layers are 0": lambda: interop.velocity(nn.Sequential(nn.Linear(2, 2))),
    "no layer 'nothing'.*predict, time_embed, head|no layer 'nothing'.*time_embed, head": lambda: interop.velocity(
        Played(linear), embedding="nothing"
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_converted_is_refused(words: str):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()


def test_a_learned_variance_is_cut_off_when_asked_for():
    both = lambda z, k: torch.cat([noise(z, k), z], 1)  # noqa: E731
    net = Played(noise)
    net.forward = both  # type: ignore[method-assign]
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    with pytest.raises(ValueError, match="returns 4 channels for 2, a variance too: pass learned_variance=True"):
        interop.ddpm(net, BAR).teacher(x, t)
    cut = interop.ddpm(net, BAR, learned_variance=True).teacher(x, t)
    torch.testing.assert_close(cut, MIXTURE.velocity(x, t), rtol=1e-5, atol=1e-5)
