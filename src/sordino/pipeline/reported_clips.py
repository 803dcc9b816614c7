"""The clips of a report: what each system made of them, a few to listen to, lengths, and scores by length."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from sordino.config.run_layout import RunLayout
from sordino.config.schema import Recipe
from sordino.data import audio, manifest
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.metrics import groups, lengths, registry
from sordino.metrics.base import Score
from sordino.report.model import Sample, ScoredClip, Split, System
from sordino.runtime import files

AUDIO_BYTES = 700_000  # of a page's sounds: below 1 MB as text
# constant 24 kbit/s at 16 kHz: every browser plays it, and the same samples give the same bytes (libsndfile's Ogg has
# random stream numbers)
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.9, "bitrate_mode": "CONSTANT"}
SPLITS = ("train", "extra", "select", "dev", "test")


def texts_of(recipe: Recipe, split: str, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """System -> clip -> its translation."""
    layout = RunLayout(recipe.directory)
    return {key: {row["id"]: row["text"] for row in files.read_jsonl(layout.hypotheses(key, split))} for key in keys}


def scored_clips(
    clips: Sequence[Clip], texts: Mapping[str, Mapping[str, str]], systems: Sequence[System], metric: str | None
) -> tuple[ScoredClip, ...]:
    """Every clip of the split, in its order, with the segment scores of the main metric."""
    segments = {s.name: s.scores[metric].segments for s in systems if metric and metric in s.scores}
    return tuple(
        ScoredClip(
            clip.id,
            clip.seconds,
            clip.source_text or "",
            clip.target_text or "",
            {key: translations[clip.id] for key, translations in texts.items()},
            {key: values[i] for key, values in segments.items() if values is not None},
        )
        for i, clip in enumerate(clips)
    )


def samples(clips: Sequence[ScoredClip], count: int) -> tuple[Sample, ...]:
    """Clips side by side: first those on which the systems differ most, in the order of the split."""
    ranked = sorted(range(len(clips)), key=lambda i: (-len(set(clips[i].texts.values())), i))
    chosen = [clips[i] for i in sorted(ranked[:count])]
    return tuple(Sample(clip.id, clip.source, clip.reference, clip.texts) for clip in chosen)


def with_sound(shown: Sequence[Sample], clips: Sequence[Clip]) -> tuple[Sample, ...]:
    """The samples with their audio, as long as the page stays small; the others say why they have none."""
    by_id = {clip.id: clip for clip in clips}
    room, heard = AUDIO_BYTES, []
    for sample in shown:
        try:
            sound = mp3(by_id[sample.id])
        except (DataError, soundfile.SoundFileError) as error:
            heard.append(dataclasses.replace(sample, silent=f"Its audio cannot be played here: {error}"))
            continue
        if len(sound) > room:
            heard.append(dataclasses.replace(sample, silent="Its audio would make this page too large."))
            continue
        room -= len(sound)
        heard.append(dataclasses.replace(sample, audio=sound))
    return tuple(heard)


def mp3(clip: Clip) -> bytes:
    """A clip's stretch of audio, small. Raises DataError where it cannot be read, SoundFileError without an encoder."""
    file = io.BytesIO()
    soundfile.write(file, audio.load_clip(clip), SAMPLE_RATE, **MP3)
    return file.getvalue()


def by_length(
    systems: Sequence[System], clips: Sequence[ScoredClip], metric: str | None, target: str
) -> tuple[tuple[System, ...], dict[str, int]]:
    """The systems with their scores by length of clip, and how many clips each range has."""
    members = lengths.deal([clip.seconds for clip in clips])
    if metric is None or not members:
        return tuple(systems), {}
    scored = registry.get(metric)
    references = [clip.reference for clip in clips]

    def scores(name: str, whole: Score) -> dict[str, float]:
        texts = [clip.texts[name] for clip in clips]
        return groups.scores(scored, whole, texts, references, target, members)

    with_lengths = tuple(
        dataclasses.replace(s, lengths=scores(s.name, s.scores[metric])) if metric in s.scores else s for s in systems
    )
    return with_lengths, {name: len(indices) for name, indices in members.items()}


def splits(recipe: Recipe) -> tuple[Split, ...]:
    """The corpus as prepare dealt it."""
    layout = RunLayout(recipe.directory)
    return tuple(split_of(name, layout.manifest(name)) for name in SPLITS if layout.manifest(name).is_file())


def split_of(name: str, file: Path) -> Split:
    """Of a manifest, a clip at a time: training splits are long."""
    seconds = [clip.seconds for clip in manifest.stream(file)]
    return Split(name, len(seconds), tuple(length for length in seconds if length is not None))


def clips_of(recipe: Recipe, scores: Mapping[str, Any]) -> list[Clip]:
    """Of the split that was scored."""
    return manifest.read(RunLayout(recipe.directory).manifest(scores["split"]))
