"""The families of models that are computed, by Hugging Face's `model_type`: the file in model/architectures/
for each, and words for it.
"""

from __future__ import annotations

FAMILIES: dict[str, tuple[str, str]] = {
    "gpt2": ("gpt2", "LayerNorm, learnt positions"),
    "llama": ("llama", "RMSNorm, gated MLPs, rotary positions, grouped keys"),
    "mistral": ("llama", "Llama with sliding windows"),
    "qwen2": ("llama", "Llama with biases of queries, keys and values"),
    "qwen3": ("qwen3", "Llama with norms of queries and keys"),
    "smollm3": ("smollm3", "Llama with rotary positions in some layers"),
    "phi3": ("phi3", "Llama with joint matrices and rotary parts of heads"),
    "granite": ("granite", "Llama with multipliers"),
    "gemma": ("gemma", "Llama with norms from 1 and scaled embeddings"),
    "gemma2": ("gemma2", "Gemma with norms after attention and MLP, and caps"),
    "gemma3_text": ("gemma3", "Gemma 2 with norms of queries and keys"),
    "olmo2": ("olmo2", "Llama with norms after attention and MLP, and of all queries and keys"),
    "olmo3": ("olmo3", "OLMo 2 with windows"),
    "mixtral": ("mixtral", "Mistral with experts"),
    "qwen2_moe": ("qwen2_moe", "Qwen2 with experts"),
    "qwen3_moe": ("qwen3_moe", "Qwen3 with experts"),
    "olmoe": ("olmoe", "Llama with experts and norms of all queries and keys"),
    "gpt_oss": (
        "gpt_oss",
        "Llama with experts, and a sink for each head's attention; its published files are quantized, and "
        "refused: give a copy in bfloat16",
    ),
    "stablelm": ("stablelm", "Llama with LayerNorm, or parallel blocks"),
    "cohere": ("cohere", "parallel blocks behind one LayerNorm, gated MLPs"),
    "gpt_neox": ("gpt_neox", "LayerNorm, rotary positions, parallel blocks"),
    "gpt_neo": ("gpt_neo", "GPT-2 with windows, unscaled"),
    "opt": ("opt", "LayerNorm, learnt positions, ReLU"),
    "phi": ("phi", "parallel blocks behind one LayerNorm, rotary positions"),
    "gptj": ("gptj", "as phi, with rotary pairs of neighbours"),
    "falcon": ("falcon", "parallel blocks, rotary positions or ALiBi, few keys"),
    "bloom": ("bloom", "LayerNorm, of the embeddings too, ALiBi"),
    "mpt": ("mpt", "LayerNorm without biases, ALiBi"),
    "transformer_lens_native": ("native", "TransformerLens' own models, attention-only ones too"),
}
