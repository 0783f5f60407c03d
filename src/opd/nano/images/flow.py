"""Flow matching on images: conditions, the loss, the Euler sampler and the training loop.

x_t = (1 - t) x_0 + t noise, t = 1 is noise; the model predicts the velocity noise - x_0 at timestep 1000 t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opd.nano.images.world import SIZE

WARMUP = 50
CLIP = 1.0
EARLY = 0.7
"""Exponent on uniform times, for more times near the noise, where an image's content is decided."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The transformer's input besides the image. L tokens of context.

    Attributes:
        tokens_BLD: [B, L, 64], the text's tokens, followed by those of a reference image.
        pooled_BD: [B, 64], the text as one vector.
    """

    tokens_BLD: Tensor
    pooled_BD: Tensor

    def __getitem__(self, rows: Any) -> Condition:
        return Condition(self.tokens_BLD[rows], self.pooled_BD[rows])


def condition(pipeline: Any, texts: Sequence[str], references: Tensor | None = None) -> Condition:
    """Encode texts, followed by reference images [B, 3, 16, 16]; gradients flow to the encoders."""
    unique = list(dict.fromkeys(texts))
    tokens, _, pooled, _ = pipeline.encode_prompt(
        unique, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    rows = [unique.index(text) for text in texts]
    if references is None:
        return Condition(tokens[rows], pooled[rows])
    seen = pipeline.image_encoder(references).last_hidden_state
    return Condition(torch.cat([tokens[rows], seen], dim=1), pooled[rows])


def velocity(transformer: Any, x_BCHW: Tensor, t_B: Tensor, given: Condition) -> Tensor:
    """The model's velocity, [B, 3, 16, 16].

    Args:
        t_B: [B] in [0, 1], 1 is noise.
    """
    prediction: Tensor = transformer(
        hidden_states=x_BCHW,
        timestep=1000 * t_B,
        encoder_hidden_states=given.tokens_BLD,
        pooled_projections=given.pooled_BD,
        return_dict=False,
    )[0]
    return prediction


def flow_loss(transformer: Any, images_BCHW: Tensor, given: Condition) -> Tensor:
    """Mean squared error of the velocity at one t per image; more times are near the noise."""
    size = len(images_BCHW)
    t = ((torch.arange(size) + torch.rand(size)) / size) ** EARLY
    noise = torch.randn_like(images_BCHW)
    noisy = torch.lerp(images_BCHW, noise, t[:, None, None, None])
    return F.mse_loss(velocity(transformer, noisy, t, given), noise - images_BCHW)


@torch.no_grad()
def euler(transformer: Any, noise_BCHW: Tensor, given: Condition, steps: int) -> list[Tensor]:
    """The states of ``steps`` equal Euler steps from t = 1 to 0: noise first, image last."""
    states = [noise_BCHW]
    for step in range(steps):
        t = torch.full((len(noise_BCHW),), 1 - step / steps)
        states.append(states[-1] - velocity(transformer, states[-1], t, given) / steps)
    return states


@torch.no_grad()
def generate(pipeline: Any, texts: Sequence[str], *, steps: int, seed: int, references: Tensor | None = None) -> Tensor:
    """Images for texts, [B, 3, 16, 16]."""
    noise = torch.randn(len(texts), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    chunks = torch.arange(len(texts)).split(64)
    given = condition(pipeline, texts, references)
    return torch.cat([euler(pipeline.transformer, noise[rows], given[rows], steps)[-1] for rows in chunks])


def fit(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    say: Callable[[str], None],
) -> None:
    """Train parameters with AdamW, warm-up and cosine decay to 0 on ``loss(step)``."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + cos(pi * step / steps))
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        recent.append(value.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            say(f"step {step + 1}/{steps} loss {sum(recent) / len(recent):.4f}")
            recent.clear()
