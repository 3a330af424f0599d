"""The state of training: the tensors and counters that it carries from step to step, and that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from .. import dual
from ..maps import Target
from ..nn import TwoTimes
from ..objectives import Loss, Objective
from ..storage.cards import plain_name
from ..system.processes import full, ranks
from ..velocities import FromTeacher, RandomInputs
from .averages import Averages
from .distributed import Placement, fill, gradient_sync, local, unsharded
from .guards import Guard
from .optimisers import Optimiser, build, can_skip_on_device, moments, remember

LOSS_SCALE = 2.0**14
"""The factor of a float16 loss at the start: halved where gradients overflow, doubled after 2,000 finite ones."""


class LossModule(nn.Module):
    """Module whose forward computes the loss of an objective; DDP or FSDP2 wraps it.

    Args:
        objective: the objective.
        evaluate: its `evaluate`, compiled perhaps.
    """

    def __init__(self, objective: Objective, evaluate: Callable[[RandomInputs], Loss]) -> None:
        super().__init__()
        self.objective, self.evaluate = objective, evaluate
        self.compared = False

    def forward(self, draw: RandomInputs) -> Loss:
        """The loss of a draw; before the first one, the values of networks along a derivative are compared.

        Where terms take turns, that is before the first draw with rows of the last one.
        """
        if not self.compared and (not draw.counts or draw.counts[-1]):
            self.compared = True
            dual.agree(lambda: self.objective.evaluate(draw), draw)
        return self.evaluate(draw)


@dataclass
class State:
    """The tensors and counters of a checkpoint; `Trainer.save` adds identity, data positions, seconds and versions.

    Attributes:
        objective: the objective, its map within.
        module: the whole loss as one module, wrapped in DDP or FSDP2 if there are several processes.
        optimisers: of torch, one for most kinds.
        averages: moving averages of the trained parameters.
        parameters: the trained parameters by name; `DTensor` where they are sharded.
        precision: type in which networks compute, by autocast.
        micro_batch_rows: row indices of each micro-batch; `None` without gradient accumulation.
        scaler: scale of the loss in float16, whose gradients would vanish without; it does nothing in other precisions.
        step: steps taken.
        consistent: false in the middle of a step, when weights, moments and averages are not of the same step.
        has_moving_targets: whether the objective has moving targets.
        checks_gradient_on_host: whether the host waits for the norm of the gradient and skips the step; if not, a flag
            on the device skips it.
    """

    objective: Objective
    module: nn.Module
    optimisers: list[torch.optim.Optimizer]
    averages: Averages
    parameters: dict[str, Tensor]
    precision: torch.dtype = torch.float32
    micro_batch_rows: Tensor | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    guard: Guard = field(default_factory=Guard)
    step: int = 0
    consistent: bool = True
    has_moving_targets: bool = False
    checks_gradient_on_host: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint by name: parameters, trained and frozen, averages, targets, buffers, moments."""
        names = {id(value): name for name, value in self.parameters.items()}
        named = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        for label, values in self.averages.values.items():
            named |= {f"average.{label}/{name}": a for name, a in zip(self.parameters, values, strict=True)}
        named |= {f"frozen.{name}": value.detach() for name, value in frozen(self.objective).items()}
        named |= {f"target.{k}": value for k, value in enumerate(self._targets())}
        kept = self.objective.state_dict().keys()  # not the buffers that are constants of a network
        buffers = {name: value for name, value in self.objective.named_buffers() if name in kept}
        named |= {f"buffer.{plain_name(name)}": value for name, value in buffers.items()}
        named |= {f"optimiser.{name}": value for name, value in moments(self.optimisers, names).items()}
        return named

    def about(self) -> dict[str, Any]:
        """The JSON entries of a checkpoint: steps, guard, loss scale."""
        kept = {"step": self.step, "guard": self.guard.state()}
        return kept | {"scaler": self.scaler.state_dict()}

    def _targets(self) -> list[Tensor]:
        """The weights of the objective's targets that follow the map."""
        return [value for target in self.objective.moving_targets() for value in target.state_dict().values()]

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `about` returned; the tensors may be full or sharded.

        Raises:
            ValueError: they belong to another network.
        """
        own = {name: value for name, value in self.tensors().items() if not name.startswith("optimiser.")}
        for name, value in own.items():
            _check_same(name, tensors.get(name), value)
        for name, value in own.items():
            fill(value, tensors[name])
        kept = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("optimiser.")}
        try:
            remember(self.optimisers, self.parameters, kept)
            self.step = int(about["step"])
            if "guard" in about:
                self.guard.restore(about["guard"])
            if about.get("scaler"):
                self.scaler.load_state_dict(about["scaler"])
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"the checkpoint has no state that this version reads ({error!r}).") from None

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the moving averages into the map."""
        torch._foreach_copy_(local(self.parameters.values()), local(self.averages.main))  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the map has its EMA for weights, gathered in each process; every process calls this."""
        own = list(self.parameters.values())
        with torch.no_grad():
            kept = [value.detach().clone() for value in own]
            self.use_averages()
        try:
            with unsharded(self.module):
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(local(own), local(kept))  # pyright: ignore[reportPrivateImportUsage]

    def weights(self) -> dict[str, Tensor]:
        """The full weights of the map, gathered where FSDP2 shards them; every process calls this."""
        return {name: full(value) for name, value in self.objective.flow_map.state_dict().items()}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for value in self.parameters.values():
            value.grad = None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context that autocasts to `precision`; nothing for float32."""
        return nullcontext() if self.precision == torch.float32 else torch.autocast(device.type, self.precision)

    def parts(self, draw: RandomInputs) -> list[RandomInputs]:
        """The micro-batches of a draw; the draw itself without gradient accumulation."""
        if self.micro_batch_rows is None:
            return [draw]
        if len(draw.s) != self.micro_batch_rows.numel():
            raise ValueError(
                f"gradient accumulation takes batches of {self.micro_batch_rows.numel() // self.objective.draws} rows, "
                f"got {len(draw.s) // self.objective.draws}: give batch=, or leave out accumulate."
            )
        return [draw.micro_batch(rows) for rows in self.micro_batch_rows]

    def accumulate_gradient(self, draw: RandomInputs) -> Loss:
        """Compute the loss of a draw and its gradient, accumulated over micro-batches if there are several."""
        draws, losses = self.parts(draw), list[Loss]()
        for part in draws:
            with gradient_sync(self.module, len(losses) == len(draws) - 1):
                with self.autocast(part.s.device):
                    loss: Loss = self.module(part)
                if not loss.value.requires_grad:
                    raise ValueError("the loss does not depend on any trained parameter: use them in the network.")
                value = loss.value.detach()
                # NaN where the loss is not finite: so is the gradient then, in all processes once it is reduced
                factor = value * 0 + 1 / len(draws)
                loss.value.backward(self.scaler.scale(factor))
            losses.append(Loss(value, loss.parts))
        if self.micro_batch_rows is None:
            return losses[0]
        order = self.micro_batch_rows.flatten().argsort()  # rows where they were drawn
        parts = {name: torch.cat([loss.parts[name] for loss in losses])[order] for name in losses[0].parts}
        return Loss(torch.stack([loss.value for loss in losses]).mean(), parts)

    def update(self, rate: float, clip: float) -> Tensor:
        """Clip the gradient and step the optimisers, if it is finite; returns its norm before clipping."""
        own = list(self.parameters.values())
        grads = [value.grad for value in own if value.grad is not None]
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        self.scaler.update()  # the inf flag of shards is reduced over all ranks, so that their loss scales stay equal
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))  # pyright: ignore[reportPrivateImportUsage]
        norm = full(total)
        finite = norm.isfinite()
        if self.checks_gradient_on_host and not bool(finite):
            return norm
        if not self.checks_gradient_on_host or float(norm) > 0.999 * clip:  # below it the factor is 1
            nn.utils.clip_grads_with_norm_(own, clip, total)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            if not self.checks_gradient_on_host:
                optimiser.found_inf, optimiser.grad_scale = (~finite).float(), None  # type: ignore[attr-defined]
            optimiser.step()
        return norm


def _check_same(name: str, kept: Tensor | None, value: Tensor) -> None:
    """Refuse a tensor of a checkpoint that has another shape or type than the one of that name here."""
    if kept is not None and (kept.shape, kept.dtype) == (value.shape, value.dtype):
        return

    def words(tensor: Tensor | None) -> str:
        if tensor is None:
            return "missing"
        return f"{' x '.join(map(str, tensor.shape)) or 'a number'} of {str(tensor.dtype).removeprefix('torch.')}"

    raise ValueError(
        f"the checkpoint is of another network (its {name} is {words(kept)}, here it is {words(value)}): resume with "
        "what it began with."
    )


def frozen(objective: Objective) -> dict[str, Tensor]:
    """The parameters by name that are not trained, such as random Fourier features.

    Those of targets, of teachers, of the distance and under adapters are left out: a resume compares them instead, by
    their checksum.
    """
    fixed = [module for module in objective.modules() if isinstance(module, (Target, FromTeacher))]
    fixed += [part.distance for part in objective.modules() if isinstance(part, Objective)]
    others = {id(value) for part in fixed if isinstance(part, nn.Module) for value in part.parameters()}
    others |= {id(value) for value in under_adapters(objective).values()}
    named = {plain_name(name): value for name, value in objective.named_parameters() if not value.requires_grad}
    return {name: value for name, value in named.items() if id(value) not in others}


def under_adapters(objective: Objective) -> dict[str, Tensor]:
    """The weights by name to which adapters are added, as `TwoTimes(lora=...)` has them, but for those of targets."""
    networks = [module for module in objective.flow_map.modules() if isinstance(module, TwoTimes)]
    return {name: value for network in networks for name, value in network.base.items()}


def begin(
    objective: Objective,
    optimiser: Optimiser,
    *,
    placement: Placement | None = None,
    evaluate: Callable[[RandomInputs], Loss] | None = None,
    precision: torch.dtype = torch.float32,
) -> State:
    """A fresh state.

    Args:
        objective: on its device.
        optimiser: its settings.
        placement: how the module is wrapped for several processes; not at all unless given.
        evaluate: the objective's `evaluate`, compiled.
        precision: type in which networks compute.
    """
    module: nn.Module = LossModule(objective, objective.evaluate if evaluate is None else evaluate)
    module = module if placement is None else placement.wrap(module)
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    parameters: dict[str, Tensor] = {plain_name(name): value for name, value in trained.items()}
    device = next(iter(parameters.values())).device
    optimisers = build(parameters, optimiser)
    averages = Averages(list(parameters.values()), [optimiser.ema_decay, *optimiser.ema_decays], optimiser.ema_widths)
    scaler = GradScaler(device.type, init_scale=LOSS_SCALE, enabled=precision == torch.float16)
    rows = objective.micro_batches(optimiser.batch // ranks() * objective.draws, optimiser.accumulate).to(device)
    return State(
        objective,
        module,
        optimisers,
        averages,
        parameters,
        precision=precision,
        micro_batch_rows=rows if len(rows) > 1 else None,
        scaler=scaler,
        has_moving_targets=bool(objective.moving_targets()),
        checks_gradient_on_host=device.type != "cuda" or not can_skip_on_device(optimisers),
    )
