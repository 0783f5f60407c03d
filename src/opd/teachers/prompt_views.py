"""Views in which the teacher reads another prompt than the student: with the answer, a context, or feedback."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from opd.errors import ConfigError, DataError
from opd.models.chat import Chat
from opd.teachers.views import whole
from opd.types import Prompt, Rollout, Segment

PRIVILEGED = (
    "{prompt}\n\nA correct solution, for your eyes only:\n{answer}\n\n"
    "Now solve the problem yourself, in your own words and step by step."
)
CONTEXT = "{context}\n\n{prompt}"
FEEDBACK = "{prompt}{solution}{feedback}\n\nNow give a correct answer to the question above."
SOLUTION = "\n\nA correct answer:\n\n{solution}"
ENVIRONMENT = "\n\nWhat came of an earlier attempt that failed:\n\n{feedback}"

SUCCESS = 1.0
"""The reward from which on an attempt is one to learn from."""

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class _PromptView(ABC):
    """The teacher reads another prompt, and then exactly the student's own tokens."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    @abstractmethod
    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """The teacher's prompt for each rollout; None where it has nothing to say."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment for each rollout that the teacher speaks about: its own prompt, and the whole completion."""
        return [
            whole(index, self.chat.prompt_ids(prompt), rollouts[index])
            for index, prompt in enumerate(self.prompts(rollouts))
            if prompt is not None
        ]


class PrivilegedView(_PromptView):
    """The teacher reads the reference answer in its prompt.

    Args:
        chat: renders the teacher's prompt.
        template: takes the place of the last message; has {answer}, and may have {prompt}.

    Raises:
        ConfigError: the template lacks a field or has another one.

    Source: OPSD, arXiv 2601.18734; SDFT, arXiv 2601.19897.
    """

    def __init__(self, chat: Chat, *, template: str = PRIVILEGED) -> None:
        super().__init__(chat)
        self.template = _checked(template, "privileged.template", needs="answer", may="prompt")

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """The prompt with its answer.

        Raises:
            DataError: a prompt has no answer.
        """
        return [self.privileged(rollout.prompt) for rollout in rollouts]

    def privileged(self, prompt: Prompt) -> Prompt:
        """The prompt as the teacher sees it."""
        if prompt.answer is None:
            raise DataError(f"prompt '{prompt.id}' has no answer, and teacher.view=privileged needs one")
        return _rewritten(prompt, self.template, answer=prompt.answer)


class ContextView(_PromptView):
    """The teacher reads a context that the student is to know by heart: a system prompt, a document, experience.

    Args:
        chat: renders the teacher's prompt.
        context: the text. A ``{name}`` in it is filled from ``Prompt.data`` where the prompt has such an entry.
        template: takes the place of the last message; has {context}, and may have {prompt}.
        role: say the context in a message of its own instead, in this chat role: ``system`` comes first (before the
            words of a system message that is there already), any other stands right above the first turn.

    Raises:
        ConfigError: the template lacks a field or has another one.
        DataError: a role, and a prompt that is no chat.

    Source: OPCD, arXiv 2602.12275.
    """

    def __init__(self, chat: Chat, context: str, *, template: str = CONTEXT, role: str | None = None) -> None:
        super().__init__(chat)
        self.context = context
        self.template = _checked(template, "context.template", needs="context", may="prompt")
        self.role = role

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """The prompt in its context."""
        return [self.in_context(rollout.prompt) for rollout in rollouts]

    def in_context(self, prompt: Prompt) -> Prompt:
        """The prompt as the teacher sees it."""
        context = _filled(self.context, prompt.data)
        if self.role is None:
            return _rewritten(prompt, self.template, context=context)
        if prompt.messages is None:
            raise DataError(
                f"teacher.view.context.role={self.role}: prompt '{prompt.id}' is plain text and has no messages; use "
                "template"
            )
        if self.role == "system":
            first, rest = prompt.messages[0], prompt.messages[1:]
            if first["role"] != "system":
                return dataclasses.replace(prompt, messages=({"role": "system", "content": context}, *prompt.messages))
            merged = {**first, "content": f"{context}\n\n{first['content']}"}
            return dataclasses.replace(prompt, messages=(merged, *rest))
        return dataclasses.replace(prompt, messages=(*prompt.messages, {"role": self.role, "content": context}))


class FeedbackView(_PromptView):
    """The teacher reads what came of the attempt: a success of another attempt at the same prompt, or the environment.

    The environment's words are used where no other attempt succeeded. Rollouts with neither carry no signal.

    Args:
        chat: renders the teacher's prompt.
        template: takes the place of the last message, with {prompt}, {solution} and {feedback}.
        solution: the part about another attempt's {solution}; None never shows one.
        environment: the part about the environment's {feedback}; None never shows it.

    Raises:
        ConfigError: a part lacks its field or has another one.

    Source: SDPO, arXiv 2601.20802.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        template: str = FEEDBACK,
        solution: str | None = SOLUTION,
        environment: str | None = ENVIRONMENT,
    ) -> None:
        super().__init__(chat)
        self.template = _checked(template, "feedback.template", needs="prompt", may="solution feedback")
        self.solution = solution and _checked(solution, "feedback.solution", needs="solution")
        self.environment = environment and _checked(environment, "feedback.environment", needs="feedback")

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """The prompt with the first other attempt that succeeded, or with what the environment said."""
        successes: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            if rollout.reward is not None and rollout.reward >= SUCCESS:
                successes.setdefault(rollout.prompt.id, []).append(index)
        return [self._prompt(rollouts, i, successes.get(r.prompt.id, [])) for i, r in enumerate(rollouts)]

    def _prompt(self, rollouts: Sequence[Rollout], index: int, successes: Sequence[int]) -> Prompt | None:
        rollout = rollouts[index]
        others = [i for i in successes if i != index]
        if self.solution and others:
            said = self.solution.format(solution=attempt(rollouts[others[0]]))
            return _rewritten(rollout.prompt, self.template, solution=said, feedback="")
        heard = [m["content"] for m in rollout.transcript if m["role"] != "assistant"]
        if self.environment and heard and index not in successes:
            said = self.environment.format(feedback="\n".join(heard))
            return _rewritten(rollout.prompt, self.template, solution="", feedback=said)
        return None


def attempt(rollout: Rollout) -> str:
    """What the student wrote, without its thoughts; where there were several turns, with who said what."""
    if len(rollout.transcript) == 1:
        return _THOUGHT.sub("", rollout.transcript[0]["content"]).strip()
    lines = (f"{m['role']}: {_THOUGHT.sub('', m['content']).strip()}" for m in rollout.transcript)
    return "\n".join(lines)


def _rewritten(prompt: Prompt, template: str, **fields: str) -> Prompt:
    """A prompt whose last message, or whose text, is the filled template."""
    if prompt.messages is None:
        return dataclasses.replace(prompt, text=template.format(prompt=prompt.text, **fields))
    *before, last = prompt.messages
    content = template.format(prompt=last["content"], **fields)
    return dataclasses.replace(prompt, messages=(*before, {**last, "content": content}))


def _filled(text: str, data: Mapping[str, object]) -> str:
    """``{name}`` replaced by the prompt's entry of that name; any other brace stays, as documents are full of them."""
    return re.sub(r"\{(\w+)\}", lambda m: str(data[m[1]]) if m[1] in data else m[0], text)


def _checked(template: str, key: str, *, needs: str, may: str = "") -> str:
    known = [needs, *may.split()]
    try:
        filled = template.format(**{name: "\0" if name == needs else "" for name in known})
    except (KeyError, IndexError, ValueError) as error:
        listed = " nor ".join(f"{{{name}}}" for name in known)
        raise ConfigError(f"teacher.view.{key}: {template!r} has a field that is neither {listed} ({error})") from None
    if "\0" not in filled:
        raise ConfigError(f"teacher.view.{key}: {template!r} lacks {{{needs}}}")
    return template
