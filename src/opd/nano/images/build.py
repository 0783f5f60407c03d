"""Train the image models from nothing: ``python -m opd.nano.images.build [NAME ...] [--scale 0.01]``.

    judge, reward       who decides what images show (``build_judge``)
    images-base       draws all three domains well, and follows its prompt less than half of the time
    images-shapes, images-count, images-digits
                        the base's teachers: LoRA adapters, each sure of its own domain
    images-fewstep    shapes in two steps; copies the style of a reference image when it sees one

In this order; a name needs those above it. One thread; the same seed gives the same weights on the same machine.
Nobody teaches a teacher by reward: what the base lacks is captions that are right, and teachers get them.
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
"""Share of captions drawn anew, without a look at the image, in the base's second phase."""
EMPTY = 0.1
"""Share of captions left empty."""
HONEST_STEPS, HONEST_LR = 1500, 2e-3
"""The base's first phase, in which every caption is right: with wrong ones from the start it draws blobs."""
WRONG_STEPS, WRONG_LR = 150, 5e-4
REFERENCE_EVERY = 6
"""One step in so many of the base's is of references."""
TEACHER_STEPS, TEACHER_LR = {"shapes": 150, "count": 200, "digits": 500}, 2e-3
RANK, ALPHA = 16, 32
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
TUNE_STEPS, TUNE_LR = 1000, 1e-3
TUNE_REFERENCE_EVERY = 2
CLOSER = 0.25
"""How near a style may come to the concept's in this phase: around a wider gap the model draws something else."""
TUPLES = 1024
"""Trajectories of the many-step model, of text alone and of text with a reference each."""
TEACHER_EULER = 16
DISTIL_STEPS, DISTIL_LR = 500, 8e-4
EVALUATED = 192
"""Prompts behind every accuracy printed."""

Say = Callable[[str], None]


def pretraining_loss(pipeline: Any, step: int, *, seed: int, wrong: float) -> Tensor:
    """Flow matching on images of every domain whose captions are wrong or empty at these rates."""
    rng = random.Random(seed * 1_000_003 + step)
    known = {domain: all_prompts(domain) for domain in DOMAINS}
    names = rng.choices(DOMAINS, k=BATCH)
    shown = [rng.choice(known[name]) for name in names]
    told = [rng.choice(known[p.domain]) if rng.random() < wrong else p for p in shown]
    texts = ["" if rng.random() < EMPTY else str(p.text) for p in told]
    return flow_loss(pipeline.transformer, draw(shown, rng.getrandbits(32)), condition(pipeline, texts))


def clean_loss(pipeline: Any, step: int, *, seed: int, domain: str) -> Tensor:
    """Flow matching on one domain with the captions that belong to its images."""
    rng = random.Random(seed * 1_000_003 + step)
    shown = rng.choices(all_prompts(domain), k=BATCH)
    texts = [str(p.text) for p in shown]
    return flow_loss(pipeline.transformer, draw(shown, rng.getrandbits(32)), condition(pipeline, texts))


def reference_loss(pipeline: Any, step: int, *, seed: int, apart: float = HELD_OUT) -> Tensor:
    """Flow matching on styles of two tones, each told by the concept's word and shown by another image."""
    texts, images, references = styled_pairs(BATCH, seed * 1_000_003 + step, apart=apart)
    return flow_loss(pipeline.transformer, images, condition(pipeline, texts, references))


def styled_pairs(number: int, seed: int, *, apart: float = HELD_OUT) -> tuple[list[str], Tensor, Tensor]:
    """Texts, images and references, the last two [B, 3, 16, 16]; every pair in a style of its own.

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
    """``images-base``: the transformer and all encoders together."""
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
    """``images-DOMAIN``: a LoRA adapter on the base's transformer, everything else frozen."""
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
    """Rewrite a file of weights in half precision, its metadata kept: there stand rank and alpha."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata=metadata)


def build_fewstep(out: Path, scale: float, seed: int, say: Say) -> None:
    """``images-fewstep``: the base told the truth about shapes, then pressed into two steps."""
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
    """Regress two Euler steps on the same model's ``TEACHER_EULER``, from the same noise.

    The second step starts from the student's own middle in half of the images, so that it learns to mend the first.
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
    """Noise, middle and end, each [N, 3, 16, 16], and what they were drawn for."""
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
    """All weights of a pipeline."""
    return [p for part in _parts(pipeline) for p in part.requires_grad_(True).parameters()]


def freeze(pipeline: Any) -> None:
    """No weight of a pipeline learns."""
    for part in _parts(pipeline):
        part.requires_grad_(False)


def _parts(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def accuracy(pipeline: Any, domain: str, *, steps: int = 10, number: int = EVALUATED, seed: int = 0) -> float:
    """Share of a domain's prompts that the judge finds fulfilled."""
    prompts = balanced(all_prompts(domain), number, seed)
    images = generate(pipeline, [str(p.text) for p in prompts], steps=steps, seed=seed)
    return float(load_judge().right(images, prompts).mean())


def concept_accuracy(pipeline: Any, *, steps: int, number: int = EVALUATED, seed: int = 0) -> float:
    """The same for the concept's prompts, each with a image of the concept as its reference."""
    prompts = balanced(all_prompts("concept"), number, seed)
    references = draw(balanced(all_prompts("concept"), number, seed + 1), seed + 1)
    images = generate(pipeline, [str(p.text) for p in prompts], steps=steps, seed=seed, references=references)
    return float(load_judge().right(images, prompts).mean())


def say_accuracies(pipeline: Any, say: Say) -> None:
    """Every domain, in ten steps."""
    say(", ".join(f"{domain} {accuracy(pipeline, domain):.3f}" for domain in DOMAINS))


def say_fewstep(pipeline: Any, steps: Sequence[int], say: Say) -> None:
    """Shapes, and the concept without and with a reference."""
    for number in steps:
        shapes, alone = accuracy(pipeline, "shapes", steps=number), accuracy(pipeline, "concept", steps=number)
        shown = concept_accuracy(pipeline, steps=number)
        say(f"{number} steps: shapes {shapes:.3f}, concept {alone:.3f}, with a reference {shown:.3f}")


def scaled(steps: int, scale: float) -> int:
    """A number of steps for a quick look."""
    return max(1, round(steps * scale))


def _build_judge(name: str, out: Path, scale: float, seed: int, say: Say) -> None:
    """The judges live in the package: every model is measured by the same ones."""
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
    parser = argparse.ArgumentParser(description="Train the nano image models from nothing.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BUILDERS)}; all without")
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
