"""translate: every model of the chain translates the test split, timed from the waveform to the text.

Nothing is taken from the feature cache here, since the audio encoder is part of the price. A system that was finished
before a kill is not run again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sordino.config.schema import Recipe, TranslateSection
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.measure.speed import Meter, release_memory
from sordino.models import registry
from sordino.models.features import Features
from sordino.models.generation import Decoding, Hypothesis, translate
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from sordino.pipeline.job import (
    DATA,
    OUTPUTS,
    Job,
    Stage,
    chosen,
    device_of,
    directory_of,
    model_path,
    on_base,
    render,
    systems,
)
from sordino.runtime import files
from sordino.runtime.progress import bar


def run(job: Job) -> None:
    section = job.recipe.translate
    assert section
    clips = manifest.read(job.run_dir / DATA / f"{section.split}.jsonl")
    for key in chosen(job.recipe):
        directory = job.out / key
        if (directory / "speed.json").is_file():
            continue
        directory.mkdir(exist_ok=True)
        revision = {"revision": job.recipe.revision} if on_base(job.recipe, key) else {}
        hypotheses, speed = one(job.recipe, model_path(job.recipe, key), clips, systems(job.recipe)[key], **revision)
        rows = "".join(files.json_line(h.to_json()) + "\n" for h in hypotheses)
        files.write_text(directory / f"{section.split}.jsonl", rows)
        files.write_json(directory / "speed.json", speed)
        job.record["device"] = speed["device"]


def one(
    recipe: Recipe, model: str, clips: list[Clip], label: str, **options: Any
) -> tuple[list[Hypothesis], dict[str, Any]]:
    """Translations by the model that lies at `model`, and how fast it was. options: of open_model."""
    assert recipe.translate
    release_memory()
    speech = open_model(
        model, device=device_of(recipe.device), dtype=recipe.dtype, attention=recipe.attention, **options
    )
    meter = Meter(str(speech.device))
    hypotheses = timed(speech, clips, render(speech, recipe), recipe.translate, meter, label)
    facts = {
        "decoder_layers": registry.layer_count(speech.model.config, "decoder"),
        "dtype": str(speech.dtype).removeprefix("torch."),
    }
    return hypotheses, meter.result().to_json() | {"model": facts}


def timed(
    speech: SpeechModel,
    clips: list[Clip],
    prompt: str,
    section: TranslateSection,
    meter: Meter,
    label: str,
) -> list[Hypothesis]:
    """Hear and translate in batches of similar length; the meter sees both, and not the loading of the model."""
    order = sorted(range(len(clips)), key=lambda i: (clips[i].seconds or 0.0, i))
    found: dict[int, Hypothesis] = {}
    features = Features(speech, None)
    with bar(f"{label} translates", len(clips)) as advance:
        for start in range(0, len(order), section.batch_size):
            part = order[start : start + section.batch_size]
            with meter:
                encoded = list(features.encode_each([clips[i] for i in part], prompt))
                results = translate(speech, encoded, Decoding(section.batch_size, section.max_new_tokens))
            meter.add(audio_seconds=sum(h.seconds for h in encoded), tokens=sum(h.tokens for h in results))
            found |= dict(zip(part, results, strict=True))
            advance(len(part))
    return [found[i] for i in range(len(clips))]


def parents(recipe: Recipe) -> list[str]:
    return [*dict.fromkeys(directory_of(key) for key in chosen(recipe)), DATA]


def settings(recipe: Recipe) -> dict[str, Any] | None:
    """The section, and the kind of device: the speeds are its."""
    if recipe.translate is None:
        return None
    return dataclasses.asdict(recipe.translate) | {"device": device_of(recipe.device).type}


STAGE = Stage(
    name="translate",
    directory=OUTPUTS,
    section=settings,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "dtype", "attention"),
)
