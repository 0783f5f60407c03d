"""The run file: what is accepted, and the sentence for what is not."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opd.axes.base import GIVEN
from opd.axes.views.hint import Hint
from opd.config.base import Strict
from opd.config.read import read, recipe_names
from opd.config.renamed import RENAMED, RENAMED_VALUES
from opd.errors import ConfigError
from opd.models.bundled import resolve
from opd.output.run_folder import leaves

MINIMAL = {
    "student": "s",
    "prompts": {"task": "math"},
    "teacher": {"model": "t"},
    "out": "o",
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_names_its_source(name: str) -> None:
    config = read(name)
    assert config.method is not None
    assert config.method.source


def test_overrides_from_strings_and_mappings() -> None:
    assert read("hint", ["optimizer.lr=3e-5", "optimizer.steps=7"]).optimizer.lr == 3e-5
    assert read("hint", {"optimizer.steps": 7}).optimizer.steps == 7
    view = read("hint", ["teacher.view.author={type: model, model: nano/critic}"]).teacher.view
    assert isinstance(view, Hint)
    assert view.author.type == "model"
    assert read("hint", ["optimizer.steps=7", "prompts.limit=70", "prompts=a.jsonl"]).prompts.limit == 70


def test_a_mix_survives_being_written_with_its_defaults() -> None:
    mixed = read("sft", {"prompts": [{"task": "math"}, {"task": "tools", "limit": 8}]})
    assert read(mixed.model_dump(mode="json")) == mixed
    with pytest.raises(ConfigError, match="prompts: limit does not apply to a mix"):
        read("sft", {"prompts": {"mix": [{"task": "math"}], "limit": 8}})


def test_several_teachers_take_the_place_of_the_recipes_one_and_the_other_way_round() -> None:
    several = read("opd", {"teacher.models": {"math": "nano/math-teacher"}})
    assert several.teacher.model is None
    assert read(several.model_dump(), {"teacher.model": "nano/math-teacher"}).teacher.models is None
    with pytest.raises(ConfigError, match="model and models are given, and each names a teacher"):
        read("opd", {"teacher.model": "a", "teacher.models": {"math": "b"}})


def test_own_prompts_are_not_measured_on_the_recipes() -> None:
    assert read("opd", ["prompts=a.jsonl"]).eval.prompts is None
    own = read("opd", ["eval.prompts=b.jsonl", "prompts=a.jsonl"]).eval.prompts
    assert own is not None
    assert own.path == "b.jsonl"
    assert read("opd", ["prompts.limit=70"]).eval.prompts is not None


def test_shorthands() -> None:
    assert read(MINIMAL | {"prompts": "a.jsonl"}).prompts.path == "a.jsonl"
    assert read(MINIMAL | {"prompts": "org/data"}).prompts.dataset == "org/data"
    assert read("hint", ["teacher.view=privileged"]).teacher.view.type == "privileged"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.stps=3"], ["unknown key 'optimizer.stps'", "optimizer.steps"]),
        (["teacher.view.athor=rules"], ["teacher.view.athor", "teacher.view.author"]),
        (["zzz=red"], ["unknown key 'zzz'", "known keys", "student"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "'fast'", "number"]),
        (["rollout.prompts_per_step=0"], ["rollout.prompts_per_step", "0", "greater"]),
        (["teacher.weights=model"], ["teacher.weights", "teacher.model alone names another model"]),
        (["teacher={model: x, weights: ema}"], ["weights and model", "leave one of them out"]),
        (["teacher.view=plain"], ["differs from the student", "nothing to learn", "teacher.weights=frozen"]),
        (["teacher.view=hnt"], ["there is no 'hnt'", "plain, privileged, context, feedback, hint"]),
        (["teacher.view={context: {text: a}}"], ["a value names its type", "{type: context, text}"]),
        (["teacher.view={type: context}"], ["teacher.view", "exactly one of text, file and experience"]),
        (["teacher.view=3"], ["teacher.view", "got 3"]),
        (["loss.signal=own.module:Nothing"], ["loss.signal", "'own.module:Nothing' cannot be imported"]),
        (["loss.signal=json:dumps"], ["loss.signal", "no subclass of opd.axes.signals.base.SignalConfig"]),
        (["loss.token_weights.first=3", "loss.token_weights.after=3"], ["first=3", "after=3", "no token"]),
        (
            ["experimental.hardest_tokens={}", "loss.signal=hidden"],
            ["experimental.hardest_tokens", "whole distributions", "loss.signal=hidden"],
        ),
        (["experimental.hardest_tokens.share=1"], ["experimental.hardest_tokens.share", "less than 1"]),
        (["teacher.view.author=bob"], ["rules, model, http"]),
        (["teacher.view.author={type: http, url: http://x/v1}"], ["teacher.view.author.model", "missing"]),
        (["prompts={path: a.jsonl, task: math}"], ["exactly one", "task and path", "keep one of them"]),
        (["out=''"], ["'out' is ''", "at least 1 character"]),
        (["lr=1e-4"], ["unknown key 'lr'", "did you mean 'optimizer.lr'?"]),
        (["text_tokens=8"], ["unknown key 'text_tokens'", "family=diffusion"]),
        (["guards=off"], ["'guards' has to be a mapping of settings (got False)", "max_idle", "leave guards out"]),
        (["guards.recover=true"], ["write guards.recover={NAME: …}", "guards.recover=null to disable it"]),
        (["optimizer.shard=maybe"], ["'optimizer.shard' has to be true, false or auto (got 'maybe'). Fix: write one"]),
        (
            ["checkpoint.beside=maybe"],
            ["'checkpoint.beside' has to be true, false or auto (got 'maybe'). Fix: write one"],
        ),
        (["log=wandb"], ["'log' has to be a list (got 'wandb'). Fix: write log=[wandb]"]),
        (["log=null"], ["'log' has to be a list (got None). Fix: write log=[]"]),
        (["student="], ["'student' has to be a string (got None)", "student=NAME"]),
        (["teacher.models=[a]"], ["'teacher.models' has to be a mapping", "teacher.models={NAME: …}"]),
        (
            ["loss.divergence.beta=0.1"],
            ["loss.divergence: beta=0.1 has no effect on forward_kl", "write loss.divergence=forward_kl"],
        ),
        (["out=2026-13-45", "optimizer.lr=2026-13-45"], ["'optimizer.lr' is '2026-13-45'"]),
        (["family=[diffusion]"], ["there is no family ['diffusion']", "language or diffusion"]),
        (["loss.anchor=.inf"], ["'loss.anchor' is inf", "finite"]),
        (["optimizer.betas=[0.9, 2]"], ["'optimizer.betas.1' is 2", "less than 1"]),
        (["seed=99999999999999999999"], ["'seed'", "less than 4294967296"]),
        (
            ["loss.signal=sft", "teacher.view=plain"],
            ["loss.signal=sft", "rollout.source=student", "references or teacher"],
        ),
        (["rollout.source=teacher"], ["rollout.source=teacher", "teacher.model"]),
        (["steps"], ["key=value"]),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_key_and_the_fix(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read("hint", overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "Config" not in message.replace("SignalConfig", "")
    for word in words:
        assert word in message


def test_no_number_is_infinite_or_not_a_number() -> None:
    """Every key of a recipe that holds a fraction, or several of them."""
    tried: set[str] = set()
    for recipe in recipe_names():
        for key, value in leaves(read(recipe).model_dump(mode="json")):
            several = value if isinstance(value, list) else [value]
            own = key not in tried and not key.startswith("method.")
            if own and several and isinstance(several[-1], float):
                for bad in (math.inf, -math.inf, math.nan):
                    with pytest.raises(ConfigError, match=f"^'{re.escape(key)}.*: input should be a finite number"):
                        read(recipe, {key: [*several[:-1], bad] if isinstance(value, list) else bad})
                tried.add(key)
    assert len(tried) > 35


def test_every_schema_refuses_numbers_that_are_not_finite() -> None:
    """Also where no recipe has a value."""
    schemas, found = [Strict], set()
    while schemas:
        found |= set(new := schemas.pop().__subclasses__())
        schemas += new
    own = {schema for schema in found if schema.__module__.startswith("opd.")}
    assert len(own) > 60
    assert not [schema for schema in own if schema.model_config.get("allow_inf_nan") is not False]


@pytest.mark.parametrize("signal", ["reward", "sampled"])
def test_a_ratio_is_clipped_at_one_from_both_sides(signal: str) -> None:
    recipe = {"reward": "grpo", "sampled": "tml"}[signal]
    for clip, at in (([-1, 0.2], 0), ([1.5, 0.2], 0), ([0.2, -0.1], 1)):
        with pytest.raises(ConfigError, match=f"^'loss.signal.ratio_clip.{at}' is "):
            read(recipe, {"loss.signal": {"type": signal, "ratio_clip": clip}})


def test_a_setting_of_a_teacher_in_short_form() -> None:
    models = read("diffusion-opd", ["teacher.models.shapes.weight=0.5"]).teacher.models
    assert models is not None
    assert (models["shapes"].weight, models["count"].weight) == (0.5, 1.0)
    assert models["shapes"].model == read("diffusion-opd").teacher.models["shapes"].model  # type: ignore[index]


def test_a_value_of_several_types_is_refused_by_its_own_key() -> None:
    with pytest.raises(ConfigError, match="^'rollout.sigmas' has to be even, scheduler or a list .got 'random'"):
        read("diffusion-opd", ["rollout.sigmas=random"])


def test_a_denoising_run_takes_no_object_on_its_axes() -> None:
    with pytest.raises(ConfigError, match=r"^rollout.source: an object from Python cannot be given here"):
        read("diffusion-opd", {"rollout.source": GIVEN})


def test_a_name_that_cannot_be_imported_is_refused_with_its_key_once() -> None:
    with pytest.raises(ConfigError, match=r"^loss.signal: 'own:Nothing' cannot be imported"):
        read("hint", ["loss.signal=own:Nothing"])
    with pytest.raises(ConfigError, match=r"^loss.signal: 'os:getcwd' is no subclass"):
        read("diffusion-opd", ["loss.signal=os:getcwd"])


def test_another_source_of_prompts_takes_the_place_of_the_recipes() -> None:
    own = read("hint", ["prompts.path=a.jsonl"])
    assert (own.prompts.task, own.prompts.path, own.eval.prompts) == (None, "a.jsonl", None)
    held_out = read("hint", ["eval.prompts.path=b.jsonl"]).eval.prompts
    assert held_out is not None
    assert (held_out.task, held_out.path) == (None, "b.jsonl")


@pytest.mark.parametrize("old", [*sorted(RENAMED.keys() - {"rollout.max_rows"}), *map("=".join, RENAMED_VALUES)])
def test_no_sentence_and_no_page_asks_for_an_old_name(old: str) -> None:
    """``rollout.max_rows`` is still a key of denoising runs."""
    root = Path(__file__).parents[2]
    files = [*root.glob("src/opd/**/*.py"), *root.glob("docs/**/*.md"), root / "README.md"]
    exempt = {root / "src/opd/config/renamed.py", root / "docs/LOG.md"}
    name = re.compile(rf"(?<![\w.]){re.escape(old)}(?![\w.])")
    assert [str(file) for file in files if file not in exempt and name.search(file.read_text())] == []


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("opd", ["loss.signal=top_k"], ["'loss.signal.k' is missing"]),
        ("opd", ["loss.signal.k=8"], ["unknown key 'loss.signal.k'", "loss.signal=top_k"]),
        ("lsm", ["loss.signal.rest=truncate"], ["loss.signal.rest", "'tail'", "'renormalise'", "'correct'"]),
        (
            "gkd",
            ["loss.signal=sampled", "loss.divergence=jsd", "rollout.source=student"],
            ["loss.divergence=jsd", "sampled tokens estimate reverse_kl only"],
        ),
        ("tml", ["rollout.source=teacher"], ["loss.signal=sampled", "rollout.source=teacher"]),
        ("tml", ["rollout.source={type: mixture, share: 0.5}"], ["loss.signal=sampled", "rollout.source=mixture"]),
        ("opd", ["loss.token_weights.importance=0.5"], ["loss.token_weights.importance", "loss.signal=sampled"]),
        ("opd", ["loss.token_weights.fade=0.2"], ["loss.token_weights.fade", "loss.signal=sampled"]),
        ("opd", ["loss.signal.baseline=true"], ["unknown key 'loss.signal.baseline'"]),
        ("opd", ["loss.signal.normalize=true"], ["unknown key 'loss.signal.normalize'"]),
        ("oprd", ["loss.signal.estimator=policy_gradient"], ["unknown key 'loss.signal.estimator'"]),
        (
            "oprd",
            ["loss.divergence=reverse_kl"],
            ["loss.divergence=reverse_kl needs a signal that compares distributions (loss.signal=hidden)"],
        ),
        ("opd", ["loss.signal.teacher_entropy={}"], ["unknown key 'loss.signal.teacher_entropy'"]),
        ("grpo", ["loss.signal.discount=1.0"], ["unknown key 'loss.signal.discount'"]),
        ("hint-rl", ["loss.signal.estimator=k2"], ["unknown key 'loss.signal.estimator'"]),
        ("gopd", ["loss.signal.baseline=true"], ["scale and baseline", "leave one out"]),
        ("lsm", ["loss.signal.k=1"], ["k=1", "rest=renormalise", "rest=tail"]),
        ("opd", ["rollout.source=prefix"], ["tokens and turns are both 0"]),
        ("gkd", ["rollout.source={type: prefix, tokens: 64}"], ["source.tokens=64", "max_new_tokens=64"]),
        ("lightning", ["rollout.grow_turns_every=5"], ["rollout.grow_turns_every", "rollout.source=recorded"]),
        ("opsd", ["rollout.source={type: prefix, turns: 1}"], ["rollout.source=prefix", "teacher.model"]),
        (
            "lightning",
            ["teacher={weights: ema, view: privileged}"],
            ["rollout.source=recorded", "teacher.weights=ema", "frozen"],
        ),
        ("lightning", ["loss.signal.baseline=true"], ["rollout.source=recorded", "without baseline"]),
        ("grpo", ["eval.divergence=true"], ["eval.divergence", "loss.signal=reward"]),
        ("sdpo", ["teacher.view.solution=''"], ["solution and environment", "sees nothing"]),
        ("lsm", ["loss.signal.clip=0.05"], ["unknown key 'loss.signal.clip'"]),
        ("tml", ["rollout.source={type: mixture, first_steps: 5}"], ["loss.signal=sampled", "rollout.source=student"]),
        ("sdpo", ["rollout.rollouts_per_prompt=1"], ["teacher.view=feedback", "rollout.rollouts_per_prompt"]),
        ("opsd", ["rollout.source={type: mixture, share: 0.5}"], ["rollout.source=mixture", "teacher.model"]),
        ("tml", ["rollout.top_p=0.9"], ["loss.signal=sampled", "rollout.top_p=1"]),
        ("tml", ["rollout.temperature=0.7"], ["loss.signal=sampled", "rollout.temperature=0.7"]),
        ("tml", ["loss.signal.estimator=k1"], ["policy_gradient", "k2"]),
        ("tml", ["loss.signal.estimator=k2", "loss.signal.discount=0.5"], ["discount", "estimator=k2"]),
        ("grpo", ["rollout.rollouts_per_prompt=1"], ["loss.signal=reward", "rollout.rollouts_per_prompt"]),
        ("grpo", ["loss.reward=1.0"], ["leave loss.reward out"]),
        ("hint-rl", ["rollout.rollouts_per_prompt=1"], ["loss.reward", "rollout.rollouts_per_prompt"]),
        ("hint", ["loss.signal=reward", "rollout.rollouts_per_prompt=4"], ["loss.signal=reward", "teacher.view=hint"]),
        ("gold", ["loss.divergence=reverse_kl"], ["divergence=reverse_kl", "loss.signal=other_tokenizer"]),
        ("gold", ["loss.signal=full", "loss.signal.matched_weight=1"], ["unknown key 'loss.signal.matched_weight'"]),
        ("gold", ["loss.token_weights.importance=0.5"], ["token_weights.importance", "loss.signal=other_tokenizer"]),
        ("gold", ["teacher={weights: frozen}"], ["loss.signal=other_tokenizer", "teacher.weights=frozen"]),
        ("gold", ["teacher.view=privileged"], ["teacher.view=privileged", "loss.signal=other_tokenizer"]),
        ("gold", ["rollout.source=teacher"], ["rollout.source=teacher", "loss.signal=other_tokenizer"]),
        ("gold", ["rollout.source={type: mixture, share: 0.5}"], ["rollout.source=mixture", "other_tokenizer"]),
        ("gold", ["eval.divergence=true"], ["eval.divergence", "loss.signal=other_tokenizer"]),
        ("gold", ["experimental.curriculum.divergence=1"], ["curriculum.divergence", "loss.signal=other_tokenizer"]),
        ("opd", ["loss.sft=0.5", "rollout.source=references"], ["loss.sft", "rollout.source=references"]),
        ("opd", ["teacher.gate={}", "eval.prompts=null"], ["teacher.gate", "eval.prompts"]),
        ("opd", ["experimental.combine=geometric"], ["experimental.combine", "teacher.models"]),
        ("opd", ["experimental.conflict=true"], ["experimental.conflict", "teacher.models"]),
        ("entropy", ["teacher.models={math: nano/math-teacher}"], ["loss.signal.teacher_entropy", "teacher.models"]),
    ],
)
def test_what_does_not_go_together_is_refused_with_both_keys(
    recipe: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(recipe, overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("old", [*RENAMED])
def test_an_old_name_is_refused_with_the_new_one(old: str) -> None:
    overrides: dict[str, Any] = {old: {"mean": 1} if old == "loss.positions" else 1}
    if old == "teacher.gate.overlap":
        overrides = {"teacher": {"model": "t", "gate": {"overlap": 0.1}}}
    with pytest.raises(ConfigError, match="has a new name. Fix: write") as caught:
        read("hint", overrides)
    assert str(caught.value).startswith(old)


@pytest.mark.parametrize(("key", "old"), [*RENAMED_VALUES])
def test_an_old_value_is_refused_with_the_new_one(key: str, old: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: '{old}' is an old value"):
        read("hint", {key: old})


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        (
            "opd",
            {"teacher.view.author": GIVEN},
            "author: teacher.view=plain takes no author. Fix: set teacher.view=hint",
        ),
        (
            "opd",
            {"loss.signal": {"type": "full", "k": 8}},
            "unknown key 'loss.signal.k' of loss.signal=full; it is a setting of loss.signal=top_k. Fix: set "
            "loss.signal=top_k, or leave it out",
        ),
        (
            "opd",
            {"teacher.view": {"type": "hint", "rol": "system"}},
            "unknown key 'teacher.view.rol' of teacher.view=hint; did you mean 'teacher.view.role'? Fix: correct the "
            "key",
        ),
        (
            "opd",
            {"optimizer.lr.x": 5},
            "unknown key 'optimizer.lr.x'; optimizer.lr is a single value. Fix: write optimizer.lr=…",
        ),
        (
            "opd",
            {"optimizer.schedule.x": 5},
            "unknown key 'optimizer.schedule.x'; optimizer.schedule is a single value. Fix: write optimizer.schedule=…",
        ),
        (
            "opd",
            {"optimizer.steps": 5, "optimizer.warmup": 6},
            "optimizer.warmup=6 is above optimizer.steps=5. Fix: lower optimizer.warmup",
        ),
        ("opd", {"loss.anchor": True}, "loss.anchor: true is not a number. Fix: give a number, or leave it out"),
        (
            "opd",
            {"eval.diagnostics": True},
            "eval.diagnostics: true is not a number. Fix: give a number, or leave it out",
        ),
        (
            "opd",
            {"optimizer.micro_batch": False},
            "optimizer.micro_batch: false is not a number. Fix: give a number, or leave it out",
        ),
        (
            "opd",
            {"prompts": {"path": "a.jsonl", "split": "test"}},
            "prompts: split does not apply to a file (got 'test'). Fix: leave it out",
        ),
        (
            "opd",
            {"prompts": {"mix": [{"task": "math"}], "domain": "train"}},
            "prompts: domain does not apply to a mix (got 'train'). Fix: move it into each source of the mix",
        ),
        (
            "opd",
            {"prompts": {"task": "math", "subset": "train"}},
            "prompts: subset does not apply to a task (got 'train'). Fix: leave it out",
        ),
        (
            "opd",
            {"prompts": {"task": "math", "subset": "main"}},
            "prompts: subset does not apply to a task (got 'main'). Fix: leave it out",
        ),
    ],
)
def test_a_setting_without_effect_or_of_another_value_is_refused(
    recipe: str, overrides: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(recipe, overrides)
    assert str(caught.value) == sentence


def test_a_shorter_run_keeps_its_recipes_warmup_and_can_be_resumed() -> None:
    short = read("opd", {"optimizer.steps": 4})
    assert short.optimizer.warmup == 10
    assert read(short.model_dump(mode="json")) == short


def test_an_overriding_source_does_not_inherit_the_recipes_split() -> None:
    held_out = read("opd", {"eval.prompts.path": "b.jsonl"}).eval.prompts
    assert held_out is not None
    assert held_out.split is None


def test_settings_beside_prompts_that_are_a_list() -> None:
    sources = [{"task": "math"}, {"path": "a.jsonl"}]
    overrides = ["prompts.max_tokens=9", "prompts.chat_template_kwargs={think: false}"]
    prompts = read(MINIMAL | {"prompts": sources}, overrides).prompts
    assert len(prompts.mix or ()) == 2
    assert (prompts.max_tokens, prompts.chat_template_kwargs) == (9, {"think": False})
    with pytest.raises(ConfigError, match=r"prompts: max_tokens holds for all sources of a mix\. Fix: move it"):
        read(MINIMAL | {"prompts": [{"task": "math", "max_tokens": 9}]})


@pytest.mark.parametrize(
    "key",
    [
        *(
            "revision",
            "trust_remote_code",
            "attn_implementation",
            "quantization",
            "peft_config",
            "use_vllm",
            "lr",
            "epochs",
        ),
        *("optimizer.eps", "optimizer.name", "optimizer.min_lr", "optimizer.beta2", "teacher.http", "teacher.revision"),
        *(
            "rollout.min_p",
            "rollout.repetition_penalty",
            "rollout.offline",
            "rollout.batch",
            "prompts.batched",
            "eval.k",
        ),
        *(
            "loss.router_aux",
            "checkpoint.total_limit",
            "early_stopping",
            "push_to_hub",
            "report_to",
            "rollout.stop_ids",
        ),
    ],
)
def test_a_key_that_other_tools_have_is_refused_in_one_sentence(key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        read("opd", [f"{key}=1"])
    assert "Fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read(MINIMAL, ["out=~/runs/a"]).out == "/home/me/runs/a"
    assert resolve("~/models/a") == "/home/me/models/a"


def test_the_run_file_is_read_without_torch() -> None:
    command = "import sys; import opd.config.read as r; r.read('hint'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=60).returncode == 0


def test_unknown_recipe_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^there is no recipe 'hnt' and no such file; did you mean 'hint'.*Fix: "):
        read("hnt")
    with pytest.raises(ConfigError, match=r"^cannot read run file '.*none.yaml' \(No such file or directory\)\. Fix: "):
        read(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("student: [1,\nprompts: {")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read(broken)
    broken.write_text(f"student: s\nseed: {'9' * 5000}\n")
    with pytest.raises(ConfigError, match=r"not valid YAML: line 2 has an integer of 5,000 digits\. Fix: correct it"):
        read(broken)
    broken.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping"):
        read(broken)


def test_a_missing_key_is_named() -> None:
    tree = {k: v for k, v in MINIMAL.items() if k != "out"}
    with pytest.raises(ConfigError, match="'out' is missing"):
        read(tree)


def test_a_folder_of_a_recipes_name_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hint").mkdir()
    assert read("hint").teacher.view.type == "hint"


@pytest.mark.parametrize("key", ["MyConfig", "a[0]", "bool", "literal[x]"])
def test_an_unknown_key_may_look_like_a_type(key: str) -> None:
    for place in (key, f"loss.{key}"):
        *parents, name = place.rsplit(".", 1) if "." in place else [place]
        tree: dict[str, Any] = {name: 1}
        with pytest.raises(ConfigError, match=f"^unknown key '{re.escape(place)}'"):
            read("hint", {parents[0]: tree} if parents else tree)
