"""Averages of several models' weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.errors import ModelError
from opd.models.language import LanguageModel
from opd.pipelines.average import average, check_shapes
from support.models import make_model


def saved(model: LanguageModel, folder: Path) -> str:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("weights", [None, [0.25, 0.5, 0.25], [1.0, 1.0, -1.0]])
def test_the_weighted_mean_of_every_tensor(tmp_path: Path, weights: list[float] | None) -> None:
    models = {f"m{seed}": saved(make_model(seed), tmp_path / str(seed)) for seed in range(3)}
    average(models, weights, tmp_path / "mean", key="k")
    tensors = [load_file(Path(folder) / "model.safetensors") for folder in models.values()]
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == tensors[0].keys()
    for name, tensor in mean.items():
        expected = sum(w * t[name].double() for w, t in zip(weights or [1 / 3] * 3, tensors, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "mean" / "tokenizer.json").is_file()


def test_models_of_different_shapes_or_vocabularies_are_refused(tmp_path: Path) -> None:
    one = saved(make_model(0), tmp_path / "one")
    wide = saved(make_model(0, hidden=48), tmp_path / "wide")
    deep = saved(make_model(0, layers=3), tmp_path / "deep")
    for other, words in ((wide, r"\[31, 32\] in one and \[31, 48\]"), (deep, "shape none in one")):
        with pytest.raises(ModelError, match=f"stages.m.average: 'one' and 'other' cannot be averaged.*{words}"):
            check_shapes({"one": one, "other": other}, key="stages.m.average")
        with pytest.raises(ModelError, match=f"stages.m.average: 'one' and 'other' cannot be averaged.*{words}"):
            average({"one": one, "other": other}, None, tmp_path / "mean", key="stages.m.average")
    renamed = make_model(0)
    vocabulary = renamed.tokenizer.get_vocab()
    assert len(vocabulary) == 31
    folder = Path(saved(renamed, tmp_path / "renamed"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"reminder"', '"zebra"'))
    with pytest.raises(ModelError, match="different vocabularies"):
        average({"one": one, "other": str(folder)}, None, tmp_path / "mean", key="k")
    assert not (tmp_path / "mean").exists()


def test_a_model_that_is_not_on_this_disk_is_not_checked(tmp_path: Path) -> None:
    check_shapes({"one": saved(make_model(0), tmp_path / "one"), "hub": "org/model"}, key="k")
