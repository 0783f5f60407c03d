"""Texts of tokens: characters whose bytes are spread over tokens are drawn once, others as bytes."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from opd.report.texts import Texts
from support.tokenizers import SHARED_DATA, make_byte_tokenizer

TEXTS = ["hello 你好，世界 龘", "مرحبا بالعالم", "a 👩‍🚀 🇩🇪 👍🏽 z"]

BYTES = make_byte_tokenizer(["hello 你好 世界"], 20)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_tokens_join_to_the_text(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    shown, parts = Texts(BYTES).each(ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == text
    raw = b"".join(bytes.fromhex(parts[n]) if n in parts else shown[n].encode() for n in range(len(ids)))
    assert raw == text.encode()


@pytest.mark.parametrize("name", ["qwen-tokenizer", "minimind-tokenizer", "stories260k"])
@pytest.mark.parametrize("text", TEXTS)
def test_real_tokenizers_too(name: str, text: str) -> None:
    if not (SHARED_DATA / name).is_dir():
        pytest.skip("needs the real tokenizers beside the checkout")
    tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / name)
    shown, _ = Texts(tokenizer).each(tokenizer.encode(text, add_special_tokens=False))
    assert "".join(shown) == text


def test_bytes_that_complete_no_character_are_shown_as_bytes() -> None:
    plain = make_byte_tokenizer(["a"], 0)
    ids = plain.encode("a龘b", add_special_tokens=False)
    texts = Texts(plain)
    assert texts.each(ids) == (["a", "", "", "龘", "b"], {1: "E9", 2: "BE", 3: "98"})
    assert texts.each(ids[:3]) == (["a", "⟨E9⟩", "⟨BE⟩"], {1: "E9", 2: "BE"})
    assert texts.each([ids[1], ids[0]]) == (["⟨E9⟩", "a"], {0: "E9"})
    end = plain.eos_token_id
    assert texts.each([ids[1], end, ids[0]])[0] == ["⟨E9⟩", "</s>", "a"]
