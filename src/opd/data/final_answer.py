"""The final answer of a text: what is boxed or stated, else its last line and its last number."""

from __future__ import annotations

import re
from typing import NamedTuple

from opd.data.thoughts import without_thoughts

_MARK = re.compile(r"<\|[^|<>\s]*\|>")
"""A special token, as in <|python_tag|>, which is no part of an answer."""

_STATED = re.compile(
    r"\banswers?\b[*_]*\s*(?:is|are|was|be|:|=)[\s:*_]*([^\n]*\S)|\banswers?\b[*_:]*\n+([^\n]*\S)", re.IGNORECASE
)
"""``The answer is 5``, ``**Answer:** 5``, or a heading ``Answer`` above the line."""
_REASON = re.compile(r",?\s(?:because|since|as)\s.*|[.;!?]\s.*", re.IGNORECASE | re.DOTALL)
"""The rest of a stated answer."""
_SEGMENT = r"\$\$.+?\$\$|\$[^$\n]+\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\]"
"""Maths inside a text."""
_PIECE = re.compile(rf"{_SEGMENT}|\S+", re.DOTALL)
_OPERATOR = re.compile(r"(?<=[\w)}]) *(\\times|\\cdot|[*/^=]| [-+](?= )) *(?=[\w({$.\\-])")
"""An operator between two operands, with the spaces around it."""
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Chinese, Japanese and Korean letters."""
_WORD = re.compile(rf"\\(?:begin|end)\{{\w+\}}|((?<![\\A-Za-z])[A-Za-z]{{2,}}|[{_EAST_ASIAN}])")
_UNSPACED = re.compile(rf"[{_EAST_ASIAN}\u3000-\u303f\uff08-\uff1f]+")
"""A text in these scripts, which put no spaces around a number."""
_POWER_OF_UNIT = re.compile(r"(?<=\d) (?:[mcdk]?m|in|ft|yd|mi)\^\{?[23]\}?(?![\w^])")
"""The unit behind a number, whose power is no number of the answer."""
_RELATION = re.compile(r"^(?:=|≈|\\approx\b)\s*(?=\S)")
"""The start of a line that goes on with a calculation."""
_FUNCTIONS = {
    *["sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "mod", "max", "min", "gcd", "lcm"]
}

_UNICODE = {
    **dict.fromkeys("−–‒", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007", " "),
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "⁄": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "°": " ",
    "％": "%",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    **{mark: f"^{{{digit}}}" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
_LATEX = [
    (re.compile(r"√\s*(\w+|\([^()]*\))"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boldsymbol|mbox|operatorname)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\left\b|\\right\b|\\!|\\displaystyle"), ""),
    (re.compile(r"\\varnothing\b"), r"\\emptyset"),
    (re.compile(r"\\mathbb\s+([A-Z])"), r"\\mathbb{\1}"),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad\b"), " "),
    (re.compile(r"(?<!\\)\\([$%&#])"), r"\1"),
    (re.compile(r"\s+"), " "),
]
"""Variants of one notation, and the notation."""


LONGEST = 10_000
"""Characters at the end of a text in which its final answer is looked for, so that no text takes seconds to read."""


class Final(NamedTuple):
    """A text's final answer; the two differ only where nothing is boxed or stated."""

    words: str
    """The answer as a whole: the boxed or stated text, or the last line."""
    value: str
    """The number or expression that it ends with; the whole if it holds none."""


def final_answer(text: str) -> Final | None:
    """The final answer of a text without its thoughts and special tokens; None if nothing is left of it.

    It is the line after the last ``####``; else the whole of the last ``\\boxed{}``; else what is in the last
    ``<answer>``; else what follows the last "answer is" or "answer:"; else the last line, with the last number of the
    text.
    """
    text = _MARK.sub("", without_thoughts(text)[-LONGEST:]).strip()
    if not text:
        return None
    if "####" in text:
        return _in_prose((text.rsplit("####", 1)[1].strip().splitlines() or [""])[0])
    if (boxed := _boxed(text)) is not None:
        return Final(clean(boxed), clean(boxed))
    _, tag, tagged = text.rpartition("<answer>")
    if tag:
        return final_answer(tagged.partition("</answer>")[0])
    if stated := list(_STATED.finditer(text)):
        return _in_prose(_REASON.sub("", (stated[-1][1] or stated[-1][2]) + " "), first=True)
    last = clean(text.splitlines()[-1])
    return Final(last, _in_prose(last).value if has_value(last) else _in_prose(text).value)


def clean(text: str) -> str:
    """A text in one notation, without markup, delimiters and a full stop around it."""
    for mark, plain in _UNICODE.items():
        text = text.replace(mark, plain)
    for variant, notation in _LATEX:
        text = variant.sub(notation, text)
    before = None
    while before != text:
        before, text = text, text.strip(' *`"“”').rstrip(".,;?。，；")
        if re.fullmatch(_SEGMENT, text) and is_maths(text.strip("$")):
            text = text.strip("$") if text[0] == "$" else text[2:-2]
    return text


def is_maths(text: str) -> bool:
    """Whether a cleaned text has no word of two letters or more beside names of functions."""
    return all(not word or word.lower() in _FUNCTIONS for word in _WORD.findall(text))


def has_value(text: str) -> bool:
    """Whether a text has a number or maths between dollar signs."""
    return bool(re.search(rf"\d|{_SEGMENT}", text))


def _in_prose(text: str, *, first: bool = False) -> Final:
    """The answer in a line or text.

    Args:
        first: take the first value if the text begins with it, as in "18 (six a day)".
    """
    whole = clean(text)
    if is_maths(whole) or not has_value(whole):
        return Final(whole, _RELATION.sub("", whole))
    spaced = _POWER_OF_UNIT.sub("", _UNSPACED.sub(r" \g<0> ", whole))
    joined = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", _OPERATOR.sub(lambda m: m[1].strip(), spaced))
    pieces = [piece for piece in _PIECE.findall(joined) if has_value(piece)]
    piece = pieces[0] if first and joined.startswith(pieces[0]) else pieces[-1]
    bare = clean(re.sub(r"^[A-Za-z]{2,}[-:]", "", piece.strip(":;,!?")))
    if bare.count("(") != bare.count(")") or not re.search(r"[\w}]\(", bare):
        bare = bare.strip("()[]")
    return Final(whole, clean(bare.rpartition("=")[2]))


def _boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{}``, with the braces inside it; None if there is none that ends.

    Without any, it is the word after ``\\boxed``, which needs no braces.
    """
    openings = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))
    depth = 1
    for end in range(first := openings[-1].end() if openings else len(text), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
        if not depth:
            return text[first:end]
    bare = [] if openings else re.findall(r"\\(?:boxed|fbox)\s+([^\s{}$]+)", text)
    return bare[-1] if bare else None
