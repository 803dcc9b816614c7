"""RAM that a training on 100,000 clips holds beyond its model: python benchmarks/many_clips.py [--clips 100000]

A random Qwen2-Audio with the true encoder's width (states of 1,280), few layers, and as many made-up clips of 5 s as
asked for, whose features are already in the cache: two files under many names, since 100,000 would take 64 GB. Then
what the stages do is done: clips read from a manifest, features looked up, examples made, a few steps trained; and for
pseudo-labels, features looked up, batches formed, a few translated. Prints the process's memory before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sordino.runtime import environment

environment.prepare()

import soundfile
import torch
import transformers

from sordino.config.schema import TrainSection
from sordino.data import manifest
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.models import loading, registry, saving
from sordino.models.answers import answers_of
from sordino.models.features import EncodedClip, Features, _store
from sordino.models.generation import batches, generate
from sordino.models.speech import SpeechModel
from sordino.training import trainer
from sordino.training.collate import Example
from tests.tiny import QUESTION

SECONDS, WIDTH = 5.0, 1280
LINKS = 60_000  # names that a file may have, on ext4
TEXT = "Die Fenster des Zuges stehen seit heute Morgen wieder offen, und niemand schließt sie."


def resident() -> int:
    """Bytes of RAM that are this process's own, without files that are mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def model_of(folder: Path) -> SpeechModel:
    """Qwen2-Audio with the true width of its encoder, saved and loaded."""
    registry.get("qwen2_audio").tiny(str(folder), 2, 1, 0)
    small = loading.load_checkpoint(str(folder), device="cpu", dtype="float32")
    config = small.model.config
    config.audio_config.d_model, config.audio_config.encoder_attention_heads = WIDTH, 20
    wide = type(small.model)(config).eval()
    saving.save(dataclasses.replace(small, model=wide), folder)
    return loading.load_checkpoint(str(folder), device="cpu", dtype="float32")


def write_clips(folder: Path, features: Features, count: int) -> Path:
    """A manifest of clips in one long recording, and their features in the cache."""
    audio = folder / "talk.wav"
    soundfile.write(audio, torch.zeros(SAMPLE_RATE).numpy(), SAMPLE_RATE)
    clips = [
        Clip(
            id=f"train_{i:06}", audio=str(audio), seconds=SECONDS, source_lang="en", target_lang="de",
            source_text=f"Sentence {i} of a long day.", target_text=f"{TEXT} {i}", start=i * SECONDS,
            group=f"talk-{i // 100}", origin="authentic",
        )
        for i in range(count)
    ]  # fmt: skip
    states = torch.randn(round(SECONDS * 25), WIDTH)
    for i, clip in enumerate(clips):
        file = features._file(clip)
        assert file
        if i % LINKS == 0:
            first = file
            _store(states, round(SECONDS * SAMPLE_RATE), file)
        else:
            os.link(first, file)
    manifest.write(folder / "train.jsonl", clips)
    return folder / "train.jsonl"


def look_up(features: Features, clips: Sequence[Clip], prompt: str) -> list[EncodedClip]:
    start = time.perf_counter()
    encoded = features.encode_all(clips, prompt)
    print(f"  features of {len(clips):,} clips looked up in {time.perf_counter() - start:.0f} s")
    return encoded


def report(what: str, before: int) -> None:
    print(f"{what}: {(resident() - before) / 1e6:,.0f} MB beyond the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    count = parser.parse_args().clips
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {count:,} clips")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speech = model_of(folder / "model")
        prompt = speech.family.chat.render(speech.processor, QUESTION)
        features = Features(speech, folder / "cache")
        file = write_clips(folder, features, count)
        size = count * round(SECONDS * 25) * WIDTH * 4
        print(f"all features at once: {size / 1e9:,.0f} GB; the model: {resident() / 1e6:,.0f} MB with Python")
        section = TrainSection(batch_size=16, max_steps=3, freeze=("encoder",))
        trainer.freeze(speech, section)

        before = resident()
        clips = manifest.read(file)
        answers = answers_of(speech, clips, "chat")
        encoded = look_up(features, clips, prompt)
        pairs = [Example(*row) for row in zip(clips, answers, encoded, strict=True)]
        report("training, set up", before)
        result = trainer.train(speech, pairs, section, prompt=prompt, seed=0, state=folder / "state", label="training")
        report("training, after 3 steps of 16 clips (with gradients and moments)", before)
        print(json.dumps({"loss": result.log[-1]["loss"]}))
        del pairs, encoded, answers, clips, result

        before = resident()
        clips = manifest.read(file)
        encoded = look_up(features, clips, prompt)
        for batch in batches(encoded, 16)[:3]:
            generate(speech, [encoded[i] for i in batch], 8)
        report("pseudo-labels, after 3 batches of 16 clips", before)


if __name__ == "__main__":
    main()
