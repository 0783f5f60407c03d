"""The judge of what an image shows: a small convolutional network with one head per attribute.

There are two, trained with different seeds: ``reward`` for training and ``judge`` for evaluation, so a student that
exploits errors of the first is measured by the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from opd.nano.images.vocabulary import COLOURS, NUMBERS, SHAPES
from opd.types import Prompt

HEADS: dict[str, tuple[object, ...]] = {
    "kind": ("shape", "dots", "digit"),
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "count": (1, 2, 3, 4, 5),
    "digit": tuple(range(len(NUMBERS))),
    "style": ("plain", "concept", "other"),
}
"""The classes of each head."""
KINDS = {"shapes": "shape", "concept": "shape", "count": "dots", "digits": "digit"}
UNNAMED = -100
"""Class of an attribute that a prompt does not name; ``cross_entropy`` ignores it."""
FEATURES = 48


class Judge(nn.Module):
    """Classifies the attributes of 16x16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.GELU()),
            *(nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.GroupNorm(4, 32), nn.GELU()),
            *(nn.Conv2d(32, 48, 3, padding=1, stride=2), nn.GroupNorm(4, 48), nn.GELU()),
            *(nn.Flatten(), nn.Linear(48 * 16, FEATURES), nn.GELU()),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(classes)) for name, classes in HEADS.items()})

    def features(self, images_BCHW: Tensor) -> Tensor:
        """[B, 48], the input of the heads; also used for a Fréchet distance."""
        return cast(Tensor, self.body(images_BCHW.float().clamp(-1, 1)))

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Logits of every head, each [B, classes]."""
        features = self.features(images_BCHW)
        return {name: head(features) for name, head in self.heads.items()}

    def log_likelihood(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Sum of log p over the attributes that each prompt names, [B] in nats; gradient flows to the images."""
        named = _on(named_classes(prompts), images_BCHW.device)
        logits = self(images_BCHW)
        losses = [F.cross_entropy(logits[name], named[name], reduction="none") for name in HEADS]
        return -torch.stack(losses).sum(0)

    @torch.no_grad()
    def right(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B] float32, 1 if the judge predicts every attribute that the prompt names, else 0."""
        named = _on(named_classes(prompts), images_BCHW.device)
        logits = self(images_BCHW)
        hits = [(logits[name].argmax(-1) == named[name]) | (named[name] == UNNAMED) for name in HEADS]
        return torch.stack(hits).all(0).float()


def named_classes(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """For every head the class that each prompt names, [B] int64; ``UNNAMED`` if it names none.

    A shape in a named colour has the style ``plain``: one tone.
    """
    rows = [{"kind": KINDS[p.domain], "style": "plain", **p.data} for p in prompts]
    for row in rows:
        if row["kind"] != "shape":
            del row["style"]
    return {
        name: torch.tensor([classes.index(row[name]) if name in row else UNNAMED for row in rows])
        for name, classes in HEADS.items()
    }


def _on(classes: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in classes.items()}


@cache
def load_judge(name: str = "judge") -> Judge:
    """``judge`` or ``reward``, frozen, on the CPU."""
    judge = Judge()
    weights = load_file(Path(__file__).parent / f"{name}.safetensors")
    judge.load_state_dict({key: value.float() for key, value in weights.items()})
    return judge.eval().requires_grad_(False)


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance between two sets of features, as Gaussians.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), in float64; the root by eigenvalues.

    Args:
        features_a, features_b: [N, F] and [M, F], with N and M well above F.
    """
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    crossed = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * crossed)
