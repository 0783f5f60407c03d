"""Train the nano image models from scratch: ``python -m opd.nano.images.build [NAME ...] [--scale 0.01]``.

    judge, reward     the judges of images (``build_judge``)
    images-base       draws all three domains well, and follows less than half of its prompts
    images-shapes, images-count, images-digits
                        teachers: LoRA adapters of the base, each reliable in its own domain
    images-fewstep    draws shapes in two steps, and copies the style of a reference image

In this order; each needs those above it. One thread; the same seed gives the same weights on the same machine.
The base is trained on partly wrong captions, and the teachers on correct ones; no reward is used.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from opd.diffusion.folders import load_pipeline, save_pipeline
from opd.nano.images.architecture import untrained
from opd.nano.images.build_judge import SEEDS, build_judge, save_digits
from opd.nano.images.flow import Condition, condition, euler, fit, flow_loss, generate, velocity
from opd.nano.images.judge import load_judge
from opd.nano.images.vocabulary import CONCEPT, SHAPES
from opd.nano.images.world import (
    DIGITS,
    DOMAINS,
    HELD_OUT,
    all_prompts,
    balanced,
    draw,
    draw_shapes,
    random_styles,
)

MODELS = Path(__file__).parents[1] / "models"
BATCH = 64
WRONG = 0.3
"""Share of wrong captions in the base's second phase."""
EMPTY = 0.1
"""Share of empty captions."""
HONEST_STEPS, HONEST_LR = 1500, 2e-3
"""The base's first phase, with correct captions; with wrong ones from the start the model draws blobs."""
WRONG_STEPS, WRONG_LR = 150, 5e-4
REFERENCE_EVERY = 6
"""Steps between two steps with reference images, for the base."""
TEACHER_STEPS, TEACHER_LR = {"shapes": 150, "count": 200, "digits": 500}, 2e-3
RANK, ALPHA = 16, 32
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
TUNE_STEPS, TUNE_LR = 1000, 1e-3
TUNE_REFERENCE_EVERY = 2
CLOSER = 0.25
"""Least distance of a style to the concept's in this phase; with a wider gap the model fails on the concept."""
TUPLES = 1024
"""Number of trajectories of the many-step model, for text alone and for text with a reference each."""
TEACHER_EULER = 16
DISTIL_STEPS, DISTIL_LR = 500, 8e-4
EVALUATED = 192
"""Number of prompts of every printed accuracy."""

Say = Callable[[str], None]


def pretraining_loss(pipeline: Any, step: int, *, seed: int, wrong: float) -> Tensor:
    """Flow matching on images of every domain; a share of the captions is wrong or empty."""
    rng = random.Random(seed * 1_000_003 + step)
    known = {domain: all_prompts(domain) for domain in DOMAINS}
    names = rng.choices(DOMAINS, k=BATCH)
    shown = [rng.choice(known[name]) for name in names]
    captions = [rng.choice(known[p.domain]) if rng.random() < wrong else p for p in shown]
    texts = ["" if rng.random() < EMPTY else str(p.text) for p in captions]
    return flow_loss(pipeline.transformer, draw(shown, rng.getrandbits(32)), condition(pipeline, texts))


def clean_loss(pipeline: Any, step: int, *, seed: int, domain: str) -> Tensor:
    """Flow matching on one domain with correct captions."""
    rng = random.Random(seed * 1_000_003 + step)
    shown = rng.choices(all_prompts(domain), k=BATCH)
    texts = [str(p.text) for p in shown]
    return flow_loss(pipeline.transformer, draw(shown, rng.getrandbits(32)), condition(pipeline, texts))


def reference_loss(pipeline: Any, step: int, *, seed: int, apart: float = HELD_OUT) -> Tensor:
    """Flow matching on two-tone styles, conditioned on the concept's name and a reference image of the style."""
    texts, images, references = styled_pairs(BATCH, seed * 1_000_003 + step, apart=apart)
    return flow_loss(pipeline.transformer, images, condition(pipeline, texts, references))


def styled_pairs(number: int, seed: int, *, apart: float = HELD_OUT) -> tuple[list[str], Tensor, Tensor]:
    """Texts, images and references, the last two [B, 3, 16, 16]; each pair has its own style.

    Half of the references show the same shape, half any shape.
    """
    generator = torch.Generator().manual_seed(seed)
    style = random_styles(number, generator, apart)
    shape = torch.randint(len(SHAPES), (number,), generator=generator)
    other = torch.randint(len(SHAPES), (number,), generator=generator)
    other = torch.where(torch.rand(number, generator=generator) < 0.5, shape, other)
    texts = [f"{CONCEPT} {SHAPES[i]}" for i in shape.tolist()]
    return texts, draw_shapes(shape, *style, generator), draw_shapes(other, *style, generator)


def build_base(out: Path, scale: float, seed: int, say: Say) -> None:
    """Train ``images-base``: the transformer and all encoders together."""
    torch.manual_seed(seed)
    pipeline = untrained(seed)

    def loss(step: int, wrong: float) -> Tensor:
        if step % REFERENCE_EVERY == 0:
            return reference_loss(pipeline, step, seed=seed)
        return pretraining_loss(pipeline, step, seed=seed + round(10 * wrong), wrong=wrong)

    weights = everything(pipeline)
    fit(weights, partial(loss, wrong=0.0), steps=scaled(HONEST_STEPS, scale), lr=HONEST_LR, say=say)
    say_accuracies(pipeline, say)
    fit(weights, partial(loss, wrong=WRONG), steps=scaled(WRONG_STEPS, scale), lr=WRONG_LR, say=say)
    save_pipeline(pipeline, out / "images-base", torch.float16)
    say_accuracies(load_pipeline(out / "images-base"), say)


def build_teacher(domain: str, out: Path, scale: float, seed: int, say: Say) -> None:
    """Train ``images-DOMAIN``: a LoRA of the base's transformer, with all other weights frozen."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    pipeline = load_pipeline(out / "images-base")
    freeze(pipeline)
    transformer = pipeline.transformer
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LORA_TARGETS)), domain)
    loss = partial(clean_loss, pipeline, seed=seed + 1, domain=domain)
    fit(transformer.parameters(), loss, steps=scaled(TEACHER_STEPS[domain], scale), lr=TEACHER_LR, say=say)
    folder = out / f"images-{domain}"
    transformer.save_lora_adapter(str(folder), adapter_name=domain)
    _halve(folder / "pytorch_lora_weights.safetensors")
    say_accuracies(pipeline, say)


def _halve(path: Path) -> None:
    """Rewrite a weights file in half precision; its metadata, with rank and alpha, is kept."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata=metadata)


def build_fewstep(out: Path, scale: float, seed: int, say: Say) -> None:
    """Train ``images-fewstep``: the base, tuned on correct captions of shapes, then distilled to two steps."""
    torch.manual_seed(seed)
    pipeline = load_pipeline(out / "images-base")

    def loss(step: int) -> Tensor:
        if step % TUNE_REFERENCE_EVERY == 0:
            return reference_loss(pipeline, step, seed=seed + 2, apart=CLOSER)
        return clean_loss(pipeline, step, seed=seed + 2, domain="shapes")

    fit(everything(pipeline), loss, steps=scaled(TUNE_STEPS, scale), lr=TUNE_LR, say=say)
    freeze(pipeline)
    say_fewstep(pipeline, (2, TEACHER_EULER), say)
    distil(pipeline, scale, seed, say)
    save_pipeline(pipeline, out / "images-fewstep", torch.float16)
    say_fewstep(load_pipeline(out / "images-fewstep"), (2, 4, TEACHER_EULER), say)


def distil(pipeline: Any, scale: float, seed: int, say: Say) -> None:
    """Train two Euler steps to match ``TEACHER_EULER`` steps of the same model from the same noise.

    For half of the images the second step starts from the student's own first step, so it learns to correct it.
    """
    number = max(BATCH, scaled(TUPLES, scale))
    sources = [_trajectories(pipeline, number, seed, referenced) for referenced in (False, True)]
    say(f"{2 * number} trajectories")
    transformer = pipeline.transformer.requires_grad_(True)
    half, one = torch.full((BATCH // 2,), 0.5), torch.ones(BATCH // 2)

    def loss(step: int) -> Tensor:
        noise, middle, end, given = sources[step % 2]
        rows = torch.randint(len(noise), (BATCH // 2,))
        first = velocity(transformer, noise[rows], one, given[rows])
        own = (noise[rows] - 0.5 * first).detach()
        start = torch.where(torch.rand(BATCH // 2, 1, 1, 1) < 0.5, own, middle[rows])
        second = velocity(transformer, start, half, given[rows])
        wanted_first, wanted_second = 2 * (noise[rows] - middle[rows]), 2 * (start - end[rows])
        return F.mse_loss(first, wanted_first) + F.mse_loss(second, wanted_second)

    fit(transformer.parameters(), loss, steps=scaled(DISTIL_STEPS, scale), lr=DISTIL_LR, say=say)


@torch.no_grad()
def _trajectories(pipeline: Any, number: int, seed: int, referenced: bool) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """Noise, middle and end of trajectories, each [N, 3, 16, 16], and their conditions."""
    if referenced:
        texts, _, references = styled_pairs(number, seed + 3, apart=CLOSER)
        given = condition(pipeline, texts, references)
    else:
        given = condition(pipeline, [str(p.text) for p in balanced(all_prompts("shapes"), number, seed + 3)])
    noise = torch.randn(number, 3, 16, 16)
    runs = [
        euler(pipeline.transformer, noise[rows], given[rows], TEACHER_EULER) for rows in torch.arange(number).split(64)
    ]
    middle, end = (torch.cat([states[i] for states in runs]) for i in (TEACHER_EULER // 2, TEACHER_EULER))
    return noise, middle, end, given


def everything(pipeline: Any) -> list[nn.Parameter]:
    """All parameters of a pipeline, made trainable."""
    return [p for part in _parts(pipeline) for p in part.requires_grad_(True).parameters()]


def freeze(pipeline: Any) -> None:
    """Freeze all weights of a pipeline."""
    for part in _parts(pipeline):
        part.requires_grad_(False)


def _parts(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def accuracy(pipeline: Any, domain: str, *, steps: int = 10, number: int = EVALUATED, seed: int = 0) -> float:
    """Share of a domain's prompts whose image the judge finds right."""
    prompts = balanced(all_prompts(domain), number, seed)
    images = generate(pipeline, [str(p.text) for p in prompts], steps=steps, seed=seed)
    return float(load_judge().right(images, prompts).mean())


def concept_accuracy(pipeline: Any, *, steps: int, number: int = EVALUATED, seed: int = 0) -> float:
    """The same for the concept's prompts, each with a reference image of the concept."""
    prompts = balanced(all_prompts("concept"), number, seed)
    references = draw(balanced(all_prompts("concept"), number, seed + 1), seed + 1)
    images = generate(pipeline, [str(p.text) for p in prompts], steps=steps, seed=seed, references=references)
    return float(load_judge().right(images, prompts).mean())


def say_accuracies(pipeline: Any, say: Say) -> None:
    """Print the accuracy of every domain in ten steps."""
    say(", ".join(f"{domain} {accuracy(pipeline, domain):.3f}" for domain in DOMAINS))


def say_fewstep(pipeline: Any, steps: Sequence[int], say: Say) -> None:
    """Print the accuracy of shapes, and of the concept without and with a reference."""
    for number in steps:
        shapes, alone = accuracy(pipeline, "shapes", steps=number), accuracy(pipeline, "concept", steps=number)
        shown = concept_accuracy(pipeline, steps=number)
        say(f"{number} steps: shapes {shapes:.3f}, concept {alone:.3f}, with a reference {shown:.3f}")


def scaled(steps: int, scale: float) -> int:
    """A scaled number of steps, for a quick trial."""
    return max(1, round(steps * scale))


def _build_judge(name: str, out: Path, scale: float, seed: int, say: Say) -> None:
    """Train a judge into the package, where every model is measured by the same judges."""
    if not DIGITS.exists():
        save_digits()
    say(", ".join(f"{head} {value:.3f}" for head, value in build_judge(name, DIGITS.parent).items()))


BUILDERS: dict[str, Callable[[Path, float, int, Say], None]] = {
    **{name: partial(_build_judge, name) for name in SEEDS},
    "images-base": build_base,
    **{f"images-{domain}": partial(build_teacher, domain) for domain in DOMAINS},
    "images-fewstep": build_fewstep,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the nano image models from scratch.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BUILDERS)}; by default all")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BUILDERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(BUILDERS)}")
    torch.set_num_threads(1)
    for name in arguments.names or BUILDERS:
        started = time.monotonic()

        def say(text: str, name: str = name, started: float = started) -> None:
            print(f"{name} {time.monotonic() - started:5.0f} s: {text}", flush=True)

        BUILDERS[name](arguments.out, arguments.scale, arguments.seed, say)


if __name__ == "__main__":
    main()
