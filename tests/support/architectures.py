"""Random tiny models of the architectures that people bring, each with the settings that its real models have."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opd.models.language import LanguageModel
from support.tokenizers import make_tokenizer

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
"""Sizes of an attention model; a type that has no such setting ignores it."""
OMIT = object()
"""A setting of ``BASE`` that a type refuses."""
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GATED_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA_BLOCKS: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}

GEMMA_WITH_IMAGES: dict[str, Any] = {
    "text_config": {**BASE, "vocab_size": len(make_tokenizer()), "sliding_window": 4},
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen3, padded head": ("qwen3", {"vocab_size": 64}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Qwen3-Next": ("qwen3_next", {**GATED_DELTA, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "Qwen3.5": ("qwen3_5_text", GATED_DELTA),
    "Llama": ("llama", {}),
    "Mistral, window": ("mistral", {"sliding_window": 4}),
    "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {"sliding_window": 4}),
    "Gemma 2, uncapped": ("gemma2", {"sliding_window": 4, "final_logit_softcapping": None}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "Gemma 3, images too": ("gemma3", GEMMA_WITH_IMAGES),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "GPT-J": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}),
    "GPT-NeoX": ("gpt_neox", {}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", {}),
    "GLM-4": ("glm4", {}),
    "OLMo-2": ("olmo2", {}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "sliding_window": 4}),
    "DeepSeek-V3": ("deepseek_v3", LATENT),
    "Granite": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2}),
    "Cohere": ("cohere", {"logit_scale": 0.0625}),
    "Cohere 2": ("cohere2", {"logit_scale": 0.25, "sliding_window": 4}),
    "BitNet": ("bitnet", {}),
    "StableLM": ("stablelm", {}),
    "Starcoder2": ("starcoder2", {"sliding_window": 4}),
    "Falcon": ("falcon", {"head_dim": OMIT}),
    "Falcon, ALiBi": ("falcon", {"head_dim": OMIT, "alibi": True}),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1}),
    "SmolLM3": ("smollm3", {}),
    "Mamba": ("mamba", MAMBA),
    "Mamba 2": ("mamba2", {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 4}),
    "Falcon-Mamba": ("falcon_mamba", MAMBA),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Jamba": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8},
    ),
    "Falcon-H1": ("falcon_h1", {**MAMBA_BLOCKS, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    "Bamba": ("bamba", {**MAMBA_BLOCKS, "attn_layer_indices": [1]}),
    "Granite 4, hybrid": (
        "granitemoehybrid",
        {**MAMBA_BLOCKS, "layer_types": ["mamba", "attention"], "logits_scaling": 4.0, "num_local_experts": 2},
    ),
    "Nemotron-H": (
        "nemotron_h",
        {**MAMBA_BLOCKS, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 4},
    ),
    "RecurrentGemma": ("recurrent_gemma", {"lru_width": 32, "block_types": ["recurrent", "attention"]}),
    "RWKV": ("rwkv", {"attention_hidden_size": 32, "context_length": 256}),
    "xLSTM": ("xlstm", {"num_heads": 4, "num_blocks": 2, "qk_dim_factor": 0.5}),
    "MiniMax": ("minimax", {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}),
}
"""Type of the config and its settings, by name."""


def make(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random model of an architecture, with enough spread in its logits to tell tokens apart."""
    torch.manual_seed(seed)
    kind, settings = ARCHITECTURES[name]
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    given = {"vocab_size": len(tokenizer), **BASE, **ids, **settings}
    config = AutoConfig.for_model(kind, **{key: value for key, value in given.items() if value is not OMIT})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    return LanguageModel(model, tokenizer, f"tiny {name}")
