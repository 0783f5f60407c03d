"""The prompts of a language run: read, made to fit the template, counted, and judged by tasks and rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from opd.axes.base import Objects
from opd.config.run import PromptsConfig, RunConfig
from opd.data.prompts import HELD_OUT, load_prompts
from opd.data.tool_prompts import fit_to_template
from opd.language.lengths import Rendered, note_overlap
from opd.models.chat import Chat
from opd.rewards.build import RewardBuilder
from opd.types import Prompt, Task


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts as the student reads them, and what judges their answers; None if nothing does."""

    training: Rendered
    task: Task | None
    held_out: Rendered
    held_out_task: Task | None
    notes: list[str]
    """What was left out or changed, a sentence each."""


def load_prompts_of(config: RunConfig, objects: Objects, chat: Chat, *, device: str) -> LoadedPrompts:
    """Training and held-out prompts of a run.

    Raises:
        OpdError: they cannot be read, rendered or judged.
    """
    notes: list[str] = []
    rewards = RewardBuilder(device=device, given=objects.reward)
    read = partial(load_prompts, has_template=chat.has_template, note=notes.append)

    def judged(source: PromptsConfig, task: Task | None) -> Task | None:
        return rewards.task(objects.task or task, source.reward, key="prompts.reward")

    def judged_held_out(source: PromptsConfig, task: Task | None) -> Task | None:
        reward = config.prompts.reward if source.reward is None else source.reward
        return rewards.task(objects.task or task, reward, key="eval.prompts.reward", held_out=True)

    prompts, task = read(config.prompts, objects.prompts, key="prompts", judged=judged)
    prompts = fit_to_template(prompts, chat, notes.append)
    training = Rendered.of(prompts, chat, key="prompts").within(config.prompts.max_tokens, notes.append)
    held_out: list[Prompt] = []
    held_out_task = None
    if config.eval.prompts:
        held_out, held_out_task = read(
            config.eval.prompts,
            objects.eval_prompts,
            key="eval.prompts" if objects.eval_prompts is None else "eval_prompts",
            kwargs=config.prompts.chat_template_kwargs,
            splits=HELD_OUT,
            judged=judged_held_out,
        )
        held_out = fit_to_template(held_out, chat, lambda text: None if text in notes else notes.append(text))
    measured = Rendered.of(held_out, chat, key="eval.prompts")
    if config.eval.prompts:
        measured = measured.within(config.eval.prompts.max_tokens, notes.append)
    note_overlap(training, measured, notes.append)
    return LoadedPrompts(training, task, measured, held_out_task, notes)
