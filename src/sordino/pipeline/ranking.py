"""Rank a model's layers as a recipe asks: named by hand, from the middle, or searched for on the select clips.

Of a search trials.jsonl grows with every trial, and finer: what has been translated is kept in the stage's state, so
that a killed search goes on from its last batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.config.run_layout import TRIALS
from sordino.config.schema import RankSection
from sordino.data import corpora
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.languages import language_code, language_name
from sordino.models import prompts, worker
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pipeline import workers
from sordino.pipeline.model_source import ModelSource
from sordino.pipeline.stage import Job
from sordino.pruning import block, polish, search
from sordino.pruning.layer import SCOPES, Layer, parse_layer, refuse_removals
from sordino.pruning.lots import Key
from sordino.pruning.polish import Swap, swap_work
from sordino.pruning.ranking import RankedRemoval, Ranking
from sordino.pruning.scoring import ClipScorer, ScoringOptions, TargetLanguage, work
from sordino.pruning.scoring_worker import ScoringWorker
from sordino.pruning.search import Removal, Trial
from sordino.pruning.speculative import default_memory
from sordino.runtime import files
from sordino.runtime.executor import Executor
from sordino.runtime.progress import bar

KNOWN = "known.jsonl"  # resume state: trials of searches before this one
TRANSLATIONS = "found.jsonl"  # resume state: translations by candidates so far; named as in old runs


@dataclass(frozen=True)
class Searched:
    """removals: in the end; order: as searched for, before the swaps."""

    removals: Sequence[Removal] = ()
    order: tuple[Layer, ...] = ()
    swaps: Sequence[Swap] = ()


def rank_on_cluster(job: Job, section: RankSection, source: ModelSource) -> Ranking:
    """As `rank_layers`, by workers that hold the model: this process has no weights."""
    with workers.model_workers(job, source, ScoringWorker) as executor:
        speech = workers.without_weights(source, executor.device_type)
        return rank_layers(job, section, speech, executor)


def rank_layers(
    job: Job, section: RankSection, speech: SpeechModel, executor: Executor[ScoringWorker] | None = None
) -> Ranking:
    """executor: who runs the model of a search; the one at hand then needs no weights.

    Raises RecipeError for layers that the model does not have, DataError without clips to search on.
    """
    searched = Searched()
    if section.method == "explicit":
        order = [parse_layer(text) for text in section.layers]
    elif section.method == "middle":
        order = search.middle(speech, section.scope, section.remove)
    elif section.method == "block":
        order = closest_block(job, section, speech)
    else:
        searched = search_layers(job, section, speech, executor)
        order = [removal.layer for removal in searched.removals]
        if section.polish == "swap":
            job.record["swaps"] = [swap_row(swap) for swap in searched.swaps]
    counts = {str(scope): speech.layer_count(scope) for scope in speech.family.scopes}
    refuse_removals(speech.family, speech.model.config.to_dict(), counts, order)
    return ranking_of(speech, section, order, job.recipe.criterion, searched)


def ranking_of(
    speech: SpeechModel, section: RankSection, order: Sequence[Layer], criterion: str, searched: Searched
) -> Ranking:
    """searched: by the criterion; empty where no layer was searched for."""
    removals = searched.removals
    return Ranking(
        method=section.method,
        scope=section.scope,
        criterion=criterion if removals else None,
        search=section.search if removals else None,
        order=tuple(order),
        removals=tuple(map(ranked, removals)),
        layers={scope: speech.layer_count(scope) for scope in SCOPES["both"]},
        searched=searched.order if searched.swaps else (),
    )


def ranked(removal: Removal) -> RankedRemoval:
    """What is recorded of a step of the search."""
    trial = removal.trial
    assert trial.interval is not None
    return RankedRemoval(
        layer=removal.layer,
        clips=trial.clips,
        score=trial.score,
        interval=trial.interval,
        probability=removal.probability,
        runner_up=removal.runner_up,
        runner_up_probability=removal.runner_up_probability,
    )


def swap_row(swap: Swap) -> dict[str, Any]:
    return dataclasses.asdict(swap) | {"restored": str(swap.restored), "removed": str(swap.removed)}


def closest_block(job: Job, section: RankSection, speech: SpeechModel) -> list[Layer]:
    """The block that changes the least, on the select clips; every block's distance is recorded."""
    pool = search.candidates(speech, section.scope, section.protect_first, section.protect_last)
    encoded = [clip for language in target_languages(job, section, speech) for clip in language.encoded]
    with bar("measuring blocks of layers", len(encoded)) as advance:
        distances = block.distances(speech, encoded, pool, section.remove, memory_of(section, speech), advance)
    job.record["block_distances"] = {str(Layer("decoder", first)): value for first, value in distances.items()}
    return block.closest(distances, section.remove)


def memory_of(section: RankSection, speech: SpeechModel) -> int:
    """Bytes for batches."""
    return section.memory_mb * 2**20 if section.memory_mb else default_memory(speech)


def search_layers(
    job: Job, section: RankSection, speech: SpeechModel, executor: Executor[ScoringWorker] | None = None
) -> Searched:
    """Search on the select clips, from where a killed search stopped, which may have been to another length."""
    known = known_trials(job)
    translations = {_key(row): row["ids"] for row in files.read_jsonl(job.state / TRANSLATIONS)}
    languages = target_languages(job, section, speech, executor)
    return search_on(
        speech,
        languages,
        section,
        job.recipe.criterion,
        job.recipe.seed,
        known=known,
        translations=translations,
        record=lambda trial: files.append_jsonl(job.out / TRIALS, trial.to_json()),
        remember=lambda rows: files.append_jsonl(job.state / TRANSLATIONS, *map(_row, rows)),
        executor=executor,
    )


def known_trials(job: Job) -> list[Trial]:
    """What a killed or a finished search has tried, which is not to be run again; trials.jsonl begins anew."""
    here = files.read_jsonl(job.out / TRIALS)
    rows = {json.dumps(row): row for row in (*files.read_jsonl(job.state / KNOWN), *here)}
    if here:
        files.write_text(job.state / KNOWN, "".join(files.json_line(row) + "\n" for row in rows.values()))
        (job.out / TRIALS).unlink()
    return [Trial.from_json(row) for row in rows.values()]


def search_on(
    speech: SpeechModel,
    languages: Sequence[TargetLanguage],
    section: RankSection,
    criterion: str,
    seed: int,
    *,
    known: Sequence[Trial] = (),
    translations: Mapping[Key, list[int]] | None = None,
    record: Callable[[Trial], None] = lambda _: None,
    remember: Callable[[Sequence[tuple[Key, list[int]]]], None] = lambda _: None,
    executor: Executor[ScoringWorker] | None = None,
) -> Searched:
    """Search on encoded clips.

    known, translations: of a search that was cut short, or to another length; record, remember: get what this one
    tries and translates.
    """
    pool = search.candidates(speech, section.scope, section.protect_first, section.protect_last)
    racing = section.search == "racing"
    options = ScoringOptions(
        criterion=criterion,
        max_new_tokens=section.max_new_tokens,
        memory=memory_of(section, speech),
        seed=seed,
        racing=racing,
    )
    features = Features(speech, None)  # another encoder's features are of no use to anything else
    clips = len(languages[0].encoded) * len(languages)
    total = work(len(pool), min(section.remove, len(pool)), clips, racing)
    if section.polish == "swap":
        total += swap_work(len(pool), min(section.remove, len(pool)), clips)
    behind = len(translations or {}) + len(languages) * sum(t.clips for t in known if t.round <= section.remove)
    with bar(f"ranking layers by {criterion}", total, min(total, behind)) as advance:
        scorer = ClipScorer(
            speech,
            languages,
            options,
            lambda encoded: features.encode(encoded.clip, encoded.prompt),
            translations=translations,
            remember=remember,
            advance=advance,
            executor=executor,
        )
        allowed = functools.partial(search.allows, speech)
        removals = search.search(pool, section.remove, scorer, (), record, racing, allowed, known)
        order = tuple(removal.layer for removal in removals)
        if section.polish == "none":
            return Searched(removals, order)
        removals, swaps = polish.polished(pool, removals, scorer, record, allowed, known)
        return Searched(removals, order, swaps)


def _row(pair: tuple[Key, list[int]]) -> dict[str, Any]:
    (removed, item), ids = pair
    return {"without": [str(layer) for layer in removed], "item": item, "ids": ids}


def _key(row: dict[str, Any]) -> Key:
    return tuple(parse_layer(text) for text in row["without"]), row["item"]


def target_languages(
    job: Job, section: RankSection, speech: SpeechModel, executor: Executor[ScoringWorker] | None = None
) -> list[TargetLanguage]:
    """The select clips for every target language that is ranked; other languages come from the corpus' own columns."""
    recipe = job.recipe
    clips = job.select_clips("rank", section.clips)
    languages = []
    for target in section.targets or (recipe.target,):
        references = references_in(job, clips, target)
        prompt = prompts.render(speech, recipe.prompt, recipe.source, target)
        label = "encoding the select clips"
        if executor is None:
            encoded = Features(speech, job.layout.cache).encode_all(clips, prompt, label)
        else:
            encoded = worker.encode_all(executor, clips, prompt, recipe.encode_batch, label)
        answers = answers_of(speech, clips, recipe.prompt.style, references)
        languages.append(TargetLanguage(target, encoded, references, answers))
        job.record.setdefault("prompts", []).append(prompt)
    return languages


def references_in(job: Job, clips: list[Clip], target: str) -> list[str]:
    """Reference translations of the clips in a language. Raises DataError where the corpus lacks one."""
    recipe = job.recipe
    assert recipe.data
    if language_code(target) == language_code(recipe.target):
        return [clip.target_text or "" for clip in clips]
    other = corpora.load(recipe.data.corpus, recipe.data.path, recipe.source, target, recipe.data.texts)
    texts = {clip.id: clip.target_text for clip in other.clips}
    missing = [clip.id for clip in clips if not texts.get(clip.id)]
    if missing:
        raise DataError(
            f"rank.targets: {len(missing)} select clips have no {language_name(target)} text, {missing[0]} among them.",
            "Rank by the languages that the corpus has.",
        )
    return [texts[clip.id] or "" for clip in clips]
