"""The architecture of all nano image models: a Stable Diffusion 3 pipeline with a million weights.

    text -> two CLIP text encoders -> 8 tokens and a pooled vector -> MMDiT, 16 tokens of 4x4 pixels -> velocity

There is no T5: ``max_sequence_length=0`` leaves its tokens out. The ``image_encoder``'s tokens of a reference image
follow the text's tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from opd.diffusion.pixels import Pixels
from opd.nano.images.vocabulary import END, PAD, TOKENS, UNKNOWN

SIZE = 16
"""Height and width of every image, in pixels."""
CHANNELS = 3
CONTEXT = 8
"""Number of tokens of a prompt, its end token included."""
DIM = 64
"""Width of the context: of text tokens and of reference image tokens."""
PATCH = 4
"""Side of a patch, pixels. Patches of 2 need as many images and twice the time."""
WIDTH = 96
"""Width of the transformer."""
LAYERS = 3
HEADS = 3
TEXT_DIM = DIM // 2
"""Width of each text encoder; both together are as wide as the context."""


def untrained(seed: int = 0) -> StableDiffusion3Pipeline:
    """The pipeline with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StableDiffusion3Pipeline(
            transformer=new_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, num_train_timesteps=1000),
            vae=Pixels(),
            text_encoder=new_text_encoder(),
            tokenizer=new_tokenizer(),
            text_encoder_2=new_text_encoder(),
            tokenizer_2=new_tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
            image_encoder=new_image_encoder(),
        )


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case words, with an end token and padding to ``CONTEXT``."""
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, TOKENS.index(END))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_text_encoder() -> CLIPTextModelWithProjection:
    """CLIP's text model with a pooled output at the end token."""
    config = CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=TOKENS.index(PAD),
        bos_token_id=None,
        eos_token_id=TOKENS.index(END),
    )
    return CLIPTextModelWithProjection(config).eval()


def new_image_encoder() -> SiglipVisionModel:
    """A vision transformer with 4x4 patches: 16 tokens as wide as the context."""
    config = SiglipVisionConfig(
        hidden_size=DIM,
        intermediate_size=2 * DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_channels=CHANNELS,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return SiglipVisionModel(config).eval()


def new_transformer() -> SD3Transformer2DModel:
    """The MMDiT that predicts the velocity of 16x16 images."""
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "patch_size": PATCH,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": LAYERS,
        "attention_head_dim": WIDTH // HEADS,
        "num_attention_heads": HEADS,
        "joint_attention_dim": DIM,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 2 * TEXT_DIM,
        "pos_embed_max_size": SIZE // PATCH,
        "qk_norm": "rms_norm",
    }
    return SD3Transformer2DModel(**settings).eval()
