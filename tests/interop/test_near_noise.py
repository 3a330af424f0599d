"""A student of predicted noise learns its velocity as well near the noise as elsewhere."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps import interop
from flowmaps.interop import Model
from flowmaps.interop.conversion import MAX_GAIN, PerGain
from flowmaps.interop.model import ClippedVelocity, VelocityNetwork, weight_of
from flowmaps.interop.pipelines import GuidedVelocity
from flowmaps.interpolants import Linear
from flowmaps.losses import Weight
from flowmaps.maps import AverageVelocity, Target
from flowmaps.objectives import VelocityMatching
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import RECIPES
from flowmaps.shapes import like
from flowmaps.times import Diagonal
from flowmaps.velocities import FromTeacher

BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
MEAN, STD = torch.tensor([0.8, -0.5]), torch.tensor([0.6, 0.2])
TIMES = (0.007, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


def true_velocity(x: Tensor, t: Tensor) -> Tensor:
    """b_t(x) of independent Gaussian data on the linear path."""
    t = like(t, x)
    variance = (1 - t).square() + (t * STD).square()
    return MEAN + (t * STD.square() - (1 - t)) / variance * (x - t * MEAN)


class Noise(nn.Module):
    """A small network that predicts noise, `net(z, k)`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time_embed = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64))
        self.first, self.last = (
            nn.Linear(2, 64),
            nn.Sequential(nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)),
        )

    def forward(self, z: Tensor, k: Tensor) -> Tensor:
        angles = k[:, None] * (math.pi / 1000) * 2.0 ** torch.arange(4, dtype=k.dtype)
        features = torch.cat([k[:, None] / 1000, angles.sin(), angles.cos()], 1)
        return self.last(self.first(z) + self.time_embed(features))


def trained_ddpm(steps: int = 600) -> Noise:
    """The network after a plain DDPM training."""
    net = Noise()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        noise, data = torch.randn(2, 256, 2, generator=rng)
        k = torch.randint(1000, (256,), generator=rng)
        bar = BAR[k].float()[:, None]
        z = bar.sqrt() * (MEAN + STD * data) + (1 - bar).sqrt() * noise
        optimiser.zero_grad()
        (net(z, k.float()) - noise).square().mean().backward()
        optimiser.step()
    return net.eval()


@torch.no_grad()
def errors(velocity: fm.maps.FlowMap | nn.Module) -> Tensor:
    """Root of the mean square error against the true velocity at each of `TIMES`, a number."""
    rng, found = torch.Generator().manual_seed(2), list[Tensor]()
    for time in TIMES:
        noise, data = torch.randn(2, 2_000, 2, generator=rng)
        t = torch.full((2_000,), time)
        x = (1 - time) * noise + time * (MEAN + STD * data)
        found.append((velocity(x, t) - true_velocity(x, t)).square().mean().sqrt())
    return torch.stack(found)


@pytest.fixture(scope="module")
def model() -> Model:
    return interop.ddpm(trained_ddpm(), BAR.float())


def warm_started(model: Model, weight: Weight | None, steps: int = 400) -> Tensor:
    """Errors of a student after some steps of the regression of a warm start."""
    student, teacher = copy.deepcopy(model.student), FromTeacher(copy.deepcopy(model.teacher))
    rows = MEAN + STD * torch.randn(5_000, 2, generator=torch.Generator().manual_seed(3))
    objective = VelocityMatching(student, model.interpolant, teacher, times=Diagonal(), weight=weight)
    options = {"batch": 256, "learning_rate": 2e-3, "device": "cpu", "compile": False, "say": lambda _: None}
    return errors(fm.fit(objective, rows, steps=steps, **options).velocity)


@pytest.mark.slow
def test_the_errors_of_a_student_are_alike_at_all_times(model: Model):
    """A plain square copies the errors of the teacher near the noise, g = 1 / t times those of its noise."""
    assert not model.exact
    assert errors(model.teacher)[0] > 2
    plain, weighed = (warm_started(model, weight) for weight in (None, model.weight))
    assert plain.max() > 10 * plain.median()
    assert weighed.max() < 4 * weighed.median()
    assert weighed.max() < 0.25 * plain.max()
    assert (weighed < plain + 0.05).all()


def test_a_warm_start_has_the_weight_of_its_model(monkeypatch: pytest.MonkeyPatch):
    made = interop.ddpm(Noise(), BAR.float())
    seen: list[Weight] = []
    monkeypatch.setattr(
        interop.model, "fit", lambda objective, data, **_: seen.append(objective.weight) or made.student
    )
    made.warm_start(MEAN.expand(4, 2), steps=1)
    assert isinstance(seen[0], PerGain)
    assert (seen[0].prediction, seen[0].low, seen[0].high) == ("epsilon", made.low, made.high)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_the_weighted_error_is_that_of_the_prediction_where_its_gain_is_large(prediction: str):
    """(4 / g)^2 |b - b'|^2 = 16 |E - E'|^2 for g > 4, and |b - b'|^2 for g < 4."""
    one, other = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(7, 3).double(), torch.tensor([0.01, 0.1, 0.24, 0.5, 0.76, 0.9, 0.985], dtype=torch.float64)
    made = interop.ddpm(Noise(), BAR, prediction=prediction)  # type: ignore[arg-type]
    weight = made.weight
    assert weight is not None
    path, convert = Linear(), "noise_to_velocity" if prediction == "epsilon" else "denoiser_to_velocity"
    b, c = (getattr(path, convert)(value, x, t) for value in (one, other))
    distance = (b - c).square().sum(1)
    large = (t if prediction == "epsilon" else 1 - t) < 1 / MAX_GAIN
    expected = torch.where(large, 16 * (one - other).square().sum(1), distance)
    torch.testing.assert_close(weight(distance, torch.zeros_like(t), t), expected, rtol=1e-12, atol=1e-12)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # beyond the schedule as at its ends
    known = torch.tensor([made.low, made.high], dtype=torch.float64)
    torch.testing.assert_close(weight(1 + 0 * ends, ends, ends), weight(1 + 0 * ends, known, known))


def test_other_predictions_have_no_weight_and_a_guided_teacher_that_of_its_own():
    made = interop.ddpm(Noise(), BAR, prediction="v_prediction")
    assert made.weight is None
    assert interop.edm(Noise()).weight is None
    assert interop.velocity(Noise()).weight is None
    guided = GuidedVelocity(interop.ddpm(Noise(), BAR).teacher, 3.0, torch.zeros(1))
    assert isinstance(weight_of(guided), PerGain)


def test_data_that_are_clipped_bound_the_error_of_noise_and_not_the_gain_of_data():
    noise, data = (interop.ddpm(Noise(), BAR, prediction=name).teacher for name in ("epsilon", "sample"))
    assert weight_of(ClippedVelocity(noise, 1.0)) is None
    assert isinstance(weight_of(ClippedVelocity(data, 1.0)), PerGain)


def test_the_velocity_stage_of_a_run_has_the_weight():
    made = interop.ddpm(Noise(), BAR.float())
    recipe = replace(RECIPES["points"](), teacher="own:made", teacher_steps=2, steps=2, method="lmd")
    velocity = resolve(recipe).stages[0]
    teacher = Target(AverageVelocity(VelocityNetwork(made.teacher))).velocity
    assert isinstance(velocity.build(made.student, teacher).weight, PerGain)
