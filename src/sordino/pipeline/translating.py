"""Translate a split with a system, timed from the waveform to the text.

Nothing is taken from the feature cache here, since the audio encoder is part of the price.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino.config.chain import ModelRef
from sordino.config.schema import Recipe, TranslateSection
from sordino.data.clip import Clip
from sordino.measure.speed import Meter, release_memory
from sordino.models import prompts, registry
from sordino.models.features import Features
from sordino.models.generation import Decoding, Hypothesis, batches_by_length
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from sordino.models.translation import encode_and_translate
from sordino.pipeline.device import device_of
from sordino.runtime import files
from sordino.runtime.progress import bar


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
    meter = Meter(str(speech.device))
    prompt = prompts.render(speech, recipe.prompt, recipe.source, recipe.target)
    hypotheses = metered(speech, clips, prompt, section, meter, label)
    facts = {
        "decoder_layers": registry.layer_count(speech.model.config, "decoder"),
        "dtype": str(speech.dtype).removeprefix("torch."),
    }
    return hypotheses, meter.result().to_json() | {"model": facts}


def metered(
    speech: SpeechModel, clips: Sequence[Clip], prompt: str, section: TranslateSection, meter: Meter, label: str
) -> list[Hypothesis]:
    """In batches of similar length; the meter sees encoding and decoding, and not the loading of the model."""
    hypotheses: dict[int, Hypothesis] = {}
    features, options = Features(speech, None), Decoding(section.batch_size, section.max_new_tokens)
    with bar(f"{label} translates", len(clips)) as advance:
        for part in batches_by_length([clip.seconds or 0.0 for clip in clips], section.batch_size):
            with meter:
                pairs = encode_and_translate(features, [clips[i] for i in part], prompt, options)
            meter.add(audio_seconds=sum(e.seconds for e, _ in pairs), tokens=sum(h.tokens for _, h in pairs))
            hypotheses |= {i: hypothesis for i, (_, hypothesis) in zip(part, pairs, strict=True)}
            advance(len(part))
    return [hypotheses[i] for i in range(len(clips))]


def write_hypotheses(file: Path, hypotheses: Sequence[Hypothesis]) -> None:
    files.write_text(file, "".join(files.json_line(h.to_json()) + "\n" for h in hypotheses))
