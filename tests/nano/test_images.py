"""The nano image suite: pipelines, judges, and the accuracies of the bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from opd.errors import ConfigError
from opd.nano.images.vocabulary import COLOURS, SHAPES
from opd.nano.images.world import (
    BORDER,
    DOMAINS,
    FILL,
    HELD_OUT,
    all_prompts,
    balanced,
    concept_examples,
    digit_scans,
    draw,
    random_styles,
    style_distance,
)
from opd.nano.tasks.images import Images

pytest.importorskip("diffusers")

from opd.diffusion.folders import load_pipeline, save_pipeline
from opd.nano.images import build
from opd.nano.images.architecture import untrained
from opd.nano.images.build import accuracy, concept_accuracy, styled_pairs
from opd.nano.images.flow import condition, euler, generate
from opd.nano.images.judge import frechet, load_judge, named_classes

BUNDLED = Path(__file__).parents[2] / "src" / "opd" / "nano" / "models"
NUMBER = 72
"""Number of images behind an accuracy; bounds leave room for three standard errors."""


def bundled(*names: str) -> pytest.MarkDecorator:
    """Skip a test if a bundled model is not built."""
    missing = [name for name in names if not (BUNDLED / name).is_dir()]
    return pytest.mark.skipif(bool(missing), reason=f"not built: {', '.join(missing)}")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    torch.set_num_threads(1)
    return untrained()


def test_a_saved_pipeline_loads_unchanged(pipeline: Any, tmp_path: Path) -> None:
    save_pipeline(pipeline, tmp_path)
    loaded = load_pipeline(tmp_path)
    texts = ["red circle", "zorp bar", ""]
    reference = torch.rand(3, 3, 16, 16)
    before, after = condition(pipeline, texts, reference), condition(loaded, texts, reference)
    assert torch.equal(before.tokens_BLD, after.tokens_BLD)
    assert before.tokens_BLD.shape == (3, 8 + 16, 64)
    assert torch.equal(before.pooled_BD, after.pooled_BD)
    images = [generate(p, texts, steps=2, seed=0) for p in (pipeline, loaded)]
    assert torch.equal(*images)


def test_the_pooled_text_is_that_of_the_end_token(pipeline: Any) -> None:
    ids = pipeline.tokenizer(["red circle"], padding="max_length", return_tensors="pt").input_ids
    output = pipeline.text_encoder(ids)
    at_end = pipeline.text_encoder.text_projection(output.last_hidden_state[0, 2])
    assert ids[0, 2] == pipeline.tokenizer.eos_token_id
    assert torch.allclose(output.text_embeds[0], at_end)


def test_the_tokenizer_knows_every_word(pipeline: Any) -> None:
    texts = [str(p.text) for d in (*DOMAINS, "concept") for p in all_prompts(d)]
    assert not any(pipeline.tokenizer.unk_token_id in ids for ids in pipeline.tokenizer(texts).input_ids)


def test_the_sampler_is_the_pipelines_own(pipeline: Any) -> None:
    """Four of our Euler steps give the pipeline's latents for the same noise and sigmas."""
    noise = torch.randn(2, 3, 16, 16)
    texts = ["red circle", "blue bar"]
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts,
        latents=noise,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        num_inference_steps=4,
        guidance_scale=1,
        max_sequence_length=0,
        height=16,
        width=16,
        output_type="latent",
    ).images
    with torch.no_grad():
        ours = euler(pipeline.transformer, noise, condition(pipeline, texts), 4)[-1]
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_prompts_are_deterministic_and_ids_are_unique() -> None:
    task = Images()
    assert task.prompts("test") == Images().prompts("test")
    prompts = [p for split in ("train", "val", "test") for p in task.prompts(split)]
    assert len({p.id for p in prompts}) == len(prompts)
    assert [p.domain for p in task.prompts("test")[:4]] == ["shapes", "count", "digits", "shapes"]
    assert {p.text for p in task.prompts("concept/test")} == {f"zorp {shape}" for shape in SHAPES}
    assert {p.text for p in task.prompts("shapes/val")} == {f"{c} {s}" for c in COLOURS for s in SHAPES}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="cats"):
        Images().prompts("cats/test")
    with pytest.raises(ConfigError, match="dev"):
        Images().prompts("dev")


def test_real_images_are_deterministic_in_their_seed() -> None:
    prompts = Images().prompts("test")[:9]
    first = draw(prompts, seed=1)
    assert first.shape == (9, 3, 16, 16)
    assert first.min() >= -1
    assert first.max() <= 1
    assert torch.equal(first, draw(prompts, seed=1))
    assert not torch.equal(first, draw(prompts, seed=2))


def test_no_scan_of_a_digit_is_in_both_halves() -> None:
    ours, theirs = ({scan.numpy().tobytes() for scan in digit_scans(half)[0]} for half in ("generators", "judge"))
    assert ours.isdisjoint(theirs)
    assert len(ours) + len(theirs) == 1797


def test_pretraining_leaves_the_concept_out() -> None:
    fill, border = random_styles(4000, torch.Generator().manual_seed(0))
    assert style_distance(fill, border).min() > HELD_OUT
    assert (fill - FILL).norm(dim=1).min() < HELD_OUT
    assert (border - BORDER).norm(dim=1).min() < HELD_OUT


@pytest.mark.parametrize("name", ["judge", "reward"])
@pytest.mark.parametrize("domain", [*DOMAINS, "concept"])
def test_the_judge_is_right_about_real_images(name: str, domain: str) -> None:
    prompts = balanced(all_prompts(domain), 300, 5)
    judge = load_judge(name)
    assert judge.right(draw(prompts, seed=5), prompts).mean() > 0.95
    others = balanced(all_prompts(domain), 300, 6)
    different = torch.tensor([a.text != b.text for a, b in zip(prompts, others, strict=True)])
    assert judge.right(draw(prompts, seed=5), others)[different].mean() < 0.05


def test_another_style_is_not_the_concept() -> None:
    texts, images, _ = styled_pairs(200, 3)
    known = {p.text: p for p in all_prompts("concept")}
    assert load_judge().right(images, [known[text] for text in texts]).mean() < 0.05
    prompts, handful = concept_examples()
    assert len(handful) == 12
    assert load_judge().right(handful, prompts).all()


def test_the_likelihood_is_that_of_the_named_attributes_and_has_a_gradient() -> None:
    prompts = [all_prompts("shapes")[0], all_prompts("digits")[7]]
    images = draw(prompts, seed=0).requires_grad_()
    judge = load_judge("reward")
    found = judge.log_likelihood(images, prompts)
    logits = {name: value.log_softmax(-1) for name, value in judge(images).items()}
    named = named_classes(prompts)
    red_circle = sum(logits[name][0, named[name][0]] for name in ("kind", "shape", "colour", "style"))
    seven = logits["kind"][1, 2] + logits["digit"][1, 7]
    assert torch.allclose(found, torch.stack([torch.as_tensor(red_circle), seven]), atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_frechet_distance_of_known_gaussians() -> None:
    torch.manual_seed(0)
    a = torch.randn(200_000, 2)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    moved = 3 * a + torch.tensor([1.0, 0.0])
    assert frechet(a, moved) == pytest.approx(1 + 2 * (3 - 1) ** 2, rel=0.02)


@pytest.mark.slow
@bundled("images-base")
def test_the_base_follows_part_of_its_prompts() -> None:
    base = load_pipeline("nano/images-base")
    for domain in DOMAINS:
        assert 0.2 < accuracy(base, domain, number=NUMBER) < 0.7


@pytest.mark.slow
@bundled("images-base", *(f"images-{domain}" for domain in DOMAINS))
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_teacher_is_reliable_in_its_domain(domain: str) -> None:
    pytest.importorskip("peft")
    teacher = load_pipeline("nano/images-base")
    teacher.transformer.load_lora_adapter(str(BUNDLED / f"images-{domain}"), prefix=None, use_safetensors=True)
    assert accuracy(teacher, domain, number=NUMBER) > 0.8


@bundled("images-fewstep")
def test_the_fewstep_model_needs_two_steps() -> None:
    fewstep = load_pipeline("nano/images-fewstep")
    assert accuracy(fewstep, "shapes", steps=2, number=NUMBER) > 0.82
    assert accuracy(fewstep, "concept", steps=2, number=NUMBER) < 0.1
    assert concept_accuracy(fewstep, steps=2, number=NUMBER) > 0.5


@bundled("images-base")
def test_all_models_together_are_small() -> None:
    files = [f for folder in BUNDLED.glob("images-*") for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8 * 2**20


@pytest.mark.slow
def test_a_short_build_runs_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build saves the base, an adapter with its rank and scale, and the few-step model."""
    pytest.importorskip("peft")
    monkeypatch.setattr(build, "EVALUATED", 6)
    said: list[str] = []
    build.build_base(tmp_path, 0.0005, 0, said.append)
    build.build_teacher("count", tmp_path, 0.005, 0, said.append)
    build.build_fewstep(tmp_path, 0.0005, 0, said.append)
    assert said[-1].startswith("16 steps: shapes ")
    teacher = load_pipeline(tmp_path / "images-base")
    before = generate(teacher, ["one red dot"], steps=1, seed=0)
    teacher.transformer.load_lora_adapter(str(tmp_path / "images-count"), prefix=None, use_safetensors=True)
    (adapter,) = teacher.transformer.peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (build.RANK, build.ALPHA)
    assert not torch.equal(before, generate(teacher, ["one red dot"], steps=1, seed=0))
    texts = ("model_index.json", "vae/config.json", "transformer/config.json")
    assert not any("_name_or_path" in (tmp_path / "images-fewstep" / name).read_text() for name in texts)
    assert load_pipeline(tmp_path / "images-fewstep").transformer.dtype == torch.float32
