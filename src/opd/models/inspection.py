"""One inspection of every model before a run: student, teachers, critics, from a path or as an object.

A check takes a model and gives it back, with what it found out about the model, or raises ``ModelError`` with one
sentence. Checks read about thirty tokens and draw no random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from opd.distributed import part_of
from opd.engines.hf import HFEngine
from opd.errors import ModelError, OpdError
from opd.models.adapters import check_adapter
from opd.models.language import LanguageModel, pad
from opd.output.faults import IN_MEMORY
from opd.types import Engine, Generation, Sampling

Check = Callable[[LanguageModel, str], LanguageModel]
"""(model, the run file's key for the error message) -> the model."""

LENGTHS = (12, 5)
"""Tokens of the two prompts that the checks read; of different lengths, so that a batch of both has padding."""
NEW_TOKENS = 3
"""Tokens decoded after each: the first comes from the prompt's pass, the others from what the model carries on."""
TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3}
"""Nats between two ways to the same log-probability; a wrong cache is off by whole nats."""
ROUGH = 0.3
"""The same for weights in 16 bits or fewer."""
SCALES = {"logits_scaling": -1, "logit_scale": 1, "lm_head_multiplier": 1, "output_multiplier": 1}
"""Settings by which published models divide (-1) or multiply (1) their logits."""


def inspect(language_model: LanguageModel, key: str) -> LanguageModel:
    """Run every check; returns the model with what they found out.

    Args:
        key: the run file's key, for the error message.

    Raises:
        ModelError: a run could not use the model, or would use it wrongly.
    """
    with _reading(language_model):
        for check in CHECKS:
            try:
                language_model = check(language_model, key)
            except (OpdError, MemoryError):
                raise
            except Exception as error:  # whatever the model's own code raises
                if IN_MEMORY.search(str(error)):
                    raise
                kind = type(language_model.model).__name__
                reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}".rstrip(" :.")
                raise ModelError(
                    f"{key}: '{language_model.source}' ({kind}) cannot be read ({reason}). Fix: correct the model, or "
                    "use another one"
                ) from error
    return language_model


def causal(language_model: LanguageModel, key: str) -> LanguageModel:
    """The model continues its own text and has an output head.

    Raises:
        ModelError: it has an encoder, or no head.
    """
    model = language_model.model
    if (
        getattr(model.config, "is_encoder_decoder", False)
        or not model.can_generate()
        or model.get_output_embeddings() is None
    ):
        raise not_causal(key, language_model.source, type(model).__name__)
    return language_model


def not_causal(key: str, source: str, kind: str) -> ModelError:
    """The error for a model of another kind."""
    return ModelError(
        f"{key}: '{source}' ({kind}) is no causal language model. Fix: name a model that continues its own text, with "
        "an output head"
    )


def vocabulary(language_model: LanguageModel, key: str) -> LanguageModel:
    """The model has a row for every token that a text can have; added tokens without one are looked for in prompts.

    Raises:
        ModelError: it has not.
    """
    tokenizer, known = language_model.tokenizer, language_model.known_ids
    added = tokenizer.get_added_vocab()
    beyond = [i for token, i in tokenizer.get_vocab().items() if i >= known and token not in added]
    if beyond:
        raise ModelError(
            f"{key}: the tokenizer has ids up to {max(beyond)}, but '{language_model.source}' has only {known} rows. "
            "Fix: take the tokenizer that belongs to the model"
        )
    return language_model


def ends(language_model: LanguageModel, key: str) -> LanguageModel:
    """The end tokens of the generation config are ids.

    Raises:
        ModelError: one is something else, or there is no generation config.
    """
    if language_model.model.generation_config is None:
        raise ModelError(
            f"{key}: '{language_model.source}' has no generation config, without which it cannot be saved. Fix: set "
            "model.generation_config = GenerationConfig()"
        )
    configured = getattr(language_model.model.generation_config, "eos_token_id", None)
    for one in configured if isinstance(configured, list | tuple) else [configured]:
        if one is not None and (not isinstance(one, int) or isinstance(one, bool) or one < 0):
            raise ModelError(
                f"{key}: eos_token_id in the generation config of '{language_model.source}' is {one!r}, which is no "
                "token id. Fix: correct generation_config.json"
            )
    return language_model


def finite(language_model: LanguageModel, key: str) -> LanguageModel:
    """Every weight is a finite number.

    Raises:
        ModelError: the sentence names the first tensor that has another.
    """
    for name, parameter in language_model.model.named_parameters():
        if parameter.is_meta:
            raise ModelError(
                f"{key}: the tensor '{name}' of '{language_model.source}' is on the device meta, so it has no values. "
                "Fix: load the weights"
            )
        if parameter.is_floating_point() and not bool(part_of(parameter).isfinite().all()):
            raise ModelError(
                f"{key}: the tensor '{name}' of '{language_model.source}' has values that are not finite (NaN or "
                "infinity). Fix: take weights that are not damaged"
            )
    return language_model


def adapter(language_model: LanguageModel, key: str) -> LanguageModel:
    """An adapter, if there is one, is inside the layers.

    Raises:
        ModelError: it adds virtual tokens, or changes the output head.
    """
    check_adapter(language_model.model, key=key)
    return language_model


def linear_head(language_model: LanguageModel, key: str) -> LanguageModel:
    """The logits are the last hidden states times the output head, times a number that the config names.

    Losses read hidden states and head instead of logits. A bias and a scale are read with them. Soft-capping is not,
    and small logits would hide it, so the head's output is raised to hundreds before the model goes on with it.

    Raises:
        ModelError: it does not hold, or logits are not finite.
    """
    source = language_model.source
    ids, mask = pad(_prompts(language_model)[:1], left=False, device=language_model.device)
    logits = _logits(language_model, ids, mask)
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"{key}: the weights of '{source}' are finite and its logits are not, in "
            f"{str(_dtype(language_model)).removeprefix('torch.')}. "
            "Fix: load it in bfloat16 or float32"
        )
    size = float(logits.abs().max())
    factor = 300 / max(size, 1e-6)
    with _raised(language_model, factor):
        raised = _logits(language_model, ids, mask)
    loose = _tolerance(language_model) == ROUGH
    if not _close(raised, logits * factor, loose=loose):
        raise ModelError(
            f"{key}: '{source}' caps its logits (soft-capping), and losses read hidden states and output "
            "head without a cap. Fix: use a model without soft-capping"
        )
    plain = (language_model.hidden(ids, mask) @ language_model.head_VD.T).float()
    if plain.shape == logits.shape:
        for scale in (1.0, *_scales(language_model)):
            if _close(plain * scale, logits, loose=loose):
                return dataclasses.replace(language_model, logit_scale=scale * language_model.logit_scale)
    raise ModelError(
        f"{key}: the logits of '{source}' ({type(language_model.model).__name__}) are not its last hidden states times "
        "its output head, and losses read those. Fix: use another model"
    )


def decoding(language_model: LanguageModel, key: str) -> LanguageModel:
    """The engine hf generates what a forward pass over the whole text gives; see ``check_engine``.

    Raises:
        ModelError: it does not.
    """
    check_engine(HFEngine(language_model), language_model, key)
    return language_model


@torch.no_grad()
def check_engine(engine: Engine, language_model: LanguageModel, key: str) -> None:
    """Compare an engine with forward passes over whole texts: one prompt alone, and two prompts together.

    Raises:
        ModelError: a greedy token or its log-probability differs.
    """
    source, kind = language_model.source, type(language_model.model).__name__
    name = type(engine).__name__
    prompts = _prompts(language_model)
    try:
        alone, together = (_generate(engine, contexts) for contexts in (prompts[:1], prompts))
    except OpdError as error:
        raise ModelError(f"{key}: {error}") from error
    except Exception as error:  # whatever the model's own code raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"{key}: {name} cannot generate with '{source}' ({kind}): {first}. Fix: use another model"
        ) from error
    worst = 0.0
    for contexts, generations in ((prompts[:1], alone), (prompts, together)):
        for context, generation in zip(contexts, generations, strict=True):
            ids, mask = pad([(*context, *generation.ids)], left=False, device=language_model.device)
            whole = _logits(language_model, ids, mask)[0, len(context) - 1 : -1].log_softmax(-1)
            token = ids[0, len(context) :, None]
            expected = whole.gather(1, token)[:, 0]
            given = torch.tensor(generation.logprobs, device=expected.device)
            worst = max(worst, float((given - expected).abs().max()), float((whole.amax(-1) - expected).max()))
    tolerance = _tolerance(language_model)
    if not worst <= tolerance:
        raise ModelError(
            f"{key}: token by token, {name} generates with '{source}' ({kind}) other tokens than a forward pass over "
            f"the whole text gives (log-probabilities are {worst:.2g} nats apart). Fix: use another model"
        )


CHECKS: tuple[Check, ...] = (causal, vocabulary, ends, adapter, finite, linear_head, decoding)
"""In this order: a later check needs what an earlier one found."""


def _prompts(language_model: LanguageModel) -> list[tuple[int, ...]]:
    """Two prompts of different ids."""
    known = min(language_model.rows, language_model.known_ids)
    room = (language_model.max_length or 2**31) - NEW_TOKENS
    return [tuple((7 * i + 11 * n + 3) % known for i in range(max(min(n, room), 1))) for n in LENGTHS]


def _generate(engine: Engine, contexts: list[tuple[int, ...]]) -> list[Generation]:
    budgets = [NEW_TOKENS] * len(contexts)
    return engine.generate(contexts, budgets, sampling=Sampling(temperature=0), stop_ids=frozenset(), seed=0)


def _logits(language_model: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """float32 [B, L, V] of tokens that have one."""
    with language_model.precision():
        logits: Tensor = language_model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[..., : language_model.rows].float()


def _tolerance(language_model: LanguageModel) -> float:
    """Of quantised weights too: their kernels round a token's states together with those of the pass's other tokens."""
    if any(not weight.is_floating_point() for weight in language_model.model.parameters()):
        return ROUGH
    return TOLERANCE.get(_dtype(language_model), ROUGH)


def _dtype(language_model: LanguageModel) -> torch.dtype:
    dtype: torch.dtype = language_model.autocast or language_model.model.dtype
    return dtype


def _scales(language_model: LanguageModel) -> Iterator[float]:
    """Scales that the config names."""
    config = language_model.model.config.get_text_config()
    for name, power in SCALES.items():
        value = getattr(config, name, None)
        if value:
            yield float(value) ** power
            yield float(value) ** -power


def _close(one: Tensor, other: Tensor, *, loose: bool) -> bool:
    """Whether two sets of logits are equal up to rounding, beside the largest of them."""
    return bool((one - other).abs().max() <= (5e-2 if loose else 1e-3) * other.abs().max())


@contextmanager
def _raised(language_model: LanguageModel, factor: float) -> Iterator[None]:
    """Multiply what the output head gives to the rest of the model."""
    head = language_model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: output * factor)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _reading(language_model: LanguageModel) -> Iterator[None]:
    """Without gradients and dropout."""
    model = language_model.model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
