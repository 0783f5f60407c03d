"""Calls a user's functions line by line, in a process of its own; ``opd.data.functions`` starts it.

A function that hangs ends the process: the timer is a thread of C that needs no Python, and exits with the status 1.
The next call starts a new one.

    python tool_worker.py '["my_tools:FUNCTIONS", 10.0, [sys.path of the run]]'
"""

import faulthandler
import inspect
import json
import os
import sys
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints


def main() -> None:
    """Answer each line, a pair of name and arguments, with ``{"result": TEXT}`` or ``{"error": TEXT}``."""
    name, seconds, sys.path[:] = json.loads(sys.argv[1])
    questions, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # what functions read and print is apart from the questions and answers
    os.dup2(2, 1)
    from opd.data.functions import named_functions

    functions = named_functions(name)
    for line in questions:
        function, arguments = json.loads(line)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            result = functions[function](**_with_members(functions[function], arguments))
            if inspect.iscoroutine(result):
                import asyncio  # takes a while, and most functions are none

                result = asyncio.run(result)
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
            answer = {"result": text}
        except BaseException as error:  # SystemExit too: the function ends, and the process goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


def _with_members(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with members of an enumeration in place of the values that a call has for them."""
    hints = _with_enumeration(function)
    if not hints:
        return arguments
    from pydantic import TypeAdapter

    read = {name: TypeAdapter(hints[name]).validate_python(arguments[name]) for name in hints.keys() & arguments.keys()}
    return {**arguments, **read}


@cache
def _with_enumeration(function: Callable[..., Any]) -> dict[str, Any]:
    """The type hints, by argument, in which an enumeration stands."""
    return {name: hint for name, hint in get_type_hints(function).items() if _has_members(hint)}


def _has_members(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, Enum)) or any(map(_has_members, get_args(hint)))


if __name__ == "__main__":
    main()
