"""Voxtral: Whisper encoder on fixed 30 s chunks, two-layer projector, Llama decoder, Mistral's own tokenizer.

The encoder hears a whole chunk, padding included, and knows no mask: whatever a clip's length, a chunk is 1,500
encoder states, four of which are put side by side into one audio token, 375 in all. So there is no shortcut for
short clips as Qwen2-Audio has one. Clips that need a second chunk are refused.

The prompt's form is code in `mistral-common` and not a template; `render` asks it and writes the control tokens
out as text, `prepare` reads them back, and the ids are those of the stock processor.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import wave
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack, Table, Tensors
from sordino.models.tables import (
    LLAMA_DECODER,
    LLAMA_GGUF,
    LLAMA_SILENT,
    PARTS,
    SAVED,
    WHISPER_ENCODER,
    WHISPER_FIELDS,
    WHISPER_SILENT,
    positions_window,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
HOP = 160  # samples between mel frames
CHUNK_FRAMES = 3_000  # mel frames of one chunk: 30 s
WINDOW = CHUNK_FRAMES * HOP  # samples
FRAMES_PER_TOKEN = 2 * 4  # the second convolution's stride, times the encoder states in one audio token
AUDIO = "[AUDIO]"


def load_processor(path: str, revision: str | None = None) -> Any:
    """The stock processor. Raises FamilyError where the tokenizer's package is missing or too old."""
    from transformers import AutoProcessor
    from transformers.utils import is_mistral_common_available

    if importlib.util.find_spec("mistral_common") is None or not is_mistral_common_available():
        raise FamilyError(
            "Voxtral's tokenizer needs a recent mistral-common, which is not installed.",
            "Run: pip install --upgrade '.[voxtral]'",
        )

    return AutoProcessor.from_pretrained(path, revision=revision)


def render(processor: Any, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins.

    Raises FamilyError for what the model has no form for: the base style, a system prompt where the tokenizer
    refuses it beside audio (version 7 does, later ones need not), and a control token inside a text.
    """
    if prompt.style == "base":
        raise FamilyError("Voxtral models answer chats only, and the prompt style is 'base'.", "Use 'chat'.")
    tokenizer = processor.tokenizer
    texts = (prompt.system or "", prompt.instruction, *(prompt.example or ()))
    for token in tokenizer.all_special_tokens:
        if any(token in text for text in texts):
            raise FamilyError(
                f"a prompt text holds {token}, which is a control token of Voxtral.", "Take it out of the text."
            )
    turns: list[dict[str, Any]] = []
    if prompt.system is not None:
        turns.append({"role": "system", "content": prompt.system})
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": f"{prompt.instruction} {sentence}"})
        turns.append({"role": "assistant", "content": translation})
    audio = {"type": "input_audio", "input_audio": {"data": _silence(), "format": "wav"}}
    turns.append({"role": "user", "content": [audio, {"type": "text", "text": prompt.instruction}]})
    try:
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    except ValueError as error:
        raise FamilyError(
            f"Voxtral's tokenizer refuses this prompt: {error}",
            "Leave the system prompt out and say it in the instruction." if prompt.system is not None else "",
        ) from error
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return re.sub(rf"(?:{re.escape(AUDIO)})+", AUDIO, text)


def prepare(processor: Any, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders, and mel (B, M, T).

    Raises ValueError for a clip longer than a chunk and for a prompt without exactly one audio placeholder.
    """
    import numpy as np
    import torch

    processors.refuse_long(clips, WINDOW)
    processors.with_audio(prompts, AUDIO, [1] * len(clips))  # refuses those without
    padded = [np.pad(clip, (0, WINDOW - len(clip))) for clip in clips]
    out = processor.feature_extractor(padded, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    ids = [_ids(processor.tokenizer, p, audio_tokens(len(c))) for p, c in zip(prompts, clips, strict=True)]
    return AudioInputs(ids, (out["input_features"].to(torch.float32),))


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: those of every chunk that they need, silence included."""
    chunks = max(1, -(-samples // WINDOW))
    return chunks * CHUNK_FRAMES // FRAMES_PER_TOKEN


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """mel (B, M, T) -> B tensors (A, D), four encoder states side by side."""
    mel = inputs.audio[0]
    encoder = model.model.audio_tower
    weight = encoder.conv1.weight
    hidden = encoder(mel.to(weight.device, weight.dtype)).last_hidden_state  # (B, T/2, D/4)
    return list(hidden.reshape(len(mel), -1, model.config.audio_config.intermediate_size))


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.multi_modal_projector(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def _ids(tokenizer: Any, prompt: str, count: int) -> list[int]:
    """Ids of a rendered prompt, its audio placeholder repeated `count` times."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", prompt):
        if piece in special:
            ids += [special[piece]] * (count if piece == AUDIO else 1)
        elif piece:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _silence() -> str:
    """A short WAV in base64: the stock tokenizer wants audio to place, though every clip renders the same."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLING_RATE)
        out.writeframes(bytes(2 * HOP))
    return base64.b64encode(file.getvalue()).decode("ascii")


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Voxtral of a quarter of a million parameters with a byte-level tekken tokenizer, for tests."""
    from pathlib import Path

    import torch
    from transformers import (
        MistralCommonBackend,
        VoxtralConfig,
        VoxtralForConditionalGeneration,
        VoxtralProcessor,
        WhisperFeatureExtractor,
    )

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tiny_tekken(folder / "tekken.json")
    width = 64
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": vocabulary,
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 11,
    }  # fmt: skip
    audio = {
        "model_type": "voxtral_encoder", "num_mel_bins": 80, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": encoder_layers, "num_attention_heads": 2, "max_source_positions": CHUNK_FRAMES // 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = VoxtralConfig(text_config=text, audio_config=audio, audio_token_id=24)
    config.tie_word_embeddings = False
    model = VoxtralForConditionalGeneration(config)
    with torch.no_grad():  # the default 0.02 leaves every prediction nearly the same; tests need a lively model
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.normal_(0, 0.15)
    model.save_pretrained(directory)
    extractor = WhisperFeatureExtractor(feature_size=80)
    VoxtralProcessor(extractor, MistralCommonBackend(str(folder / "tekken.json"))).save_pretrained(directory)


def _write_tiny_tekken(file: Any) -> int:
    """A tekken.json of single bytes and the control tokens at the places where Voxtral has them; -> its size."""
    import json

    named = {
        0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]",
        6: "[/AVAILABLE_TOOLS]", 7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 11: "<pad>",
        14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
        19: "[TOOL_CONTENT]", 24: AUDIO, 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]",
    }  # fmt: skip
    count = max(named) + 1
    special = [{"rank": i, "token_str": named.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(count)]
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode("ascii"), "token_str": None} for i in range(256)
    ]
    config = {
        "pattern": r"\s+|\S+", "num_vocab_tokens": len(vocabulary), "default_vocab_size": len(vocabulary) + count,
        "default_num_special_tokens": count, "version": "v7",
    }  # fmt: skip
    spectrogram = {"num_mel_bins": 80, "hop_length": HOP, "window_size": 400}
    audio = {
        "sampling_rate": SAMPLING_RATE, "frame_rate": SAMPLING_RATE / HOP / FRAMES_PER_TOKEN,
        "audio_encoding_config": spectrogram, "chunk_length_s": CHUNK_FRAMES * HOP / SAMPLING_RATE,
    }  # fmt: skip
    content = {"config": config, "vocab": vocabulary, "special_tokens": special, "audio": audio}
    file.write_text(json.dumps(content), encoding="utf-8")
    return len(vocabulary) + count


VOXTRAL = Family(
    model_type="voxtral",
    model_class="VoxtralForConditionalGeneration",
    parts=PARTS,
    stacks={
        "decoder": Stack("model.language_model.layers", "text_config", "num_hidden_layers"),
        "encoder": Stack("model.audio_tower.layers", "audio_config", "num_hidden_layers"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_id),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=lambda processor: WINDOW,
        batched=True,
    ),
    decoder=Decoder(line="sordino.models.decoder_line:LlamaLine"),
    chat=Chat(render=render, stop_tokens=("</s>",), answers_end_with={"chat": "</s>"}, takes_system=False),
    tensors=Tensors(
        saved=SAVED,
        fixed=("model.audio_tower.embed_positions",),
        silent=(
            *LLAMA_SILENT,
            *WHISPER_SILENT,
            "model.audio_tower.avg_pooler",
            "model.multi_modal_projector.act",
        ),
        tables={
            "audio_tower.": Table(WHISPER_ENCODER, "encoder_layers"),
            "language_model.": Table(LLAMA_DECODER, "decoder_layers"),
            "multi_modal_projector.": Table("linear_1.weight H G\nlinear_2.weight H H"),
        },
        fields={
            **WHISPER_FIELDS,
            "D": ("audio_config", "hidden_size", 1280),
            "F": ("audio_config", "intermediate_size", 5120),
            "G": ("audio_config", "intermediate_size", 5120),
            "encoder_layers": ("audio_config", "num_hidden_layers", 32),
            "H": ("text_config", "hidden_size", 3072),
            "I": ("text_config", "intermediate_size", 8192),
            "V": ("text_config", "vocab_size", 131_072),
            "decoder_layers": ("text_config", "num_hidden_layers", 30),
            "heads": ("text_config", "num_attention_heads", 32),
            "kv_heads": ("text_config", "num_key_value_heads", 8),
            "head_dim": ("text_config", "head_dim", 128),
        },
        window_seconds=positions_window,
        pads_audio=True,
        kept=lambda dims, states: (2 * dims["M"] + 6 * dims["D"], 9 * dims["D"] + 2 * dims["F"]),
        states_per_token=4,
        gguf=LLAMA_GGUF["llama"],
    ),
    load_processor=load_processor,
    tiny=tiny,
    stock_call="""\
content = [{"type": "audio", "path": "recording.wav"}, {"type": "text", "text": instruction}]
inputs = processor.apply_chat_template([{"role": "user", "content": content}])""",
)
