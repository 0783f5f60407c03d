"""LoRA from the run file: what trains, what is shared, what ``out`` holds, and adapters as student and teachers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import opd
from opd.api import examine
from opd.axes.base import Objects
from opd.config.read import read
from opd.config.run import RunConfig
from opd.errors import ConfigError, ModelError
from opd.evaluation.memory import estimate, size_of
from opd.language.context import LanguageContext
from opd.language.load import load_run
from opd.models.adapters import adapter_tensors, merged, new_adapter
from opd.models.bases import Bases
from opd.models.bundled import resolve
from opd.models.copies import EmaWeights, frozen_copy
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.models.pool import ModelPool
from support.models import make_model
from support.slow import slow_but
from support.small_runs import PROMPTS, small_run

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model on disk."""
    path = tmp_path_factory.mktemp("models") / "base"
    make_model(0).save(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another whole model, which teaches."""
    path = tmp_path_factory.mktemp("models") / "other"
    make_model(1).save(path)
    return path


def adapter(base: Path, out: Path, seed: int = 0, **settings: Any) -> Path:
    """The folder of an adapter that changes what its base computes, as peft saves it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        **{"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(out)
    return out


def logprobs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1)


def size_in_bytes(*models: nn.Module) -> int:
    return size_of(p for model in models for p in model.parameters())


def tensors(model: nn.Module) -> set[int]:
    return {p.data_ptr() for p in model.parameters()}


def base_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path / "model.safetensors")


def loaded(tree: dict[str, Any], **objects: Any) -> LanguageContext:
    return load_run(language(tree), Objects(prompts=PROMPTS, **objects))


def language(tree: dict[str, Any]) -> RunConfig:
    config = read(tree)
    assert isinstance(config, RunConfig)
    return config


def train(tree: dict[str, Any], **arguments: Any) -> opd.Result:
    return opd.train(tree, prompts=PROMPTS, **arguments)


def lora_run(out: Path, base: Path, model: Path, **keys: Any) -> dict[str, Any]:
    run = {"student": str(base), "teacher": {"model": str(model)}, "lora": {"rank": 2, "alpha": 4}}
    return small_run(out, **run, optimizer={"lr": 1e-2, "steps": 3}) | keys


# ------------------------------------------------------------------------------------------------ a new adapter


def test_a_new_adapter_changes_nothing_and_alone_trains() -> None:
    plain = make_model(0).model
    before = logprobs(plain)
    model = new_adapter(plain, rank=2, alpha=4)
    assert torch.equal(logprobs(model), before)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training
    assert all("lora_" in name for name in training)
    assert not any("lm_head" in name or "embed" in name for name in training)


def test_an_adapters_weights_are_float32_on_a_bfloat16_base(folder: Path, other: Path, tmp_path: Path) -> None:
    run = loaded(lora_run(tmp_path / "out", folder, other, dtype="bfloat16"))
    dtypes = {p.requires_grad: p.dtype for p in run.student.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    result = train(lora_run(tmp_path / "out", folder, other, dtype="bfloat16"))
    assert {t.dtype for t in load_file(result.out / "adapter_model.safetensors").values()} == {torch.float32}


def test_only_the_adapter_trains_and_out_is_its_folder(folder: Path, other: Path, tmp_path: Path) -> None:
    result = train(lora_run(tmp_path / "out", folder, other))
    names = {p.name for p in result.out.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not any(name.startswith("model") for name in names)
    card = (result.out / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"Trained: a LORA adapter of {folder}\n" in card
    settings = json.loads((result.out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder)
    assert settings["target_modules"] == sorted(settings["target_modules"])
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), result.out)
    trained = load(str(result.out), key="student").model
    assert torch.equal(logprobs(trained), logprobs(by_peft))
    assert not torch.allclose(logprobs(trained), logprobs(load(str(folder), key="student").model), atol=1e-3)
    checkpoint = load(str(result.out / "checkpoints" / "000003"), key="student").model
    assert torch.equal(logprobs(checkpoint), logprobs(trained))


def test_a_merged_adapter_leaves_a_whole_model_and_the_adapter_beside_it(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    tree = lora_run(tmp_path / "out", folder, other, lora={"rank": 2, "alpha": 4, "merge": True})
    result = train(tree)
    assert not (result.out / "adapter_config.json").exists()
    whole = AutoModelForCausalLM.from_pretrained(result.out)
    alone = load(str(result.out / "lora"), key="student")
    assert torch.allclose(logprobs(whole), logprobs(alone.model), atol=1e-5)
    assert {n: t.shape for n, t in base_tensors(result.out).items()} == {
        n: t.shape for n, t in base_tensors(folder).items()
    }


def test_merging_leaves_the_model_as_it_is(folder: Path, tmp_path: Path) -> None:
    model = load(str(adapter(folder, tmp_path / "a")), key="student").model
    before = {name: p.clone() for name, p in model.named_parameters()}
    whole = merged(model)
    assert torch.allclose(logprobs(whole), logprobs(model), atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_targets_name_layers(folder: Path, other: Path, tmp_path: Path) -> None:
    run = loaded(lora_run(tmp_path / "out", folder, other, lora={"rank": 2, "targets": ["q_proj", "0.mlp.up_proj"]}))
    layers = {name.partition(".lora_")[0] for name, p in run.student.model.named_parameters() if p.requires_grad}
    assert {name.partition("model.layers.")[2] for name in layers} == {
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "0.mlp.up_proj",
    }


@pytest.mark.parametrize("target", ["nothing", "lm_head", "embed_tokens", "proj"])
def test_a_target_that_is_no_layer_is_refused(folder: Path, other: Path, tmp_path: Path, target: str) -> None:
    tree = lora_run(tmp_path / "out", folder, other, lora={"targets": ["q_proj", target]})
    with pytest.raises(ConfigError, match=f"^lora.targets: .*no linear layer '{target}'.* Fix: name some of down_proj"):
        train(tree)
    assert not (tmp_path / "out").exists()


def test_the_switch_takes_the_defaults_and_a_bare_target_is_a_list() -> None:
    assert read("opd", ["lora=true"]).model_dump()["lora"]["rank"] == 16
    assert read("opd", ["lora=false"]).model_dump()["lora"] is None
    assert read("opd", ["lora.targets=q_proj"]).model_dump()["lora"]["targets"] == ("q_proj",)


# ------------------------------------------------------------------------------------------------ one base in memory


@pytest.mark.parametrize("weights", ["frozen", "ema", "live"])
def test_a_self_teacher_and_an_anchor_hold_no_second_base(folder: Path, tmp_path: Path, weights: str) -> None:
    tree = lora_run(tmp_path / "out", folder, folder)
    tree |= {"teacher": {"weights": weights, "view": "privileged"}, "loss": {"anchor": 0.1}}
    run = load_run(language(tree), Objects(prompts=[{**p, "answer": "a"} for p in PROMPTS]))
    whole, average = run.own_weights
    models = [m.model for m in (run.student, run.initial, whole)]
    one = size_in_bytes(run.student.model)
    trained = sum(p.numel() * p.element_size() for p in run.student.model.parameters() if p.requires_grad)
    assert size_in_bytes(*models) == one + (trained if weights == "ema" else 0)
    assert (average is not None) == (weights == "ema")
    need = estimate(run)
    assert need.weights + need.copies + need.teachers == size_in_bytes(*models)


def test_the_frozen_teacher_is_the_base_and_stays_it(folder: Path, other: Path, tmp_path: Path) -> None:
    run = loaded(lora_run(tmp_path / "out", folder, other))
    base = logprobs(load(str(folder), key="student").model)
    with torch.no_grad():
        for name, parameter in run.student.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert torch.equal(logprobs(run.initial.model), base)
    assert not torch.allclose(logprobs(run.student.model), base, atol=1e-3)
    assert "lora" not in "".join(name for name, _ in run.initial.model.named_parameters())


def test_an_average_follows_the_adapter_alone() -> None:
    student = make_model(0)
    model = new_adapter(student.model, rank=2, alpha=4)
    student = LanguageModel(model, student.tokenizer, "student")
    average = frozen_copy(student)
    ema = EmaWeights(average.model, model, 0.5)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(1.0)
    ema.update()
    own = dict(average.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(own[name], parameter - 0.5)
        else:
            assert own[name] is parameter


def test_a_teacher_pass_leaves_the_student_as_it_was(folder: Path, other: Path, tmp_path: Path) -> None:
    """Neither an error in a teacher's pass nor a switch of its mode reaches the student."""
    run = loaded(lora_run(tmp_path / "out", folder, other, lora={"rank": 2, "dropout": 0.5}))
    run.student.model.train()
    loss = run.student.model(IDS).logits.square().sum()
    handle = run.initial.model.get_decoder().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.initial.model(IDS)
    handle.remove()
    run.initial.model(IDS)
    loss.backward()
    assert run.student.model.training
    assert not run.initial.model.training
    assert all(p.grad is not None for p in run.student.model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in run.initial.model.parameters())


# ------------------------------------------------------------------------------------------------ adapters as teachers


def test_ten_adapters_hold_one_base_and_each_equals_its_merged_model(folder: Path, tmp_path: Path) -> None:
    sources = {str(n): str(adapter(folder, tmp_path / str(n), seed=n)) for n in range(10)}
    pool = ModelPool(sources, key="teacher.models")
    assert pool.in_memory == 1
    one = size_in_bytes(pool["0"].model)
    alone = sum(t.numel() * t.element_size() for t in adapter_tensors(pool["0"].model).values())
    assert size_in_bytes(*(pool[name].model for name in pool)) == one + 9 * alone
    outputs = {name: logprobs(pool[name].model) for name in pool}
    for name, output in outputs.items():
        whole = merged(pool[name].model)
        assert torch.allclose(output, logprobs(whole), atol=1e-5)
        assert torch.equal(pool.head(name), whole.get_output_embeddings().weight)
    assert not torch.allclose(outputs["0"], outputs["1"], atol=1e-2)


@pytest.mark.parametrize("lora", [True, False])
def test_teachers_share_the_students_base_only_while_it_is_frozen(folder: Path, tmp_path: Path, lora: bool) -> None:
    tree = lora_run(tmp_path / "out", folder, adapter(folder, tmp_path / "a"))
    if not lora:
        tree["lora"] = None
    run = loaded(tree)
    assert run.teacher_model is not None
    shared = tensors(run.student.model) & tensors(run.teacher_model.model)
    assert bool(shared) == lora
    if lora:
        assert tensors(run.initial.model) == shared
        beside = folder.parent / "." / folder.name / ".." / folder.name  # another way to write the same folder
        again = loaded(lora_run(tmp_path / "out", beside, Path(tree["teacher"]["model"])))
        assert again.teacher_model is not None
        assert tensors(again.student.model) & tensors(again.teacher_model.model)
    before = logprobs(run.teacher_model.model)
    train(tree)
    assert torch.equal(logprobs(load(tree["teacher"]["model"], key="teacher").model), before)


def test_experts_that_are_adapters_teach_by_domain(folder: Path, tmp_path: Path) -> None:
    names = {name: str(adapter(folder, tmp_path / name, seed=n)) for n, name in enumerate("xy")}
    tree = lora_run(tmp_path / "out", folder, folder, teacher={"models": names})
    tree |= {"experimental": {"conflict": True}, "eval": {"every": 3}}
    prompts = [{**p, "domain": "xy"[n % 2]} for n, p in enumerate(PROMPTS)]
    result = opd.train(tree, prompts=prompts, eval_prompts=prompts[:4])
    assert result.after["teacher/reverse_kl/x"] < result.before["teacher/reverse_kl/x"]
    assert "conflict/cosine/x~y" in result.after


# ------------------------------------------------------------------------------------------------ an adapter as student


def test_a_student_that_is_an_adapter_trains_it_and_leaves_an_adapter(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    start = adapter(folder, tmp_path / "start")
    result = train(lora_run(tmp_path / "out", start, other, lora=None))
    before, after = (load_file(p / "adapter_model.safetensors") for p in (start, result.out))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    settings = json.loads((result.out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder)
    assert not (result.out / "model.safetensors").exists()


def test_the_frozen_teacher_of_an_adapter_is_the_adapter_as_it_came(folder: Path, tmp_path: Path) -> None:
    start = adapter(folder, tmp_path / "start")
    tree = lora_run(tmp_path / "out", start, folder, lora=None)
    run = loaded(tree)
    came = logprobs(load(str(start), key="student").model)
    assert torch.equal(logprobs(run.initial.model), came)
    assert tensors(run.initial.model) & tensors(run.student.model)
    with torch.no_grad():
        for tensor in adapter_tensors(run.student.model).values():
            tensor.mul_(2.0)
    assert torch.equal(logprobs(run.initial.model), came)


def test_lora_on_an_adapter_has_to_be_that_adapter(folder: Path, other: Path, tmp_path: Path) -> None:
    start = adapter(folder, tmp_path / "start")
    same = {"rank": 2, "alpha": 4, "merge": True}
    result = train(lora_run(tmp_path / "same", start, other, lora=same))
    assert (result.out / "model.safetensors").exists()
    for key, value in {"rank": 8, "alpha": 8, "dropout": 0.1, "targets": ["q_proj"]}.items():
        with pytest.raises(ConfigError, match=rf"^lora.{key}: the student is an adapter already.*Fix: set lora.{key}"):
            loaded(lora_run(tmp_path / "out", start, other, lora=same | {key: value}))


def test_evaluation_and_doctor_take_an_adapters_folder(tmp_path: Path) -> None:
    student = str(adapter(Path(resolve("nano/math-base")), tmp_path / "a"))
    assert opd.evaluate(student, {"task": "math", "split": "test", "limit": 4}, max_new_tokens=4)["length"] <= 4
    lines = list(examine("opd", [f"student={student}", "rollout.max_new_tokens=4", "teacher.model=nano/math-base"]))
    assert any(line.startswith("adapter   LORA") for line in lines)
    assert lines[-1] == "ready to train"


# ------------------------------------------------------------------------------------------------ from Python


def test_a_model_from_python_gets_an_adapter(other: Path, tmp_path: Path) -> None:
    student = make_model(0)
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    tree = lora_run(tmp_path / "out", Path("s"), other)
    result = train(tree, student=(student.model, student.tokenizer))
    after = {name.replace(".base_layer", ""): p for name, p in student.model.named_parameters() if "lora_" not in name}
    assert all(torch.equal(after[name], p) for name, p in before.items())
    again = PeftModel.from_pretrained(make_model(0).model, result.out)
    assert torch.allclose(logprobs(again), logprobs(student.model), atol=1e-6)
    with pytest.raises(ModelError, match="does not name its base. Fix: write"):
        load(str(result.out), key="student")


def test_an_adapter_of_another_name_is_saved_at_the_top(folder: Path, other: Path, tmp_path: Path) -> None:
    base = load(str(folder), key="student")
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    result = train(lora_run(tmp_path / "out", folder, other, lora=None), student=(model, base.tokenizer))
    assert (result.out / "adapter_model.safetensors").exists()
    assert not (result.out / "mine").exists()
    assert torch.allclose(logprobs(load(str(result.out), key="s").model), logprobs(model), atol=1e-6)


def test_a_parameter_that_trains_beside_the_adapter_is_refused(folder: Path, other: Path, tmp_path: Path) -> None:
    base = load(str(folder), key="student")
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(
        ModelError, match=r"^student: '.*embed_tokens.weight' has requires_grad beside.*modules_to_save"
    ):
        train(lora_run(tmp_path / "out", folder, other, lora=None), student=(model, base.tokenizer))


# ------------------------------------------------------------------------------------------------ refusals


def broken(kind: str, folder: Path, out: Path) -> Iterator[None]:
    file, settings = out / "adapter_model.safetensors", out / "adapter_config.json"
    saved, config = load_file(file), json.loads(settings.read_text())
    match kind:
        case "a missing tensor":
            saved.pop(sorted(saved)[0])
        case "a strange tensor":
            saved["base_model.model.model.embed_tokens.weight"] = torch.zeros(2, 2)
        case "a wrong shape":
            saved[sorted(saved)[0]] = torch.zeros(3, 3)
        case "no base":
            config["base_model_name_or_path"] = None
        case "a lost base":
            config["base_model_name_or_path"] = str(out / "gone")
        case "an adapter as base":
            config["base_model_name_or_path"] = str(adapter(folder, out / "first"))
    save_file(saved, file)
    settings.write_text("{" if kind == "broken JSON" else json.dumps(config))
    yield


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("a missing tensor", "its tensor '.*' is missing"),
        ("a strange tensor", "'base_model.model.model.embed_tokens.weight' has no place"),
        ("a wrong shape", r"is \[3, 3\], and the base needs"),
        ("no base", "does not name its base. Fix: write"),
        ("broken JSON", "does not name its base. Fix: write"),
        ("a lost base", "cannot load '.*gone'.*is the base of the adapter"),
        ("an adapter as base", "is an adapter itself. Fix: merge"),
    ],
)
def test_a_broken_adapter_is_refused(folder: Path, tmp_path: Path, kind: str, sentence: str) -> None:
    out = adapter(folder, tmp_path / "a")
    next(broken(kind, folder, out))
    with pytest.raises(ModelError, match=f"^teacher.model: .*({sentence})"):
        load(str(out), key="teacher.model")


# ------------------------------------------------------------------------------------------------ quantised teachers


def test_quantised_teachers_need_a_package_and_a_model(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"teacher.quantize=8bit needs a teacher that is a model of its own"):
        read("hint", ["teacher.quantize=8bit"])
    with pytest.raises(ConfigError, match="teacher.quantize"):
        read("opd", ["teacher.quantize=3bit"])
    teacher = {"model": str(other), "quantize": "8bit"}
    with pytest.raises(ConfigError, match=r"teacher.quantize: a teacher given from Python.*Fix: "):
        loaded(lora_run(tmp_path / "out", folder, other, teacher=teacher), teacher=make_model(1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^teacher.quantize=8bit needs bitsandbytes.*Fix: pip install"):
        loaded(lora_run(tmp_path / "out", folder, other, teacher=teacher))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_teacher_is_smaller_and_near_the_whole_one(tmp_path: Path, bits: Any) -> None:
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "wide"  # a CPU computes 4 bits for layer sizes that 64 divides
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=31, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
    )
    dataclasses.replace(make_model(0), model=model).save(path)
    whole = load(str(path), key="teacher.model")
    small = load(str(path), key="teacher.model", bases=Bases(bits))
    assert size_in_bytes(small.model) < size_in_bytes(whole.model) / 2
    assert (logprobs(small.model).exp() - logprobs(whole.model).exp()).abs().max() < 0.2


def test_the_bundled_teacher_in_eight_bits_is_inspected(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = read("opd", ["teacher.quantize=8bit", "prompts.limit=64", f"out={tmp_path / 'out'}"])
    assert isinstance(config, RunConfig)
    load_run(config, Objects())  # the kernels of 8 bits round; the check of generation allows that


def test_layers_that_cannot_be_computed_in_few_bits_are_refused(other: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match=r"^teacher.quantize=4bit: .*cannot compute the layers.*Fix: set the other"):
        load(str(other), key="teacher.model", bases=Bases("4bit"))


@pytest.mark.parametrize("kind", slow_but(["model", "models", "adapters"], "adapters"))
def test_a_run_with_quantised_teachers(folder: Path, other: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    several = {"x": str(adapter(folder, tmp_path / "x")), "y": str(adapter(folder, tmp_path / "y", seed=1))}
    kinds: dict[str, dict[str, Any]] = {
        "model": {"model": str(other)},
        "models": {"models": {"x": str(other), "y": str(folder)}},
        "adapters": {"models": several},
    }
    named = kinds[kind]
    tree = lora_run(tmp_path / "out", folder, other, teacher=named | {"quantize": "8bit"})
    prompts = [{**p, "domain": "xy"[n % 2]} for n, p in enumerate(PROMPTS)]
    run = load_run(language(tree), Objects(prompts=prompts))
    assert (run.pool.in_memory if run.pool else 1) == {"model": 1, "models": 2, "adapters": 1}[kind]
    assert opd.train(tree, prompts=prompts).steps == 3
