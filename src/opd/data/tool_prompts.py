"""How prompts with tools read in a model's own chat template, and in one that knows no tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opd.errors import ModelError
from opd.models.messages import content_text
from opd.types import Message, Prompt

if TYPE_CHECKING:
    from opd.models.chat import Chat

DESCRIPTION = """You can call these tools, one JSON schema a line:
{tools}

To call a tool, write one line for each call:
<tool_call>{{"name": "NAME", "arguments": {{"ARGUMENT": VALUE}}}}</tool_call>
The results follow in the next message."""
"""What a system message says where the template shows no tools."""

_RESULT = "RESULT"


def fit_to_template(prompts: Sequence[Prompt], chat: Chat, note: Callable[[str], None]) -> list[Prompt]:
    """Prompts with those of ``ToolTask`` as the student's template can show them.

    A template without tools gets them in the system message, or in the first message if it takes no system message. A
    template without the role ``tool`` gets results as messages of the user.

    Args:
        note: reports which of these it is.

    Raises:
        ModelError: the template takes results in no role, or the tokenizer cannot write them.
    """
    first = next((prompt for prompt in prompts if "tool_schemas" in prompt.data), None)
    if first is None:
        return list(prompts)
    shown = chat.prompt_text(first) != chat.prompt_text(replace(first, tools=None))
    system = not shown and _shows(chat, [{"role": "system", "content": _RESULT}, {"role": "user", "content": "a"}])
    role = next((role for role in ("tool", "user") if _takes(chat, role)), None)
    if role is None and _RESULT not in chat.decode(chat.tokenizer(_RESULT, add_special_tokens=False)["input_ids"]):
        raise ModelError(
            f"prompts.tools: the student's tokenizer has no tokens for texts such as {_RESULT!r}, as those of the "
            "bundled models. Fix: take another model"
        )
    if role is None:
        raise ModelError(
            "prompts.tools: the chat template takes results of tools neither in the role tool nor user. Fix: take "
            "another model, or set tokenizer.chat_template"
        )
    where = "by the chat template" if shown else f"in the {'system' if system else 'first'} message"
    note(f"tools are described {where}, and their results have the role {role}")
    return [_fitted(p, role, shown=shown, system=system) if "tool_schemas" in p.data else p for p in prompts]


def _fitted(prompt: Prompt, role: str, *, shown: bool, system: bool) -> Prompt:
    prompt = replace(prompt, data={**prompt.data, "result_role": role})
    return prompt if shown else described(prompt, system=system)


def described(prompt: Prompt, *, system: bool) -> Prompt:
    """A prompt whose messages describe its tools."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in prompt.tools or ())
    text = DESCRIPTION.format(tools=listed)
    first, *rest = prompt.messages or ()
    if system and first["role"] != "system":
        return replace(prompt, messages=({"role": "system", "content": text}, first, *rest), tools=None)
    said = content_text(first)
    merged = f"{said}\n\n{text}" if first["role"] == "system" else f"{text}\n\n{said}"
    return replace(prompt, messages=({**first, "content": merged}, *rest), tools=None)


def _shows(chat: Chat, messages: Sequence[Message]) -> bool:
    """Whether a template takes these messages and shows the marked one."""
    try:
        return _RESULT in chat.prompt_text(Prompt(id="x", messages=tuple(messages)))
    except ModelError:
        return False


def _takes(chat: Chat, role: str) -> bool:
    """Whether a result may follow an assistant turn in a role."""
    message = {"role": role, "content": _RESULT, "tool_call_id": "call00000", "name": "f"}
    try:
        return _RESULT in chat.decode(chat.message_ids(message, ()), skip_special_tokens=False)
    except ModelError:
        return False
