"""Every error a user can cause, as one tree. This module imports nothing of opd, so everything may import it.

OpdError                     one sentence: the key or file, the value, the fix
├── ConfigError              the run file or an override is wrong
├── DataError                prompts, answers or texts are wrong
├── ModelError               a model or tokenizer cannot be used as asked
├── AlignmentError           teacher and student would be compared at different tokens
├── EmptyStepError           a step had nothing to train on
├── CheckpointError          a checkpoint is missing, foreign or damaged
├── StorageError             a disk, folder, file or the memory cannot be used
└── RankError                another process of the run says why it stopped
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'X'?`` for the most similar known name, otherwise a full stop."""
    similar = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{similar[0]}'?" if similar else "."


class OpdError(Exception):
    """Root of the tree. The command line prints its message and exits with status 2."""


class ConfigError(OpdError, ValueError):
    """A key is unknown, a value has the wrong type, or two keys do not go together."""


class DataError(OpdError, ValueError):
    """A prompt file is missing, a line is broken, or there are too few prompts."""


class ModelError(OpdError, ValueError):
    """A model cannot be loaded, or lacks what the run needs (template, vocabulary, linear head)."""


class AlignmentError(OpdError, RuntimeError):
    """The token a teacher is about to score is not the token the student produced."""


class EmptyStepError(OpdError, RuntimeError):
    """A step has no tokens to train on; going on would report success for nothing."""


class CheckpointError(OpdError, RuntimeError):
    """A checkpoint cannot be read, or belongs to another run."""


class StorageError(OpdError, RuntimeError):
    """A disk is full or read-only, a folder is gone, a name is too long, or the memory ran out."""


class RankError(OpdError, RuntimeError):
    """A rank other than 0 stops; rank 0 prints the sentence, for all of them."""
