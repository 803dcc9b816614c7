"""The public Python API: `import sordino` gives these names. What needs torch is imported when it is called.

Shapes: n samples of a clip, N encoder states of width D, A audio tokens. Audio is a file (path), samples with
their rate in Hz, a Clip of a manifest or corpus, or a list of these. progress: called with (label, done, total) while
something takes long; None is silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from sordino.config.schema import RankSection, Recipe
from sordino.config.values import with_settings
from sordino.runtime import environment, files
from sordino.runtime.progress import reported_to

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.data.clip import Clip
    from sordino.inference.inputs import Inputs
    from sordino.inference.model import Model
    from sordino.measure.audit import Audit
    from sordino.metrics.base import Score
    from sordino.models.features import EncodedClip
    from sordino.models.generation import Hypothesis
    from sordino.pruning.layer import Layer
    from sordino.pruning.ranking import Ranking

__all__ = ["Recipe", "encode", "export", "inspect", "load", "prune", "rank_layers", "run", "score", "translate"]

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """A finished run. ran: stages that ran now; scores: system -> metric -> value, None where none are asked for."""

    directory: Path
    ran: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float]] | None


def load(
    path: str | Path, *, to: str | None = None, source: str | None = None, device: str = "auto", dtype: str = "auto"
) -> Model:
    """Load a model that translates speech: of a run, an export, an adapter, any model directory, or a Hub id.

    Args:
        path: directory or `owner/name`. sordino.json in it says how the model is asked, and in which languages.
        to: target language (`German` or `de`), in place of the one in sordino.json.
        source: source language likewise; English where nothing says so.
        device: auto (an accelerator where there is one), cpu, cuda, cuda:1, ...
        dtype: auto (float32 on a CPU, else bfloat16), float32, bfloat16 or float16.

    Returns:
        The model, for the other functions. `.speech.model` is the transformers module.

    Raises:
        FamilyError: it is no model of a supported family. ArtifactError: its files are damaged.
        RecipeError: the device cannot be used.
    """
    environment.prepare()
    from sordino.inference import model as models

    with reported_to(None):
        return models.with_languages(models.load(str(path), device, dtype), source, to)


@overload
def translate(
    model: Model,
    audio: str | Path | Clip | NDArray[Any],
    *,
    to: str | None = ...,
    source: str | None = ...,
    rate: float | None = ...,
    batch_size: int = ...,
    max_new_tokens: int = ...,
    progress: Progress | None = ...,
) -> Hypothesis: ...
@overload
def translate(
    model: Model,
    audio: list[Any] | tuple[Any, ...],
    *,
    to: str | None = ...,
    source: str | None = ...,
    rate: float | None = ...,
    batch_size: int = ...,
    max_new_tokens: int = ...,
    progress: Progress | None = ...,
) -> list[Hypothesis]: ...
def translate(
    model: Model,
    audio: Any,
    *,
    to: str | None = None,
    source: str | None = None,
    rate: float | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    progress: Progress | None = None,
) -> Hypothesis | list[Hypothesis]:
    """Translate speech, greedily.

    Args:
        model: as `load` gives it.
        audio: a file of any length, samples, a Clip, or a list of them. Samples are (n,) or (n, channels), floats of
            full scale 1 or whole numbers; channels are averaged, other rates are resampled to 16,000 Hz.
        to: target language; the model's own by default, else that of the clips.
        source: source language likewise.
        rate: samples a second, Hz; samples need it.
        batch_size: clips at once.
        max_new_tokens: tokens; a translation is cut there.
        progress: called with (label, done, total).

    Returns:
        A Hypothesis (id, text, tokens, seconds of processing), or a list of them in the order of the audio.

    Raises:
        DataError: audio that cannot be used; samples, or a file without the extra `vad`, longer than the window.
        UsageError: no target language is known, or samples come without their rate.
    """
    from sordino.inference.translation import translate_inputs
    from sordino.models.generation import Decoding

    items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
    with reported_to(progress):
        inputs, languages = _inputs(model, items, to, source, rate)
        hypotheses = translate_inputs(model, inputs, Decoding(batch_size, max_new_tokens), languages)
    return hypotheses if isinstance(audio, (list, tuple)) else hypotheses[0]


def encode(
    model: Model,
    clips: Sequence[Any],
    *,
    to: str | None = None,
    source: str | None = None,
    rate: float | None = None,
    progress: Progress | None = None,
) -> list[EncodedClip]:
    """Run the audio encoder.

    Args:
        model: as `load` gives it.
        clips: a list of audio, as `translate` takes it, none longer than the model's window.
        to: target language, which the prompt names; as in `translate`.
        source: source language likewise.
        rate: samples a second, Hz; samples need it.
        progress: called with (label, done, total).

    Returns:
        An EncodedClip for each: `.states`, the audio encoder's (N, D), on the CPU; `.ids`, the prompt's tokens with
        A placeholders.

    Raises:
        DataError: audio that cannot be used, or is longer than the window.
        UsageError: no target language is known, or samples come without their rate.
    """
    from sordino.inference.translation import encode_inputs

    with reported_to(progress):
        inputs, languages = _inputs(model, list(clips), to, source, rate)
        return encode_inputs(model, inputs, languages)


def rank_layers(
    model: Model,
    clips: Sequence[Clip],
    *,
    remove: int,
    search: Literal["exact", "racing"] = "exact",
    criterion: str = "auto",
    scope: Literal["decoder", "encoder", "both"] = "decoder",
    protect_first: int = 1,
    protect_last: int = 1,
    max_new_tokens: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranking:
    """Find the layers that translation can spare, one removal after the other (Moslem 2025; docs/method.md).

    Args:
        model: as `load` gives it; it stays as it is.
        clips: with reference translations (`target_text`), all into one language. Never the clips of the final scores.
        remove: layers to remove.
        search: exact scores every candidate on every clip; racing drops candidates on part of them.
        criterion: bleu, chrf, chrf++, loss, kl, influence or angular; auto: chrf++, chrf for Chinese and Japanese.
        scope: where the candidates are.
        protect_first: layers at the start that are no candidates.
        protect_last: layers at the end likewise.
        max_new_tokens: tokens of the longest translation.
        seed: of the resamples that say how sure a removal is.
        progress: called with (label, done, total).

    Returns:
        A Ranking, for `prune`: iterable, the layers in order, by their index in this model. `.removals` says of each
        `.score`, of the model without it and all before it, and `.probability`, the share of resamples in which it is
        the best of its round.

    Raises:
        DataError: a clip lacks its reference or cannot be read. RecipeError: fewer candidates than `remove`, or an
        unknown criterion. UsageError: no clips, or of several languages. FamilyError: the decoder is llama.cpp's.
    """
    from sordino.inference.ranking import rank

    options = RankSection(
        remove=remove,
        search=search,
        criterion=criterion,  # type: ignore[arg-type]  # checked there
        scope=scope,
        protect_first=protect_first,
        protect_last=protect_last,
        max_new_tokens=max_new_tokens,
    )
    with reported_to(progress):
        return rank(model, clips, options, seed)


def prune(
    model: Model,
    order: Ranking | Iterable[Layer | str | int],
    directory: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> Model:
    """Drop layers.

    Args:
        model: as `load` gives it. It stays as it is; the smaller model shares its weights.
        order: what `rank_layers` gives, or layers by their index in this model: `decoder.12`, `encoder.3`, 12.
        directory: where to write the smaller model: in bfloat16, copied from the files of `model`, with sordino.json
            beside it. It must not exist.
        progress: called with (label, done, total).

    Returns:
        The smaller model.

    Raises:
        RecipeError: a layer that this model does not have, or none would be left.
        ArtifactError: `directory` exists, or weights were changed in memory, which the files do not know of.
        FamilyError: a model that cannot be written: quantized, an adapter, a decoder for llama.cpp.
    """
    from sordino.inference import surgery

    with reported_to(progress):
        smaller = surgery.prune(model, order)
        if directory is None:
            return smaller
        surgery.write(smaller, Path(directory), "bf16")
        return surgery.stored_at(smaller, Path(directory))


def export(
    model: Model | str | Path, directory: str | Path, *, format: str = "nf4", progress: Progress | None = None
) -> Path:
    """Write a model in a deployable form, with sordino.json beside it, a tensor at a time.

    Args:
        model: as `load` or `prune` gives it, or the directory or Hub id of a 16- or 32-bit model.
        directory: where to write. It must not exist.
        format: bf16, nf4, w4a16, gguf-q8_0, gguf-q4_k_m or gguf-q4_0 (docs/formats.md).
        progress: called with (label, done, total).

    Returns:
        The directory.

    Raises:
        UsageError: an unknown format, or one that needs a run's clips (mixed, w4a16-gptq: `run` makes them).
        ArtifactError: `directory` exists, files are damaged, or weights were changed in memory.
        FamilyError: the model is quantized already, or the format does not take its family.
    """
    environment.prepare()
    from sordino.inference import surgery

    with reported_to(progress):
        surgery.write(str(model) if isinstance(model, (str, Path)) else model, Path(directory), format)
    return Path(directory)


def score(
    hypotheses: Sequence[str | Hypothesis],
    references: Sequence[str | Clip],
    target: str,
    *,
    metrics: Sequence[str] = ("bleu", "chrf", "chrf++"),
    sources: Sequence[str | None] | None = None,
) -> dict[str, Score]:
    """Score translations.

    Args:
        hypotheses: texts, or what `translate` gives.
        references: texts in the same order, or clips with theirs.
        target: language of the texts, which sets BLEU's tokenizer.
        metrics: bleu, chrf, chrf++, comet, comet:MODEL, ...
        sources: transcripts, which COMET needs; by default those of the clips.

    Returns:
        Metric -> Score: value (0 to 100, COMET about 0 to 1), 95 % interval, signature, and the segments' own.

    Raises:
        DataError: texts that do not match, or a reference is missing. RecipeError: an unknown metric.
    """
    from sordino.inference.scoring import score_texts

    texts = [item if isinstance(item, str) else item.text for item in hypotheses]
    lines = [item if isinstance(item, str) else item.target_text or "" for item in references]
    if sources is None and not any(isinstance(item, str) for item in references):
        sources = [item.source_text for item in references if not isinstance(item, str)]
    return score_texts(texts, lines, target, metrics, sources)


def inspect(path: str | Path) -> Audit:
    """Weigh a model directory, an adapter or one .safetensors or .gguf file, from headers alone, in milliseconds.

    Args:
        path: the directory or file.

    Returns:
        An Audit: weights_bytes, directory_bytes, torch_save_bytes, parameters, stored_elements, parts, findings (what
        is wasted).

    Raises:
        ArtifactError: there is no model, or its files are damaged.
    """
    from sordino.measure.audit import audit

    return audit(Path(path))


def run(
    recipe: str | Path | Recipe, *, skip_bad: bool = False, progress: Progress | None = None, **overrides: Any
) -> Run:
    """Run every stage of a recipe that is missing or out of date; a run that was interrupted goes on.

    Args:
        recipe: a YAML file, or a Recipe.
        skip_bad: leave unusable clips out and list them.
        progress: called with (label, done, total).
        **overrides: settings that replace the recipe's: `target="zh"`, `distil={"epochs": 2}`.

    Returns:
        A Run: its directory, the stages that ran now, and the scores.

    Raises:
        RecipeError: every mistake in the recipe, at once. DataError: clips that cannot be used.
        ArtifactError: a disk or a memory that is full; the progress is kept.
    """
    environment.prepare()
    from sordino.config.run_layout import RunLayout
    from sordino.pipeline import runner

    resolved = with_settings(recipe, overrides)
    with reported_to(progress):
        ran = runner.run(resolved, {"skip_bad": skip_bad})
    scores = None
    if resolved.translate and resolved.evaluate:
        systems = files.read_json(RunLayout(resolved.directory).scores)["systems"]
        scores = {key: {name: s["value"] for name, s in row["scores"].items()} for key, row in systems.items()}
    return Run(resolved.directory, tuple(ran), scores)


def _inputs(
    model: Model, items: list[Any], to: str | None, source: str | None, rate: float | None
) -> tuple[Inputs, tuple[str, str]]:
    """Clips and waveforms, and the languages to ask for: as given, else the model's, else the clips' own."""
    from sordino.data.clip import SAMPLE_RATE
    from sordino.inference import inputs
    from sordino.inference.model import languages

    spoken, written = inputs.languages_in(items)
    pair = languages(model.card, source or model.card.source or spoken, to or model.card.target or written)
    return inputs.read(items, rate, pair, model.speech.window_samples / SAMPLE_RATE), pair
