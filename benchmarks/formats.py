"""Decoding speed of every export format on this CPU against 16- and 32-bit transformers, and what it costs in quality.

Each format runs where it is meant to run: llama.cpp for GGUF, transformers for the others. Two models: the last of a
finished run, and (--layers) a random decoder whose layers have Qwen2-Audio-7B's true size, since a small model shows
nothing of memory bandwidth. The clock is read at every token of one pass: what comes before the first is the prompt,
what lies between the first and the last is decoding. All systems are loaded at once and take turns in every round; a
ratio is the median over the rounds of bf16's time over theirs in the same round.

    python benchmarks/formats.py runs/demo-en-de                       # with chrF and agreement on its test split
    python benchmarks/formats.py --layers 4 --threads 1 --clock cpu    # 12 GB of memory, 6 GB of disk

On a machine that others use take --threads 1 --clock cpu, and quote the ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.models import parts
from sordino.runtime import environment

environment.prepare()  # its settings count only before torch is imported: hence the imports below it
environment.quiet_libraries()

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from true_size import mixture

from sordino.config import card, chain, run_layout
from sordino.data import manifest
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import SordinoError
from sordino.formats import registry as formats
from sordino.measure import size
from sordino.metrics import registry as metrics
from sordino.models import prompts, registry
from sordino.models.family import Prompt
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, generate, translate
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from sordino.runtime.progress import bar, note

PLAIN = {"float32": torch.float32, "bf16": torch.bfloat16}  # transformers, computing in this type
FAMILY, WIDTH, INNER, HEADS = "qwen2_audio", 4096, 11_008, 32  # the 7B model's decoder layers
NO_STOP = [-1]  # every clip decodes as many tokens
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FOUR_BIT = 5  # bits a decoder weight, at most
CLIP_SECONDS = 1.5  # of the noise that a random model hears


@dataclass
class System:
    """A model in one format. prompts, decoding: batch -> seconds, one for each round."""

    name: str
    speech: SpeechModel
    bits: float  # on disk, for each weight of the decoder's layers
    prompts: dict[int, list[float]] = field(default_factory=dict)
    decoding: dict[int, list[float]] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)


def true_layers(directory: Path, layers: int) -> None:
    """Write a random model with so many decoder layers of true size, a small encoder and a small vocabulary."""
    import transformers

    registry.get(FAMILY).tiny(str(directory), 2, 2, 0)
    model_class = getattr(transformers, registry.get(FAMILY).model_class)
    config = model_class.config_class.from_pretrained(str(directory))
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = WIDTH, INNER, layers
    text.num_attention_heads = text.num_key_value_heads = HEADS
    text.layer_types = ["full_attention"] * layers
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model_class(config).save_pretrained(str(directory))
    finally:
        torch.set_default_dtype(before)


def open_systems(source: Path, wanted: Sequence[str], made: Path | None, scratch: Path) -> list[System]:
    """The source in transformers and in each format; what cannot be made or opened here is named and left out.

    made: where a run's exports lie, which are taken as they are.
    """
    weights = layer_parameters(source)
    found = []
    for name, dtype in PLAIN.items():
        found.append(System(name, open_model(str(source), device="cpu", dtype=dtype), 8 * dtype.itemsize))
    for name in wanted:
        if name in PLAIN:
            continue
        directory = made / name if made and (made / name / "audit.json").is_file() else scratch / name
        try:
            if not directory.is_dir():
                if getattr(formats.get(name), "CALIBRATED", False):
                    note(f"left out: {name}, which a run's export stage makes on its clips")
                    continue
                directory.mkdir()
                formats.get(name).write(str(source), directory, *([mixture(source)] if name == "mixed" else [None]))
            speech = open_model(str(directory), device="cpu")  # computing as `sordino translate` would
        except SordinoError as error:
            note(f"left out: {name} ({error})")
            continue
        stored = size.measure(directory).bytes_by_part["decoder"]
        found.append(System(name, speech, 8 * stored / weights))
    return found


def layer_parameters(source: Path) -> int:
    """Weights of the decoder's layers."""
    tensors = size.headers(size.weights_files(source))
    return sum(tensor.elements for name, tensor in tensors.items() if parts.part_of(name) == "decoder")


def heard_by(speech: SpeechModel, clips: Sequence[Clip], prompt: str) -> list[EncodedClip]:
    return list(Features(speech, None).encode_each(clips, prompt))


def made_up(speech: SpeechModel, count: int, seconds: float) -> list[EncodedClip]:
    """Noise, for a random model: what is said does not matter."""
    prompt = speech.family.chat.render(speech.processor, Prompt("Translate the English speech into German:"))
    rng = np.random.default_rng(0)
    samples = round(seconds * SAMPLE_RATE)
    waves = [rng.standard_normal(samples).astype(np.float32) * 0.1 for _ in range(count)]
    clips = [Clip(str(i), "noise", None, "en", "de") for i in range(count)]
    features = Features(speech, None)
    return [features.encode_waveform(clip, wave, prompt) for clip, wave in zip(clips, waves, strict=True)]


def race(systems: Sequence[System], encoded: Sequence[EncodedClip], args: argparse.Namespace) -> None:
    """Fill in every system's seconds. The first round warms up and is dropped."""
    clock = CLOCKS[args.clock]
    with bar("racing", (args.rounds + 1) * len(systems) * len(args.batches)) as advance:
        for turn in range(args.rounds + 1):
            for system in systems:
                for batch in args.batches:
                    rows = [encoded[i % len(encoded)] for i in range(batch)]
                    start = clock()
                    ticks = timed(system.speech, rows, 1 + args.tokens, clock)
                    if turn:
                        system.prompts.setdefault(batch, []).append(ticks[0] - start)
                        system.decoding.setdefault(batch, []).append(ticks[-1] - ticks[0])
                    advance(1)


def timed(speech: SpeechModel, rows: Sequence[EncodedClip], tokens: int, clock: Callable[[], float]) -> list[float]:
    """What the clock says when each of so many tokens is known."""
    ticks: list[float] = []
    if speech.external_decoder is None:

        def tick(_: Any, scores: Any) -> Any:
            ticks.append(clock())
            return scores

        found = generate(speech, rows, tokens, tick)  # type: ignore[arg-type]  # a processor that changes nothing
    else:
        decoder: Any = speech.external_decoder
        whole = {name: getattr(decoder, name) for name in ("_read", "_step")}
        for name, method in whole.items():
            setattr(decoder, name, ticking(method, ticks, clock))
        try:
            found = generate(speech, rows, tokens)
        finally:
            for name in whole:
                delattr(decoder, name)
    if len(ticks) != tokens or any(len(row) != tokens for row in found):
        raise RuntimeError(f"{len(ticks)} readings of the clock for {tokens} tokens")
    return ticks


def ticking(method: Callable[..., Any], ticks: list[float], clock: Callable[[], float]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = method(*args)
        ticks.append(clock())
        return result

    return call


def judge(systems: Sequence[System], clips: Sequence[Clip], prompt: str, max_new_tokens: int) -> None:
    """chrF of every system, and how many hypotheses and tokens are those of float32."""
    references = [clip.target_text or "" for clip in clips]
    first: list[str] = []
    for system in systems:
        encoded = heard_by(system.speech, clips, prompt)
        texts = [h.text for h in translate(system.speech, encoded, Decoding(16, max_new_tokens))]
        first = first or texts
        same = statistics.mean(a == b for a, b in zip(texts, first, strict=True))
        tokens = [agreed(system.speech, a, b) for a, b in zip(texts, first, strict=True)]
        chrf = metrics.get("chrf").corpus(texts, references, clips[0].target_lang)
        system.quality = {"chrf": chrf, "same": same, "tokens": statistics.mean(tokens)}


def agreed(speech: SpeechModel, text: str, other: str) -> float:
    """Share of the other's tokens up to where the two part."""
    ours, theirs = speech.answer_ids(text), speech.answer_ids(other)
    parting = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return parting / len(theirs)


def results(systems: Sequence[System], encoded: Sequence[EncodedClip], args: argparse.Namespace) -> dict[str, Any]:
    """Plain values: speeds, ratios to bf16, and who is slower."""
    base = next(system for system in systems if system.name == "bf16")
    rows: dict[str, dict[str, Any]] = {}
    for system in systems:
        row: dict[str, Any] = {"bits": round(system.bits, 2), **system.quality}
        for batch in args.batches:
            prompt = sum(len(encoded[i % len(encoded)].ids) for i in range(batch))
            ours, theirs = system.decoding[batch], base.decoding[batch]
            row[f"batch {batch}"] = {
                "tokens_per_second": batch * args.tokens / min(ours),
                "to_bf16": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
                "prompt_tokens_per_second": prompt / min(system.prompts[batch]),
            }
        best = max((row[f"batch {batch}"] for batch in args.batches), key=lambda each: each["tokens_per_second"])
        row["best_batch"] = next(batch for batch in args.batches if row[f"batch {batch}"] is best)
        rows[system.name] = row
    slower = [n for n, row in rows.items() if any(row[f"batch {b}"]["to_bf16"] < 1 for b in args.batches)]
    four = [
        n
        for n, row in rows.items()
        if row["bits"] <= FOUR_BIT and all(row[f"batch {b}"]["to_bf16"] >= 1 for b in args.batches)
    ]
    return {"systems": rows, "slower_than_bf16_somewhere": slower, "four_bit_never_slower": four}


def show(title: str, found: dict[str, Any], args: argparse.Namespace) -> None:
    table = Table("format", "bits", title=title, title_justify="left")
    for batch in args.batches:
        for column in (f"b{batch} tok/s", "x bf16", "prompt tok/s"):
            table.add_column(column, justify="right")
    judged = any("chrf" in row for row in found["systems"].values())
    for column in ("chrF", "same texts", "tokens") if judged else ():
        table.add_column(column, justify="right")
    for name, row in found["systems"].items():
        cells = [f"{row['bits']:.2f}"]
        for batch in args.batches:
            each = row[f"batch {batch}"]
            cells += [f"{each['tokens_per_second']:.1f}", f"{each['to_bf16']:.2f}"]
            cells += [f"{each['prompt_tokens_per_second']:.0f}"]
        if judged:
            cells += [f"{row['chrf']:.2f}", f"{row['same']:.0%}", f"{row['tokens']:.1%}"]
        table.add_row(name, *cells)
    Console(width=150).print(table)
    print(f"slower than bf16 at some batch: {', '.join(found['slower_than_bf16_somewhere']) or 'none'}")
    print(f"4-bit and never slower: {', '.join(found['four_bit_never_slower']) or 'NONE'}")


def of_run(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The last model of a finished run."""
    source = next(
        run / chain.directory_of(key)
        for key in ("merged", "student", "pruned", "teacher")
        if (run / chain.directory_of(key)).is_dir()
    )
    clips = manifest.read(run_layout.RunLayout(run).manifest("test"))[: args.clips]
    asked = card.read(source)
    with tempfile.TemporaryDirectory(prefix="sordino-formats-") as scratch:
        systems = open_systems(source, args.formats, run / run_layout.EXPORT, Path(scratch))
        first = systems[0].speech
        prompt = prompts.render(first, asked.prompt, asked.source or "en", asked.target or "de")
        judge(systems, clips, prompt, args.max_new_tokens)
        return measured(str(source), systems, heard_by(first, clips[: max(args.batches)], prompt), args)


def of_true_layers(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sordino-formats-") as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        true_layers(source, args.layers)
        systems = open_systems(source, args.formats, None, Path(scratch))
        encoded = made_up(systems[0].speech, max(args.batches), CLIP_SECONDS)
        return measured(f"{args.layers} decoder layers of Qwen2-Audio-7B's size", systems, encoded, args)


def measured(
    title: str, systems: list[System], encoded: Sequence[EncodedClip], args: argparse.Namespace
) -> dict[str, Any]:
    family = systems[0].speech.family
    endless = dataclasses.replace(family, chat=dataclasses.replace(family.chat, stop_tokens=()))
    for system in systems:
        system.speech.family = endless
        system.speech.stop_ids = lambda: NO_STOP  # type: ignore[method-assign]
    race(systems, encoded, args)
    found = results(systems, encoded, args)
    show(f"{title}; {args.threads} threads, {args.clock} clock", found, args)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run directory")
    parser.add_argument("--layers", type=int, default=0, help="measure a random decoder of so many layers of true size")
    parser.add_argument("--formats", nargs="+", default=list(formats.FORMATS), choices=list(formats.FORMATS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=24, help="decoded a clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=None, help="of the test split, for the quality columns")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.run and not args.layers:
        parser.error("give a run directory, --layers, or both")
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "threads": args.threads}
    if args.run:
        found["run"] = of_run(args.run, args)
    if args.layers:
        found["layers"] = of_true_layers(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
