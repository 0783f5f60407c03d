"""The data of a denoising run's page, read from its folder, whether finished, stopped, killed or running. No torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from opd.config.diffusion import DISTANCES
from opd.report.block import bounded, data_block
from opd.report.data import BUDGET, MOST_VALUES, about_run
from opd.report.files import STATES, read_json, read_lines, read_metrics
from opd.report.overview import scaled
from opd.report.rows import is_states
from opd.report.samples import SAMPLES, SHOWN, TEACHER, Samples
from opd.report.signs import signs

Tree = dict[str, Any]

FAMILY = "diffusion"

STAGES = ((256, "PNG"), (256, "JPEG"), (160, "JPEG"), (96, "JPEG"))
"""Largest width and format of the page's images; the first pair within the budget is used."""


def is_denoising(folder: Path) -> bool:
    """Whether a folder holds a run of a denoising model."""
    return (read_json(folder / "run.json") or {}).get("family") == FAMILY


def denoising_data(folder: Path, *, budget: int = BUDGET) -> Tree:
    """The page's data of one run, ready for JSON.

    Args:
        folder: of the run.
        budget: most characters of its images.

    Raises:
        DataError: the folder holds no run, or images that cannot be read.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    about = about_run(folder, lines)
    samples, left_out = _samples(Samples(folder / SAMPLES), budget)
    return {
        **about,
        "family": FAMILY,
        "signs": signs(about["config"], lines, []),
        "facts": list(facts(about["config"])),
        "distance": _distance(about["config"]),
        "samples": samples,
        "states": _states(folder / STATES),
        "rollouts": [],
        "left_out": left_out,
    }


def facts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The run's settings in words: name and value."""
    part = {key: config.get(key) or {} for key in ("lora", "teacher", "loss", "rollout", "optimizer", "eval")}
    teacher, loss, rollout, optimizer = part["teacher"], part["loss"], part["rollout"], part["optimizer"]
    rank = f", by LoRA of rank {part['lora'].get('rank')}" if part["lora"] else ", all of its weights"
    yield "student", f"{config.get('student')}{rank}"
    if _type(loss.get("signal")) == "prediction":
        yield "teacher", teacher_words(teacher)
    yield "trained on", _source_words(rollout.get("source"))
    yield "loss", ", ".join(_loss(loss))
    yield "sampler", ", ".join(_sampler(rollout, teacher))
    samples = rollout.get("rollouts_per_prompt", 1)
    prompts = f"{rollout.get('prompts_per_step')} prompts"
    batch = prompts + (f", {samples} trajectories of each" if samples != 1 else "")
    yield "a step", f"{batch}; learning rate {optimizer.get('lr'):g}" if optimizer.get("lr") else batch
    measured = part["eval"]
    if measured.get("prompts"):
        steps = measured.get("steps") or rollout.get("steps")
        yield "measured", f"every {measured.get('every')} steps, in {steps} denoising steps without noise"


def _type(value: Any) -> str:
    """The name of an axis value."""
    return str(value.get("type")) if isinstance(value, Mapping) else str(value)


def teacher_words(teacher: Mapping[str, Any]) -> str:
    """The teacher: its weights or models, its view and its guidance."""
    named = teacher.get("models") or {}
    several = "; ".join(f"{name}: {expert.get('model')}" for name, expert in named.items())
    own = {
        "frozen": "the student's own initial weights",
        "ema": "a running average of the student",
        "live": "the student's current weights",
    }
    name = several or teacher.get("model") or own.get(_type(teacher.get("weights")), "")
    guided = f", with guidance {teacher['guidance']:g}" if teacher.get("guidance", 1) != 1 else ""
    return str(name) + (", which sees the prompt's image" if _type(teacher.get("view")) == "image" else "") + guided


def _source_words(source: Any) -> str:
    """The states that are trained on."""
    of_teacher = isinstance(source, Mapping) and source.get("of") == "teacher"
    images = "teacher's" if of_teacher else "prompts'"
    known = {
        "student": "every state of the student's own denoising",
        "teacher": "every state of the teacher's denoising",
        "images": f"{images} images, noised",
    }
    return known.get(_type(source), "every state")


def _distance(config: Mapping[str, Any]) -> str:
    divergence = str((config.get("loss") or {}).get("divergence", ""))
    return DISTANCES.get(divergence, divergence.replace("_", " "))


def _loss(loss: Mapping[str, Any]) -> Iterator[str]:
    """The terms of the loss."""
    if _type(loss.get("signal")) == "reward":
        yield "the policy gradient of rewards alone (Flow-GRPO)"
    else:
        yield _distance({"loss": loss})
    for key, words in (
        ("anchor", "{:g} times the distance to the initial weights"),
        ("reward", "{:g} times the policy gradient of rewards"),
        ("reward_gradient", "{:g} times the reward's own gradient"),
    ):
        term = loss.get(key)
        weight = term.get("weight") if isinstance(term, Mapping) else term
        if weight:
            yield words.format(weight)
    if loss.get("step_weights"):
        yield f"states weighted {', '.join(f'{w:g}' for w in loss['step_weights'])}"


def _sampler(rollout: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[str]:
    """The student's sampler in training."""
    yield f"{rollout.get('steps')} steps"
    sigmas = rollout.get("sigmas", "even")
    known = {"even": "evenly spaced noise levels", "scheduler": "the scheduler's own noise levels"}
    yield known.get(sigmas, str(sigmas)) if isinstance(sigmas, str) else "noise levels of the run file"
    yield "new noise after each" if rollout.get("renoise") else f"noise {rollout.get('noise', 0):g}"
    guidance = rollout.get("guidance", 1)
    yield f"guidance {guidance:g}" if guidance != 1 else "no guidance"


def _states(path: Path) -> list[Tree]:
    """The lines of ``states.jsonl``; of two lines of one step, the later; of very many, every second, or fewer."""
    lines = list({line["step"]: line for line in read_lines(path) if is_states(line)}.values())
    values = sum(len(column) for line in lines for column in line["loss"].values())
    return lines[-1 :: -(ceil(values / MOST_VALUES) or 1)][::-1]


@dataclass(frozen=True)
class _Strips:
    """All strips of a run as PIL images."""

    drawn: dict[int, list[Any]]
    teacher: list[Any]
    shown: list[Any]

    def without_every_other(self) -> _Strips:
        """The same strips without every second one between the first and the last."""
        gone = set(list(self.drawn)[1:-1:2])
        return _Strips({s: strip for s, strip in self.drawn.items() if s not in gone}, self.teacher, self.shown)

    def first(self, number: int) -> _Strips:
        """The images of the first prompts alone."""
        drawn = {step: strip[:number] for step, strip in self.drawn.items()}
        return _Strips(drawn, self.teacher[:number], self.shown[:number])

    def embedded(self, width: int, kind: str) -> Tree:
        return {
            "steps": [{"step": s, "images": _sources(strip, width, kind)} for s, strip in self.drawn.items()],
            "teacher": _sources(self.teacher, width, kind),
            "shown": _sources(self.shown, width, kind),
        }


def _samples(samples: Samples, budget: int) -> tuple[Tree, str]:
    """The images to embed, and in words what was left out to keep the file small."""
    columns: Tree = {"prompts": bounded(samples.prompts), "references": bounded(samples.shown)}
    drawn = {step: _fitted(samples.images(step)) for step in samples.steps}
    strips, left_out = _Strips(drawn, _fitted(samples.images(TEACHER)), _fitted(samples.images(SHOWN))), ""
    for width, kind in STAGES:
        shown = strips.embedded(width, kind)
        if _size(shown) <= budget:
            return columns | shown, left_out
    while _size(shown) > budget and len(strips.drawn) > 2:
        strips, left_out = strips.without_every_other(), "evaluations in between"
        shown = strips.embedded(*STAGES[-1])
    while _size(shown) + _texts(columns) > budget and (number := max(map(len, columns.values())) // 2):
        strips, left_out = strips.first(number), "evaluations in between and some prompts"
        columns, shown = {key: of[:number] for key, of in columns.items()}, strips.embedded(*STAGES[-1])
    return columns | shown, left_out


def _texts(columns: Tree) -> int:
    return len(data_block(columns).encode())


def _fitted(strip: list[Any]) -> list[Any]:
    """The images at the largest width that a page shows."""
    return [_at_most(image, STAGES[0][0]) for image in strip]


def _at_most(image: Any, width: int) -> Any:
    if image.width <= width:
        return image
    return scaled(image, (width, max(round(image.height * width / image.width), 1)))


def _size(tree: Tree) -> int:
    rows = [row["images"] for row in tree["steps"]] + [tree["teacher"], tree["shown"]]
    return sum(len(source) for row in rows for source in row)


def _sources(strip: list[Any], width: int, kind: str) -> list[str]:
    return [_source(image, width, kind) for image in strip]


def _source(image: Any, width: int, kind: str) -> str:
    """An image as a ``data:`` address."""
    buffer = io.BytesIO()
    _at_most(image, width).save(buffer, format=kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
