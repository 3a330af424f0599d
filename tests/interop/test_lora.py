"""LoRA of students: what is trained, what is written, and what a merged map is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor, nn

import flowmaps as fm
from flowmaps import interop

ROWS = 2


def students() -> dict[str, Any]:
    return {"unet": (tiny.zero_terminal, None), "sd3": (tiny.sd3, tiny.text_features(ROWS))}


@pytest.mark.parametrize("name", ["unet", "sd3"])
def test_adapters_and_the_second_time_alone_are_trained_written_and_merged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make, cond = students()[name]
    made, again = (interop.diffusers(make(), lora=2) for _ in range(2))
    x, s, t = torch.randn(ROWS, *made.shape), torch.tensor([0.2, 0.5]), torch.tensor([0.7, 0.6])  # type: ignore[misc]
    start = made.student.velocity(x, s, cond).detach()
    torch.testing.assert_close(start, made.teacher(x, s, cond))
    net: Any = made.student.net
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    objective = fm.methods.lmd(made.student, teacher=made.teacher)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(3):
        optimiser.zero_grad()
        objective(torch.randn_like(x), cond=cond, generator=torch.Generator().manual_seed(seed)).value.backward()
        nn.utils.clip_grad_norm_(list(net.parameters()), 1.0)
        optimiser.step()
    changed = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    assert changed
    assert all("lora_" in key or key.endswith(("first.weight", "last.weight")) for key in changed)

    def jump(net: nn.Module) -> Tensor:
        return fm.maps.AverageVelocity(net)(x, s, t, cond).detach()  # type: ignore[arg-type]

    found = jump(net)
    file = net.save_adapter(tmp_path / "adapter.safetensors")
    whole = fm.save(made.student, tmp_path / "whole") / "weights.safetensors"
    small, large = (path.stat().st_size for path in (file, whole))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    print(f"{name}: {trained:,} of {sum(p.numel() for p in net.parameters()):,} weights trained, {small:,} bytes")
    assert small < large
    assert "weights trained" in capsys.readouterr().out
    again.student.net.load_adapter(file)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(jump(again.student.net), found, rtol=0, atol=0)  # type: ignore[arg-type]
    merged = net.merged()
    assert not [key for key, _ in merged.named_modules() if "lora" in key]
    torch.testing.assert_close(jump(merged), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fm.load(tmp_path / "whole")(x, s, t, cond), found)


def test_what_is_no_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interop.diffusers(tiny.zero_terminal(), lora=0)
    plain, small = (interop.diffusers(tiny.zero_terminal(), lora=rank).student.net for rank in (None, 1))
    with pytest.raises(ValueError, match="no adapters: make it with lora=RANK"):
        plain.save_adapter(tmp_path / "a.safetensors")  # type: ignore[union-attr, operator]
    file = small.save_adapter(tmp_path / "a.safetensors")  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="adapters of another rank"):
        interop.diffusers(tiny.zero_terminal(), lora=2).student.net.load_adapter(file)  # type: ignore[union-attr, operator]
