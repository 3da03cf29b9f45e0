"""Tiny random models of many architectures, and a tokenizer that fits all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 272
PAD, EOS, TURN = 0, 1, 2
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS,
}  # fmt: skip
_LLAMA: dict[str, Any] = _COMMON | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}  # fmt: skip
_NEOX = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = _COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
_EXPERTS = _LLAMA | {"num_experts_per_tok": 2}
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_GEMMA = _LLAMA | {"head_dim": 16}


def _gemma3() -> Any:
    text = _GEMMA | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config=text, vision_config=_VISION, mm_tokens_per_image=4, pad_token_id=PAD, eos_token_id=[EOS, TURN]
        )
    )


def _made(kind: str, **settings: Any) -> Callable[[], Any]:
    config = getattr(hf, f"{kind}Config")
    return lambda: getattr(hf, f"{kind}ForCausalLM")(config(**settings))


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "opt": _made("OPT", **_NEOX, ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neo": _made(
        "GPTNeo", **_COMMON, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128, window_size=8,
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2)),
    "gpt_neox": _made("GPTNeoX", **_NEOX),
    "gptj": _made("GPTJ", **_GPT2, rotary_dim=8),
    "bloom": _made("Bloom", **_COMMON, hidden_size=32, n_layer=2, n_head=2),
    "falcon": _made("Falcon", **_COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    "falcon_alibi": _made(
        "Falcon", **_COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True
    ),
    "llama": _made("Llama", **_LLAMA),
    "mistral": _made("Mistral", **_LLAMA, sliding_window=8),
    "mixtral": _made("Mixtral", **_EXPERTS, num_local_experts=4),
    "olmoe": _made("Olmoe", **_EXPERTS, num_experts=4),
    "qwen3_moe": _made("Qwen3Moe", **_EXPERTS, num_experts=4, moe_intermediate_size=32, head_dim=16),
    "qwen2": _made("Qwen2", **_LLAMA),
    "qwen3": _made("Qwen3", **_GEMMA),
    "gemma": _made("Gemma", **_GEMMA),
    "gemma2": _made("Gemma2", **_GEMMA, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3_text": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**_GEMMA, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    ),
    "gemma3": _gemma3,
    "phi": _made("Phi", **_NEOX),
    "phi3": _made("Phi3", **_LLAMA, sliding_window=8),
    "olmo2": _made("Olmo2", **_LLAMA),
    "stablelm": _made("StableLm", **_LLAMA),
    "granite": _made("Granite", **_LLAMA, logits_scaling=2.0, embedding_multiplier=2.0),
    "cohere": _made("Cohere", **_LLAMA),
    "smollm3": _made("SmolLM3", **_LLAMA),
    "glm": _made("Glm", **_GEMMA),
    "mamba": _made("Mamba", **_COMMON, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mamba2": _made(
        "Mamba2", **_COMMON, hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16, n_groups=1,
        chunk_size=8,
    ),
    "recurrent_gemma": _made(
        "RecurrentGemma", **(_NEOX | {"num_hidden_layers": 3}), attention_window_size=16, lru_width=32,
    ),
    "gpt_oss": _made("GptOss", **_EXPERTS, num_local_experts=4, head_dim=16, sliding_window=8),
    "lfm2": _made("Lfm2", **_LLAMA, layer_types=["conv", "full_attention"]),
    "falcon_h1": _made(
        "FalconH1", **_LLAMA, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=4, mamba_chunk_size=8
    ),
    "gpt_bigcode": _made("GPTBigCode", **_GPT2),
    "mpt": _made("Mpt", **_COMMON, d_model=32, n_layers=2, n_heads=2, max_seq_len=128, expansion_ratio=2),
}  # fmt: skip


def tokenizer() -> Any:
    """A byte-level tokenizer with `<pad>`, `</s>` and `<turn>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "</s>", "<turn>", "<unk>", *letters]
    raw = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(words)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(words[:4])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="</s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def save(name: str, folder: Path) -> Path:
    """Write a random model of an architecture with a tokenizer to `folder`.

    Its logits are spread, so that greedy decoding has no near ties.
    """
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_gguf(folder: Path, file: Path) -> None:
    """Write a llama model and its tokenizer as a GGUF file, as llama.cpp's converter does."""
    import gguf

    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    config, words = model.config, hf.AutoTokenizer.from_pretrained(folder).get_vocab()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(words, key=lambda word: words[word])
    tokens += ["ab", "<|endoftext|>", *(f"<unused{k}>" for k in range(2, config.vocab_size - len(tokens)))]
    writer.add_token_list(tokens)
    special = {"<pad>", "</s>", "<turn>", "<unk>", "<|endoftext|>"}
    writer.add_token_types([3 if t in special else 5 if t.startswith("<unused") else 1 for t in tokens])
    writer.add_token_merges(["a b"])  # transformers reads no file without one
    writer.add_bos_token_id(EOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp pairs neighbouring rows in rotary embeddings
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
