"""Tokenizers with the turn ends of published chat formats, written from their public descriptions.

Each is a byte-level tokenizer without merges, so that newlines, spaces and capitals are tokens. Most have a turn end
that is not the tokenizer's EOS token, and so two ids at which generation stops.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TWO_TOKENS = (
    "{% for m in messages %}<|turn|>{{ m.role }}<|body|>{{ m.content }}<|done|><|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant<|body|>{% endif %}"
)
NEWLINE_FIRST = (
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)
NO_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAST_IS_OPEN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last or m.role == 'user' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LABELS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT_END = (
    "{% for m in messages %}<turn {{ m.role }}>{{ m.content }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn assistant>{% endif %}"
)

QWEN3 = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}# Tools\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% set content = m.content if m.content is string else '' %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if m.reasoning_content is string %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ content.split('</think>')[-1].lstrip('\n') }}"
    "{% for call in m.tool_calls or [] %}{% set call = call.function or call %}"
    '\n<tool_call>\n{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}"
    "}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n{{ system }}<|eot_id|>{% for m in messages %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{% if m.content is iterable %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'user' and loop.first and tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n"
    "{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_TOOLS = (
    "{{ bos_token }}{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Tool call IDs are nine letters') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}"
    '[TOOL_RESULTS]{"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}"
)
GEMMA_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ARGUMENTS_AS_TEXT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}"
    "{% for call in m.tool_calls %}call {{ call.function.name + '\n' + call.function.arguments }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Format:
    """A published way of writing conversations down."""

    template: str
    special: tuple[str, ...]
    eos: str
    """The tokenizer's EOS token."""
    end: tuple[str, ...]
    """Tokens that end an assistant turn."""
    strips: bool = False
    """Whether special tokens swallow the white space after them."""


FORMATS: dict[str, Format] = {
    "chatml": Format(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", ("<|im_end|>",)),
    "chatml of a base model": Format(
        CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", ("<|im_end|>",)
    ),
    "llama 3": Format(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        ("<|eot_id|>",),
    ),
    "gemma": Format(
        GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", ("<end_of_turn>",)
    ),
    "phi 3": Format(
        PHI3,
        ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>", "<|tool|>"),
        "<|endoftext|>",
        ("<|end|>",),
        strips=True,
    ),
    "mistral": Format(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", ("</s>",)),
    "an end of two tokens": Format(
        TWO_TOKENS, ("<eos>", "<|turn|>", "<|body|>", "<|done|>", "<|over|>"), "<eos>", ("<|done|>", "<|over|>")
    ),
    "a newline before the end": Format(NEWLINE_FIRST, ("<eos>", "<|turn|>", "<|over|>"), "<eos>", ("\n", "<|over|>")),
    "no end": Format(NO_END, ("<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"), "<eos>", ("<eos>",)),
    "the last turn is open": Format(
        LAST_IS_OPEN,
        ("<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"),
        "<eos>",
        ("<|end|>",),
    ),
    "labels alone": Format(LABELS, ("<eos>",), "<eos>", ("<eos>",)),
    "an end in plain text": Format(TEXT_END, ("<eos>",), "<eos>", ("</turn>", "<eos>")),
}

_ROLES = ("<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>")

TOOL_FORMATS: dict[str, Format] = {
    "qwen 3": Format(QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", ("<|im_end|>",)),
    "llama 3.1": Format(
        LLAMA31,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        ("<|eot_id|>",),
    ),
    "mistral with tools": Format(
        MISTRAL_TOOLS,
        ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
        "</s>",
        ("</s>",),
    ),
    "gemma without system": Format(
        GEMMA_WITHOUT_SYSTEM,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        ("<end_of_turn>",),
    ),
    "arguments as text": Format(ARGUMENTS_AS_TEXT, _ROLES, "<eos>", ("<|end|>",)),
    "parts alone": Format(PARTS_ALONE, _ROLES, "<eos>", ("<|end|>",)),
}
"""Templates that differ in roles, tools, and the forms of contents and calls that they render."""


def make_chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and special tokens that writes conversations in one of ``FORMATS`` or ``TOOL_FORMATS``."""
    form = {**FORMATS, **TOOL_FORMATS}[name]
    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, rstrip=form.strips, normalized=False) for token in form.special])
    bos = next((token for token in form.special if token in ("<|begin_of_text|>", "<bos>", "<s>")), None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=form.eos)
    tokenizer.chat_template = form.template
    return tokenizer
