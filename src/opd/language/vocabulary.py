"""The vocabulary that a run's models share."""

from __future__ import annotations

from dataclasses import replace

from opd.language.context import LanguageContext
from opd.language.lengths import Rendered
from opd.models.vocabularies import Shared, check_prompts, note_of, shared_rows, within


def share_vocabulary(run: LanguageContext, held_out: Rendered) -> LanguageContext:
    """The run with its models' vocabularies cut to the ids that all of them share, if a teacher reads the same ids.

    Raises:
        OpdError: the vocabularies differ by more than added tokens, or a prompt has a token that a teacher lacks.
    """
    if not run.config.loss.signal.same_tokenizer:
        return run
    found: list[Shared] = []
    for key, teacher in run.others().items():
        found.append(shared_rows(run.student, teacher, key=key))
        if note := note_of(key, found[-1]):
            run.notes.append(note)
    differing = [one for one in found if one.ours or one.theirs]
    if not differing:
        return run
    shared = min(differing, key=lambda one: one.rows)
    if run.student.rows > shared.rows:
        for rendered in (run.training, held_out):
            check_prompts(rendered.prompts, run.chat, shared, key=rendered.key)
    if run.pool:
        run.pool.cut(shared)
    return replace(
        run,
        student=within(run.student, shared),
        base=run.base and within(run.base, shared),
        teacher_model=run.teacher_model and within(run.teacher_model, shared),
    )
