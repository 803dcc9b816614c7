"""rank: the order in which layers can go, found on the select split.

trials.jsonl grows with every trial, and finer: what has been translated is kept in the stage's state, so that a killed
search goes on from its last batch.
"""

from __future__ import annotations

from typing import Any

from sordino.config.schema import RankSection
from sordino.data import corpora
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.languages import language_code, language_name
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pipeline.job import DATA, RANKING, TRIALS, Job, Stage, directory_of, render_section, teacher_key
from sordino.pruning import search
from sordino.pruning.scoring import ClipScorer, Key, ScoringOptions, TargetLanguage, work
from sordino.pruning.search import Removal, Trial
from sordino.pruning.speculative import default_memory
from sordino.runtime import files
from sordino.runtime.progress import bar, note

FOUND = "found.jsonl"  # resume state: translations by candidates so far


def run(job: Job) -> None:
    section = job.recipe.rank
    assert section
    speech = job.load(teacher_key(job.recipe))
    if job.recipe.attention == "flash_attention_2":  # the common pool needs masks of its own
        speech.model.set_attn_implementation("sdpa")
    removals: list[Removal] = []
    if section.method == "explicit":
        order = [search.parse_layer(text) for text in section.layers]
        for scope in search.SCOPES["both"]:
            search.kept(len(speech.layers(scope)), scope, order)  # refuses what this model cannot follow
    elif section.method == "middle":
        order = search.middle(speech, section.scope, section.remove)
    else:
        removals = _search(job, speech, section)
        order = [removal.layer for removal in removals]
    ranking = {
        "method": section.method,
        "scope": section.scope,
        "criterion": job.recipe.criterion if removals else None,
        "search": section.search if removals else None,
        "order": [str(layer) for layer in order],
        "removals": [_describe(removal) for removal in removals],
        "layers": {"decoder": len(speech.layers("decoder")), "encoder": len(speech.layers("encoder"))},
    }
    files.write_json(job.out / "ranking.json", ranking)
    for removal in removals:
        rival = f"; {removal.runner_up} in {removal.runner_up_probability:.0%}" if removal.runner_up else ""
        note(
            f"  {removal.layer} goes, {job.recipe.criterion} {removal.trial.score:.2f}: "
            f"the best in {removal.probability:.0%} of resamples{rival}"
        )
    note("  removal order: " + " ".join(map(str, order)))


def _describe(removal: Removal) -> dict[str, Any]:
    return {
        "layer": str(removal.layer),
        "clips": removal.trial.clips,
        "score": removal.trial.score,
        "interval": removal.trial.interval,
        "probability": removal.probability,
        "runner_up": str(removal.runner_up) if removal.runner_up else None,
        "runner_up_probability": removal.runner_up_probability,
    }


def _search(job: Job, speech: SpeechModel, section: RankSection) -> list[Removal]:
    pool = search.candidates(speech, section.scope, section.protect_first, section.protect_last)
    racing = section.search == "racing"
    known = [Trial.from_json(row) for row in files.read_jsonl(job.out / TRIALS)]
    found = {_key(row): row["ids"] for row in files.read_jsonl(job.state / FOUND)}
    tasks = _tasks(job, speech, section)
    terms = ScoringOptions(
        criterion=job.recipe.criterion,
        max_new_tokens=section.max_new_tokens,
        memory=section.memory_mb * 2**20 if section.memory_mb else default_memory(speech),
        seed=job.recipe.seed,
        racing=racing,
    )
    features = Features(speech, None)  # another encoder's features are of no use to anything else
    total = work(len(pool), min(section.remove, len(pool)), len(tasks[0].encoded) * len(tasks), racing)
    with bar(f"ranking layers by {terms.criterion}", total, len(found)) as advance:
        judge = ClipScorer(
            speech,
            tasks,
            terms,
            lambda encoded: features.encode(encoded.clip, encoded.prompt),
            translations=found,
            remember=lambda rows: files.append_jsonl(job.state / FOUND, *map(_row, rows)),
            advance=advance,
        )

        def record(trial: Trial) -> None:
            files.append_jsonl(job.out / TRIALS, trial.to_json())

        return search.search(pool, section.remove, judge, known, record, racing)


def _row(pair: tuple[Key, list[int]]) -> dict[str, Any]:
    (removed, item), ids = pair
    return {"without": [str(layer) for layer in removed], "item": item, "ids": ids}


def _key(row: dict[str, Any]) -> Key:
    return tuple(search.parse_layer(text) for text in row["without"]), row["item"]


def _tasks(job: Job, speech: SpeechModel, section: RankSection) -> list[TargetLanguage]:
    """The select clips for every target language that is ranked; other languages come from the corpus' own columns."""
    recipe = job.recipe
    clips = job.select_clips("rank", section.clips)
    found = []
    for target in section.targets or (recipe.target,):
        references = _references(job, clips, target)
        prompt = render_section(speech, recipe.prompt, recipe.source, target)
        encoded = Features(speech, job.cache).encode_all(clips, prompt, "encoding the select clips")
        answers = [speech.answer_ids(text, recipe.prompt.style) for text in references]
        found.append(TargetLanguage(target, encoded, references, answers))
        job.record.setdefault("prompts", []).append(prompt)
    return found


def _references(job: Job, clips: list[Clip], target: str) -> list[str]:
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


STAGE = Stage(
    name="rank",
    directory=RANKING,
    section=lambda recipe: recipe.rank,
    parents=lambda recipe: [directory_of(teacher_key(recipe)), DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention"),
    resumable=("memory_mb",),
)
