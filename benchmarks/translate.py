"""Translating a run's clips: stock `generate` one clip at a time, sordino's batches, and vLLM where it is installed.

All three start from the same waveforms, weights, prompt and device, and end with texts, which are compared. They take
turns, `--rounds` times, and each one's best round counts. Seconds are wall-clock; on a CPU, where others may be at
work, CPU seconds are beside them, vLLM's worker included. vLLM's start is not counted.

    python benchmarks/translate.py runs/demo-en-de --clips 100
    SORDINO_VLLM=.vllm python benchmarks/translate.py runs/demo-en-de --clips 100 --batches 16 64
    python benchmarks/translate.py runs/demo-en-de --model runs/demo-en-de/70-export/w4a16 --dtype bfloat16

`decoding alone` leaves out the encoder: embeddings in, ids out, which is what vLLM takes over. One thread by default.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import os

import torch

from sordino.config import card
from sordino.config.run_layout import RunLayout
from sordino.data import manifest
from sordino.data.audio import load_clip
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import FamilyError, SordinoError
from sordino.models import loading, prompts, vllm, vllm_environment
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import batches, cut, generate
from sordino.models.speech import SpeechModel
from sordino.runtime import files
from sordino.runtime.progress import bar, note


@dataclass(frozen=True)
class System:
    """work: -> ids of every clip. pid: of a worker whose CPU seconds count too."""

    name: str
    work: Callable[[], list[list[int]]]
    pid: int | None = None


def stock(speech: SpeechModel, prompt: str, clips: Sequence[Clip], tokens: int) -> list[list[int]]:
    """As transformers' documentation has it: the processor and `generate`, a clip at a time."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=tokens,
        eos_token_id=speech.stop_ids(),
        pad_token_id=speech.pad_id(),
    )
    answers = []
    with torch.inference_mode():
        for clip in clips:
            inputs = speech.processor(
                text=[prompt], audio=[load_clip(clip)], sampling_rate=SAMPLE_RATE, return_tensors="pt"
            )
            given = {
                name: value.to(speech.device, speech.dtype if value.is_floating_point() else None)
                for name, value in inputs.items()
            }
            out = speech.model.generate(**given, generation_config=greedy)
            answers.append(cut(out[0, inputs["input_ids"].shape[1] :].tolist(), speech.stop_ids()))
    return answers


def encode(speech: SpeechModel, prompt: str, clips: Sequence[Clip]) -> list[EncodedClip]:
    return list(Features(speech, None).encode_each(clips, prompt))


def decode(speech: SpeechModel, encoded: Sequence[EncodedClip], size: int, tokens: int) -> list[list[int]]:
    """In batches of similar length, in the order of the clips."""
    answers: dict[int, list[int]] = {}
    for batch in batches(encoded, size):
        answers |= dict(zip(batch, generate(speech, [encoded[i] for i in batch], tokens), strict=True))
    return [answers[i] for i in range(len(encoded))]


def cpu_seconds(pid: int | None) -> float:
    """Of this process, and of another one (Linux)."""
    own = time.process_time()
    if pid is None:
        return own
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(systems: Sequence[System], rounds: int) -> dict[str, dict[str, Any]]:
    """Name -> best seconds and CPU seconds, tokens, and the ids."""
    rows: dict[str, dict[str, Any]] = {}
    with bar("translating", rounds * len(systems)) as advance:
        for _ in range(rounds):
            for system in systems:
                start, cpu = time.perf_counter(), cpu_seconds(system.pid)
                ids = system.work()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                row = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds(system.pid) - cpu}
                best = rows.setdefault(system.name, row | {"tokens": sum(map(len, ids)), "ids": ids})
                best |= {name: min(best[name], value) for name, value in row.items()}
                advance(1)
    return rows


def systems_of(
    speech: SpeechModel, prompt: str, clips: Sequence[Clip], sizes: Sequence[int], tokens: int
) -> tuple[list[System], list[EncodedClip]]:
    encoded = encode(speech, prompt, clips)
    systems = [System("stock generate, one by one", lambda: stock(speech, prompt, clips, tokens))]
    for size in sizes:

        def whole(size: int = size) -> list[list[int]]:
            return decode(speech, encode(speech, prompt, clips), size, tokens)

        def alone(size: int = size) -> list[list[int]]:
            return decode(speech, encoded, size, tokens)

        systems += [System(f"sordino, batches of {size}", whole), System(f"decoding alone, {size}", alone)]
    return systems, encoded


def with_vllm(
    args: argparse.Namespace, path: str, encoded: Sequence[EncodedClip], size: int, room: Path
) -> tuple[System, SpeechModel]:
    """vLLM, started and warm, with so many clips at once."""
    speech = vllm.load(
        path, device=args.device, dtype=args.dtype, sequences=size, max_new_tokens=args.max_new_tokens, room=room
    )
    decoder = speech.external_decoder
    assert isinstance(decoder, vllm.VllmDecoder)
    generate(speech, encoded[:1], args.max_new_tokens)
    assert decoder.process
    work = functools.partial(decode, speech, encoded, len(encoded), args.max_new_tokens)
    return System(f"vllm decoding alone, {size}", work, decoder.process.pid), speech


def compare(args: argparse.Namespace) -> dict[str, Any]:
    layout = RunLayout(args.run)
    path = str(args.model or layout.root / "20-teacher")
    clips = manifest.read(layout.manifest(args.split))[: args.clips]
    speech = loading.load_checkpoint(path, device=args.device, dtype=args.dtype)
    asked = card.read(Path(path))
    prompt = prompts.render(speech, asked.prompt, clips[0].source_lang, clips[0].target_lang)
    systems, encoded = systems_of(speech, prompt, clips, args.batches, args.max_new_tokens)
    workers: list[SpeechModel] = []
    with tempfile.TemporaryDirectory(dir=args.room) as room:
        try:
            found = vllm_environment.require()
            for size in args.batches:
                system, worker = with_vllm(args, path, encoded, size, Path(room) / str(size))
                systems.append(system)
                workers.append(worker)
        except FamilyError as error:
            found = {"left out": str(error)}
        try:
            rows = measured(systems, args.rounds)
        finally:
            for worker in workers:
                if isinstance(worker.external_decoder, vllm.VllmDecoder):
                    worker.external_decoder.close()
    ids = {name: row.pop("ids") for name, row in rows.items()}
    ours = f"sordino, batches of {args.batches[0]}"
    for name, row in rows.items():
        row["same"] = sum(a == b for a, b in zip(ids[name], ids[ours], strict=True))
    audio = sum(clip.seconds for clip in encoded)
    return {"clips": len(clips), "audio_seconds": audio, "vllm": found, "systems": rows, "device": str(speech.device)}


def table(result: dict[str, Any], first: int) -> str:
    rows, alone = result["systems"], result["systems"][f"decoding alone, {first}"]
    stock_row = rows["stock generate, one by one"]
    lines = [
        f"{'':<32}{'seconds':>9}{'CPU s':>9}{'tokens':>8}{'tokens/CPU s':>14}{'times':>8}  same as ours",
    ]
    for name, row in rows.items():
        base = alone if "alone" in name else stock_row
        key = "cpu_seconds" if result["device"] == "cpu" else "seconds"
        rate, other = row["tokens"] / row[key], base["tokens"] / base[key]
        lines.append(
            f"{name:<32}{row['seconds']:>9.2f}{row['cpu_seconds']:>9.2f}{row['tokens']:>8}"
            f"{row['tokens'] / row['cpu_seconds']:>14.1f}{rate / other:>8.2f}  {row['same']} of {result['clips']}"
        )
    return "\n".join(
        [*lines, "", f"times: tokens per second, against the first row; decoding alone, against its {first}"]
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run: its clips, and its teacher")
    parser.add_argument("--model", type=Path, help="another model than the run's teacher")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[16], help="clips at once")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--room", type=Path, help="directory for the copy of the decoder that vLLM reads")
    parser.add_argument("--json", type=Path)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    torch.set_num_threads(args.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # as many threads as the others
    try:
        result = compare(args)
    except SordinoError as error:
        print(error, file=sys.stderr)
        return 2
    note(f"{result['clips']} clips, {result['audio_seconds']:.0f} s of audio, {result['device']}, {args.dtype}")
    if "left out" in result["vllm"]:
        note(f"without vLLM: {result['vllm']['left out']}")
    print(table(result, args.batches[0]))
    if args.json:
        files.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
