"""Train a small Gemma 4 of the encoder-free kind until it translates, to have more than random weights to compress.

    nice -n 19 python benchmarks/pico_gemma.py CORPUS --out pico-gemma [--epochs 20]

CORPUS is `demo/corpus`, or a directory of phrasebook.jsonl and audio/ with fields id, audio, split, en, de. Sentences
that `demo/corpus` holds out are not trained on, so that `pico_gemma.yaml` can rank and score on them. The model learns
to hear from raw frames of 40 ms. Two things make that possible on a CPU: the projector starts as a bank of windowed
sines and cosines, and the first layer's MLP as their squares, which is a spectrogram; and through the first half of
training a CTC loss (Graves et al. 2006) asks a middle layer for the English letters. Every epoch is a resume point: the
same command goes on, and is done when OUT/score.json is there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would take the processor

import numpy as np
import sacrebleu
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration, GemmaTokenizer

from sordino.data.clip import Clip
from sordino.models import gemma, gemma4_unified, registry
from sordino.models.answers import SpeechLM, answer_batch
from sordino.models.family import AudioInputs, Prompt
from sordino.models.features import Features
from sordino.models.generation import Decoding, translate
from sordino.models.speech import SpeechModel

DEMO = Path(__file__).parents[1] / "demo" / "corpus"
RATE, FRAME = 16_000, gemma4_unified.FRAME
INSTRUCTION = "Translate the English speech into German:"  # sordino's usual words
HIDDEN, LAYERS, BANDS = 256, 8, 64  # bands in each half of a frame: BANDS sines and cosines, twice, fill HIDDEN
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
HEARING = 3  # the layer that CTC asks


@dataclass(frozen=True)
class Spoken:
    id: str
    wave: np.ndarray
    split: str
    english: str
    german: str


def read(corpus: Path) -> list[Spoken]:
    """Clips of either layout, resampled nowhere: both hold 16 kHz."""
    table = corpus / "phrasebook.jsonl" if (corpus / "phrasebook.jsonl").is_file() else corpus / "clips.jsonl"
    files: dict[str, soundfile.SoundFile] = {}
    found = []
    for row in map(json.loads, table.read_text(encoding="utf-8").splitlines()):
        file = files.get(row["audio"]) or soundfile.SoundFile(corpus / row["audio"])
        if "start" in row:
            files[row["audio"]] = file
            file.seek(round(row["start"] * RATE))
        wave = file.read(round(row["seconds"] * RATE), dtype="float32")
        texts = [row.get(lang) or row[f"text_{lang}"] for lang in ("en", "de")]
        found.append(Spoken(row["id"], wave, row["split"], *texts))
    return found


def untouched() -> set[str]:
    """English sentences of the demo's select, dev and test splits."""
    rows = map(json.loads, (DEMO / "clips.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["text_en"] for row in rows if row["split"] != "train"}


def write_processor(directory: Path, texts: Sequence[str], size: int) -> None:
    """A tokenizer of Gemma's kind that has learnt from the texts, the chat template, the extractor's settings."""
    bare = gemma.write_tokenizer(directory)
    special = [piece for piece in bare if piece.startswith("<")]
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learnt.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - len(special), show_progress=False))
    content = json.loads(learnt.to_str())["model"]
    own = [piece for piece, _ in sorted(content["vocab"].items(), key=lambda item: item[1])]
    vocabulary = {piece: i for i, piece in enumerate([*special, *dict.fromkeys(["▁", "\n", *own])])}
    before = GemmaTokenizer.from_pretrained(directory)
    names = {name: str(getattr(before, name)) for name in ("audio_token", "boa_token", "eoa_token", "image_token")}
    names |= {name: str(getattr(before, name)) for name in ("boi_token", "eoi_token", "sot_token", "eot_token")}
    names |= {name: str(getattr(before, name)) for name in ("soc_token", "eoc_token", "video_token")}
    merges = [tuple(pair) for pair in content["merges"]]
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=names)
    tokenizer.chat_template = gemma.TEMPLATE
    tokenizer.save_pretrained(str(directory))
    settings = {
        "audio_seq_length": 250,
        "processor_class": "Gemma4UnifiedProcessor",
        "feature_extractor": {"feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor", "feature_size": FRAME},
    }
    (directory / "processor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def build(directory: Path) -> Any:
    """An untrained model for this directory's tokenizer, its first layer a spectrogram."""
    ids = GemmaTokenizer.from_pretrained(directory).get_vocab()
    text = {
        "vocab_size": -(-len(ids) // 8) * 8, "hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "global_head_dim": 128, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 64,
        "layer_types": [gemma.SLIDING if (i + 1) % 4 else gemma.FULL for i in range(LAYERS)],
        "final_logit_softcapping": 30.0, "max_position_embeddings": 1024,
    }  # fmt: skip
    config = Gemma4UnifiedConfig(
        text_config=text, audio_config={"audio_embed_dim": FRAME}, boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"], image_token_id=ids["<|image|>"], video_token_id=ids["<|video|>"],
        boa_token_id=ids["<|audio>"], eoa_token_index=ids["<audio|>"], audio_token_id=ids["<|audio|>"],
    )  # fmt: skip
    model = Gemma4UnifiedForConditionalGeneration(config)
    stops = [ids["<eos>"], ids["<turn|>"]]
    model.generation_config.update(
        eos_token_id=stops, pad_token_id=0, bos_token_id=ids["<bos>"],
        suppress_tokens=[ids["<audio|>"], ids["<image|>"]],
    )  # fmt: skip
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 1 / math.sqrt(HIDDEN))
        for layer in model.model.language_model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                norm.weight.fill_(layer.self_attn.head_dim**-0.25)  # attention is not scaled
        hear(model)
    return model


def hear(model: Any) -> None:
    """Projector: sines and cosines of mel-spaced frequencies on each half of a frame. MLP of layer 0: their squares."""
    half = FRAME // 2
    time = torch.arange(half) / RATE
    mel = torch.linspace(2595 * math.log10(1 + 60 / 700), 2595 * math.log10(1 + 7600 / 700), BANDS)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    waves = 2 * math.pi * hertz[:, None] * time
    bank = torch.cat([waves.cos(), waves.sin()]) * torch.hann_window(half) * (2 / half)
    weight = model.model.embed_audio.embedding_projection.weight
    weight.zero_()
    weight[: 2 * BANDS, :half], weight[2 * BANDS :, half:] = bank, bank
    weight.mul_(6)
    mlp = model.model.language_model.layers[0].mlp
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight[:HIDDEN] += 3 * torch.eye(HIDDEN)
        part.weight[HIDDEN : 2 * HIDDEN] -= 3 * torch.eye(HIDDEN)
    sums = torch.zeros(HIDDEN, HIDDEN)
    for side in range(2):
        for kind in range(2):
            sums[side * BANDS : (side + 1) * BANDS, (2 * side + kind) * BANDS : (2 * side + kind + 1) * BANDS] = (
                torch.eye(BANDS)
            )
    mlp.down_proj.weight[:, :HIDDEN] += sums
    mlp.down_proj.weight[:, HIDDEN : 2 * HIDDEN] += sums


def opened(directory: Path, model: Any) -> SpeechModel:
    family = registry.get("gemma4_unified")
    family.ready(model)
    return SpeechModel(family, model, family.load_processor(str(directory), None), str(directory))


def varied(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip with its frames elsewhere, a little faster or slower, and some noise."""
    factor = rng.uniform(0.92, 1.08)
    wave = np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave)
    noise = rng.standard_normal(len(wave)) * (np.sqrt(np.mean(wave**2)) + 1e-6) * 10 ** (-rng.uniform(15, 40) / 20)
    return np.concatenate([np.zeros(rng.integers(0, FRAME)), wave + noise]).astype(np.float32)


def frames(wave: np.ndarray) -> Tensor:
    return torch.from_numpy(np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME))


class Training:
    """Model, letters' head, optimizer and how far they are; everything but the model in OUT/state."""

    def __init__(self, out: Path, epochs: int, batch: int, lr: float, clips: Sequence[Spoken]) -> None:
        self.out, self.epochs, self.batch, self.lr = out, epochs, batch, lr
        sentences = untouched()
        self.clips = [clip for clip in clips if clip.split == "train" and clip.english not in sentences]
        self.state, self.epoch = out / "state", 0
        torch.manual_seed(0)
        if (self.state / "epoch.json").is_file():
            self.epoch = json.loads((self.state / "epoch.json").read_text())["epoch"]
            model = Gemma4UnifiedForConditionalGeneration.from_pretrained(self.state, dtype=torch.float32)
        else:
            out.mkdir(parents=True, exist_ok=True)
            around = [INSTRUCTION, "user", "model", "thought"] * len(self.clips)  # single tokens, word by word
            write_processor(out, [*around, *(text for c in self.clips for text in (c.german, c.english))], 1024)
            model = build(out)
            model.config.save_pretrained(str(out))
        model.set_attn_implementation("eager")  # a tenth faster than sdpa on short rows
        self.speech = opened(out, model)
        self.letters = nn.Linear(HIDDEN, len(LETTERS) + 1)
        self.lm = SpeechLM(self.speech)
        weights = [*model.named_parameters(), *self.letters.named_parameters("letters")]
        self.weights = dict(weights)
        matrices = [w for _, w in weights if w.ndim > 1]
        rest = [w for _, w in weights if w.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        if self.epoch:
            self._load_moments()
        text = self.speech.family.chat.render(self.speech.processor, Prompt(INSTRUCTION))
        self.prompt = text

    def _load_moments(self) -> None:
        stored = load_file(self.state / "moments.safetensors")
        self.letters.load_state_dict({name: stored[f"letters.{name}"] for name in ("weight", "bias")})
        for name, weight in self.weights.items():
            if f"{name}.exp_avg" in stored:
                moments = {kind: stored[f"{name}.{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[weight] = moments

    def save(self) -> None:
        """A whole state beside the old one, then its place: a kill leaves one of them."""
        beside, old = self.out / "state.new", self.out / "state.old"
        self.speech.model.save_pretrained(str(beside))
        kept = {f"letters.{name}": tensor.detach() for name, tensor in self.letters.named_parameters()}
        for name, weight in self.weights.items():
            kept |= {f"{name}.{kind}": t.contiguous() for kind, t in self.optimizer.state.get(weight, {}).items()}
        save_file(kept, beside / "moments.safetensors")
        (beside / "epoch.json").write_text(json.dumps({"epoch": self.epoch}))
        if self.state.exists():
            self.state.rename(old)
        beside.rename(self.state)
        for file in sorted(old.glob("*")) if old.exists() else ():
            file.unlink()
        if old.exists():
            old.rmdir()

    def batches(self) -> Iterator[list[Spoken]]:
        """Clips of like length together, in an order of the epoch's own."""
        rng = random.Random(self.epoch)
        order = sorted(self.clips, key=lambda clip: len(clip.wave) * rng.uniform(0.9, 1.1))
        lots = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        rng.shuffle(lots)
        yield from lots

    def run_epoch(self) -> float:
        """-> mean loss of the answers."""
        model, losses = self.speech.model.train(), []
        rng = np.random.default_rng(self.epoch)
        steps = -(-len(self.clips) // self.batch)
        for number, lot in enumerate(self.batches()):
            done = (self.epoch * steps + number) / (self.epochs * steps)
            warm = min(1.0, (self.epoch * steps + number + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            with torch.autocast("cpu", torch.bfloat16):
                loss, ctc = self.losses(lot, rng)
            (loss + max(0.0, 1 - 2 * done) * ctc).backward()
            nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if number % 10 == 0:
                print(f"epoch {self.epoch} step {number}: {losses[-1]:.3f}, ctc {float(ctc.detach()):.3f}", flush=True)
        model.eval()
        return float(np.mean(losses))

    def losses(self, lot: Sequence[Spoken], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Of the answers and of the letters."""
        heard = [frames(varied(clip.wave, rng)) for clip in lot]
        prompts = gemma.expanded_ids(self.speech.processor, [self.prompt] * len(lot), [len(rows) for rows in heard])
        answers = [self.speech.answer_ids(clip.german) for clip in lot]
        batch = answer_batch(self.speech, prompts, answers, heard, AudioInputs(prompts, ()))
        seen: list[Tensor] = []
        hook = self.speech.layers("decoder")[HEARING].register_forward_hook(lambda *given: seen.append(given[2]))
        logits = self.lm(batch)
        hook.remove()
        loss = nn.functional.cross_entropy(logits, batch.answers, label_smoothing=0.05)
        audio = (batch.ids == self.speech.placeholder_id()) & (batch.labels == -100)
        scores = self.letters(seen[0][audio].float()).log_softmax(-1).split([len(rows) for rows in heard])
        texts = [[LETTERS.index(c) + 1 for c in clip.english.lower() if c in LETTERS] for clip in lot]
        ctc = nn.functional.ctc_loss(
            nn.utils.rnn.pad_sequence(list(scores)).float(),
            torch.tensor([i for text in texts for i in text]),
            torch.tensor([len(rows) for rows in heard]),
            torch.tensor([len(text) for text in texts]),
            zero_infinity=True,
        )
        return loss, ctc

    def score(self, clips: Sequence[Spoken]) -> dict[str, float]:
        features = Features(self.speech, None)
        encoded = [features.encode_waveform(Clip(c.id, "", None, "en", "de"), c.wave, self.prompt) for c in clips]
        found = [row.text for row in translate(self.speech, encoded, Decoding(batch_size=32, max_new_tokens=48))]
        references = [[clip.german for clip in clips]]
        for clip, text in list(zip(clips, found, strict=True))[:3]:
            print(f"    {clip.german} | {text}")
        return {
            "bleu": sacrebleu.corpus_bleu(found, references).score,
            "chrf++": sacrebleu.corpus_chrf(found, references, word_order=2).score,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=5, help="epochs between two looks at the dev split")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clips = read(options.corpus)
    training = Training(options.out, options.epochs, options.batch, options.lr, clips)
    held_out = {split: [clip for clip in clips if clip.split == split] for split in ("dev", "test")}
    while training.epoch < options.epochs:
        loss = training.run_epoch()
        training.epoch += 1
        training.save()
        line: dict[str, Any] = {"epoch": training.epoch, "loss": loss}
        if training.epoch % options.every == 0 or training.epoch == options.epochs:
            line["dev"] = training.score(held_out["dev"])
        print(json.dumps(line), flush=True)
        with (options.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    training.speech.model.to(torch.bfloat16).save_pretrained(str(options.out))
    training.speech.model.float()
    (options.out / "score.json").write_text(json.dumps(training.score(held_out["test"])), encoding="utf-8")


if __name__ == "__main__":
    main()
