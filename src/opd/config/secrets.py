"""Keys of servers: read from the environment, kept in one type that prints as ``***``, and removed from every text.

A run file names the environment variable and never holds the key. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from functools import cache
from html.entities import codepoint2name
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import AfterValidator

from opd.errors import ConfigError

HIDDEN = "***"
"""Stands in texts where a key was."""

SHORTEST = 6
"""Characters of the shortest key that is searched for in texts; a shorter one, such as ``EMPTY``, is no secret."""

OF_LIBRARIES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Variables whose keys opd does not read, and the libraries in its process do."""

_known: set[str] = set()

_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_IN_QUERY = re.compile(
    r"([?&][\w.-]*(?:key|token|secret|password|passwd|signature|sig|auth)=)[^&\s'\"]+", re.IGNORECASE
)
_IN_HEADER = re.compile(r"\b((?:Bearer|Basic)\s+)[\w.~+/=-]{6,}", re.IGNORECASE)
_NAMED_LIKE_A_KEY = re.compile(r"api[_-]?key|secret|passw|authorization|access[_-]?token", re.IGNORECASE)


class Secret:
    """A key. It has no representation, cannot be copied to disk, and every text can be cleared of it.

    Args:
        value: the key, without white space around it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        _known.add(value)

    def reveal(self) -> str:
        """The key itself, for the request alone."""
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written to disk")


def from_environment(name: str, *, key: str, needed: bool) -> Secret | None:
    """The key in an environment variable, without the white space around it.

    Args:
        name: of the variable.
        key: the run file's key, for the error.
        needed: whether a variable that is not set is an error.

    Returns:
        The key; None if the variable is not set or empty.

    Raises:
        ConfigError: no header can carry the key, or it is needed and missing. The sentence does not quote it.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        if needed:
            raise ConfigError(f"{key}: the environment variable '{name}' is not set. Fix: set it to the server's key")
        return None
    for position, character in enumerate(value, 1):
        if not "!" <= character <= "~":
            raise ConfigError(
                f"{key}: the key in the environment variable '{name}' has a character that a header cannot carry "
                f"(U+{ord(character):04X}, the {position}th of {len(value)}). Fix: copy the key again"
            )
    return Secret(value)


def redact(text: str) -> str:
    """The text without the keys that this process knows, also where they are escaped."""
    known = _known | {os.environ.get(name, "").strip() for name in OF_LIBRARIES}
    for value in sorted((value for value in known if len(value) >= SHORTEST), key=len, reverse=True):
        text = _written(value).sub(HIDDEN, text)
    return text


@cache
def _written(value: str) -> re.Pattern[str]:
    """Finds a key in which any character may be escaped as JSON, Python, HTML or addresses do, also several times."""
    return re.compile("".join(rf"\\{{0,8}}(?:{_forms(character)})" for character in value))


def _forms(character: str) -> str:
    """A pattern of what may stand for a character, behind backslashes."""
    code, name = ord(character), codepoint2name.get(ord(character), "apos")
    hexadecimal = "".join(f"[{digit}{digit.upper()}]" for digit in f"{code:02x}")
    entity = rf"&(?:amp;){{0,3}}(?:#0{{0,6}}{code}|#[xX]0{{0,6}}{hexadecimal}|{name});"
    return rf"{re.escape(character)}|%(?:25){{0,3}}{hexadecimal}|u00{hexadecimal}|x{hexadecimal}|{entity}"


def redact_sentence(text: str) -> str:
    """The same for an error or a log, which also loses whatever stands where addresses and headers have keys."""
    text = _IN_ADDRESS.sub(f"{HIDDEN}@", redact(text))
    return _IN_HEADER.sub(rf"\1{HIDDEN}", _IN_QUERY.sub(rf"\1{HIDDEN}", text))


def checked_url(url: str) -> str:
    """The base address of a server; no credentials, as run files, errors and reports quote it.

    Raises:
        ValueError: it is no such address; the sentence does not quote it.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise ValueError("this is no address of a server. Fix: write it like http://HOST:PORT/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the address has a user, a password or a query, which could hold a key. Fix: write it like "
            "http://HOST:PORT/v1, and set the key as the environment variable that api_key_env names"
        )
    return url


def checked_variable(name: str) -> str:
    """The name of an environment variable.

    Raises:
        ValueError: it looks like a key; the sentence does not quote it.
    """
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
        raise ValueError(
            "this is no name of an environment variable (capital letters, digits and _). Fix: set the key in a "
            "variable, and write the variable's name here"
        )
    return name


def checked_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request's body.

    Raises:
        ValueError: one is named like a key; the sentence does not quote its value.
    """
    for name in fields:
        if _NAMED_LIKE_A_KEY.search(name):
            raise ValueError(f"'{name}' is named like a key, and run files hold none. Fix: set api_key_env instead")
    return fields


ServerUrl = Annotated[str, AfterValidator(checked_url)]
"""Base address of a server, in a run file."""

KeyVariable = Annotated[str, AfterValidator(checked_variable)]
"""Name of the environment variable that holds a server's key, in a run file."""

RequestFields = Annotated[dict[str, Any], AfterValidator(checked_fields)]
"""Fields of a request's body, in a run file."""
