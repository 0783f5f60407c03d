"""What the values of all axes have in common, and how a run file names them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BeforeValidator, ValidationError, create_model
from pydantic_core import PydanticCustomError

from opd.config.base import Strict
from opd.errors import ConfigError

GIVEN = "given from Python"
"""The type of a value that was given to ``opd.train`` as an object."""


class AxisValue(Strict):
    """One value on one axis.

    To add a value, copy the nearest file of its axis and name it in the axis' ``__init__``. Outside the package,
    derive from the axis' base class, or from one of its values, and write ``type: package.module:ClassName`` in the
    run file; what a class says of its own ``type`` does not count then.
    """

    axis: ClassVar[str]
    """The run file's key of the axis, such as ``loss.signal``."""
    shorthand: ClassVar[str] = ""
    """The setting that ``{TYPE: setting}`` gives; empty for none."""
    type: str
    """Name of the value; a bare string in the run file stands for a type without settings."""

    def words(self) -> str:
        """The value's cell in the map of methods."""
        return self.type if ":" in self.type else self.type.replace("_", " ")


Value = TypeVar("Value", bound=AxisValue)

AXES: dict[str, Mapping[str, type[AxisValue]]] = {}
"""The shipped values of every axis, by the axis' key and the value's type."""


def axis(base: type[Value], *values: type[Value]) -> BeforeValidator:
    """Register the values of an axis; returns what reads one from a run file, for the field's annotation.

    Args:
        base: class of all values, also of users' own.
        values: the shipped classes, each with a default ``type``; settings without a type are the first one's.
    """
    known: dict[str, type[AxisValue]] = {value.model_fields["type"].default: value for value in values}
    AXES[base.axis] = known
    return BeforeValidator(lambda given: _parse(given, base, known))


def _parse(given: Any, base: type[Value], known: Mapping[str, type[AxisValue]]) -> Any:
    if isinstance(given, base):
        return given
    settings = {"type": given} if isinstance(given, str) else _spread(given, known)
    if not isinstance(settings, Mapping) or (len(settings) == 1 and next(iter(settings)) in known):
        raise ValueError(_shape(given, known))
    kind = str(settings.get("type", next(iter(known))))
    if kind == GIVEN and GIVEN not in known:
        raise ValueError("an object from Python cannot be given here. Fix: write a class as package.module:Name")
    found = known.get(kind) or class_named(kind, base)
    if found is None:
        raise ValueError(
            f"there is no '{kind}'. Fix: choose {_choices(known)}, or name your own as package.module:Name"
        )
    try:
        return found.model_validate(settings)
    except ValidationError as error:
        raise PydanticCustomError(
            "axis", "{message}", {"message": str(error), "inner": error, "model": found}
        ) from None


def _spread(given: Any, known: Mapping[str, type[AxisValue]]) -> Any:
    """``{NAME: setting}`` as a type and the one setting that the type can be given by."""
    if isinstance(given, Mapping) and len(given) == 1:
        (name, setting), *_ = given.items()
        short = known[name].shorthand if name in known else ""
        if short and not isinstance(setting, Mapping):
            return {"type": name, short: setting}
    return given


def axis_value(given: Any, base: type[Value], **others: type[AxisValue]) -> Value:
    """A value of an axis from its settings, in another place of the run file than the axis' own.

    Args:
        others: classes of that place, by their type, instead of the axis' own.

    Raises:
        ValueError: the axis has no such value, or one of its settings is wrong.
    """
    value: Value = _parse(given, base, {**AXES[base.axis], **others})
    return value


def class_named(name: str, base: type[Value]) -> type[Value] | None:
    """The shipped class of a type, or a user's own; None if there is none.

    Raises:
        ValueError: a user's own cannot be imported, or is no value of the axis.
    """
    found: Any = AXES[base.axis].get(name)
    return _own(name, base) if found is None and ":" in name else found


def _shape(given: Any, known: Mapping[str, type[AxisValue]]) -> str:
    """The sentence for a value that names no type."""
    if isinstance(given, Mapping) and len(given) == 1 and (name := next(iter(given))) in known:
        inner = given[name]
        settings = ", ".join(["type: " + name, *(map(str, inner) if isinstance(inner, Mapping) else ())])
        return f"a value names its type (got {{{name}: …}}). Fix: write {{{settings}}}"
    return f"a value is a name or a mapping with 'type' (got {given!r}). Fix: choose {_choices(known)}"


def _choices(known: Mapping[str, Any]) -> str:
    return ", ".join(name for name in known if name != GIVEN)


def _own(name: str, base: type[Value]) -> type[Value]:
    """A user's own class."""
    found = imported(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"'{name}' is no subclass of {base.__module__}.{base.__name__}. Fix: derive it from that class"
        )
    if getattr(found, "build", None) is getattr(base, "build", None):
        raise ValueError(f"'{name}' has no build. Fix: define what {base.__name__}.build returns")
    value: type[Value] = _of_any_type(found)
    return value


@cache
def _of_any_type(own: Any) -> Any:
    """A user's class, of which ``type`` is the name in the run file, also if it inherits that of a shipped value."""
    if own.model_fields["type"].annotation is str:
        return own
    return create_model(own.__name__, __base__=own, __module__=own.__module__, type=(str, ...))


def import_named(name: str, *, key: str) -> Any:
    """The object behind ``package.module:Name``; modules in the working directory are found too.

    Raises:
        ConfigError: it cannot be imported; the sentence names the key.
    """
    try:
        return imported(name)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def imported(name: str) -> Any:
    """The object behind ``package.module:Name``; a ValueError, if there is none, is a sentence without the key."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"'{name}' cannot be imported: it names no object. Fix: write it as package.module:Name")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{name}' cannot be imported: {error}. Fix: check the name; modules of the working "
            "directory and installed ones are found"
        ) from None
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is executed
        text = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ValueError(
            f"'{name}' cannot be imported: {type(error).__name__}: {text}. Fix: correct the module"
        ) from error


METHODS: dict[str, tuple[str, ...]] = {
    "sampler": ("rollout",),
    "engine": ("generate", "sync"),
    "view": ("segments",),
    "author": ("hints",),
}
"""The methods of objects that are given to ``opd.train``, by argument."""


def check_methods(given: Any, methods: Sequence[str], *, key: str) -> None:
    """Refuse an object without these methods, or a class in place of its object.

    Raises:
        ConfigError: the sentence names the argument and the methods.
    """
    if isinstance(given, type):
        raise ConfigError(f"{key}: an object is needed (got the class {given.__name__}). Fix: give an object of it")
    missing = [f"{method}()" for method in methods if not callable(getattr(given, method, None))]
    if missing:
        raise ConfigError(
            f"{key}: {given!r} has no {' and no '.join(missing)}. Fix: give an object with "
            f"{' and '.join(f'{method}()' for method in methods)}"
        )


def check_pair(given: Any, *, key: str) -> None:
    """Refuse what is no pair of a teacher and an objective.

    Raises:
        ConfigError: the sentence names the argument or key.
    """
    if not (isinstance(given, tuple) and len(given) == 2):
        raise ConfigError(f"{key}: a pair (teacher, objective) is needed (got {given!r}). Fix: give both")
    check_methods(given[0], ("score",), key=f"{key}[0]")
    check_methods(given[1], ("__call__",), key=f"{key}[1]")


def _is_dataset(rows: Any) -> bool:
    """Whether it is an object of the package ``datasets``, which is not imported for this."""
    return type(rows).__module__.partition(".")[0] == "datasets"


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Parts of a run that were given to ``opd.train`` instead of being named in the run file; None if not given.

    An ``AxisValue`` is given as well as the object that it would build.
    """

    student: Any = None
    """A ``LanguageModel``, or a diffusers pipeline."""
    teacher: Any = None
    prompts: Iterable[Any] | None = None
    """Rows, strings, ``Prompt`` objects, or a ``datasets`` object."""
    eval_prompts: Iterable[Any] | None = None
    task: Any = None
    """A ``Task``, or an ``ImageTask``."""
    reward: Any = None
    """A reward function, or a list of functions or pairs (function, weight)."""
    sampler: Any = None
    """A ``RolloutSource``: makes the rollouts to train on."""
    engine: Any = None
    """An ``Engine``: generates the student's tokens."""
    view: Any = None
    """A ``View``."""
    author: Any = None
    """A ``HintAuthor``."""
    signal: Any = None
    """A (teacher, objective) pair."""
    divergence: Any = None
    """An ``opd.losses.Divergence``."""

    def check(self) -> None:
        """Refuse an object that cannot do what its place asks of it.

        Raises:
            ConfigError: methods are missing, or prompts are no list.
        """
        for name, methods in METHODS.items():
            given = getattr(self, name)
            if given is not None and not isinstance(given, AxisValue):
                check_methods(given, methods, key=name)
        if self.task is not None and not callable(getattr(self.task, "step", getattr(self.task, "right", None))):
            raise ConfigError(
                f"task: {self.task!r} has neither step() nor right(). Fix: give a Task or an ImageTask, or name one as "
                "the override prompts.task"
            )
        if self.signal is not None and not isinstance(self.signal, AxisValue):
            check_pair(self.signal, key="signal")
        for name in ("prompts", "eval_prompts"):
            rows = getattr(self, name)
            if hasattr(rows, "columns"):
                raise ConfigError(
                    f"{name}: a table is no list of prompts (got {type(rows).__name__}). Fix: give its rows, such as "
                    "table.to_dict('records')"
                )
            named = isinstance(rows, str) or (isinstance(rows, Mapping) and not _is_dataset(rows))
            if rows is not None and (named or not isinstance(rows, Iterable)):
                raise ConfigError(
                    f"{name}: a list of prompts is needed (got {rows!r}). Fix: give a list, or name a file or dataset "
                    f"as the override {name.replace('_', '.')}"
                )

    def with_own_prompts(self, *, evaluated: bool) -> Self:
        """The given task's own prompts in place of a recipe's, if no prompts were given.

        Args:
            evaluated: take those of ``test`` as held-out prompts, if the task has any.
        """
        if self.task is None or self.prompts is not None:
            return self
        held_out = self.eval_prompts
        if held_out is None and evaluated:
            try:
                held_out = list(self.task.prompts("test")) or None
            except Exception:  # a task says in its own way that it has no such split
                held_out = None
        return replace(self, prompts=list(self.task.prompts("train")), eval_prompts=held_out)

    def keys(self) -> dict[str, Any]:
        """The run file's keys that the given objects stand in for."""
        standing = {
            "teacher.model": self.teacher,
            "rollout.source": self.sampler,
            "rollout.engine": self.engine,
            "teacher.view": self.view,
            "teacher.view.author": self.author,
            "loss.signal": self.signal,
            "loss.divergence.type": self.divergence,
            "student": self.student,
            "prompts.reward": self.reward,
        }
        given = {key: value for key, value in standing.items() if value is not None}
        keys: dict[str, Any] = {k: value if isinstance(value, AxisValue) else GIVEN for k, value in given.items()}
        prompts = {"prompts.path": self.prompts, "eval.prompts.path": self.eval_prompts}
        return keys | {key: GIVEN for key, rows in prompts.items() if rows is not None}
