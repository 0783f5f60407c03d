"""Mistakes in a user's own values and objects: one sentence that names the key and the fix, never a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.axes.context import RunContext
from opd.axes.signals import SignalConfig
from opd.axes.signals.top_k import TopK
from opd.axes.views.base import PromptView, ViewConfig, rewritten
from opd.config.read import read
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, OpdError
from opd.language.run import LanguageRun
from opd.losses.objectives import CrossEntropy, PolicyGradient
from opd.positions import PerPosition
from opd.types import Generation, Prompt, Rollout, Signal
from support.families import read_language
from support.models import make_model
from support.small_runs import small_run

HERE = __name__
PROMPTS = [{"prompt": f"{a} b"} for a in "acde"]
SMALL = {"prompts_per_step": 2, "max_new_tokens": 4}


class Misspelt(SignalConfig):
    """Its needs name a fact that does not exist."""

    type: str = "misspelt"

    def needs(self) -> dict[str, tuple[str, ...]]:
        return {"": ("student rollout",)}

    def build(self, run: RunContext) -> Any: ...


class NoBuild(SignalConfig):
    """Nothing makes its parts."""

    type: str = "no build"


class OneModel(SignalConfig):
    """Reads one model, although several may give it."""

    type: str = "one model"
    mixable = True

    def build(self, run: RunContext) -> Any:
        return run.scorer(run.scoring), CrossEntropy()


class NearestTwo(TopK):
    """A shipped value with a default of its own, and its ``type``."""

    k: int = 2


class NoPair(SignalConfig):
    """Makes an objective without a teacher."""

    type: Literal["no pair"] = "no pair"

    def build(self, run: RunContext) -> Any:
        return CrossEntropy()


class NoView(ViewConfig):
    """Makes what is no view."""

    def build(self, run: RunContext) -> Any:
        return 5


class Braces(ViewConfig):
    """A text with braces of its own before the prompt."""

    def build(self, run: RunContext) -> Any:
        return Before(run.chat)


class Before(PromptView):
    """The text."""

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        return [rewritten(r.prompt, "write {x}: {prompt}") for r in rollouts]


class Ratios(SignalConfig):
    """An estimate from the sampled token, without a divergence of its own."""

    type: str = "ratios"
    token_ratios = True

    def build(self, run: RunContext) -> Any:
        return run.teacher(), PolicyGradient()


def refusal(source: str, overrides: Sequence[str], tmp_path: Path) -> str:
    with pytest.raises(OpdError) as caught:
        opd.train(source, [*overrides, f"out={tmp_path / 'run'}", "log=[]"])
    assert not (tmp_path / "run").exists()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_need_that_is_no_fact_is_refused(tmp_path: Path) -> None:
    text = refusal("opd", [f"loss.signal={HERE}:Misspelt"], tmp_path)
    assert f"loss.signal={HERE}:Misspelt needs 'student rollout', which is no fact. Fix: name one of" in text
    assert "student's rollouts" in text


def test_a_value_without_build_is_refused(tmp_path: Path) -> None:
    text = refusal("opd", [f"loss.signal={HERE}:NoBuild"], tmp_path)
    assert f"loss.signal: '{HERE}:NoBuild' has no build. Fix: define what SignalConfig.build returns" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('a licence is missing.')", "RuntimeError: a licence is missing. Fix: correct the module"),
        ("x = ", "SyntaxError"),
        ("import sys\nsys.exit(4)", "SystemExit: 4. Fix: correct the module"),
        (
            "from opd.axes.signals import SignalConfig\nclass Own(SignalConfig):\n    mixabel = True",
            "PydanticUserError",
        ),
    ],
)
def test_a_module_that_fails_is_one_sentence(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    text = refusal("opd", [f"loss.signal={name}:Own"], tmp_path)
    assert f"'{name}:Own' cannot be imported" in text
    assert words in text


@pytest.mark.parametrize("key", ["loss.signal", "loss.signal.type"])
def test_a_class_that_inherits_a_shipped_value_is_a_value_of_its_own(key: str) -> None:
    config = read("lsm", [f"{key}={HERE}:NearestTwo", "loss.signal.support=student"])
    signal = config.loss.signal
    assert isinstance(signal, NearestTwo)
    assert (signal.k, signal.support, signal.type) == (2, "student", f"{HERE}:NearestTwo")
    assert read(config.model_dump(mode="json")) == config


def test_a_type_alone_leaves_the_recipes_settings_of_another_value_out() -> None:
    assert read("tml", ["loss.signal.type=top_k", "loss.signal.k=3"]) == read(
        "tml", ["loss.signal=top_k", "loss.signal.k=3"]
    )


@pytest.mark.parametrize(
    ("recipe", "value", "words"),
    [
        ("opd", "loss.signal={}:NoPair", r"loss.signal={}:NoPair: build\(\): a pair \(teacher, objective\) is needed"),
        ("opsd", "teacher.view={}:NoView", r"teacher.view={}:NoView: build\(\): 5 has no segments\(\)"),
        (
            "opsd",
            "teacher.view={}:Braces",
            r"'write {{x}}: {{prompt}}' has a field that is not known \('x'\). Fix: use only",
        ),
    ],
)
def test_what_an_own_value_builds_is_checked(recipe: str, value: str, words: str, tmp_path: Path) -> None:
    settings = [
        value.format(HERE),
        f"out={tmp_path / 'out'}",
        "log=[]",
        "optimizer.steps=1",
        "rollout.max_new_tokens=4",
    ]
    with pytest.raises(ConfigError, match=words.format(HERE)):
        opd.train(recipe, settings)


def test_a_signal_of_one_model_does_not_get_the_student_behind_a_gate(tmp_path: Path) -> None:
    own = [
        f"loss.signal={HERE}:OneModel",
        "teacher.gate={}",
        "eval.prompts.limit=4",
        "prompts.limit=8",
        "rollout.prompts_per_step=2",
    ]
    with pytest.raises(ConfigError, match=f"loss.signal={HERE}:OneModel reads one model, and .* run.teacher()"):
        opd.train("opd", [*own, "rollout.prompts_per_step=2", f"out={tmp_path / 'run'}", "log=[]"])


@pytest.mark.parametrize("divergence", [[], ["loss.divergence=reverse_kl"]])
def test_token_ratios_estimate_the_reverse_kl_alone(divergence: list[str], tmp_path: Path) -> None:
    assert read("opsd", [f"loss.signal={HERE}:Ratios", *divergence]).loss.divergence.type == "reverse_kl"  # type: ignore[union-attr]
    text = refusal("opsd", [f"loss.signal={HERE}:Ratios", "loss.divergence=jsd"], tmp_path)
    assert "whose sampled tokens estimate reverse_kl only" in text


def test_the_dtype_of_logits_reaches_the_divergence_and_no_other_signal(tmp_path: Path) -> None:
    objects = Objects(student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    loss = {"divergence": "reverse_kl", "logits": "bfloat16"}
    tree = small_run(tmp_path / "out", loss=loss, rollout=SMALL)
    objective = LanguageRun.load(read_language(tree), objects).context.divergence()
    assert objective.logits == "bfloat16"
    with pytest.raises(ConfigError, match="loss.logits=bfloat16 needs a signal of whole distributions"):
        read_language(tree, {"loss.signal": "sampled"})


def test_a_recipes_divergence_does_not_hinder_another_signal() -> None:
    assert read("hint", ["loss.signal=sampled"]).loss.divergence.type == "reverse_kl"  # type: ignore[union-attr]
    assert read("opd", [f"loss.signal={HERE}:OneModel"]).loss.divergence.type == "forward_kl"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "value"), [("rollout.engine", "engine"), ("loss.signal", "signal"), ("teacher.view", "view")]
)
def test_the_type_of_given_objects_is_refused_without_the_object(key: str, value: str, tmp_path: Path) -> None:
    tree = {
        "teacher": {"model": "t"},
        "student": "s",
        "prompts": {"path": "p"},
        "out": str(tmp_path / "run"),
        "log": [],
    }
    given: dict[str, Any] = {"student": make_model(0), "teacher": make_model(1), "prompts": PROMPTS}
    with pytest.raises(ConfigError, match=f"opd.train got no {value}. Fix: call opd.train"):
        opd.train(
            tree,
            {"rollout": SMALL, key: "given from Python"},
            **given,
        )


def test_what_a_divergence_cannot_do_is_refused_before_models_load(tmp_path: Path) -> None:
    missing = ["student=/no/such/model"]
    text = refusal("opsd", [*missing, "loss.divergence=total_variation", "loss.signal.clip=0.5"], tmp_path)
    assert "loss.signal.clip: total_variation cannot be clipped. Fix: leave clip out, or choose forward_kl" in text
    text = refusal("opd", [*missing, "loss.divergence.type=jsd", "loss.divergence.beta=1"], tmp_path)
    assert "beta=1 is not above 0 and below 1" in text


class Broken:
    """Generates, then spoils what it gives."""

    def __init__(self, inner: HFEngine, spoil: Any) -> None:
        self.inner, self.spoil = inner, spoil

    def generate(self, contexts: Any, max_new_tokens: Any, **options: Any) -> Any:
        return self.spoil(self.inner.generate(contexts, max_new_tokens, **options))

    def sync(self) -> None: ...


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda made: made[1:], "gave 1 generations for 2 contexts"),
        (lambda made: [g._replace(logprobs=()) for g in made], "with 0 log-probabilities for context 0"),
        (lambda made: [Generation((), (), False) for _ in made], "gave 0 tokens"),
        (lambda made: [Generation((5,) * 9, (-1.0,) * 9, False) for _ in made], "give 1 to 4 tokens"),
    ],
)
def test_what_an_engine_gives_is_checked(spoil: Any, words: str, tmp_path: Path) -> None:
    student = make_model(0)
    tree = {
        "student": "s",
        "prompts": {"path": "p"},
        "rollout": SMALL,
        "optimizer": {"lr": 1e-3, "steps": 1},
        "log": [],
        "report": False,
        "out": str(tmp_path / "run"),
    }
    engine = Broken(HFEngine(student), spoil)
    with pytest.raises(OpdError, match=f"rollout.engine: Broken .*{words}|rollout.engine: Broken {words}"):
        opd.train(tree, student=student, teacher=make_model(1), prompts=PROMPTS, engine=engine)


@dataclass(frozen=True, slots=True)
class Layered(PerPosition):
    hidden_TKD: Tensor
    note: str = ""


@dataclass(frozen=True, slots=True)
class Late(PerPosition):
    logprobs_KT: Tensor


def test_a_field_is_sliced_by_its_suffix() -> None:
    rows = torch.tensor([2, 0])
    assert Layered(torch.arange(24).view(4, 3, 2)).take(rows).hidden_TKD[:, 0, 0].tolist() == [12, 0]
    with pytest.raises(TypeError, match="Late.logprobs_KT: rows have to come first"):
        Late(torch.zeros(2, 4)).take(rows)


@dataclass(frozen=True, slots=True)
class Noted(Signal):
    note: str = ""


def test_a_signal_may_hold_more_than_tensors() -> None:
    number_T = torch.arange(3)
    assert Noted(number_T, number_T, number_T, note="x").to(torch.device("cpu")).note == "x"


def test_an_objective_names_the_signal_that_it_needs(tmp_path: Path) -> None:
    own = [f"loss.signal={HERE}:Ratios", "prompts.limit=8", "eval.prompts=null", "rollout.prompts_per_step=2"]
    with pytest.raises(OpdError, match="PolicyGradient reads a SampledSignal or AdvantageSignal, and the teacher gave"):
        opd.train("opd", [*own, "rollout.max_new_tokens=8", f"out={tmp_path / 'run'}", "log=[]", "report=false"])
