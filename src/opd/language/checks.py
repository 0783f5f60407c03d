"""Checks of a loaded language run: what does not fit is refused before the first step, or reported."""

from __future__ import annotations

from collections.abc import Sequence

from opd.axes.needs import named
from opd.config.run import RunConfig
from opd.errors import ConfigError, DataError
from opd.language.context import LanguageContext
from opd.language.lengths import Rendered
from opd.models.chat import Chat
from opd.models.ends import differences
from opd.models.packing import packs
from opd.models.vocabularies import check_readable
from opd.types import Prompt, Task


def check_prompts(config: RunConfig, prompts: Sequence[Prompt], task: Task | None) -> None:
    """Hold what settings need of prompts against the prompts, before any teacher is loaded.

    Raises:
        ConfigError: rewards are needed, and nothing checks the prompts' answers; or a judge ranks single answers.
        DataError: reference answers are needed, and a prompt has none.
    """
    for key, fact in config.all_needs():
        if fact == "rewards" and task is None:
            raise ConfigError(
                f"{named(config, key)} needs rewards, and nothing checks the prompts' answers. Fix: give prompts with "
                "an answer, a task, or prompts.reward"
            )
        for prompt in prompts if fact == "answers" else ():
            if prompt.answer is None and (prompt.turns is None or key == "teacher.view"):
                raise DataError(
                    f"prompts: prompt '{prompt.id}' has no answer, and {named(config, key)} needs one. Fix: add it"
                )
    sources = config.prompts.mix or (config.prompts,)
    rewards = [reward for source in (config.prompts, *sources) for reward in source.reward or ()]
    if any(reward.compare for reward in rewards) and config.rollout.rollouts_per_prompt == 1:
        raise ConfigError(
            "prompts.reward.compare needs several rollouts of each prompt (rollout.rollouts_per_prompt=1). Fix: set "
            "rollout.rollouts_per_prompt to 2 or more"
        )


def check_room(run: LanguageContext, held_out: Rendered) -> None:
    """Check that the student has a row for each token of the prompts, and each reader room for an answer.

    Raises:
        DataError: one does not.
    """
    for rendered in (run.training, held_out):
        check_readable(run.student, rendered.prompts, key=rendered.key)
    _check_lengths(run, held_out)
    _check_view_lengths(run)


def padded(run: LanguageContext) -> list[str]:
    """One sentence for each model whose forward passes are padded, because it cannot read packed sequences."""
    return [
        f"{key}: '{model.source}' does not keep packed sequences apart, so its forward passes are padded, which takes "
        "longer"
        for key, model in ({"student": run.student} | run.others()).items()
        if not model.is_served and not packs(model)
    ]


def other_ends(run: LanguageContext) -> list[str]:
    """A sentence for each teacher that ends turns otherwise than the student."""
    same = run.config.loss.signal.same_tokenizer
    return list(differences(run.student, run.others(), run.config.rollout.stop)) if same else []


def _check_lengths(run: LanguageContext, held_out: Rendered) -> None:
    """Every prompt leaves room for an answer, in every model that reads it."""
    config, signal = run.config, run.config.loss.signal
    for rendered, own in ((run.training, None), (held_out, config.eval.max_new_tokens)):
        setting = "eval.max_new_tokens" if own else "rollout.max_new_tokens"
        budget = own or config.rollout.max_new_tokens
        rendered.check_room(budget, run.student.max_length, setting=setting)
        if config.rollout.engine.elsewhere:
            engine = run.engine(run.student)
            room = getattr(engine, "max_length", None)
            rendered.check_room(budget, room, setting=setting, reader=" for rollout.engine", served=True)
        for key, teacher in run.others().items() if signal.reads_teacher else ():
            read = rendered if signal.same_tokenizer else rendered.by(Chat(teacher.tokenizer))
            reader = f" for {key}"
            read.check_room(budget, teacher.max_length, setting=setting, reader=reader, served=teacher.is_served)


def _check_view_lengths(run: LanguageContext) -> None:
    """Every training prompt as the teacher reads it, if its view is known before any rollout."""
    seen = getattr(run.view(), "seen", None)
    if seen is None:
        return
    view = f"teacher.view={run.config.teacher.view.type}"
    read = Rendered.of([seen(prompt) for prompt in run.prompts], run.chat, key=view)
    room = run.pool.max_length if run.pool else (run.teacher_model or run.student).max_length
    budget = run.config.rollout.max_new_tokens
    read.check_room(budget, room, setting="rollout.max_new_tokens", reader=" as the teacher reads it")
