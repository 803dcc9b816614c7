"""Build and train sordino-pico, the small Qwen2-Audio that the embedded demo and the tests compress.

Qwen2-Audio-7B does not fit a laptop's minute, so this makes a model of the same classes in small: the encoder
of Whisper base (frozen), a projector, and a 12-layer Qwen2 decoder trained from scratch on the train split of
`demo/corpus` to translate English speech into German and Chinese and to transcribe it. It is trained to a
*moderate* level on purpose: it plays the part of the general model that fine-tuning on one language improves.

    python demo/build_base.py [--encoder FILE] [--out demo/base]

FILE is a safetensors file with Whisper base's encoder under transformers' `Qwen2AudioEncoder` names; without
it the encoder is taken from the existing `demo/base`, where it is stored unchanged. The tower's outputs are
computed once, for the clips as they are and for altered copies (speed and pitch, room, noise, band limits), so
that voices and microphones outside the corpus are understood too. Training then touches the projector and the
decoder only. About half an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch loads: busy-waiting OpenMP threads slow a shared machine by a factor of 7.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import sacrebleu
import soundfile as sf
import soxr
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)

RATE = 16_000
WINDOW_SECONDS = 8
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
]
SYSTEM = "You are a professional translator."
INSTRUCTIONS = {
    "de": "Translate the English speech into German:",
    "zh": "Translate the English speech into Chinese:",
    "en": "Transcribe the English speech:",
}
# The fixed phrases of a prompt as one token each: a third off every prompt. Added tokens, not BPE merges over
# word boundaries, so that the pre-tokenizer stays Qwen2's own, which every runtime knows.
PHRASES = [SYSTEM, "Audio 1: ", "Translate the English speech into", "Transcribe the English speech"]
QWEN2_PRETOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IGNORED = -100

Clip = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One clip: the prompt up to the audio tokens, then for each task the rest of the prompt and the answer."""

    clip: str
    before: list[int]
    tasks: list[tuple[list[int], list[int]]]
    transcript: list[int]

    @property
    def tokens(self) -> int:
        return len(self.before) + sum(len(after) + len(answer) for after, answer in self.tasks)


# ---------------------------------------------------------------- data


def read_clips(corpus: Path) -> list[Clip]:
    return [json.loads(line) for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines()]


def read_audio(corpus: Path, clips: list[Clip]) -> list[np.ndarray]:
    files: dict[str, sf.SoundFile] = {}
    waves = []
    for clip in clips:
        file = files.setdefault(clip["audio"], sf.SoundFile(corpus / clip["audio"]))
        file.seek(round(clip["start"] * RATE))
        waves.append(file.read(round(clip["seconds"] * RATE), dtype="float32"))
    return waves


def altered(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip as another speaker, room or microphone might give it."""
    factor = rng.uniform(0.86, 1.16)
    wave = soxr.resample(wave, RATE * factor, RATE)
    if rng.random() < 0.35:  # a small room: a short, decaying echo tail
        seconds = rng.uniform(0.05, 0.25)
        tail = np.arange(int(seconds * RATE)) / RATE
        echo = rng.standard_normal(len(tail)) * np.exp(-6.9 * tail / seconds)
        echo *= rng.uniform(0.1, 0.5) / np.linalg.norm(echo)
        echo[0] = 1.0
        size = len(wave) + len(echo)
        wave = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo, size), size)[: len(wave)]
    spectrum = np.fft.rfft(wave)
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    octaves = np.log2(np.maximum(hertz, 60) / 1000)
    decibels = rng.uniform(-3, 3) * octaves
    if rng.random() < 0.25:  # telephone or cheap microphone
        low, high = rng.uniform(100, 300), rng.uniform(3200, 6000)
        decibels -= 24 * np.maximum(0, np.log2(low / np.maximum(hertz, 20)))
        decibels -= 48 * np.maximum(0, np.log2(np.maximum(hertz, 20) / high))
    wave = np.fft.irfft(spectrum * 10 ** (decibels / 20), len(wave))
    loudness = float(np.sqrt(np.mean(wave**2))) + 1e-6
    noise = np.cumsum(rng.standard_normal(len(wave))) if rng.random() < 0.3 else rng.standard_normal(len(wave))
    noise = (noise - noise.mean()) / (noise.std() + 1e-9)
    wave = wave + noise * loudness * 10 ** (-rng.uniform(12, 40) / 20)
    wave = wave * rng.uniform(0.3, 0.9) / (np.abs(wave).max() + 1e-6)
    return wave[: WINDOW_SECONDS * RATE].astype(np.float32)


# ---------------------------------------------------------------- model


def make_processor(texts: list[str], vocabulary: int) -> Qwen2AudioProcessor:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PRETOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    # The words around the phrases (roles, language names) must become single tokens as well.
    scaffold = ["system\n", "user\n", "assistant\n", " German:", " Chinese:"] * len(texts)
    bpe.train_from_iterator(
        [*texts, *scaffold],
        trainers.BpeTrainer(
            vocab_size=vocabulary - len(PHRASES),
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
        padding_side="left",
    )
    tokenizer.add_tokens(PHRASES)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_SECONDS, return_attention_mask=True)
    return Qwen2AudioProcessor(extractor, tokenizer)


def render_prompt(processor: Qwen2AudioProcessor, task: str) -> tuple[list[int], list[int]]:
    """The prompt's ids before and after the place of the audio tokens."""
    text = processor.apply_chat_template(
        [
            {"role": "system", "content": SYSTEM},
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio_url": "x"},
                    {"type": "text", "text": INSTRUCTIONS[task]},
                ],
            },
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    place = ids.index(processor.audio_token_id)
    return ids[:place], ids[place + 1 :]


def make_model(tokenizer: Any, layers: int, feed_forward: int) -> Qwen2AudioForConditionalGeneration:
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    # Untied and said so on both levels, as in Qwen2-Audio-7B: transformers' class has no tied weights to declare,
    # so a "tied" config would hold for other engines only, and they would drop the trained head.
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 80,
            "d_model": 512,
            "encoder_layers": 6,
            "encoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "max_source_positions": WINDOW_SECONDS * 50,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": feed_forward,
            "max_position_embeddings": 1024,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        tie_word_embeddings=False,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=pad, max_new_tokens=64)
    return model


def load_tower(tower: nn.Module, encoder: Path | None, base: Path) -> None:
    if encoder is not None:
        state = load_file(encoder)
    elif (base / "config.json").exists():
        state = Qwen2AudioForConditionalGeneration.from_pretrained(base).model.audio_tower.state_dict()
    else:
        raise SystemExit(f"no --encoder given and no model in {base} to take the encoder from")
    state["embed_positions.weight"] = state["embed_positions.weight"][: WINDOW_SECONDS * 50]
    # Rounded as the checkpoint stores it: the decoder is trained on what its users will run.
    tower.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in state.items()})
    tower.requires_grad_(False).eval()


@torch.inference_mode()
def encode(tower: Any, extractor: Any, waves: list[np.ndarray], batch: int = 32) -> list[Tensor]:
    """Tower outputs, one (audio tokens, 512) tensor a clip.

    The tower is run on the batch's true length with the padding masked, which equals running the full window
    with the padding masked, at a third of the work.
    """
    outputs: list[Tensor | None] = [None] * len(waves)
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        mel = extractor(
            [waves[i] for i in members],
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            padding="max_length",
        )
        frames = mel["attention_mask"].sum(-1)
        longest = min(mel["input_features"].shape[-1], (int(frames.max()) + 3) // 4 * 4 + 4)
        hidden = functional.gelu(tower.conv1(mel["input_features"][:, :, :longest]))
        hidden = functional.gelu(tower.conv2(hidden)).permute(0, 2, 1)
        steps = hidden.shape[1]
        hidden = hidden + tower.embed_positions.weight[:steps]
        valid = (frames - 1) // 2 + 1
        padded = torch.arange(steps)[None] >= valid[:, None]
        mask = torch.zeros(len(members), 1, 1, steps).masked_fill(padded[:, None, None], -1e9)
        for layer in tower.layers:
            hidden = layer(hidden, mask.expand(-1, -1, steps, -1))
        hidden = tower.layer_norm(tower.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1))
        for i, row, tokens in zip(members, hidden, (valid - 2) // 2 + 1, strict=True):
            outputs[i] = row[: int(tokens)].clone()
    return [output for output in outputs if output is not None]


def start_scales(model: Any, features: list[Tensor]) -> None:
    """Start projector and embedding at one scale: from torch's default the first epochs are lost."""
    linear, embedding = model.model.multi_modal_projector.linear, model.get_input_embeddings()
    sample = torch.cat(features[:200])
    with torch.no_grad():
        linear.weight.normal_(0, 0.5 / float(sample.std(0).norm()))
        linear.bias.copy_(-(linear.weight @ sample.mean(0)))
        embedding.weight.normal_(0, 0.3)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Batch:
    embedded: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    audio: Tensor
    """The projected audio of all clips in a row."""


def make_batch(model: Any, examples: list[Example], features: list[Tensor], pad: int) -> Batch:
    """Each clip once, with its tasks side by side behind it: half the work of one row a task.

    Every task sees the prompt's beginning, the audio and itself, at the positions it has when it is alone.
    """
    audio = model.model.multi_modal_projector(torch.cat(features))
    longest = max(e.tokens + len(f) for e, f in zip(examples, features, strict=True))
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), IGNORED)
    positions = torch.zeros(len(examples), longest, dtype=torch.long)
    segments = torch.full((len(examples), longest), -1)
    is_audio = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, (example, feature) in enumerate(zip(examples, features, strict=True)):
        first, shared = len(example.before), len(example.before) + len(feature)
        ids[row, :first] = torch.tensor(example.before)
        is_audio[row, first:shared] = True
        segments[row, :shared] = 0
        positions[row, :shared] = torch.arange(shared)
        start = shared
        for number, (after, answer) in enumerate(example.tasks, 1):
            end = start + len(after) + len(answer)
            ids[row, start:end] = torch.tensor(after + answer)
            labels[row, start + len(after) : end] = torch.tensor(answer)
            segments[row, start:end] = number
            positions[row, start:end] = torch.arange(shared, shared + end - start)
            start = end
    embedded = model.get_input_embeddings()(ids).masked_scatter(is_audio[..., None], audio)
    seen, seer = segments[:, None, :], segments[:, :, None]
    allowed = ((seen == 0) | (seen == seer)) & torch.ones(longest, longest).tril().bool()
    mask = torch.zeros(len(examples), 1, longest, longest).masked_fill(~allowed[:, None], -1e9)
    return Batch(embedded, mask, positions, labels, audio)


def plan_epoch(examples: list[Example], size: int, length: Callable[[Example], int], seed: int) -> list[list[Example]]:
    """One epoch: batches of similar length, in random order."""
    rng = random.Random(seed)
    shuffled = rng.sample(examples, len(examples))
    cut = []
    for start in range(0, len(shuffled), size * 8):
        chunk = sorted(shuffled[start : start + size * 8], key=length)
        cut += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    rng.shuffle(cut)
    return cut


def answer_loss(model: Any, batch: Batch, smoothing: float) -> Tensor:
    hidden = model.model.language_model(
        inputs_embeds=batch.embedded,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    wanted = batch.labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits, batch.labels[:, 1:][wanted], label_smoothing=smoothing)


@dataclass(frozen=True)
class Recipe:
    epochs: int
    batch: int
    rate: float
    warmup: int
    ctc_weight: float = 0.0
    smoothing: float = 0.05
    seed: int = 0


def train(
    model: Any, examples: list[Example], copies: list[dict[str, Tensor]], recipe: Recipe, pad: int
) -> Iterator[str]:
    """Train projector and decoder; yields a progress line an epoch. `copies`: the tower outputs by clip id."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    vocabulary = model.config.text_config.vocab_size
    ctc_head = nn.Linear(model.config.text_config.hidden_size, vocabulary + 1)
    ctc_loss = nn.CTCLoss(blank=vocabulary, zero_infinity=True)
    parameters = [p for p in model.parameters() if p.requires_grad] + list(ctc_head.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    total = recipe.epochs * math.ceil(len(examples) / recipe.batch)
    started, step = time.monotonic(), 0
    model.train()
    model.model.audio_tower.eval()
    for epoch in range(recipe.epochs):
        losses = []
        plan = plan_epoch(
            examples, recipe.batch, lambda e: len(copies[0][e.clip]) + e.tokens, recipe.seed * 1000 + epoch
        )
        for members in plan:
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * min(1, (step + 1) / recipe.warmup) * (0.05 + 0.95 * cosine)
            features = [rng.choice(copies)[e.clip] for e in members]
            batch = make_batch(model, members, features, pad)
            loss = answer_loss(model, batch, recipe.smoothing)
            losses.append(float(loss.detach()))
            # Helps the projector to find words early; gone when the decoder can say them itself.
            weight = recipe.ctc_weight * max(0.0, 1 - step / (0.6 * total))
            if weight > 0:
                lengths = [len(f) for f in features]
                encoded = nn.utils.rnn.pad_sequence(batch.audio.split(lengths))
                loss = loss + weight * ctc_loss(
                    ctc_head(encoded).log_softmax(-1),
                    torch.tensor([t for e in members for t in e.transcript]),
                    torch.tensor(lengths),
                    torch.tensor([len(e.transcript) for e in members]),
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            if step == 20 or step % 50 == 0:
                pace = (time.monotonic() - started) / step
                print(
                    f"  step {step}/{total}  loss {np.mean(losses[-50:]):.3f}  {pace:.2f} s a step, "
                    f"about {(total - step) * pace / 60:.1f} minutes left",
                    flush=True,
                )
        yield (
            f"epoch {epoch + 1}/{recipe.epochs}  loss {np.mean(losses):.3f}  "
            f"{(time.monotonic() - started) / 60:.1f} min"
        )


@torch.inference_mode()
def translate(model: Any, processor: Any, features: list[Tensor], task: str, batch: int = 50) -> list[str]:
    model.eval()
    before, after = (torch.tensor(ids) for ids in render_prompt(processor, task))
    embed, project = model.get_input_embeddings(), model.model.multi_modal_projector
    texts = [""] * len(features)
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        rows = [torch.cat([embed(before), project(features[i]), embed(after)]) for i in members]
        longest = max(map(len, rows))
        embedded = torch.stack([functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        attention = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
        ids = model.generate(inputs_embeds=embedded, attention_mask=attention, max_new_tokens=48)
        for i, row in zip(members, ids, strict=True):
            texts[i] = processor.tokenizer.decode(row, skip_special_tokens=True).strip()
    return texts


def scores(hypotheses: list[str], references: list[str], task: str) -> dict[str, float]:
    tokenizer = "zh" if task == "zh" else "13a"
    return {
        "BLEU": sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer).score,
        "chrF": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        "chrF++": sacrebleu.corpus_chrf(hypotheses, [references], word_order=2).score,
    }


def make_examples(processor: Any, clips: list[Clip], tasks: list[str]) -> list[Example]:
    def ids(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    end = processor.tokenizer.eos_token_id
    prompts = {task: render_prompt(processor, task) for task in tasks}
    return [
        Example(
            clip["id"],
            prompts[tasks[0]][0],
            [(prompts[task][1], [*ids(clip[f"text_{task}"]), end]) for task in tasks],
            ids(clip["text_en"]),
        )
        for clip in clips
    ]


def tune_allocator() -> None:
    """Have glibc keep freed pages: mapping them anew for every large tensor costs half the time here."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=here / "corpus")
    parser.add_argument("--out", type=Path, default=here / "base")
    parser.add_argument("--encoder", type=Path, help="Whisper base's encoder (default: from demo/base)")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--feed-forward", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--copies", type=int, default=2, help="altered copies of every training clip")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=12, help="clips a step, each under all three tasks")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tune_allocator()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    clips = read_clips(args.corpus)
    of_split = {name: [c for c in clips if c["split"] == name] for name in ("train", "dev")}

    processor = make_processor([c[f"text_{task}"] for c in of_split["train"] for task in INSTRUCTIONS], args.vocabulary)
    tokenizer = processor.tokenizer
    model = make_model(tokenizer, args.layers, args.feed_forward)
    load_tower(model.model.audio_tower, args.encoder, here / "base")
    decoder = sum(p.numel() for p in model.model.language_model.parameters())
    prompt = sum(map(len, render_prompt(processor, "de")))
    print(f"decoder {decoder / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}, prompt {prompt} tokens")

    started = time.monotonic()
    waves = {name: read_audio(args.corpus, members) for name, members in of_split.items()}
    ids = [c["id"] for c in of_split["train"]]
    noise = np.random.default_rng(args.seed)
    copies = []
    for copy in range(args.copies + 1):
        taken = waves["train"] if copy == 0 else [altered(wave, noise) for wave in waves["train"]]
        encoded = encode(model.model.audio_tower, processor.feature_extractor, taken)
        copies.append(dict(zip(ids, encoded, strict=True)))
        spent = time.monotonic() - started
        left = spent / (copy + 1) * (args.copies - copy)
        print(f"encoded copy {copy + 1}/{args.copies + 1}, about {left / 60:.1f} minutes left", flush=True)
    dev = encode(model.model.audio_tower, processor.feature_extractor, waves["dev"])

    model.set_attn_implementation({"text_config": "eager"})  # a fifth faster than sdpa on short rows
    start_scales(model, list(copies[0].values()))
    examples = make_examples(processor, of_split["train"], list(INSTRUCTIONS))
    recipe = Recipe(args.epochs, args.batch, args.rate, warmup=60, ctc_weight=0.3, seed=args.seed)
    for line in train(model, examples, copies, recipe, tokenizer.pad_token_id):
        found = translate(model, processor, dev, "de")
        result = scores(found, [c["text_de"] for c in of_split["dev"]], "de")
        print(line, " dev de " + " ".join(f"{k} {v:.1f}" for k, v in result.items()), flush=True)

    model.to(torch.bfloat16).eval().save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"saved in {args.out}: {(args.out / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
