"""The models of a run that its processes divide."""

from __future__ import annotations

from opd.distributed import is_divided, mesh_of, release
from opd.language.context import LanguageContext
from opd.models.packing import packs


def divide_models(run: LanguageContext) -> None:
    """Divide the student, its copies and its teachers, as ``optimizer.shard`` says."""
    if not run.groups:
        return
    mesh = mesh_of(run.device.partition(":")[0], run.world.size, run.groups)
    copies = [run.initial] if "initial" in vars(run) else []
    copies += [run.own_weights[0]] if "own_weights" in vars(run) else []
    whole = run.config.teacher.quantize is not None  # its weights are no numbers to divide
    models = [run.student, *copies, *(m for m in run.others().values() if not (m.is_served or whole))]
    for model in {id(model.model): model for model in models}.values():
        packs(model)  # proven before the first step, as every rank reads the same for it
        release(model.model) if is_divided(model.model) else model.divide(mesh)
