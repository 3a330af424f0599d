"""Denoisers of azula as teachers and students, against azula's own posterior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowmaps import interop

REASON = "azula is not installed: pip install --no-deps azula"
denoise = pytest.importorskip("azula.denoise", reason=REASON)
noise = pytest.importorskip("azula.noise", reason=REASON)
KarrasDenoiser, SimpleDenoiser = denoise.KarrasDenoiser, denoise.SimpleDenoiser
RectifiedSchedule, VESchedule, VPSchedule = noise.RectifiedSchedule, noise.VESchedule, noise.VPSchedule


class Backbone(nn.Module):
    """A network of (x, t) that returns something of both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time_embed = nn.Linear(1, 16)
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 2)
        self.double()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        out = self.last(torch.tanh(self.first(x) + self.time_embed(t[:, None])))
        return out if label is None else out + label[:, None]


@pytest.mark.parametrize("schedule", [VPSchedule(), VESchedule(1e-2, 1e2), RectifiedSchedule()])
@pytest.mark.parametrize("kind", [KarrasDenoiser, SimpleDenoiser])
def test_a_denoiser_is_the_velocity_of_its_posterior(kind: type, schedule: nn.Module):
    """z = alpha x1 + sigma x0 is (alpha + sigma) times a point of the linear path, at time alpha / (alpha + sigma)."""
    denoiser = kind(Backbone(), schedule)
    theirs = torch.tensor([0.1, 0.45, 0.8], dtype=torch.float64)
    alpha, sigma = denoiser.schedule(theirs)
    t = alpha / (alpha + sigma)
    x, label = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    data = denoiser((alpha + sigma)[:, None] * x, theirs, label=label).mean
    made = interop.azula(denoiser)
    expected = (data - x) / (1 - t)[:, None]
    torch.testing.assert_close(made.teacher(x, t, {"label": label}), expected, rtol=1e-3, atol=1e-3)
    assert made.exact == (kind is KarrasDenoiser)
    if made.exact:
        torch.testing.assert_close(made.student.velocity(x, t, {"label": label}), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="takes conditions by name"):
        made.teacher(x, t, label)


def test_what_is_no_denoiser_is_refused():
    with pytest.raises(ValueError, match=r"Backbone has no schedule\(t\) .*pass a denoiser of azula"):
        interop.azula(Backbone())
