"""Translate a split with a system, timed from the waveform to the text.

Nothing that is timed is taken from the feature cache, since the audio encoder is part of the price. Where a part of
the clips is enough to measure speed (translate.timed), systems with the same encoder share its states of the others:
they are the same numbers, since clips are encoded one by one; with `encode_batch`, the same up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config.chain import ModelRef
from sordino.config.run_layout import RunLayout
from sordino.config.schema import Recipe, TranslateSection
from sordino.data.clip import Clip
from sordino.measure.speed import Meter, release_memory
from sordino.models import prompts, registry
from sordino.models.features import Features
from sordino.models.generation import Decoding, Hypothesis
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel, batches_by_length
from sordino.models.translation import encode_and_translate
from sordino.pipeline import workers
from sordino.pipeline.device import device_of
from sordino.pipeline.stage import Job
from sordino.pipeline.workers import on_cluster
from sordino.runtime import files
from sordino.runtime.progress import bar

Timed = tuple[list[Hypothesis], dict[str, Any]]  # translations, and how fast they were made


def translate_timed(
    recipe: Recipe, section: TranslateSection, model: ModelRef, clips: Sequence[Clip], label: str
) -> tuple[list[Hypothesis], dict[str, Any]]:
    """A system's translations, and how fast it was."""
    release_memory()
    speech = open_model(
        model.path,
        device=device_of(recipe.device),
        dtype=recipe.dtype,
        attention=recipe.attention,
        revision=model.revision,
    )
    speech.encode_batch = recipe.encode_batch
    meter = Meter(str(speech.device))
    prompt = prompts.render(speech, recipe.prompt, recipe.source, recipe.target)
    cache = None if speech.external_decoder else RunLayout(recipe.directory).cache
    hypotheses = metered(speech, clips, prompt, section, meter, label, cache)
    facts = {
        "decoder_layers": registry.layer_count(speech.model.config, "decoder"),
        "dtype": str(speech.dtype).removeprefix("torch."),
    }
    return hypotheses, meter.result().to_json() | {"model": facts}


@dataclass(frozen=True)
class TranslateTask:
    """One system on all clips."""

    recipe: Recipe
    section: TranslateSection
    model: ModelRef
    clips: tuple[Clip, ...]
    label: str


def translate_one(device: str, task: TranslateTask) -> tuple[list[Hypothesis], dict[str, Any]]:
    """A system's translations and speed, by a worker whose model is on the device, cpu or cuda."""
    recipe = dataclasses.replace(task.recipe, device=device)
    return translate_timed(recipe, task.section, task.model, task.clips, task.label)


def translate_systems(job: Job, tasks: Iterable[TranslateTask]) -> Iterator[tuple[int, Timed]]:
    """(place of the task, translations and speed) of systems, as they are done: each by a worker, on a cluster several
    at once."""
    if not on_cluster(job.recipe):
        for place, task in enumerate(tasks):
            yield place, translate_timed(task.recipe, task.section, task.model, task.clips, task.label)
        return
    with workers.open_workers(job, str) as executor:  # what they hold is the name of their device
        yield from executor.run(translate_one, tasks, "system")


def metered(
    speech: SpeechModel,
    clips: Sequence[Clip],
    prompt: str,
    section: TranslateSection,
    meter: Meter,
    label: str,
    cache: Path | None = None,
) -> list[Hypothesis]:
    """In batches of similar length; the meter sees encoding and decoding, and not the loading of the model.

    cache: where encoder states of the clips that are not timed are kept.
    """
    hypotheses: dict[int, Hypothesis] = {}
    batches = batches_by_length([clip.seconds or 0.0 for clip in clips], section.batch_size)
    timed = timed_batches(len(batches), section)
    fresh, options = Features(speech, None), Decoding(section.batch_size, section.max_new_tokens)
    shared = Features(speech, cache) if len(timed) < len(batches) else fresh
    with bar(f"{label} translates", len(clips)) as advance:
        for number, part in enumerate(batches):
            batch = [clips[i] for i in part]
            if number in timed:
                with meter:
                    pairs = encode_and_translate(fresh, batch, prompt, options)
                meter.add(audio_seconds=sum(e.seconds for e, _ in pairs), tokens=sum(h.tokens for _, h in pairs))
            else:
                pairs = encode_and_translate(shared, batch, prompt, options)
            hypotheses |= {i: hypothesis for i, (_, hypothesis) in zip(part, pairs, strict=True)}
            advance(len(part))
    return [hypotheses[i] for i in range(len(clips))]


def timed_batches(count: int, section: TranslateSection) -> set[int]:
    """Which of the batches, shortest clips first, are timed: as many as `timed` clips fill, evenly over the lengths."""
    wanted = count if section.timed is None else min(count, math.ceil(section.timed / section.batch_size))
    return {int((k + 0.5) * count / wanted) for k in range(wanted)}


def write_hypotheses(file: Path, hypotheses: Sequence[Hypothesis]) -> None:
    files.write_text(file, "".join(files.json_line(h.to_json()) + "\n" for h in hypotheses))
