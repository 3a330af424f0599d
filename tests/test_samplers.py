"""Samplers: with an exact map any number of steps is the flow; renoising is its paper's algorithm, step by step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowmaps.exact import Gaussian
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VarianceExploding, VariancePreserving, WithNoise
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.samplers import GammaSampling, Jump, MultistepConsistency, encode
from flowmaps.solvers import SolverFlow

EXACT = Gaussian([0.5, -1.0, 2.0], [[0.4, 0.1, 0.0], [0.1, 0.6, 0.0], [0.0, 0.0, 0.2]])


class Known(FlowMap):
    """The exact map, counting its calls and keeping its conditions."""

    def __init__(self, exact: Gaussian = EXACT) -> None:
        super().__init__()
        self.exact, self.calls, self.conditions = exact, 0, []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        self.conditions.append(cond)
        return self.exact.flow_map(x, s, t)

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        raise NotImplementedError


def untrained() -> FlowMap:
    """A map that obeys no law: each way to sample it gives something else."""
    torch.manual_seed(0)
    return AverageVelocity(MLP(3, width=16, depth=2)).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(x: Tensor, time: float) -> Tensor:
    return torch.full((len(x),), time, dtype=x.dtype)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 49])
def test_an_exact_map_gives_the_same_in_any_number_of_steps(steps: int):
    x0 = noise(7, 3)
    flow_map = Known()
    exact = EXACT.flow_map(x0, full(x0, 0), full(x0, 1))
    torch.testing.assert_close(Jump(steps)(flow_map, x0), exact)
    assert flow_map.calls == steps
    torch.testing.assert_close(Jump(steps, reverse=True)(Known(), exact), x0)


def test_a_given_grid_is_the_composition_of_its_jumps():
    x, flow_map = noise(7, 3), untrained()
    for grid in [(0.0, 0.3, 1.0), (0.1, 0.2, 0.7), (1.0, 0.4, 0.0), (0.8, 0.1)]:
        y = x
        for s, t in itertools.pairwise(grid):
            y = flow_map(y, full(y, s), full(y, t))
        assert torch.equal(Jump(grid=grid)(flow_map, x), y.detach())


def test_the_uniform_grid_forwards_and_backwards():
    x, flow_map = noise(7, 3), untrained()
    grid = [0, 1 / 3, 2 / 3, 1.0]
    torch.testing.assert_close(Jump(3)(flow_map, x), Jump(grid=grid)(flow_map, x))
    torch.testing.assert_close(Jump(3, reverse=True)(flow_map, x), Jump(grid=grid[::-1])(flow_map, x))
    assert not torch.allclose(Jump(3)(flow_map, x), Jump(2)(flow_map, x))  # the steps do something


def test_encoding_and_decoding_with_an_exact_map():
    x1 = EXACT.sample(7, torch.Generator().manual_seed(0), torch.float64)
    for steps in (1, 3):
        code = encode(Known(), x1, steps)
        torch.testing.assert_close(code, EXACT.flow_map(x1, full(x1, 1), full(x1, 0)))
        torch.testing.assert_close(Jump(2)(Known(), code), x1)


def test_samples_come_from_the_noise_that_is_passed():
    flow_map = untrained()
    one, other = noise(5, 3), noise(5, 3, seed=1)
    assert torch.equal(Jump(2)(flow_map, one), Jump(2)(flow_map, one.clone()))
    assert not torch.allclose(Jump(2)(flow_map, one), Jump(2)(flow_map, other))
    torch.testing.assert_close(Jump(2)(flow_map, one)[2:4], Jump(2)(flow_map, one[2:4]))


def test_the_path_passes_through_the_samplers_points():
    x, flow_map = noise(5, 3), untrained()
    points = Jump(4).path(flow_map, x)
    assert torch.equal(points[0], x)
    assert torch.equal(points[-1], Jump(4)(flow_map, x))
    torch.testing.assert_close(points[2], Jump(grid=(0.0, 0.25, 0.5))(flow_map, x))
    backwards = Jump(4, reverse=True).path(Known(), x)
    torch.testing.assert_close(backwards[1], EXACT.flow_map(x, full(x, 1), full(x, 0.75)))


def test_conditions_go_to_each_jump():
    cond = torch.arange(5)
    for sampler in (Jump(3), Jump(3).path, MultistepConsistency((0.0, 0.5, 0.7)), GammaSampling(3, gamma=0.5)):
        flow_map = Known()
        x0 = noise(5, 3)
        more = {"noise": noise(2, 5, 3)} if isinstance(sampler, MultistepConsistency | GammaSampling) else {}
        sampler(flow_map, x0, cond=cond, **more)
        assert len(flow_map.conditions) == 3
        assert all(c is cond for c in flow_map.conditions)


def test_sampling_keeps_no_graph():
    x0, flow_map = noise(5, 3), untrained()
    assert not Jump(2)(flow_map, x0).requires_grad
    assert not MultistepConsistency((0.0,))(flow_map, x0).requires_grad
    assert not GammaSampling(2, gamma=0.5)(flow_map, x0, noise(1, 5, 3)).requires_grad
    assert not GammaSampling(2, gamma=0.5).path(flow_map, x0, noise(1, 5, 3)).requires_grad


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), WithNoise(Linear(), 0.4)])
def test_restart_is_multistep_consistency_sampling_step_by_step(path: Interpolant):
    flow_map, x0 = untrained(), noise(5, 3)
    fresh = noise(4 if path.noisy else 2, 5, 3, seed=1)
    x = flow_map(x0, full(x0, 0.0), full(x0, 1.0))
    for k, time in enumerate((0.4, 0.9)):
        t = torch.tensor([time], dtype=torch.float64)
        renoised = path.alpha(t) * fresh[k] + path.beta(t) * x
        if path.noisy:
            renoised = renoised + 0.4 * math.sin(math.pi * time) ** 2 * fresh[2 + k]
        x = flow_map(renoised, full(x0, time), full(x0, 1.0))
    torch.testing.assert_close(MultistepConsistency((0.0, 0.4, 0.9), path)(flow_map, x0, fresh), x.detach())


def test_restart_of_one_time_is_one_jump():
    flow_map, x0 = untrained(), noise(5, 3)
    torch.testing.assert_close(MultistepConsistency((0.0,))(flow_map, x0), Jump(1)(flow_map, x0))
    torch.testing.assert_close(MultistepConsistency((0.3,))(flow_map, x0), Jump(grid=(0.3, 1.0))(flow_map, x0))


def test_restart_keeps_the_law_of_an_exact_map():
    """Mean and covariance of the data come out, whatever the times of renoising."""
    rows = 40_001
    x = MultistepConsistency((0.0, 0.3, 0.8))(Known(), noise(rows, 3), noise(2, rows, 3, seed=1))
    torch.testing.assert_close(x.mean(0), EXACT.mean.to(x), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(x.T), EXACT.covariance.to(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [None, (1, 5, 3), (2, 4, 3), (4, 5, 3)])
def test_restart_refuses_noise_of_another_shape(shape: tuple[int, ...] | None):
    fresh = None if shape is None else noise(*shape)
    with pytest.raises(ValueError, match=r"over 3 times needs noise of shape \(2, 5, 3\), got"):
        MultistepConsistency((0.0, 0.4, 0.9))(untrained(), noise(5, 3), fresh)


def test_restart_with_latent_noise_needs_twice_as_much():
    with pytest.raises(ValueError, match=r"needs noise of shape \(2, 5, 3\), got \(1, 5, 3\)"):
        MultistepConsistency((0.0, 0.5), WithNoise(Linear()))(untrained(), noise(5, 3), noise(1, 5, 3))


PATHS = [Linear(), Trigonometric(), VariancePreserving(), VarianceExploding(sigma_max=8.0, rho=3.0)]
GRID = (0.0, 0.2, 0.55, 0.9, 1.0)


@pytest.mark.parametrize("path", PATHS)
def test_gamma_zero_is_jump(path: Interpolant):
    flow_map, x0 = untrained(), noise(5, 3)
    for grid in (GRID, (0.1, 0.4, 0.7), (0.0, 1.0)):
        assert GammaSampling(grid=grid, gamma=0, interpolant=path).targets == grid[1:]
        assert torch.equal(
            GammaSampling(grid=grid, gamma=0, interpolant=path)(flow_map, x0), Jump(grid=grid)(flow_map, x0)
        )
    assert torch.equal(GammaSampling(3, gamma=0.0)(flow_map, x0, noise(2, 5, 3)), Jump(3)(flow_map, x0))


@pytest.mark.parametrize("path", PATHS)
def test_gamma_one_is_restart(path: Interpolant):
    flow_map, x0, fresh = untrained(), noise(5, 3), noise(3, 5, 3, seed=1)
    want = MultistepConsistency(GRID[:-1], path)(flow_map, x0, fresh)
    assert torch.equal(GammaSampling(grid=GRID, gamma=1, interpolant=path)(flow_map, x0, fresh), want)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_gamma_keeps_the_law_at_each_time(path: Interpolant, gamma: float):
    """Points on the way are linear in (x at the start, fresh noise): mean and covariance to rounding."""
    scale = path.sigma_max if isinstance(path, VarianceExploding) else 1.0
    exact = Gaussian(EXACT.mean, EXACT.covariance, None, scale**2 * torch.eye(3), path)
    sampler = GammaSampling(grid=GRID, gamma=gamma, interpolant=path)

    def law(time: float) -> tuple[Tensor, Tensor]:
        t = torch.tensor([time], dtype=torch.float64)
        base = path.alpha(t) ** 2 * scale**2 * torch.eye(3, dtype=torch.float64)
        return path.beta(t) * EXACT.mean, base + path.beta(t) ** 2 * EXACT.covariance

    mean, covariance = law(0.0)
    units = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)  # one source of randomness a row
    sources = torch.cat([torch.zeros(1, 4, 3, dtype=torch.float64), units])
    x0 = mean + sources[:, 0] @ torch.linalg.cholesky(covariance).mT
    points = sampler.path(Known(exact), x0, scale * sources[:, 1:].transpose(0, 1))
    assert len(points) == len(GRID)
    for time, point in zip(GRID, points, strict=True):
        mean, covariance = law(time)
        factor = point[1:] - point[0]
        torch.testing.assert_close(point[0], mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(factor.mT @ factor, covariance, rtol=1e-9, atol=1e-9)


def test_gamma_is_the_papers_algorithm_in_sigma():
    """EDM's diffusion, sigma = alpha sigma_max: denoise to sqrt(1 - gamma^2) sigma, add noise gamma sigma."""
    path, gamma = VarianceExploding(sigma_max=8.0, rho=3.0), 0.6
    flow_map, x0, fresh = untrained(), noise(5, 3), noise(2, 5, 3, seed=1)
    x, start = x0, 0.0
    for time, eps in zip((0.3, 0.7), fresh, strict=True):
        sigma = 8.0 * (1 - time) ** 3
        beyond = 1 - (0.8 * sigma / 8.0) ** (1 / 3)
        x = flow_map(x, full(x, start), full(x, beyond)) + gamma * sigma * eps
        start = time
    x = flow_map(x, full(x, start), full(x, 1.0))
    sampler = GammaSampling(grid=(0.0, 0.3, 0.7, 1.0), gamma=gamma, interpolant=path)
    torch.testing.assert_close(sampler(flow_map, x0, 8.0 * fresh), x.detach())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gamma", [1e-9, 0.3, 1.0])
def test_gamma_jumps_beyond_the_next_time(path: Interpolant, gamma: float):
    sampler = GammaSampling(grid=GRID, gamma=gamma, interpolant=path)
    assert sampler.targets[-1] == 1
    for t, w in zip(GRID[1:-1], sampler.targets, strict=False):
        assert t <= w <= 1
        assert w > t or gamma < 0.1
        assert (w == 1) == (gamma == 1)


def test_the_path_of_gamma_ends_in_its_samples():
    flow_map, x0, fresh = untrained(), noise(5, 3), noise(3, 5, 3, seed=1)
    sampler = GammaSampling(4, gamma=0.4, interpolant=Trigonometric())
    points = sampler.path(flow_map, x0, fresh)
    assert points.shape == (5, 5, 3)
    assert torch.equal(points[0], x0)
    assert torch.equal(points[-1], sampler(flow_map, x0, fresh))
    torch.testing.assert_close(GammaSampling(1, gamma=0.4)(flow_map, x0), Jump(1)(flow_map, x0))
    images = noise(4, 3, 2, 5)
    still = GammaSampling(3, gamma=0.7)(Still(), images, noise(2, 4, 3, 2, 5, seed=1))
    assert still.shape == images.shape


class Still(FlowMap):
    """X_{s,t}(x) = x, of any shape."""

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("shape", [None, (1, 5, 3), (2, 4, 3), (3, 5, 3)])
def test_gamma_refuses_noise_of_another_shape(shape: tuple[int, ...] | None):
    fresh = None if shape is None else noise(*shape)
    for sample in (GammaSampling(3, gamma=0.5), GammaSampling(3, gamma=0.5).path):
        with pytest.raises(ValueError, match=r"GammaSampling over 4 times needs noise of shape \(2, 5, 3\), got"):
            sample(untrained(), noise(5, 3), fresh)


def test_gammas_that_are_refused():
    with pytest.raises(
        ValueError, match="GammaSampling takes steps or grid, one of the two, got steps=None, grid=None"
    ):
        GammaSampling(gamma=0.5)
    for gamma in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"gamma in \[0, 1\] \(0 is Jump, 1 is MultistepConsistency\), got"):
            GammaSampling(2, gamma=gamma)
    with pytest.raises(ValueError, match="goes from noise to data, got the falling grid"):
        GammaSampling(grid=(1.0, 0.5, 0.0), gamma=0.5)
    with pytest.raises(ValueError, match="without latent noise, got WithNoise"):
        GammaSampling(2, gamma=0.5, interpolant=WithNoise(Linear()))
    with pytest.raises(ValueError, match="at least two times"):
        GammaSampling(grid=(0.5,), gamma=0.5)


def test_samplers_that_are_refused():
    with pytest.raises(ValueError, match="steps or grid, one of the two, got steps=None, grid=None"):
        Jump()
    with pytest.raises(ValueError, match="steps or grid, one of the two"):
        Jump(2, grid=(0.0, 1.0))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Jump(0)
    with pytest.raises(ValueError, match="give a falling grid instead"):
        Jump(grid=(0.0, 1.0), reverse=True)
    for grid in [(0.0, 0.5, 0.4), (0.5,), (), (0.0, 1.5)]:
        with pytest.raises(ValueError, match=r"all rising \(to data\) or all falling"):
            Jump(grid=grid)
    for grid in [(), (0.5, 0.2), (-0.1, 0.5)]:
        with pytest.raises(ValueError, match="at least two times"):
            MultistepConsistency(grid)
    with pytest.raises(ValueError, match=r"takes the times before 1, got \[0.2, 1.0\]: leave the last out"):
        MultistepConsistency((0.2, 1.0))


class Dropped(FlowMap):
    """A map with dropout, a part of which is in evaluation mode already."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.fixed = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval()

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        if cond is not None:
            raise RuntimeError("no condition")
        return self.fixed(self.dropout(torch.ones_like(x)))


SAMPLERS = {
    "jump": lambda flow_map, x0, **k: Jump(steps=3)(flow_map, x0, **k),
    "path": lambda flow_map, x0, **k: Jump(steps=3).path(flow_map, x0, **k)[-1],
    "encode": lambda flow_map, x0, **k: 2 * x0 - encode(flow_map, x0, 2, **k),
    "restart": lambda flow_map, x0, **k: MultistepConsistency([0.0])(flow_map, x0, **k),
    "gamma": lambda flow_map, x0, **k: GammaSampling(3, gamma=0.0)(flow_map, x0, **k),
    "gamma-path": lambda flow_map, x0, **k: GammaSampling(3, gamma=0.0).path(flow_map, x0, **k)[-1],
}


@pytest.mark.parametrize("form", ["module", "method", "lambda"])
def test_the_flow_of_a_solver_is_sampled_without_dropout(form: str):
    """Also where its field is no module, whose networks are no part of it."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)).train()

    class Velocity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return self.net(torch.cat([x, t[:, None]], 1))

        def velocity(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return self(x, t)

    held = Velocity().train()
    field = {"module": held, "method": held.velocity, "lambda": lambda x, t, cond=None: held(x, t)}[form]
    flow, x0 = SolverFlow(field, method="euler", steps=3), torch.randn(5, 2)
    one, other = (Jump(2)(flow, x0) for _ in range(2))
    assert torch.equal(one, other)
    assert held.training
    assert net[1].training
    s, t = torch.zeros(5), torch.ones(5)
    assert not torch.equal(flow(x0, s, t), flow(x0, s, t))  # by itself it is in the mode of its field
    flow.eval()
    assert torch.equal(flow.average_velocity(x0, s, t), flow.average_velocity(x0, s, t))
    assert torch.equal(flow.velocity(x0, t), flow.velocity(x0, t))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_walk_in_evaluation_mode_and_put_the_mode_back(name: str):
    flow_map, x0 = Dropped(), noise(7, 3)
    torch.testing.assert_close(SAMPLERS[name](flow_map, x0), x0 + 1)
    with pytest.raises(RuntimeError, match="no condition"):
        SAMPLERS[name](flow_map, x0, cond=torch.zeros(7))
    assert (flow_map.training, flow_map.dropout.training, flow_map.fixed.training) == (True, True, False)


# compilation ----------------------------------------------------------------------------------------------------------

SCHEMES = [Jump(2), MultistepConsistency([0.0, 0.5]), GammaSampling(2, gamma=0.3)]


@pytest.mark.parametrize(
    "scheme, backend",
    [
        (SCHEMES[0], "eager"),
        *[pytest.param(scheme, "aot_eager", marks=pytest.mark.slow) for scheme in SCHEMES],
        pytest.param(SCHEMES[0], "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_sampler_compiles_as_one_graph(scheme: Jump | MultistepConsistency | GammaSampling, backend: str):
    torch._dynamo.reset()
    flow_map = untrained().train()
    compiled = torch.compile(scheme, fullgraph=True, backend=backend)
    for number in (5, 7):
        more = {} if isinstance(scheme, Jump) else {"noise": noise(1, number, 3, seed=1)}
        x0 = noise(number, 3)
        torch.testing.assert_close(compiled(flow_map, x0, **more), scheme(flow_map, x0, **more))
    assert all(module.training for module in flow_map.modules())
