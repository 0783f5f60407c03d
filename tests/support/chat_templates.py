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


def make_chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and special tokens that writes conversations in one of ``FORMATS``."""
    form = FORMATS[name]
    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, rstrip=form.strips, normalized=False) for token in form.special])
    bos = next((token for token in form.special if token in ("<|begin_of_text|>", "<bos>", "<s>")), None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=form.eos)
    tokenizer.chat_template = form.template
    return tokenizer
