"""Make a small Qwen2.5-Omni thinker that hears and, once fine-tuned, translates.

    python benchmarks/pico_omni.py --out pico-omni
    sordino run benchmarks/pico_omni.yaml

Nothing is trained here. The audio tower is Whisper base's encoder and the decoder the demo's, both out of `demo/base`
(`demo/build_base.py` says how that was made); the projector is the demo's, too. What differs is Omni's: attention
within two seconds and positions that start again with each of them, for which Whisper was not trained; rotary
positions in three rows; the chat template; tokens for pictures and films, and a part that sees, untrained and as small
as the class allows. The recipe's `finetune` adapts projector and decoder to all that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

from sordino.models import qwen2_5_omni, saving

DEMO = Path(__file__).parents[1] / "demo" / "base"
WINDOW_SECONDS = 8
NAMED = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
VISION = {
    "model_type": "qwen2_5_omni_vision_encoder", "depth": 1, "hidden_size": 64, "intermediate_size": 64,
    "num_heads": 4, "patch_size": 8, "out_hidden_size": 256, "fullatt_block_indexes": [0],
}  # fmt: skip


def write_processor(directory: Path) -> Any:
    """-> tokenizer: the demo's, with Omni's special tokens behind its own."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO, extra_special_tokens=NAMED, processor_class=qwen2_5_omni.PROCESSOR)
    tokenizer.chat_template = qwen2_5_omni.TEMPLATE
    tokenizer.save_pretrained(str(directory))
    settings = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_SECONDS).to_dict()
    settings |= {"processor_class": qwen2_5_omni.PROCESSOR}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return tokenizer


def build(demo: Any, tokenizer: Any) -> Any:
    """The thinker with the demo's weights; rows of the new tokens have the embedding's spread, and a seed."""
    ids = dict(zip(NAMED, tokenizer.convert_tokens_to_ids(list(NAMED.values())), strict=True))
    text = demo.config.text_config.to_dict()
    rotary = text["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    text |= {"model_type": "qwen2_5_omni_text", "vocab_size": len(tokenizer), "rope_parameters": rotary}
    hearing = demo.config.audio_config.to_dict()
    hearing |= {"model_type": "qwen2_5_omni_audio_encoder", "n_window": 100, "output_dim": text["hidden_size"]}
    config = Qwen2_5OmniThinkerConfig(
        text_config=text, audio_config=hearing, vision_config=VISION, audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"], video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"], audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"], vision_end_token_id=ids["vision_eos_token"],
        user_token_id=tokenizer.convert_tokens_to_ids("user"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    tower = demo.model.audio_tower.state_dict()
    tower = {name.replace("layer_norm.", "ln_post.") if name[:6] != "layers" else name: w for name, w in tower.items()}
    tower |= {f"proj.{name}": w for name, w in demo.model.multi_modal_projector.linear.state_dict().items()}
    del tower["embed_positions.weight"]  # Omni computes the same sines
    missing, unexpected = model.model.audio_tower.load_state_dict(tower, strict=False)
    assert (missing, unexpected) == (["audio_bos_eos_token.weight"], []), (missing, unexpected)
    decoder, head = demo.model.language_model.state_dict(), demo.lm_head.weight
    decoder["embed_tokens.weight"] = grown(decoder["embed_tokens.weight"], len(tokenizer))
    model.model.language_model.load_state_dict(decoder)
    model.lm_head.load_state_dict({"weight": grown(head, len(tokenizer))})
    return model


def grown(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows, the new ones random with the spread of those that are there."""
    new = torch.randn(count - len(rows), rows.shape[1]) * rows.std()
    return torch.cat([rows, new.to(rows.dtype)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_processor(out)
    demo = Qwen2AudioForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    model = build(demo, tokenizer).to(torch.bfloat16)
    saving.write_model(qwen2_5_omni.QWEN2_5_OMNI, model, out)
    saving.complete_config(qwen2_5_omni.QWEN2_5_OMNI, out, model)
    saving.copy_files(DEMO, out, saving.TERMS)
    print(f"{out}: {sum(w.numel() for w in model.parameters()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
