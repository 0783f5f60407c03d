"""The run file: what is accepted, and the sentence for what is not."""

from pathlib import Path

import pytest

from opd.config.read import read, recipe_names
from opd.errors import ConfigError

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
    author = read("hint", ["teacher.view.author.model=nano/critic"]).teacher.view.hint.author
    assert author.kind == "model"


def test_a_mix_survives_being_written_with_its_defaults() -> None:
    mixed = read("sft", {"prompts": [{"task": "math"}, {"task": "tools", "limit": 8}]})
    assert read(mixed.model_dump(mode="json")) == mixed
    with pytest.raises(ConfigError, match="prompts: limit belongs into each source of the mix"):
        read("sft", {"prompts": {"mix": [{"task": "math"}], "limit": 8}})


def test_several_teachers_take_the_place_of_the_recipes_one_and_the_other_way_round() -> None:
    several = read("opd", {"teacher.models": {"math": "nano/math-teacher"}})
    assert several.teacher.model is None
    assert read(several.model_dump(), {"teacher.model": "nano/math-teacher"}).teacher.models is None
    with pytest.raises(ConfigError, match="name one teacher or several"):
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
    assert read("hint", ["teacher.view=privileged"]).teacher.view.kind == "privileged"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.stps=3"], ["unknown key 'optimizer.stps'", "optimizer.steps"]),
        (["teacher.view.athor=rules"], ["teacher.view.athor", "teacher.view.author"]),
        (["zzz=red"], ["unknown key 'zzz'", "known keys", "student"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "'fast'", "number"]),
        (["rollout.prompts_per_step=0"], ["rollout.prompts_per_step", "0", "greater"]),
        (["teacher.weights=model"], ["teacher.model has to name one"]),
        (["teacher.model=x"], ["set teacher.weights=model"]),
        (["teacher.view=plain"], ["the student itself", "nothing to learn"]),
        (["teacher.view=hnt"], ["plain, hint, privileged, context or feedback"]),
        (["teacher.view={context: {}}"], ["teacher.view", "exactly one of text, file and experience"]),
        (["loss.token_weights.first=3", "loss.token_weights.after=3"], ["first=3", "after=3", "no token"]),
        (["experimental.hardest_tokens={}", "loss.signal=hidden"], ["hardest.by=entropy", "signal is hidden"]),
        (["experimental.hardest_tokens.share=1"], ["experimental.hardest_tokens.share", "less than 1"]),
        (["teacher.view.author=bob"], ["'rules'"]),
        (["teacher.view.author.http=http://x/v1"], ["served model's name"]),
        (["prompts.path=a.jsonl"], ["exactly one", "task and path"]),
        (["loss.signal=tokens"], ["rollout.policy=teacher"]),
        (["rollout.policy=teacher"], ["teacher.weights=model"]),
        (["steps"], ["key=value"]),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_key_and_the_mend(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read("hint", overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("opd", ["loss.signal=top_k"], ["signal=top_k", "top_k={k: …}"]),
        ("opd", ["loss.signal.k=8"], ["signal=top_k"]),
        ("lsm", ["loss.signal.rest=truncate"], ["loss.signal.rest", "'tail'", "'renormalise'", "'correct'"]),
        (
            "gkd",
            ["loss.signal=sampled", "rollout.off_policy=0"],
            ["divergence=jsd", "signal=sampled", "loss.divergence=reverse_kl"],
        ),
        ("tml", ["rollout.policy=teacher"], ["loss.signal=sampled", "rollout.policy"]),
        ("tml", ["rollout.off_policy=0.5"], ["loss.signal=sampled", "rollout.off_policy=0"]),
        ("opd", ["loss.token_weights.importance=0.5"], ["positions.importance", "loss.signal=sampled"]),
        ("opd", ["rollout.policy=teacher", "rollout.off_policy=0.5"], ["off_policy", "policy is teacher"]),
        ("opd", ["rollout.policy=teacher", "rollout.off_policy_steps=5"], ["off_policy_steps", "policy is teacher"]),
        ("opd", ["loss.token_weights.fade=0.2"], ["positions.fade", "loss.signal=sampled"]),
        ("opd", ["loss.signal.baseline=true"], ["sampled.baseline", "signal=sampled"]),
        ("opd", ["loss.signal.normalize=true"], ["hidden=", "signal=hidden"]),
        ("oprd", ["loss.signal.estimator=policy_gradient"], ["sampled", "signal is hidden", "loss.signal=sampled"]),
        ("oprd", ["loss.signal.discount=0.5"], ["sampled", "signal is hidden", "loss.signal=sampled"]),
        ("opd", ["loss.signal.teacher_entropy={}"], ["unsure", "signal=sampled", "signal is full"]),
        ("grpo", ["loss.signal.discount=1.0"], ["sampled.discount", "signal=reward"]),
        ("hint-rl", ["loss.signal.estimator=k2"], ["sampled.estimator=k2", "signal is full"]),
        ("gopd", ["loss.signal.baseline=true"], ["sampled.scale", "sampled.baseline"]),
        ("lsm", ["loss.signal.k=1"], ["top_k.k=1", "rest=renormalise", "rest=tail"]),
        ("gkd", ["rollout.prefix=64"], ["prefix=64", "max_new_tokens=64"]),
        ("opd", ["rollout.prefix=4", "rollout.prefix_turns=1"], ["prefix", "prefix_turns", "leave one"]),
        ("opsd", ["rollout.prefix_turns=1"], ["rollout.prefix_turns", "teacher.weights=model"]),
        ("lightning", ["rollout.grow_turns_every=5"], ["offline", "turns_grow_every"]),
        (
            "lightning",
            ["teacher={weights: ema, view: privileged}"],
            ["rollout.offline", "teacher.weights=ema", "frozen or model"],
        ),
        ("grpo", ["eval.divergence=true"], ["eval.divergence", "loss.signal=reward"]),
        ("sdpo", ["teacher.view.solution=''"], ["solution and environment", "nothing"]),
        ("lsm", ["loss.signal.clip=0.05"], ["clip=0.05", "signal is top_k"]),
        ("tml", ["rollout.off_policy_steps=5"], ["loss.signal=sampled", "rollout.off_policy_steps=0"]),
        ("sdpo", ["rollout.rollouts_per_prompt=1"], ["teacher.view", "rollout.rollouts_per_prompt"]),
        ("opsd", ["rollout.off_policy=0.5"], ["rollout.other=teacher", "teacher.weights=model"]),
        ("tml", ["rollout.top_p=0.9"], ["loss.signal=sampled", "rollout.top_p=1"]),
        ("tml", ["loss.signal.estimator=k1"], ["policy_gradient", "k2"]),
        ("tml", ["loss.signal.estimator=k2", "loss.signal.discount=0.5"], ["discount", "use policy_gradient"]),
        ("opd", ["loss.signal.scale=1.25"], ["sampled.scale=1.25", "signal=sampled"]),
        ("grpo", ["rollout.rollouts_per_prompt=1"], ["loss.signal=reward", "rollout.rollouts_per_prompt"]),
        ("grpo", ["loss.reward=1.0"], ["leave loss.reward out"]),
        ("hint-rl", ["rollout.rollouts_per_prompt=1"], ["loss.reward", "rollout.rollouts_per_prompt"]),
        ("hint", ["loss.signal=reward", "rollout.rollouts_per_prompt=4"], ["teacher.view must be plain"]),
        ("gold", ["loss.divergence=reverse_kl"], ["divergence=reverse_kl", "signal=cross", "loss.divergence=jsd"]),
        ("gold", ["loss.signal=full", "loss.signal.matched_weight=1"], ["cross is for", "loss.signal=cross"]),
        ("gold", ["loss.token_weights.importance=0.5"], ["positions.importance", "signal is cross"]),
        ("gold", ["loss.signal.max_ratio=2"], ["sampled", "signal=cross", "loss.signal=sampled"]),
        ("gold", ["loss.signal.k=8"], ["top_k", "signal=top_k"]),
        ("gold", ["teacher={weights: frozen}"], ["loss.signal=cross", "teacher.weights=frozen", "weights=model"]),
        ("gold", ["teacher.view=privileged"], ["teacher.view=privileged", "loss.signal=cross", "view=plain"]),
        ("gold", ["rollout.policy=teacher"], ["rollout.policy=teacher", "loss.signal=cross", "policy=student"]),
        ("gold", ["rollout.off_policy=0.5"], ["rollout.other=teacher", "loss.signal=cross", "rollout.other=answers"]),
        ("gold", ["eval.divergence=true"], ["eval.divergence", "loss.signal=cross", "eval.text"]),
    ],
)
def test_what_does_not_go_together_is_refused_with_both_keys(
    recipe: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(recipe, overrides)
    for word in words:
        assert word in str(caught.value)


def test_unknown_recipe_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hint'"):
        read("hnt")
    with pytest.raises(ConfigError, match="cannot read run file"):
        read(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("student: [1,\nprompts: {")
    with pytest.raises(ConfigError, match="not valid YAML"):
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
    assert read("hint").teacher.view.kind == "hint"
