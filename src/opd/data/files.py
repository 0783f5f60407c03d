"""Rows of files: JSONL, JSON, CSV and Parquet, the first three also as ``.gz``."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any

from opd.config.run import FILES
from opd.data.strict_json import parse
from opd.errors import DataError

LONGEST_LINE, LONGEST_JSON = 50_000_000, 500_000_000
"""Most characters of a line, and of a whole .json file."""

_ABSENT = "\x00absent"
"""In place of a cell that a row lacks."""

UNREADABLE = (OSError, UnicodeDecodeError, EOFError, zlib.error)
"""Errors of opening and decoding a file."""


def read_rows(path: str, *, key: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a file, one at a time; its name says what it is.

    A line ends at a newline alone, so that U+2028 and U+0085 may stand inside a JSON string. A byte order mark is
    skipped. A ``.json`` file holds a list of objects, or an object per line.

    Args:
        key: the run file's key, for error messages.

    Raises:
        DataError: the file is missing, of another kind, empty, or a row is broken; the sentence names the line.
    """
    where = Path(path).expanduser()
    kind = next((end for end in FILES if where.name.lower().removesuffix(".gz").endswith(end)), None)
    if where.is_dir():
        raise DataError(f"{key}: '{path}' is a folder. Fix: write {key}.dataset={path}")
    if kind is None:
        raise DataError(f"{key}: '{path}' is no file of a known kind. Fix: give a file in {', '.join(FILES)}")
    if where.exists() and not where.is_file():
        raise DataError(f"{key}: '{path}' is a device or a pipe, which may have no end. Fix: write its rows to a file")
    empty = True
    try:
        for row in _parquet(where, key) if kind == ".parquet" else _text(where, kind, key):
            empty = False
            yield row
    except UNREADABLE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(
            f"{key}: cannot read '{path}' ({reason}). Fix: give the path of a UTF-8 file in {', '.join(FILES)}"
        ) from None
    if empty:
        raise DataError(f"{key}: '{path}' has no rows. Fix: add rows, or give another file")


def _text(path: Path, kind: str, key: str) -> Iterator[Mapping[str, Any]]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else "\n") as file:
        lines = _bounded(file, key, path)
        if kind in (".csv", ".tsv"):
            yield from _csv(lines, f"{key}: '{path}'", delimiter="\t" if kind == ".tsv" else ",")
        elif kind == ".json":
            text = file.read(LONGEST_JSON + 1)
            if len(text) > LONGEST_JSON:
                raise DataError(f"{key}: '{path}' has more than {LONGEST_JSON:,} characters. Fix: write it as .jsonl")
            yield from _json(text, key, path)
        else:
            yield from _lines(lines, key, path)


def _bounded(file: IO[str], key: str, path: Path) -> Iterator[str]:
    """The lines of a file, none of which is too long for the memory: a small packed file can have one of gigabytes."""
    for number in count(1):
        if not (line := file.readline(LONGEST_LINE + 1)):
            return
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{key}: line {number} of '{path}' has more than {LONGEST_LINE:,} characters. Fix: shorten or delete it"
            )
        yield line


def _lines(lines: Iterator[str], key: str, path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of JSONL."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            raise DataError(
                f"{key}: line {number} of '{path}' is not JSON ({error}). Fix: correct or delete it"
            ) from None
        yield _mapping(row, f"{key}: line {number} of '{path}'")


def _json(text: str, key: str, path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list or of a line each, or a single object over several lines."""
    is_list = text.lstrip().startswith("[")
    try:
        rows = parse(text)
    except ValueError as error:
        if is_list:
            raise DataError(f"{key}: '{path}' is not JSON ({error}). Fix: correct it") from None
        yield from _lines(iter(text.split("\n")), key, path)
        return
    rows = rows if is_list else [rows]
    for number, row in enumerate(rows, 1):
        yield _mapping(row, f"{key}: item {number} of '{path}'")


def _mapping(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object. Fix: write one with 'prompt' or 'messages'")
    return row


def _csv(file: Iterator[str], where: str, *, delimiter: str) -> Iterator[Mapping[str, Any]]:
    """Rows by the names in the first line; an empty cell is null, any other a text."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(file, delimiter=delimiter, strict=True, restval=_ABSENT)
    try:
        names = list(reader.fieldnames or ())
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{where}: two columns have the name '{twice}'. Fix: rename one")
        for number, row in enumerate(reader, 1):
            if _ABSENT in row.values():
                raise DataError(
                    f"{where}: row {number} has fewer cells than the first line has names. Fix: add the missing "
                    "delimiters, or put quotes around cells with a newline"
                )
            if None in row:
                raise DataError(
                    f"{where}: row {number} has more cells than the first line has names. Fix: put quotes around cells "
                    "with a delimiter or a newline"
                )
            yield {name: cell or None for name, cell in row.items()}
    except csv.Error as error:
        raise DataError(f"{where}: row {reader.line_num} is not CSV ({error}). Fix: correct its quotes") from None


def _parquet(path: Path, key: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow  # takes a while to import, and most runs do not need it
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from (without_nulls(row) for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"{key}: '{path}' is not Parquet ({error}). Fix: write it again") from None


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table without the nulls inside its columns.

    A table gives every mapping of a column the same keys, so that the parameters of one tool hold those of all others
    as nulls.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
