"""The rollouts that the report shows."""

from __future__ import annotations

from opd.language.context import LanguageContext
from opd.report.preview import Preview, spaced_prompts


def preview(run: LanguageContext) -> Preview:
    """A few held-out prompts, or training prompts if there are none."""
    config = run.config
    assert config.report
    signal, view = config.loss.signal, config.teacher.view
    compares = view.compares or config.loss.reward or signal.role == "reward"
    repeats = run.config.rollout.rollouts_per_prompt if compares else 1
    chosen = spaced_prompts(run.held_out or run.prompts, config.report.prompts)
    once = config.rollout.source.first_prompts is not None
    return Preview(
        prompts=[p for p in chosen for _ in range(repeats)],
        sampler=run.sampler(run.sampling, held_out=bool(run.held_out), all_turns=True),
        repeats=repeats,
        scores=signal.reads_any_time and not view.sends_requests and not once,
        number=config.report.prompts,
        foreign=run.scoring.tokenizer if not signal.same_tokenizer else None,
        layers=signal.layers(run),
    )
