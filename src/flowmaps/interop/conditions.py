"""What a pipeline of `diffusers` is conditioned on, encoded by its own parts, and latents decoded by its VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.vae import Codec
from ..shapes import Condition

Prompt = str | Sequence[str]


class NoCondition:
    """The condition of a network that takes none."""

    needs: tuple[str, ...] = ()
    words = "none"
    null: Condition = None

    def __call__(self, value: Any = None) -> Condition:
        if value is not None:
            raise ValueError("this model is unconditional, and a condition was given: leave it out.")
        return None


class ClassCondition:
    """Classes as numbers, `(B,)`.

    Args:
        classes: how many there are.
        has_null: whether the number `classes` means no class.
        names: of classes, and their numbers.
    """

    needs = ("class_labels",)

    def __init__(self, classes: int, has_null: bool = False, names: Mapping[str, int] | None = None) -> None:
        self.classes, self.names = classes, dict(names or {})
        self.null: Condition = torch.tensor([classes]) if has_null else None
        self.words = f"one of {classes} classes"

    def __call__(self, value: int | str | Tensor | Sequence[int | str]) -> Tensor:
        """Numbers or names of classes, one or several, as `(B,)`."""
        if isinstance(value, Tensor):
            found = value.reshape(-1)
        else:
            given = [value] if isinstance(value, (int, str)) else list(value)
            if unknown := [name for name in given if isinstance(name, str) and name not in self.names]:
                raise ValueError(f"{unknown[0]!r} is no class of this model: give its number, 0 to {self.classes - 1}.")
            found = torch.tensor([self.names[one] if isinstance(one, str) else one for one in given])
        most = self.classes if self.null is not None else self.classes - 1
        if found.is_floating_point() or bool((found < 0).any()) or bool((found > most).any()):
            raise ValueError(f"a class is a whole number from 0 to {most}, got {found.tolist()}.")
        return found.long()


class TextCondition:
    """Features of prompts by a pipeline's own encoders, as the arguments of its network.

    Args:
        pipeline: with `encode_prompt`.
        family: whose outputs it has.
        size: height and width of its pictures, in pixels.
    """

    def __init__(self, pipeline: Any, family: str, size: int) -> None:
        self.pipeline, self.family, self.size = pipeline, family, size
        self.needs = NEEDS[family]
        self.words = f"text ({', '.join(self.needs)})"

    @property
    def null(self) -> Condition:
        """That of the empty prompt, a single row."""
        return self("")

    @torch.no_grad()
    def __call__(self, prompt: Prompt) -> Condition:
        """A prompt, or one for each row: a dictionary of tensors, the batch first."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encode = self.pipeline.encode_prompt
        if self.family == "flux":
            text, pooled, _ = encode(prompts, prompt_2=None)
            return {"encoder_hidden_states": text, "pooled_projections": pooled}
        if self.family == "sd3":
            text, _, pooled, _ = encode(prompts, None, None, do_classifier_free_guidance=False)
            return {"encoder_hidden_states": text, "pooled_projections": pooled}
        options = {"device": self.pipeline.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if self.family == "sd":
            return {"encoder_hidden_states": encode(prompts, **options)[0]}
        text, _, pooled, _ = encode(prompts, **options)
        size = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]], dtype=text.dtype, device=text.device)
        extra = {"text_embeds": pooled, "time_ids": size.expand(len(prompts), -1)}
        return {"encoder_hidden_states": text, "added_cond_kwargs": extra}


NEEDS: dict[str, tuple[str, ...]] = {
    "sd": ("encoder_hidden_states",),
    "sdxl": ("encoder_hidden_states", "added_cond_kwargs"),
    "sd3": ("encoder_hidden_states", "pooled_projections"),
    "flux": ("encoder_hidden_states", "pooled_projections"),
}
"""Arguments in which the networks of each family take text."""


class GivenCondition:
    """Arguments of a network of another family, as a dictionary of tensors that the caller makes."""

    needs: tuple[str, ...] = ()
    words = "arguments of the network, as a dictionary"
    null: Condition = None

    def __call__(self, value: Any) -> Condition:
        if not isinstance(value, Mapping):
            raise ValueError(
                "how this pipeline encodes prompts is not known here: pass the arguments of its network as a "
                f"dictionary of tensors, got {type(value).__name__}."
            )
        return value


Encoder = NoCondition | ClassCondition | TextCondition | GivenCondition


class Decoder:
    """Pictures of latents, by the scale of the autoencoder's configuration.

    Args:
        vae: of `diffusers`.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.codec = vae, Codec(vae)

    def __call__(self, z: Tensor) -> Tensor:
        """`(B, channels, height, width)` latents -> `(B, 3, height, width)` pictures in about [-1, 1]."""
        return self.codec.decode(z)
