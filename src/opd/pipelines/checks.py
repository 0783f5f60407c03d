"""Checks before any stage runs: shapes, domains, vocabularies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from opd.config.problems import FAMILIES
from opd.config.run import RunConfig
from opd.errors import OpdError
from opd.models.bundled import resolve
from opd.pipelines.average import check_shapes
from opd.pipelines.graph import Stage, architecture


def check(stages: Mapping[str, Stage]) -> None:
    """Refuse stages that would fail later, after earlier stages have run.

    A stage's model is checked through the model outside the pipeline that it starts from. Models that are not on this
    disk are not checked.

    Raises:
        OpdError: the first problem, with the stage's key.
    """
    for stage in stages.values():
        at = f"stages.{stage.name}"
        if stage.kind == "average":
            models = {name: architecture(stages, name) for name in stage.settings["average"]}
            check_shapes(models, key=f"{at}.average")
        if stage.kind == "train":
            config = FAMILIES[stage.settings["family"]].model_validate({**stage.settings, "out": stage.name})
            if isinstance(config, RunConfig):
                _check_domains(config, at)
                _check_vocabularies(config, stages, at)


def _check_domains(config: RunConfig, at: str) -> None:
    if not config.teacher.models:
        return
    from opd.data.prompts import load_prompts
    from opd.teachers.by_domain import check_covered

    prompts, _ = load_prompts(config.prompts, key=f"{at}.prompts", has_template=True)
    try:
        check_covered(config.teacher.shares, prompts)
    except OpdError as error:
        raise type(error)(f"{at}.{error}") from None


def _check_vocabularies(config: RunConfig, stages: Mapping[str, Stage], at: str) -> None:
    if not config.loss.signal.same_tokenizer:
        return
    ours = _tokenizer(config.student, stages)
    for key, name in _teachers(config):
        theirs = _tokenizer(name, stages)
        if ours and theirs and ours.read_bytes() != theirs.read_bytes():
            from transformers import AutoTokenizer

            from opd.models.vocabularies import shared_vocabulary

            student, teacher = (AutoTokenizer.from_pretrained(path.parent) for path in (ours, theirs))
            shared_vocabulary(student, teacher, key=f"{at}.{key}")


def _teachers(config: RunConfig) -> Iterator[tuple[str, str]]:
    if config.teacher.model:
        yield "teacher.model", config.teacher.model
    for name, teacher in (config.teacher.models or {}).items():
        yield f"teacher.models.{name}", teacher.model


def _tokenizer(name: str, stages: Mapping[str, Stage]) -> Path | None:
    """The tokenizer.json of a model, or of the model that a stage starts from; None if it is not on this disk."""
    path = Path(resolve(architecture(stages, name))) / "tokenizer.json"
    return path if path.is_file() else None
