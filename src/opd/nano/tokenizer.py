"""The nano suite's word-level tokenizer: one small vocabulary for all tasks, with a chat template.

Lower case; words, punctuation marks and single digits are tokens. Encoding drops whitespace, decoding puts one space
between tokens. No token spans a space, so the encoding of a text is the concatenation of the encodings of its parts.

One teacher has a byte-level BPE tokenizer as real models do: spaces in front of words, a newline after the role.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

PAD, START, END, UNK = "<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>"

_NAMES = """
    blip frob zed quix narp glim tosk vex drum plon wib zorn kip mub flax grin
    hozz jeb lurt moxy nib ogle pruf quam rask snib trop ulm vorp wex yab zilt
    bram clud dwip erb fonk gax hilk ibbo jask krel lomp mirv norp olk pim quod
    rimp stax tulv umbo vank wuzz xan yort zub crop delk fesk
"""
TOOL_NAMES = tuple(_NAMES.split())
"""Invented words: names of tools and of other things in the tasks."""

HABITS = {"add": ("plus", "sum"), "sub": ("subtract", "minus"), "mul": ("multiply", "times")}
"""Habitual names per operation, which are never the name of a real tool."""

_WORDS = """
    system user assistant tool tools
    add sub mul is call error no such bad arguments answer unknown
    carry question reference solution problem
    find the faulty turns with one line per turn n hint or none transcript result results
    reminder available this not valid hints note use only these listed list right wrong name names must
    from there then
    you are a an and in of to for it that was your by at on as be can do has have if
    here correct previous attempt feedback try again successful example examples worked following
    think step check steps first last next second think working instruction instructions
    document documents context fact facts search query who what where which owns lives likes town color
    string strings reverse sort sorted length join swap drop take copy empty start end
    teacher student experience lesson lessons remember always never before after
    calls argument number numbers digit digits format please give final all given repeat same
    yes true false
"""
_MARKS = ". , : ; ? ! ( ) [ ] { } + - * / = < > ' \" # _ | & %"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}} {{{{ message['content'] }}}}{END}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant {{% endif %}}"
)

BYTE_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)
"""The newline before a turn keeps the turn's first token from merging with the role."""

NUM_MERGES = 20
"""Number of merges; small, so that rare words are several tokens."""


def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: specials, digits, marks, words, letters, invented names."""
    habits = [name for names in HABITS.values() for name in names]
    tokens = [PAD, START, END, UNK, *"0123456789", *_MARKS.split(), *_WORDS.split()]
    return tuple(dict.fromkeys([*tokens, *habits, *_LETTERS, *TOOL_NAMES]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the nano models, with ``<|im_end|>`` as end of sequence."""
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    return _wrapped(backend, CHAT_TEMPLATE)


def train_byte_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ``NUM_MERGES`` merges; the same texts give the same tokenizer.

    Words, marks and single digits include the space in front of them; no token spans two words.
    """
    backend = Tokenizer(BPE(unk_token=None))
    word = pre_tokenizers.Split(Regex(r" ?\p{N}| ?[^\s\p{N}]+"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [word, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    specials = [PAD, START, END, UNK]
    trainer = BpeTrainer(
        vocab_size=256 + len(specials) + NUM_MERGES,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrapped(backend, BYTE_CHAT_TEMPLATE)


def _wrapped(backend: Tokenizer, chat_template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNK,
        additional_special_tokens=[START],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
