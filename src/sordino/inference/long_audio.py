"""Recordings of any length: translated chunk by chunk, in bounded memory, and resumed after a kill.

Chunks (data/chunks.py) are read from their files by offset and translated in batches of similar length, the longest
first: what does not fit into memory shows at once. With a directory to write to, every finished batch is kept, and the
same command goes on from there: a batch is made of the same chunks however often the work was cut short, so the result
is the same to the byte. In the directory:

    segments.jsonl   a line a chunk, in order: id, segment, audio, start, seconds, text, tokens (problem, where silent)
    text.txt         a line a chunk of a recording that was cut by voice activity; a line a segment of a given list
    stage.json       what made them
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sordino.config import card, records
from sordino.data import chunks
from sordino.data.audio import SilentError, Waveform, duration, load_clip
from sordino.data.chunks import Chunk
from sordino.data.clip import MAX_SECONDS, SAMPLE_RATE, Clip
from sordino.errors import ArtifactError, DataError, UsageError
from sordino.inference.model import Model, handed_over, languages_of, load
from sordino.languages import has_spaces
from sordino.models import adapter_base, registry, shapes, vllm_environment
from sordino.models.generation import Decoding
from sordino.models.loading import ADAPTER_CONFIG
from sordino.models.speech import batches_by_length
from sordino.models.translation import encode_and_translate
from sordino.pipeline import artifact, leftovers
from sordino.pipeline.device import device_of
from sordino.runtime import files
from sordino.runtime.progress import bar, note

ROWS, TEXT = "segments.jsonl", "text.txt"
CHUNKS = "pieces.json"  # resume state: where the chunks begin and end
PAUSE = 0.5  # seconds of silence that end a chunk


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model translates. pause: seconds of silence that end a chunk, where voice activity cuts."""

    target: str | None = None
    source: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    max_new_tokens: int = 256
    pause: float = PAUSE
    engine: str = "transformers"


def window_of(model: str) -> float:
    """Seconds that a model hears at once, by its configuration; MAX_SECONDS for one on the Hub. Raises FamilyError."""
    directory = Path(model)
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / registry.CONFIG).is_file():
        model = adapter_base.base_of(directory)
    if registry.is_hub_id(model):
        return MAX_SECONDS
    config = registry.read_config(model)
    return min(MAX_SECONDS, shapes.model(config).window_seconds) if shapes.known(config) else MAX_SECONDS


def needed(model: str, files: Sequence[str]) -> bool:
    """Whether any file is longer than what the model hears at once. What cannot be read is left to who reads it to
    refuse."""
    window = window_of(model)

    def long(file: str) -> bool:
        try:
            return duration(file) > window
        except DataError:
            return False

    return any(map(long, files))


def translate_recordings(
    model: str, recordings: Sequence[str], listing: Path | None, out: Path | None, options: Options
) -> dict[str, Any]:
    """Translate recordings, by the segments of a list or by voice activity: {hypotheses: rows, out, skipped}.

    out: directory to write to and resume in. Raises DataError for audio that cannot be used, ArtifactError where `out`
    holds other work, FamilyError, RecipeError, UsageError.
    """
    source, target = languages_of(model, options.source, options.target)
    if listing is None:
        clips = chunks.recordings(recordings, (source, target))
    else:
        clips = chunks.listed(listing, [Path(f).absolute().parent for f in recordings], (source, target), recordings)
    chunks.refuse_long(clips, MAX_SECONDS)  # before anything is loaded
    if out is None:
        note("without --out DIR nothing is kept if this is interrupted")
        return _result(LongAudioTranslator(model, options).rows(clips), None)
    inputs = [*recordings, *([str(listing)] if listing else [])]
    section, parents = request(model, options, inputs)
    section["listed"] = listing is not None
    refuse_other(out, section, parents)
    if artifact.why_stale(out, section, parents) is not None:
        with artifact.building(out, section, parents, {"stage": "talks"}) as (partial, record):
            state = partial / leftovers.STATE_DIR
            state.mkdir(exist_ok=True)
            rows = LongAudioTranslator(model, options).rows(clips, state)
            write_rows(partial / ROWS, rows)
            lines = joined(rows, clips, target) if listing else [one_line(row["text"]) for row in rows]
            files.write_text(partial / TEXT, "".join(line + "\n" for line in lines))
            record |= {"pieces": len(rows), "empty": [row["id"] for row in rows if not row["text"].strip()]}
    return _result(files.read_jsonl(out / ROWS), out)


class LongAudioTranslator:
    """A model and what it is asked, loaded once, and not before it is needed, for the recordings of several calls."""

    def __init__(self, model: str | Model, options: Options) -> None:
        self._model, self.options = model, options

    @cached_property
    def model(self) -> Model:
        if isinstance(self._model, Model):
            return self._model
        options = self.options
        return load(self._model, options.device, options.dtype, options.engine, self.decoding)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.options.batch_size, self.options.max_new_tokens)

    def rows(self, clips: Sequence[Clip], state: Path | None = None) -> list[dict[str, Any]]:
        """One row a chunk of the segments, in order. state: directory of this list's progress, to resume from."""
        parts = self._chunks(clips, state)
        prompt = self.model.prompt(clips[0].source_lang, clips[0].target_lang)
        file = state / ROWS if state else None
        done = {row["id"]: row for row in (files.read_jsonl(file) if file else [])}
        lengths = [-(part.clip.seconds or 0.0) for part in parts]  # the longest first
        at_once = handed_over(self.options.engine, self.decoding).batch_size
        batches = [[parts[i] for i in batch] for batch in batches_by_length(lengths, at_once)]
        unfinished = [batch for batch in batches if any(part.clip.id not in done for part in batch)]
        total = _seconds(parts)
        with _seconds_bar("translating", total, total - sum(map(_seconds, unfinished))) as advance:
            for batch in unfinished:
                # all of it: what else is in a batch can change the last bits of the numbers
                fresh = [row for row in self._batch(batch, prompt) if row["id"] not in done]
                if file:
                    files.append_jsonl(file, *fresh)
                done |= {row["id"]: row for row in fresh}
                advance(_seconds(batch))
        return [done[part.clip.id] for part in parts]

    def _chunks(self, clips: Sequence[Clip], state: Path | None) -> list[Chunk]:
        file = state / CHUNKS if state else None
        if file and file.is_file():
            return [Chunk.from_json(record) for record in files.read_json(file)]
        window = self.model.speech.window_samples / SAMPLE_RATE
        long = sum(clip.seconds or 0.0 for clip in clips if (clip.seconds or 0.0) > window)
        with _seconds_bar("listening for speech", long) as advance:
            parts = chunks.pieces(clips, window, self.options.pause, advance)
        if file:
            files.write_json(file, [part.to_json() for part in parts])
        speech = _seconds([part for part in parts if not part.problem])
        if long:
            everything = sum(clip.seconds or 0.0 for clip in clips)
            note(f"{len(parts)} chunks, {speech:.0f} s of {everything:.0f} s; no speech was found in the rest")
        return parts

    def _batch(self, batch: Sequence[Chunk], prompt: str) -> list[dict[str, Any]]:
        """The rows of a batch: a chunk that is silent, or too short for the encoder, is an empty row that says so."""
        waves = {part.clip.id: _waveform(part) for part in batch}
        audible = [part.clip for part in batch if not isinstance(waves[part.clip.id], str)]
        texts = {}
        if audible:
            options = handed_over(self.options.engine, self.decoding)
            samples = [wave for wave in waves.values() if not isinstance(wave, str)]
            pairs = encode_and_translate(self.model.features, audible, prompt, options, samples)
            texts = {hypothesis.id: hypothesis for _, hypothesis in pairs}
        rows = []
        for part in batch:
            clip = part.clip
            row: dict[str, Any] = {"id": clip.id, "segment": part.segment, "audio": clip.audio}
            row |= {"start": clip.start, "seconds": clip.seconds}
            if clip.id in texts:
                row |= {"text": texts[clip.id].text, "tokens": texts[clip.id].tokens}
            else:
                row |= {"text": "", "tokens": 0, "problem": waves[clip.id]}
            rows.append(row)
        return rows


def _waveform(part: Chunk) -> Waveform | str:
    """The samples (n,) of a chunk, or why it has none to translate."""
    if part.problem:
        return part.problem
    try:
        return load_clip(part.clip)
    except SilentError as error:
        return error.problem


def request(model: str, options: Options, inputs: Sequence[str]) -> tuple[dict[str, Any], list[artifact.Parent]]:
    """Everything that decides a translation, for stage.json: settings; the model's and the inputs' fingerprints."""
    source, target = languages_of(model, options.source, options.target)
    prompt = card.read(Path(model)).prompt
    asked = {"source": source, "target": target, "prompt": dataclasses.asdict(prompt)}
    section = dataclasses.asdict(options) | asked | {"device": str(device_of(options.device))}
    if options.engine == "vllm":
        section["engine_versions"] = vllm_environment.require()  # what one began, another does not go on with
    else:
        del section["engine"]  # as records have it that know no other
    return files.plain(section), [
        *model_parents(model),
        *(artifact.Parent(i, artifact.fingerprint(Path(i))) for i in inputs),
    ]


def model_parents(model: str) -> list[artifact.Parent]:
    """A model's fingerprint, with the one of the base that an adapter needs. Raises FamilyError."""
    if registry.is_hub_id(model):
        return [artifact.Parent(model, "hub:main")]
    directory = Path(model)
    if not directory.is_dir():
        raise DataError(f"there is no model directory {model}.")
    parents = [artifact.Parent(model, artifact.fingerprint(directory))]
    if (directory / ADAPTER_CONFIG).is_file():
        base = Path(adapter_base.base_of(directory))
        if base.is_dir():
            parents.append(artifact.Parent(str(base), artifact.fingerprint(base)))
    return parents


def refuse_other(out: Path, section: dict[str, Any], parents: Sequence[artifact.Parent]) -> None:
    """Raise ArtifactError where `out`, or the unfinished work for it, is anything but this request's, UsageError where
    it is no name."""
    if out.name in ("", ".."):
        raise UsageError(f"--out: '{out}' is no name of a new directory.", "E.g. --out out/talk")
    remedy = "Give another --out, or remove it."
    if os.path.lexists(leftovers.old_of(out)):  # never of this command, which replaces nothing
        raise ArtifactError(f"{leftovers.old_of(out)} is in the way.", remedy)
    artifact.settle(out)
    if os.path.lexists(out):
        if records.read_stage(out) is not None:
            why = artifact.why_stale(out, section, parents)
            if why:
                raise ArtifactError(f"{out} holds another result ({why}).", remedy)
            return
        if leftovers.foreign(out) is not None:
            raise ArtifactError(f"{out} exists, and is not a result of this command.", remedy)
    why = artifact.why_not_resumed(out, section, parents)
    if why:
        raise ArtifactError(f"{leftovers.partial_of(out)} {why}.", remedy)


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    files.write_text(file, "".join(files.json_line(row) + "\n" for row in rows))


def one_line(text: str) -> str:
    """Text without anything that could be taken for the end of a line, and without spaces around it."""
    return " ".join(part.strip() for part in text.splitlines()).strip()


def joined(rows: Sequence[dict[str, Any]], clips: Sequence[Clip], target: str) -> list[str]:
    """One line a segment: its chunks' texts in a row."""
    texts: dict[str, list[str]] = {clip.id: [] for clip in clips}
    for row in rows:
        texts[row["segment"]].append(one_line(row["text"]))
    space = " " if has_spaces(target) else ""
    return [space.join(part for part in texts[clip.id] if part) for clip in clips]


def _seconds(parts: Sequence[Chunk]) -> float:
    return sum(part.clip.seconds or 0.0 for part in parts)


@contextmanager
def _seconds_bar(label: str, total: float, done: float = 0.0) -> Iterator[Callable[[float], None]]:
    """A bar in whole seconds of audio, which tell the time left better than chunks do; none where there are none."""
    if not total:
        yield lambda _: None
        return
    shown, reached = round(done), done
    with bar(f"{label} (seconds of audio)", round(total), shown) as advance:

        def add(seconds: float) -> None:
            nonlocal shown, reached
            reached += seconds
            advance(round(reached) - shown)
            shown = round(reached)

        yield add


def _result(rows: list[dict[str, Any]], out: Path | None) -> dict[str, Any]:
    skipped = [{"id": row["id"], "problem": row["problem"]} for row in rows if "problem" in row]
    return {"hypotheses": rows, "out": str(out) if out else None, "skipped": skipped}
