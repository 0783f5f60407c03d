"""Templates: a trajectory built from ids equals the template's own rendering of the whole conversation."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from opd.errors import ModelError
from opd.models.chat import Chat
from opd.types import Prompt
from support.tokenizers import SHARED_DATA, make_tokenizer

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def real(name: str, template: str | None = None) -> Chat:
    folder = SHARED_DATA / name
    if not folder.exists():
        pytest.skip("needs the shared data beside the checkout")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template:
        tokenizer.chat_template = template
        tokenizer.eos_token = "<|im_end|>"
    return Chat(tokenizer)


def chats() -> list[str]:
    return ["made here", "minimind-tokenizer", "qwen-tokenizer"]


def chat_of(name: str) -> Chat:
    if name == "made here":
        return Chat(make_tokenizer())
    return real(name, QWEN_TEMPLATE if name == "qwen-tokenizer" else None)


@pytest.mark.parametrize("name", chats())
def test_prompt_turns_and_insertions_add_up_to_the_templates_own_rendering(name: str) -> None:
    chat = chat_of(name)
    system, user = {"role": "system", "content": "a b"}, {"role": "user", "content": "c d e"}
    tool, more = {"role": "user", "content": "f g"}, {"role": "user", "content": "h"}
    end = (chat.tokenizer.eos_token_id,)
    ids = chat.prompt_ids(Prompt(id="x", messages=(system, user)))
    ids += chat.insert_text_ids("i j") + end + chat.message_ids(tool)
    ids += chat.insert_text_ids("k") + end + chat.message_ids(more)
    turns = [{"role": "assistant", "content": "i j"}, {"role": "assistant", "content": "k"}]
    conversation = [system, user, turns[0], tool, turns[1], more]
    text = chat.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert chat.decode(ids, skip_special_tokens=False) == chat.decode(
        chat.insert_text_ids(text), skip_special_tokens=False
    )
    assert ids == chat.insert_text_ids(text)


@pytest.mark.parametrize("name", chats())
def test_a_hint_stands_between_the_history_and_the_turn(name: str) -> None:
    chat = chat_of(name)
    user, hint = {"role": "user", "content": "c d e"}, {"role": "user", "content": "h i"}
    history = chat.prompt_ids(Prompt(id="x", messages=(user,)))
    text = chat.tokenizer.apply_chat_template([user, hint], tokenize=False, add_generation_prompt=True)
    assert chat.above_turn(history, hint) == chat.insert_text_ids(text)
    deeper = history + chat.insert_text_ids("i") + (chat.tokenizer.eos_token_id,) + chat.message_ids(user)
    hinted = chat.above_turn(deeper, hint)
    assert hinted[: len(deeper) - len(chat.generation_ids)] == deeper[: -len(chat.generation_ids)]
    assert hinted[-len(chat.generation_ids) :] == chat.generation_ids


def test_a_history_that_ends_elsewhere_is_refused() -> None:
    with pytest.raises(ModelError, match="does not end in the chat template's generation prompt"):
        Chat(make_tokenizer()).above_turn((5, 6), {"role": "user", "content": "a"})


def test_plain_text_keeps_its_own_special_tokens_and_hints_are_plain_tokens() -> None:
    chat = real("stories260k")
    ids = chat.prompt_ids(Prompt(id="x", text="Once upon a time"))
    assert ids == tuple(chat.tokenizer("Once upon a time")["input_ids"])
    assert ids[0] == chat.tokenizer.bos_token_id
    hinted = chat.above_turn(ids, {"role": "user", "content": " there was"})
    assert hinted == ids + chat.insert_text_ids(" there was")


def test_messages_without_a_template_are_refused_with_the_mend() -> None:
    with pytest.raises(ModelError, match="has no chat template.*plain 'prompt' strings"):
        Chat(make_tokenizer(template=False)).prompt_ids(Prompt(id="x", messages=({"role": "user", "content": "a"},)))


def test_a_role_the_template_refuses_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"roles user, assistant, tool .*no tools.*teacher.view.hint.role"):
        Chat(tokenizer).message_ids({"role": "tool", "content": "a"})


def test_the_bundled_tokenizer(tmp_path: Path) -> None:
    from opd.nano.tokenizer import build_tokenizer

    chat = Chat(build_tokenizer())
    ids = chat.prompt_ids(Prompt(id="x", messages=({"role": "user", "content": "12 + 3"},)))
    assert chat.tokenizer.unk_token_id not in ids
    assert ids[-len(chat.generation_ids) :] == chat.generation_ids
