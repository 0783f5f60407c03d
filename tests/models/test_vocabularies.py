"""Students and teachers with added tokens of their own: shared ids are compared and sampled, the rest never."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.axes.base import Objects
from opd.config.read import read
from opd.config.run import RunConfig
from opd.errors import DataError, ModelError
from opd.language.context import LanguageContext
from opd.language.load import load_run
from opd.models.forward import states_of
from opd.models.language import LanguageModel
from opd.models.vocabularies import Shared, shared_vocabulary
from opd.types import Segment
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run
from support.tokenizers import make_byte_tokenizer, make_tokenizer

KNOWN = 31
"""Tokens of the test tokenizer."""

PAIRS: list[tuple[Sequence[str], Sequence[str]]] = [((), ("<t>",)), (("<s1>",), ()), (("<s1>", "<s2>"), ("<t>",))]
"""Added tokens of a student and of its teacher."""


def widened(added: Sequence[str], seed: int = 0, *, eos: str | None = None, template: str = "") -> LanguageModel:
    """A model with further tokens, whose padded head likes them best."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(added), special_tokens=True)
    tokenizer.eos_token = eos or tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", eos or "</s>") + template
    model = make_model(seed, tokenizer=tokenizer, vocab=64, tied=False)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[KNOWN:] *= 20
    return model


def loaded(student: LanguageModel, teacher: LanguageModel, prompts: Any = PROMPTS, **changes: Any) -> LanguageContext:
    """The context of a run of both."""
    config = read(merged(small_run(Path("unused")), changes))
    assert isinstance(config, RunConfig)
    return load_run(config, Objects(student=student, teacher=teacher, prompts=prompts))


def test_only_added_tokens_may_differ() -> None:
    ours, theirs = make_tokenizer(), make_tokenizer()
    assert shared_vocabulary(ours, theirs, key="k") == Shared(KNOWN)
    ours.add_tokens(["<own>"])
    theirs.add_tokens(["<think>", "</think>"])
    assert shared_vocabulary(ours, theirs, key="k") == Shared(KNOWN, ("<own>",), ("<think>", "</think>"))
    with pytest.raises(ModelError, match=r"k: the teacher's vocabulary is not the student's \(258 and 32 tokens"):
        shared_vocabulary(ours, make_byte_tokenizer(["a"], 0), key="k")


@pytest.mark.parametrize("added", PAIRS)
def test_neither_samples_nor_reads_a_token_that_the_other_lacks(added: tuple[Sequence[str], Sequence[str]]) -> None:
    run = loaded(widened(added[0], 0), widened(added[1], 1))
    assert run.teacher_model
    assert run.student.rows == run.teacher_model.rows == KNOWN
    assert any("31 shared tokens are compared and sampled, without" in note for note in run.notes)
    for sampler in (run.sampler(), run.sampler(model=run.teacher_model)):
        assert max(i for r in sampler.rollout(run.prompts, 0) for i in r.completion_ids) < KNOWN


@pytest.mark.parametrize("added", PAIRS)
@pytest.mark.parametrize("signal", ["full", {"type": "top_k", "k": 4}, "sampled"])
@pytest.mark.slow
def test_training_equals_that_of_a_pair_without_the_added_tokens(
    tmp_path: Path, added: tuple[Sequence[str], Sequence[str]], signal: Any
) -> None:
    tree = small_run(tmp_path / "a", loss={"signal": signal}, optimizer={"lr": 1e-2, "steps": 2})
    ends = []
    for out, (ours, theirs) in {"a": added, "b": ((), ())}.items():
        student = widened(ours, 0)
        opd.train({**tree, "out": str(tmp_path / out)}, student=student, teacher=widened(theirs, 1), prompts=PROMPTS)
        ends.append(student.model.get_input_embeddings().weight.detach().clone())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_several_teachers_are_cut_to_what_all_share(tmp_path: Path) -> None:
    for name, added in {"x": ("<t>",), "y": ()}.items():
        widened(added, 1).save(tmp_path / name)
    teachers = {name: {"model": str(tmp_path / name), "domains": [name]} for name in "xy"}
    prompts = [{**prompt, "domain": "xy"[n % 2]} for n, prompt in enumerate(PROMPTS)]
    tree = small_run(tmp_path / "out", teacher={"models": teachers})
    tree["optimizer"]["steps"] = 1
    result = opd.train(tree, student=widened(("<s>1",), 0), prompts=prompts)
    assert result.steps == 1


def test_prompts_and_ends_of_tokens_that_the_teacher_lacks_are_refused() -> None:
    plain = widened((), 1)
    with pytest.raises(ModelError, match=r"teacher.model: the student ends its turns with '<end>', and the teacher"):
        loaded(widened(("<end>",), eos="<end>"), plain)
    student = widened(("<s1>",))
    prompts = [*PROMPTS, {"id": "odd", "prompt": "a <s1> b"}]
    with pytest.raises(DataError, match=r"prompts: prompt 'odd' has the token '<s1>', which the teacher does not have"):
        loaded(student, plain, prompts)
    with pytest.raises(DataError, match="has the token '<s1>'"):
        loaded(widened(("<s1>",), template="<s1>"), plain)


def test_contexts_of_tokens_that_the_teacher_lacks_have_no_target() -> None:
    run = loaded(widened(("<s1>",)), widened((), 1))
    assert run.teacher_model
    rollouts = run.first_rollouts(2)
    known, odd = run.plain_segments(rollouts)
    odd = Segment(odd.rollout, (*odd.context_ids, KNOWN), odd.span)
    with pytest.warns(UserWarning, match="have tokens that 'tiny-1' does not share with the student"):
        where, _ = states_of(run.teacher_model, rollouts, [known, odd], max_tokens=1000)
    assert set(where.rollout_T.tolist()) == {0}
