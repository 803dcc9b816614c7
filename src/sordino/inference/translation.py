"""Audio files and waveforms, translated in batches of similar length; files beyond the window chunk by chunk."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.data.audio import Waveform, load_clip
from sordino.data.audio import load as read_audio
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.inference import long_audio
from sordino.inference import model as models
from sordino.inference.inputs import Inputs
from sordino.inference.model import Model
from sordino.models.features import EncodedClip
from sordino.models.generation import Decoding, Hypothesis
from sordino.models.speech import batches_by_length
from sordino.models.translation import encode_and_translate
from sordino.runtime.executor import parallel_map
from sordino.runtime.progress import bar


def translate_files(
    path: str,
    files: Sequence[str],
    *,
    target: str | None = None,
    source: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    max_new_tokens: int = 256,
    engine: str = "transformers",
) -> list[dict[str, Any]]:
    """Translate audio files with any model of a chain, by default from and into the languages it was trained for.

    Rows {id, audio, text, seconds, tokens} in the order of `files`. seconds: a file's share of the processing time,
    audio encoder included. Every file is read before the model is loaded, and all that cannot be used are named at
    once. Raises DataError, FamilyError, UsageError.
    """
    lengths = _lengths(files)
    source, target = models.languages_of(path, source, target)
    options = Decoding(batch_size, max_new_tokens)
    model = models.load(path, device, dtype, engine, options)
    clips = [
        Clip(str(i), str(Path(file).absolute()), seconds, source, target)
        for i, (file, seconds) in enumerate(zip(files, lengths, strict=True))
    ]
    with bar("translating", len(files)) as advance:
        hypotheses = translate_clips(model, clips, models.handed_over(engine, options), (source, target), advance)
    return [
        {"id": Path(file).stem, "audio": file, "text": h.text, "seconds": round(h.seconds, 4), "tokens": h.tokens}
        for file, h in zip(files, hypotheses, strict=True)
    ]


def _lengths(files: Sequence[str]) -> list[float]:
    """Seconds of each file. Raises DataError that names all that cannot be used."""
    lengths, problems = [], []
    for file in files:
        try:
            lengths.append(len(read_audio(file)) / SAMPLE_RATE)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return lengths


def translate_clips(
    model: Model,
    clips: Sequence[Clip],
    options: Decoding,
    languages: tuple[str, str],
    advance: Callable[[int], None] = lambda _: None,
    waves: Mapping[int, Waveform] | None = None,
) -> list[Hypothesis]:
    """Hypotheses in the order of `clips`, a batch in memory at a time. languages: source and target.

    waves: samples (n,) of the clips that are in no file, by their index. Raises DataError for a clip that cannot be
    read or is longer than the model's window.
    """
    waves = waves or {}
    prompt = model.prompt(*languages)
    seconds = [len(waves[i]) / SAMPLE_RATE if i in waves else clip.seconds or 0.0 for i, clip in enumerate(clips)]
    hypotheses: dict[int, Hypothesis] = {}
    for batch in batches_by_length([-length for length in seconds], options.batch_size):  # little memory shows at once
        audio = [waves[i] if i in waves else load_clip(clips[i]) for i in batch]
        pairs = encode_and_translate(model.features, [clips[i] for i in batch], prompt, options, audio)
        hypotheses |= {i: hypothesis for i, (_, hypothesis) in zip(batch, pairs, strict=True)}
        advance(len(batch))
    return [hypotheses[i] for i in range(len(clips))]


def translate_inputs(model: Model, inputs: Inputs, options: Decoding, languages: tuple[str, str]) -> list[Hypothesis]:
    """Hypotheses in the order of the inputs. Files longer than the window are cut by voice activity (extra: vad)."""
    window = model.speech.window_samples / SAMPLE_RATE
    long = [i for i, clip in enumerate(inputs.clips) if i not in inputs.waves and (clip.seconds or 0.0) > window]
    short = [i for i in range(len(inputs.clips)) if i not in long]
    with bar("translating", len(inputs.clips)) as advance:
        hypotheses = {i: _translate_long(model, inputs.clips[i], options, languages, advance) for i in long}
        waves = {place: inputs.waves[i] for place, i in enumerate(short) if i in inputs.waves}
        clips = [inputs.clips[i] for i in short]
        hypotheses |= dict(zip(short, translate_clips(model, clips, options, languages, advance, waves), strict=True))
    return [hypotheses[i] for i in range(len(inputs.clips))]


def encode_inputs(model: Model, inputs: Inputs, languages: tuple[str, str]) -> list[EncodedClip]:
    """The audio encoder's output of each. Raises DataError for what is longer than the window."""
    prompt = model.prompt(*languages)

    def encode(i: int) -> EncodedClip:
        clip = inputs.clips[i]
        if i in inputs.waves:
            return model.features.encode_waveform(clip, inputs.waves[i], prompt)
        return model.features.encode(clip, prompt)

    encoded = []
    with bar("encoding audio", len(inputs.clips)) as advance:
        for one in parallel_map(model.speech.device, encode, range(len(inputs.clips))):
            encoded.append(one)
            advance(1)
    return encoded


def _translate_long(
    model: Model, clip: Clip, options: Decoding, languages: tuple[str, str], advance: Callable[[int], None]
) -> Hypothesis:
    """One text of all chunks."""
    start = time.perf_counter()
    source, target = languages
    clip = dataclasses.replace(clip, source_lang=source, target_lang=target)
    asked = long_audio.Options(batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)
    rows = long_audio.LongAudioTranslator(model, asked).rows([clip])
    (text,) = long_audio.joined(rows, [clip], target)
    advance(1)
    return Hypothesis(clip.id, text, sum(row["tokens"] for row in rows), time.perf_counter() - start)
