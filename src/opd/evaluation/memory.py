"""How much memory a language run needs, before it is started: counted tensor by tensor, not guessed from a table.

    peak = weights + moments + copies + teachers + max(rollout, reading, update)

    moments   the optimizer's two averages, 8 bytes for each parameter that trains (4 in bfloat16, 2 in 8 bits)
    rollout   rows · tokens · (keys and values) · 1.3 + rows · V · 24
    reading   the signal of the whole batch and one pass of the teacher without gradients
    update    the signal, gradients, activations of one pass, and one chunk of the loss

With a served teacher further passes are made while its answers are on their way; see ``passes_ahead``.

The activations of a pass are what autograd keeps for one token, times the tokens of a pass. What it keeps is counted in
two short forward passes, so dtype, architecture, adapters and activation checkpointing are those of the model itself.

Source of the factors: ``benchmarks/memory.py`` compares the estimate with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from opd.engines.cache import RowCache
from opd.language.context import LanguageContext
from opd.losses import chunked, gpu
from opd.models.adapters import adapted
from opd.models.language import LanguageModel
from opd.training.moments import BYTES, StateDtype

SHORT, LONG = 16, 32
"""Tokens of the two forward passes; their difference is what further tokens cost."""
SPARE_ROOM = 1.3
"""The cache grows by a quarter, layer after layer; one of a fixed size is rounded up and filled from another."""
FORWARD_ONLY = 0.55
"""What a block holds at most in a pass without gradients, as a share of what autograd would keep of it."""
BLOCKS = 5
"""Temporaries of the loss's element-wise part on a CPU."""
AHEAD_BYTES = 256e6
"""Activations of the passes that are made while answers are on their way; one pass is made whatever it takes."""
DRAW_BYTES = 24
"""For each row and vocabulary entry: logits, log-probabilities, probabilities in float32, their sum in float64."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass with gradients keeps: ``fixed + per_token * tokens`` bytes."""

    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """For a pass over this number of tokens."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a run by what they are for; see the module's formula."""

    weights: float
    """The student's weights: those that train and those that are frozen."""
    moments: float
    """The optimizer's two averages for each weight that trains."""
    copies: float
    """Frozen or averaged copies of what trains of the student, which share the rest with it, and on a GPU the copy that
    generates, in autocast's dtype."""
    teachers: float
    """Weights of other models, without those that are the student's too."""
    gradients: float
    rollout: float
    signal: float
    """The teacher's states for every token of a batch."""
    reading: float
    activations: float
    loss: float

    @property
    def state(self) -> float:
        """What is there all the time."""
        return self.weights + self.moments + self.copies + self.teachers

    @property
    def update(self) -> float:
        """Signal, gradients, activations and loss."""
        return self.signal + self.gradients + self.activations + self.loss

    @property
    def peak(self) -> float:
        """The largest sum at any time."""
        return self.state + max(self.rollout, self.signal + self.reading, self.update)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors; those that share memory count once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def kept_for_backward(language_model: LanguageModel) -> Pass:
    """What autograd keeps in a forward pass of the student, without the parameters.

    Works inside a ``FakeTensorMode`` too, where a model of any size costs nothing.
    """
    short, long = (_kept(language_model, tokens) for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    return Pass(fixed=short - SHORT * per_token, per_token=per_token)


def _kept(language_model: LanguageModel, tokens: int) -> int:
    model: nn.Module = language_model.model
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.int64, device=language_model.device)
    was_training = model.training
    language_model.train()
    with torch.random.fork_rng(), saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        language_model.layers(ids, None, ())
    model.train(was_training)
    return size_of(kept.values())


@torch.no_grad()
def cache_bytes(language_model: LanguageModel) -> float:
    """Bytes that one more token of a row adds to the model's cache: keys and values, or a recurrent state."""

    def size(tokens: int) -> int:
        ids = torch.zeros(1, tokens, dtype=torch.int64, device=language_model.device)
        cache = RowCache(language_model)
        with language_model.precision():
            language_model.model(input_ids=ids, **{cache.argument: cache.cache}, use_cache=True, logits_to_keep=1)
        return size_of(x for layer in cache.cache.layers for x in vars(layer).values() if isinstance(x, Tensor))

    was_training = language_model.model.training
    language_model.model.eval()
    grown = (size(LONG) - size(SHORT)) / (LONG - SHORT)
    language_model.model.train(was_training)
    return grown


def loss_bytes(language_model: LanguageModel, tokens: int, *, on_gpu: bool) -> float:
    """The loss's own memory in one pass: logits of both models, their gradient, and the head's gradient."""
    vocab, width = language_model.head_VD.shape
    logits = 4.0 * vocab * tokens
    if on_gpu:
        chunks = min(2 * gpu.CHUNK_BYTES + gpu.GROUP_BYTES, 3 * logits)
    else:
        chunks = 3 * min(chunked.CPU_CHUNK_BYTES, logits) + BLOCKS * min(chunked.CPU_BLOCK_BYTES, logits)
    return chunks + 4 * vocab * width


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a run does at once.

    Attributes:
        rows, length: rollouts of a step, and tokens of each with its prompt.
        decoded: rows that are generated at once.
        tokens: tokens of a student's pass.
        passes: of the student whose activations are kept at once.
        teacher_tokens: tokens of a teacher's pass.
        checkpointing: activations are computed again in the backward pass.
        copies: frozen or averaged copies of the student's trained weights.
        state: dtype of the optimizer's averages.
        shared: sequences may share their beginning, whose keys and values a teacher's pass then keeps.
        on_gpu: the loss takes the chunks that it takes there.
    """

    rows: int
    length: int
    decoded: int
    tokens: int
    teacher_tokens: int
    passes: int = 1
    checkpointing: bool = False
    copies: int = 0
    state: StateDtype = "float32"
    shared: bool = False
    on_gpu: bool = False


def estimate(run: LanguageContext) -> Memory:
    """The memory of a loaded run, if every prompt is as long as the longest and every answer as long as allowed."""
    config = run.config
    teachers = list({id(m.model): m for m in run.others().values()}.values())
    rows, length, tokens = _sizes(run)
    follows = config.loss.signal.reads_teacher and not config.teacher.is_model and config.teacher.weights.type == "ema"
    work = Work(
        rows=rows,
        length=length,
        decoded=min(rows, getattr(config.rollout.engine, "max_rows", rows)),
        tokens=tokens,
        passes=1 + passes_ahead(run),
        teacher_tokens=min(config.teacher.max_tokens, rows * length),
        checkpointing=config.optimizer.gradient_checkpointing,
        copies=int(follows) + int(config.keeps_initial and run.base is None),
        state=config.optimizer.state,
        shared=config.rollout.rollouts_per_prompt > 1 or config.teacher.view.type == "hint",
        on_gpu=run.student.device.type != "cpu",
    )
    return memory_of(run.student, teachers, work, reads_teacher=config.loss.signal.reads_teacher)


def passes_ahead(run: LanguageContext) -> int:
    """The student's further passes that are made before one is used; 0 without a served teacher."""
    rows, length, tokens = _sizes(run)
    if not any(model.is_served for model in run.others().values()) or tokens >= rows * length:
        return 0
    kept = kept_for_backward(run.student).bytes(tokens)
    return min(max(int(AHEAD_BYTES // kept), 1), -(-rows * length // tokens) - 1)


def _sizes(run: LanguageContext) -> tuple[int, int, int]:
    """Rollouts of a step, tokens of the longest with its prompt, and tokens of a student's pass."""
    config = run.config
    rows = config.rollout.prompts_per_step * config.rollout.rollouts_per_prompt
    length = max(run.training.lengths) + config.rollout.max_new_tokens
    tokens = min(config.optimizer.micro_batch or rows, rows) * length
    return rows, length, min(tokens, max(config.optimizer.micro_tokens or tokens, length))


def memory_of(
    student: LanguageModel, teachers: Sequence[LanguageModel], work: Work, *, reads_teacher: bool = True
) -> Memory:
    """The memory of a student, its teachers and some work.

    Args:
        teachers: models apart from the student; their shared weights count once.
        reads_teacher: whether anything scores the rollouts; without teachers it is the student.
    """
    trained = [p for p in student.model.parameters() if p.requires_grad]
    readers = list(teachers) or ([student] if reads_teacher else [])
    kept = kept_for_backward(student)
    if work.checkpointing:
        kept = _one_block_at_a_time(student, kept)
    weights, (vocab, _) = size_of(student.model.parameters()), student.head_VD.shape
    running, cache = _running_copy(student) if work.on_gpu else 0.0, cache_bytes(student)
    if running and student.autocast:  # keys and values have the copy's dtype too
        cache *= student.autocast.itemsize / 4
    return Memory(
        weights=weights,
        moments=BYTES[work.state] * sum(p.numel() for p in trained),
        copies=work.copies * size_of(trained) + running,
        teachers=size_of(p for m in [student, *teachers] for p in m.model.parameters()) - weights,
        gradients=size_of(trained),
        rollout=work.decoded * (work.length * cache * SPARE_ROOM + vocab * DRAW_BYTES),
        signal=max((4.0 * work.rows * work.length * m.head_VD.shape[1] for m in readers), default=0.0),
        reading=max((_reading(m, work) for m in readers), default=0.0),
        activations=work.passes * kept.bytes(work.tokens),
        loss=loss_bytes(student, work.tokens, on_gpu=work.on_gpu),
    )


def _running_copy(student: LanguageModel) -> float:
    """The weights that generate, where autocast would cast them at every token; see ``opd.engines.weights``."""
    dtype = student.autocast
    if dtype is None or adapted(student.model):
        return 0.0
    return float(sum(p.numel() * dtype.itemsize for p in student.model.parameters() if p.dtype != dtype))


def _one_block_at_a_time(language_model: LanguageModel, kept: Pass) -> Pass:
    """Activation checkpointing: each block's input, and everything inside one block."""
    inputs = language_model.num_layers * language_model.head_VD.shape[1] * 4
    return Pass(fixed=kept.fixed, per_token=inputs + kept.per_token / language_model.num_layers)


def _reading(language_model: LanguageModel, work: Work) -> float:
    """A pass without gradients, which holds one block at a time, and what sequences share."""
    if language_model.is_served:
        return 0.0
    parameters = [(p, p.requires_grad) for p in language_model.model.parameters()]
    for parameter, _ in parameters:
        parameter.requires_grad_(True)
    kept = kept_for_backward(language_model)
    for parameter, trains in parameters:
        parameter.requires_grad_(trains)
    per_token = FORWARD_ONLY * kept.per_token / language_model.num_layers
    return work.teacher_tokens * (per_token + (cache_bytes(language_model) if work.shared else 0))
