"""The inspection at the door: every architecture is right or refused in a sentence, whichever way it comes in."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import opd
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, DataError, ModelError
from opd.models.forward import read_own
from opd.models.language import LanguageModel
from opd.models.loading import accept, load
from opd.models.pool import ModelPool
from opd.types import Prompt, Rollout, Sampling, Span
from support.architectures import ARCHITECTURES, make
from support.models import make_model
from support.small_runs import PROMPTS, small_run
from support.tokenizers import make_tokenizer

CAPPED = "caps its logits .*Fix: use a model without soft-capping"
REFUSED = {
    "Gemma 2": CAPPED,
    "RecurrentGemma": CAPPED,
    "xLSTM": CAPPED,
    "RWKV": "keeps a state between tokens, which the engine hf cannot carry",
    "MiniMax": "HFEngine cannot generate with .* MiniMax uses cache of its own.*Fix: ",
}
"""Architectures that are refused, with their sentence."""
LOOSE = {"Nemotron-H": 1e-3, "Mamba": 5e-5, "Falcon-Mamba": 5e-5}
"""Nats by which the models' own ``generate`` differs from a full forward pass too."""
CONTEXTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [20, 21, 22, 23, 24], [5, 9]]
SCALED = {"Granite": 1 / 8, "Granite 4, hybrid": 1 / 4, "Cohere": 1 / 16, "Cohere 2": 1 / 4, "Falcon-H1": 1 / 2}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The reference kernels of recurrent models announce themselves."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(before)


def rollout(context: list[int], ids: tuple[int, ...]) -> Rollout:
    return Rollout(
        prompt=Prompt(id=str(context), text="x"),
        prompt_ids=tuple(context),
        completion_ids=ids,
        completion_mask=(True,) * len(ids),
        logprobs=(math.nan,) * len(ids),
        turns=(Span(0, len(ids)),),
        finish="stop",
    )


@torch.no_grad()
def whole(model: LanguageModel, context: list[int], ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of the model itself at each generated position, [N, V]."""
    sequence = torch.tensor([[*context, *ids]])
    logits = model.model(input_ids=sequence, attention_mask=torch.ones_like(sequence), use_cache=False).logits[0]
    return logits[len(context) - 1 : -1, : model.rows].float().log_softmax(-1)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED])
def test_rollouts_and_losses_read_the_models_own_distribution(name: str) -> None:
    model = accept(make(name), key="student", trains=True)
    assert model.logit_scale == SCALED.get(name, 1)
    budgets = [6, 3, 5, 6]
    engine = HFEngine(model, max_rows=3)  # a row joins, and rows end before others
    greedy = engine.generate(CONTEXTS, budgets, sampling=Sampling(temperature=0), stop_ids=frozenset(), seed=0)
    expected = [whole(model, c, g.ids) for c, g in zip(CONTEXTS, greedy, strict=True)]
    tolerance = LOOSE.get(name, 2e-5)
    for generation, log_probs, budget in zip(greedy, expected, budgets, strict=True):
        assert len(generation.ids) == budget
        assert list(generation.ids) == log_probs.argmax(-1).tolist()
        assert list(generation.logprobs) == pytest.approx(log_probs.amax(-1).tolist(), abs=tolerance)
    # What losses read: hidden states of right-padded rows, times the head.
    model.model.train()
    rollouts = [rollout(c, g.ids) for c, g in zip(CONTEXTS, greedy, strict=True)]
    model.model.eval()
    [(_, states)] = read_own(model, rollouts)
    ours = (states.hidden_TD @ states.head_VD.T).log_softmax(-1)
    torch.testing.assert_close(ours.detach(), torch.cat(expected), atol=tolerance, rtol=1e-4)
    # The gradient reaches the head and its bias.
    ours[:, 3].sum().backward()
    head = model.model.get_output_embeddings()
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=f"^student: .*{REFUSED[name]}"):
        accept(make(name), key="student")


@pytest.mark.parametrize("name", ["Gemma 2", "RWKV"])
def test_a_path_is_refused_as_an_object_is(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=REFUSED[name]):
        load(str(tmp_path), key="teacher.model")


@pytest.mark.parametrize("name", ["Qwen3", "GPT-2", "Qwen3.5", "LFM2", "DeepSeek-V3", "Phi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_pass_as_a_teacher(name: str, dtype: torch.dtype) -> None:
    model = accept(make(name, dtype=dtype), key="teacher.model")
    assert model.model.dtype == dtype


def test_a_recurrent_model_keeps_its_states_in_float32() -> None:
    assert accept(make("Mamba", dtype=torch.bfloat16), key="teacher.model").model.dtype == torch.bfloat16


def test_a_teacher_whose_logits_overflow_is_refused() -> None:
    model = make("Qwen3", dtype=torch.float16)
    with torch.no_grad():
        model.model.model.norm.weight.fill_(60_000)
    with pytest.raises(ModelError, match="weights of .* are finite and its logits are not, in float16. Fix: load it"):
        accept(model, key="teacher.model")


def test_the_inspection_draws_no_random_number_and_keeps_the_mode() -> None:
    model = make("GPT-2")
    model.model.train()
    state = torch.get_rng_state()
    assert accept(model, key="student").model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_small_logits_do_not_hide_a_cap() -> None:
    model = make("Gemma 2")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(0.1)
    with pytest.raises(ModelError, match=CAPPED):
        accept(model, key="student")


def test_logits_that_are_no_product_are_refused() -> None:
    model = make("Qwen3")
    model.model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(ModelError, match="logits of .* are not its last hidden states times its output head"):
        accept(model, key="teacher.model")


def test_a_model_that_decodes_otherwise_than_it_reads_is_refused() -> None:
    model = make("Qwen3")
    inner = model.model.model.forward

    def forward(*, input_ids: torch.Tensor, position_ids: Any = None, **given: Any) -> Any:
        return inner(input_ids=input_ids, position_ids=position_ids if input_ids.shape[1] > 1 else None, **given)

    model.model.model.forward = forward
    with pytest.raises(ModelError, match="HFEngine generates with .* other tokens than a forward pass"):
        accept(model, key="student")


def test_an_encoder_is_no_causal_model(tmp_path: Path) -> None:
    tokenizer = make_model().tokenizer
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"student: .* \(t5\) is no causal language model. Fix"):
        load(str(tmp_path), key="student")
    with pytest.raises(ModelError, match="T5ForConditionalGeneration.* is no causal language model"):
        accept(LanguageModel(model, tokenizer, "t5"), key="teacher.model")


def test_a_model_that_fills_gaps_is_no_causal_model() -> None:
    config = BertConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = LanguageModel(BertForMaskedLM(config), make_tokenizer(), "bert")
    with pytest.raises(ModelError, match=r"student: 'bert' \(BertForMaskedLM\) is no causal language model. Fix"):
        accept(model, key="student")


def test_a_model_without_values_is_refused() -> None:
    model = make_model()
    model.model.to("meta")
    with pytest.raises(
        ModelError, match="the tensor 'model.embed_tokens.weight' of .* is on the device meta.*Fix: load"
    ):
        accept(model, key="teacher.model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model.config, "return_dict", False), r"cannot be read \(AttributeError: 'tuple'"),
        (lambda model: setattr(model, "lm_head", torch.nn.Identity()), "cannot be read .*'Identity' object has no"),
        (lambda model: setattr(model, "generation_config", None), "has no generation config.*Fix: set model.gen"),
    ],
)
def test_what_a_models_own_code_raises_is_one_sentence(change: Any, words: str) -> None:
    model = make_model(tied=False)
    change(model.model)
    with pytest.raises(ModelError, match=f"student: 'tiny-0' .*{words}"):
        accept(model, key="student")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="student: the tokenizer has ids up to 30, but 'tiny-0' has only 20 rows"):
        accept(make_model(vocab=20), key="student")


def test_an_added_token_without_a_row_may_not_stand_in_a_prompt(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    keys = {"teacher": {"weights": "frozen", "view": "privileged"}, "report": False}
    rows = [{**prompt, "answer": "a"} for prompt in PROMPTS]
    tree = small_run(tmp_path / "out", **keys, optimizer={"lr": 1e-3, "steps": 1})
    opd.train(tree, student=make_model(tokenizer=tokenizer, vocab=31), prompts=rows)
    rows[3]["prompt"] += " <new>"
    words = "prompt '4' has the token '<new>', for which 'tiny-0' has no row. Fix: call model.resize_token_embeddings"
    with pytest.raises(DataError, match=f"prompts: {words}"):
        opd.train(tree | {"out": str(tmp_path / "b")}, student=make_model(tokenizer=tokenizer, vocab=31), prompts=rows)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"eval.prompts: {words}"):
        opd.evaluate(make_model(tokenizer=tokenizer, vocab=31), str(file))


def test_what_is_no_pair_of_model_and_tokenizer_says_what_it_is() -> None:
    model = make_model()
    compiled: Any = torch.compile(model.model)
    with pytest.raises(
        ConfigError, match="inside OptimizedModule. Fix: give the Qwen3ForCausalLM itself; compile=true"
    ):
        opd.load_model((compiled, model.tokenizer))
    processor = SimpleNamespace(tokenizer=model.tokenizer)
    with pytest.raises(ConfigError, match=r"\(got Qwen3ForCausalLM, SimpleNamespace\). Fix: give processor.tokenizer"):
        opd.load_model((model.model, processor))
    with pytest.raises(ConfigError, match=r"\(got .*, Qwen3ForCausalLM\). Fix: give the pair"):
        opd.load_model((model.tokenizer, model.model))


# Weights on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tied=False).save(tmp_path / "m")
    return tmp_path / "m"


def change(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(edit(tensors), path, metadata={"format": "pt"})


def test_missing_tensors_are_named(folder: Path) -> None:
    change(folder, lambda t: {n: v for n, v in t.items() if not n.endswith("layers.1.mlp.up_proj.weight")})
    with pytest.raises(
        ModelError, match=r"student: .* lack 1 of the model's tensors, .* random: model.layers.1.mlp.up_proj"
    ):
        load(str(folder), key="student")
    change(folder, lambda t: {f"x.{n}": v for n, v in t.items()})
    with pytest.raises(ModelError, match=r"lack \d\d of the model's tensors, .*: lm_head.weight, .*, …"):
        load(str(folder), key="student")


def test_another_shape_is_named(folder: Path) -> None:
    change(folder, lambda t: t | {"lm_head.weight": torch.zeros(40, 32)})
    with pytest.raises(ModelError, match=r"'lm_head.weight' has shape \[40, 32\], .* asks for \[31, 32\]"):
        load(str(folder), key="student")


def test_weights_have_to_be_finite(folder: Path) -> None:
    def ruin(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = math.nan
        return tensors

    change(folder, ruin)
    sentence = "'model.layers.0.mlp.up_proj.weight' .* values that are not finite"
    with pytest.raises(ModelError, match=sentence):
        load(str(folder), key="teacher.model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match=sentence):
        accept(LanguageModel(model, make_model().tokenizer, "m"), key="student")


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "config", "eos"])
def test_a_damaged_folder_is_refused_in_a_sentence(damage: str, folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        config.write_text(config.read_text()[:-100])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": "x"}))
    with pytest.raises(ModelError, match=r"^student: cannot load '.*' \(.*\). Fix: give a folder"):
        load(str(folder), key="student")


@pytest.mark.parametrize("end", ["x", [2, "x"], -1])
def test_an_end_that_is_no_token_id_is_refused(end: Any, folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": end}))
    with pytest.raises(ModelError, match=r"^student: .*eos_token_id.*('x'|-1)"):
        load(str(folder), key="student")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_loaded_and_its_payload_does_not_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"^student: cannot load '.*' \(Weights only load failed.*\). Fix: give a"):
        load(str(folder), key="student")
    assert not (folder / "ran").exists()


def test_both_halves_of_a_librarys_sentence_are_quoted(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_types": ["full_attention"]}))
    with pytest.raises(ModelError, match=r"^student: cannot load '.*' \(.*num_hidden_layers.*\). Fix: give a folder"):
        load(str(folder), key="student")


def test_a_models_own_code_is_neither_run_nor_offered(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "config.json"
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, "model_type": "own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"^student: cannot load '.*' \(.*custom code"):
        load(str(folder), key="student")
    assert "y/N" not in capfd.readouterr().out


def test_every_expert_is_inspected(folder: Path, tmp_path: Path) -> None:
    make_model(1, tied=False).save(tmp_path / "other")
    change(tmp_path / "other", lambda t: t | {"lm_head.weight": torch.full((31, 32), math.inf)})
    with pytest.raises(ModelError, match="teacher.models.b: the tensor 'lm_head.weight' .* not finite"):
        ModelPool({"a": str(folder), "b": str(tmp_path / "other")}, key="teacher.models")
    path = tmp_path / "other" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="teacher.models.b: cannot load"):
        ModelPool({"a": str(folder), "b": str(tmp_path / "other")}, key="teacher.models")


def test_experts_whose_heads_have_a_bias_keep_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = make("Phi", seed=seed)
        with torch.no_grad():
            model.model.lm_head.bias.normal_()
        model.save(tmp_path / str(seed))
    pool = ModelPool({"a": str(tmp_path / "0"), "b": str(tmp_path / "1")}, key="teacher.models")
    assert not torch.equal(pool.head("a"), pool.head("b"))
    assert torch.equal(pool.head("a"), load(str(tmp_path / "0"), key="teacher.model").head_VD)


# Dtypes of the student


def trained(out: Path, student: LanguageModel, **keys: Any) -> opd.Result:
    tree = small_run(out, optimizer={"lr": 1e-6, "steps": 3}, report=False, **keys)
    teacher = make_model(1, layers=3, hidden=48)
    given = (student.model, student.tokenizer)
    return opd.train(tree, student=given, teacher=(teacher.model, teacher.tokenizer), prompts=PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_student_of_any_dtype_trains_in_float32_and_is_saved_as_it_came(dtype: torch.dtype, tmp_path: Path) -> None:
    student = make_model(0)
    student.model.to(dtype)
    start = {n: p.detach().float().clone() for n, p in student.model.named_parameters()}
    result = trained(tmp_path / "out", student, checkpoint={"every": 1})
    moved = sum(int((p != start[n]).sum()) for n, p in student.model.named_parameters())
    assert moved > 0.9 * sum(p.numel() for p in start.values())
    assert student.model.dtype == torch.float32
    saved = load_file(result.out / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {dtype}
    assert "lm_head.weight" not in saved  # it is tied
    for name, tensor in student.model.named_parameters():
        assert torch.equal(saved[name], tensor.to(dtype))
    assert json.loads((result.out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    kept = load_file(next((result.out / "checkpoints").glob("*3/model.safetensors")))
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert load(str(result.out), key="student").stored == dtype


def test_save_dtype_overrides(tmp_path: Path) -> None:
    result = trained(tmp_path / "out", make_model(0), save={"dtype": "bfloat16"})
    assert {t.dtype for t in load_file(result.out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((result.out / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_its_owner_froze_stays_frozen(tmp_path: Path) -> None:
    student = make_model(0, tied=False)
    student.model.bfloat16()
    embeddings = student.model.get_input_embeddings().weight.requires_grad_(False)
    before = embeddings.float().clone()
    trained(tmp_path / "out", student)
    assert torch.equal(embeddings, before)


def test_the_students_own_object_is_no_teacher(tmp_path: Path) -> None:
    student = make_model(0)
    pair = (student.model, student.tokenizer)
    with pytest.raises(opd.OpdError, match="teacher: it is the student's own object"):
        opd.train(small_run(tmp_path / "out"), student=pair, teacher=pair, prompts=PROMPTS)
