"""Where two tokenizers agree, with real tokenizers made on the spot: byte-level, word-level, Llama's, single bytes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from opd.teachers.alignment import BROKEN, TokenTexts, groups, match
from support.tokenizers import make_byte_tokenizer, make_tokenizer

TEXTS = ["the cat sat on the mat, then the cat ran", "naïve café 日本語 🙂🙂 the end", "a = b + c\n    return a\n"] * 4


def llama_like(num_merges: int) -> PreTrainedTokenizerFast:
    """Spaces in front of words, as ▁, one in front of every text, and bytes for what is not in the vocabulary."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = BpeTrainer(vocab_size=300 + num_merges, special_tokens=specials, limit_alphabet=30, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    state = backend.to_str().replace('"special":true', '"special":false')
    backend = Tokenizer.from_str(state)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "bytes": make_byte_tokenizer(TEXTS, 0),
    "byte pairs": make_byte_tokenizer(TEXTS, 40),
    "across words": make_byte_tokenizer(TEXTS, 60, across_words=True),
    "llama": llama_like(30),
}


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def visible(text: str) -> str:
    return "".join(text.split())


def texts_of(ours: str, theirs: str, text: str) -> list[tuple[str, str]]:
    """Each group's text as either side decodes it."""
    sides = [TOKENIZERS[ours], TOKENIZERS[theirs]]
    ids = [encode(t, text) for t in sides]
    found = groups(*(list(TokenTexts(t).pieces(i)) for t, i in zip(sides, ids, strict=True)))
    decoded = [
        [TokenTexts(t).decode(i[slice(*g[side])]) for g in found]
        for side, (t, i) in enumerate(zip(sides, ids, strict=True))
    ]
    return list(zip(*decoded, strict=True))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("text", TEXTS[:3])
def test_pieces_are_whole_characters_and_make_up_the_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = encode(tokenizer, text)
    found = list(TokenTexts(tokenizer).pieces(ids))
    assert "".join(p.text for p in found) == text
    assert [p.span.start for p in found] == [0, *(p.span.stop for p in found[:-1])]
    assert found[-1].span.stop == len(ids)
    assert all(BROKEN not in p.text for p in found)


@pytest.mark.parametrize("ours", sorted(TOKENIZERS))
@pytest.mark.parametrize("theirs", sorted(TOKENIZERS))
@pytest.mark.parametrize("text", TEXTS[:3])
def test_groups_have_the_same_text_and_lose_none(ours: str, theirs: str, text: str) -> None:
    found = texts_of(ours, theirs, text)
    assert "".join(visible(a) for a, _ in found) == visible(text)
    assert all(visible(a) == visible(b) for a, b in found)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_a_tokenizer_agrees_with_itself_character_by_character(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = encode(tokenizer, TEXTS[0])
    side = list(TokenTexts(tokenizer).pieces(ids))
    assert [tuple(g.student) for g in groups(side, side)] == [(i, i + 1) for i in range(len(ids))]


def test_groups_are_the_shortest() -> None:
    found = texts_of("bytes", "byte pairs", "the 🙂 cat")
    sizes = [len(encode(TOKENIZERS["bytes"], a)) for a, _ in found]
    assert max(sizes) <= 5
    assert sum(sizes) == len(encode(TOKENIZERS["bytes"], "the 🙂 cat"))


def test_half_a_character_at_the_end_is_left_out() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = encode(tokenizer, "a🙂")[:-1]
    found = list(TokenTexts(tokenizer).pieces(ids))
    assert [p.text for p in found] == ["a"]


def test_bytes_that_are_no_character_do_not_shift_what_follows() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = [encode(tokenizer, "🙂")[0], *encode(tokenizer, "cat")]
    found = list(TokenTexts(tokenizer).pieces(ids))
    assert "".join(p.text for p in found) == f"{BROKEN}cat"
    assert found[-1].text == "t"


def test_a_space_belongs_before_or_after_as_the_tokenizers_like() -> None:
    """A word-level decoder puts spaces in front, bytes stand alone: each byte of a space goes to the group after."""
    words = make_tokenizer()
    ours = TokenTexts(words)
    theirs = TokenTexts(TOKENIZERS["bytes"])
    ids = encode(words, "a b c")
    found = groups(list(ours.pieces(ids)), list(theirs.pieces(encode(TOKENIZERS["bytes"], "a b c"))))
    assert [tuple(g.student) for g in found] == [(0, 1), (1, 2), (2, 3)]
    assert [tuple(g.teacher) for g in found] == [(0, 1), (1, 3), (3, 5)]


def test_white_space_that_both_have_as_tokens_is_a_group() -> None:
    text = "a\nb"
    found = texts_of("bytes", "byte pairs", text)
    assert [a for a, _ in found] == ["a", "\n", "b"]


def test_groups_end_where_the_texts_part() -> None:
    tokenizer = TOKENIZERS["byte pairs"]
    sides = [list(TokenTexts(tokenizer).pieces(encode(tokenizer, text))) for text in ("the cat sat", "the cat ran")]
    found = groups(*sides)
    assert "".join(sides[0][i].text for g in found for i in range(*g.student)) == "the cat"


def test_time_grows_with_the_length_alone() -> None:
    tokenizer = TOKENIZERS["byte pairs"]
    ids = encode(tokenizer, TEXTS[0] * 400)
    started = time.perf_counter()
    assert len(list(TokenTexts(tokenizer).pieces(ids))) == len(ids)
    assert time.perf_counter() - started < 5


def test_the_common_vocabulary_is_by_text_and_not_by_spelling() -> None:
    ours, theirs = TOKENIZERS["byte pairs"], TOKENIZERS["llama"]
    student, teacher = match(TokenTexts(ours), TokenTexts(theirs), opening=False)
    pairs = dict(zip(ours.convert_ids_to_tokens(student), theirs.convert_ids_to_tokens(teacher), strict=True))
    assert pairs["Ġthe"] == "▁the"
    assert pairs["e"] == "e"
    assert len(set(student)) == len(student)
    assert len(set(teacher)) == len(teacher)


def test_the_same_vocabulary_matches_itself() -> None:
    for name, tokenizer in TOKENIZERS.items():
        texts = TokenTexts(tokenizer)
        student, teacher = match(texts, texts, opening=False)
        assert student == teacher, name
        assert len(student) == len(tokenizer), name


def test_at_the_beginning_of_a_text_words_have_no_space() -> None:
    words, pairs = TokenTexts(make_tokenizer()), TokenTexts(TOKENIZERS["byte pairs"])
    for opening, wanted in ((True, "a"), (False, "Ġa")):
        student, teacher = match(words, pairs, opening=opening)
        names = dict(
            zip(
                words.tokenizer.convert_ids_to_tokens(student),
                pairs.tokenizer.convert_ids_to_tokens(teacher),
                strict=True,
            )
        )
        assert names["a"] == wanted


def test_special_tokens_are_matched_by_name_and_never_with_text() -> None:
    """A special token decodes to nothing, so only its name tells which of the other side's tokens it is."""

    def tokenizer(special: list[str], words: list[str]) -> TokenTexts:
        vocabulary = {token: i for i, token in enumerate([*special, *words, "a"])}
        backend = Tokenizer(WordLevel(vocabulary, unk_token="a"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = PreTrainedTokenizerFast(tokenizer_object=backend)
        fast.add_special_tokens({"additional_special_tokens": special})
        return TokenTexts(fast)

    ours = tokenizer(["<end>", "<tool>", "<mine>"], ["cat", "<yours>"])
    theirs = tokenizer(["<yours>", "<tool>", "<end>"], ["dog", "cat", "<mine>"])
    student, teacher = match(ours, theirs, opening=False)
    names = [
        [texts.tokenizer.convert_ids_to_tokens(i) for i in ids] for texts, ids in ((ours, student), (theirs, teacher))
    ]
    assert names == [["<end>", "<tool>", "cat", "a"]] * 2
