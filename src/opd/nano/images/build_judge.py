"""Train the two judges on real images with a little noise and blur, as generated images have.

The bundled judges were trained on images with more variation: shapes of 4.8 to 6.2 pixels up to 1.6 off the centre,
dots at any place, digits moved and scaled more. Judges trained anew see only the present images.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from opd.nano.images.judge import HEADS, UNNAMED, Judge, named_classes
from opd.nano.images.vocabulary import SHAPES
from opd.nano.images.world import (
    DIGITS,
    DOMAINS,
    all_prompts,
    concept_style,
    draw,
    draw_shapes,
    random_styles,
    style_distance,
)
from opd.types import Prompt

STEPS = 2500
BATCH = 128
PEAK_LR = 3e-3
SEEDS = {"judge": 1, "reward": 2}
SAME_STYLE = 0.12
"""Largest deviation of each channel of both colours that counts as the concept."""
OTHER_STYLE = 0.32
"""Smallest RGB distance of one of the colours that counts as another style."""


def save_digits(path: Path = DIGITS) -> None:
    """Save scikit-learn's scans (UCI, Alpaydin and Kaynak, CC BY 4.0) in the package, so runs need no scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    scans, labels = torch.tensor(digits.images).to(torch.uint8), torch.tensor(digits.target).to(torch.uint8)
    save_file({"scans": scans[order].contiguous(), "digits": labels[order].contiguous()}, path)


def examples(number: int, seed: int, half: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Images [B, 3, 16, 16] and their classes for every head, in equal parts of four kinds."""
    rng = random.Random(seed)
    prompts: list[Prompt] = [p for d in DOMAINS for p in rng.choices(all_prompts(d), k=number // 4)]
    images, classes = draw(prompts, seed, half=half), named_classes(prompts)
    styled, styled_classes = styled_examples(number - len(prompts), seed)
    together = {name: torch.cat([classes[name], styled_classes[name]]) for name in HEADS}
    return torch.cat([images, styled]), together


def styled_examples(number: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Shapes in two tones: a third in the concept's style, a third near it, a third in any other."""
    generator = torch.Generator().manual_seed(seed)
    fill, border = random_styles(number, generator)
    like_fill, like_border = concept_style(number, generator, jitter=SAME_STYLE)
    third = number // 3
    fill[: third + third // 2], border[:third] = like_fill[: third + third // 2], like_border[:third]
    border[third + third // 2 : 2 * third] = like_border[third + third // 2 : 2 * third]
    distance = style_distance(fill, border)
    style = torch.where(distance < OTHER_STYLE, UNNAMED, HEADS["style"].index("other"))
    style[:third] = HEADS["style"].index("concept")
    shape = torch.randint(len(SHAPES), (number,), generator=generator)
    classes = {name: torch.full((number,), UNNAMED) for name in HEADS}
    classes |= {"kind": torch.zeros(number, dtype=torch.long), "shape": shape, "style": style}
    return draw_shapes(shape, fill, border, generator), classes


def spoiled(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images with random noise and blur, so that the judge tolerates small artefacts."""
    size = (len(images), 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mixed = torch.lerp(images, blurred, 0.5 * torch.rand(size, generator=generator))
    noise = torch.randn(images.shape, generator=generator) * 0.12 * torch.rand(size, generator=generator)
    return mixed + noise


def train_judge(seed: int, steps: int = STEPS) -> Judge:
    """Train a judge with AdamW and a one-cycle learning rate on new images at every step."""
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=PEAK_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        images, classes = examples(BATCH, seed * 1_000_000 + step, "judge")
        logits = judge(spoiled(images, generator))
        loss = torch.stack([F.cross_entropy(logits[name], classes[name]) for name in HEADS]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def accuracies(judge: Judge, number: int = 4000) -> dict[str, float]:
    """Accuracy of every head on unseen images, with digits of the unseen half."""
    images, classes = examples(number, 77, "generators")
    logits = judge(images)
    hits = {name: (logits[name].argmax(-1) == classes[name])[classes[name] != UNNAMED] for name in HEADS}
    return {name: float(hit.float().mean()) for name, hit in hits.items()}


def build_judge(name: str, folder: Path) -> dict[str, float]:
    """Train ``judge`` or ``reward``, save it in half precision, and return its accuracies."""
    judge = train_judge(SEEDS[name])
    save_file(
        {key: value.half().contiguous() for key, value in judge.state_dict().items()}, folder / f"{name}.safetensors"
    )
    return accuracies(judge)
