"""rank: the order in which layers can go, found on the select split. Resumes at the next trial after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sordino import artifact
from sordino.compress import importance
from sordino.compress.importance import Layer, Trial
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.decoding import Decoding, translate
from sordino.errors import DataError
from sordino.families.base import SpeechModel
from sordino.features import Features, Heard
from sordino.metrics import registry as metrics
from sordino.progress import bar, note
from sordino.recipe import RankSection
from sordino.stages.job import DATA, RANKING, TRIALS, Job, Stage, directory_of, teacher_key
from sordino.training.collate import Example
from sordino.training.trainer import mean_loss


def run(job: Job) -> None:
    section = job.recipe.rank
    assert section
    speech = job.load(teacher_key(job.recipe))
    if section.method == "explicit":
        order = [importance.parse_layer(text) for text in section.layers]
        for scope in importance.SCOPES["both"]:
            importance.kept(len(speech.layers(scope)), scope, order)  # refuses what this model cannot follow
    elif section.method == "middle":
        order = importance.middle(speech, section.scope, section.remove)
    else:
        order = _search(job, speech, section)
    ranking = {
        "method": section.method,
        "scope": section.scope,
        "criterion": job.recipe.criterion if section.method == "iterative" else None,
        "order": [str(layer) for layer in order],
        "layers": {"decoder": len(speech.layers("decoder")), "encoder": len(speech.layers("encoder"))},
    }
    artifact.write_json(job.out / "ranking.json", ranking)
    note("  removal order: " + " ".join(map(str, order)))


def _search(job: Job, speech: SpeechModel, section: RankSection) -> list[Layer]:
    pool = importance.candidates(speech, section.scope, section.protect_first, section.protect_last)
    criterion = job.recipe.criterion
    progress = job.out / TRIALS
    known = [Trial.from_json(row) for row in artifact.read_jsonl(progress)]
    evaluate = Evaluation(job, speech, section, criterion)
    total = importance.trials_in(len(pool), min(section.remove, len(pool)))
    higher = criterion != "loss" and metrics.get(criterion).higher_is_better
    with bar(f"ranking layers by {criterion}", total, len(known)) as advance:

        def record(trial: Trial) -> None:
            artifact.append_jsonl(progress, trial.to_json())
            advance(1)

        return importance.search(pool, section.remove, evaluate, higher, known, record)


class Evaluation:
    """Scores the model without some layers on the select clips; audio is encoded once while the encoder is whole."""

    def __init__(self, job: Job, speech: SpeechModel, section: RankSection, criterion: str) -> None:
        self.speech, self.section, self.criterion = speech, section, criterion
        self.prompt = job.prompt(speech)
        self.clips = select_clips(job, section)
        self.references = [clip.target_text or "" for clip in self.clips]
        self.target, self.style = job.recipe.target, job.recipe.prompt.style
        self.whole = Features(speech, job.cache).hear_all(self.clips, self.prompt)

    def __call__(self, removed: Sequence[Layer]) -> tuple[float, str | None]:
        with importance.without(self.speech, removed):
            heard = self._hear(removed)
            if self.criterion == "loss":
                answers = [self.speech.answer_ids(text, self.style) for text in self.references]
                pairs = [Example(h.clip, a, h) for h, a in zip(heard, answers, strict=True)]
                return mean_loss(self.speech, pairs, self.section.batch_size, self.prompt), None
            options = Decoding(self.section.batch_size, self.section.max_new_tokens)
            texts = [h.text for h in translate(self.speech, heard, options)]
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
        return metrics.get(self.criterion).corpus(texts, self.references, self.target), digest

    def _hear(self, removed: Sequence[Layer]) -> list[Heard]:
        if all(layer.scope == "decoder" for layer in removed):
            return self.whole
        again = Features(self.speech, None)  # another encoder: its features are of no use to anything else
        return [again.hear(clip, self.prompt) for clip in self.clips]


def select_clips(job: Job, section: RankSection) -> list[Clip]:
    """The clips that choose the layers: the select split, never the test split."""
    file = job.run_dir / DATA / "select.jsonl"
    if not file.is_file():
        raise DataError("rank: this run has no select split.", "Set data.splits.select above 0.")
    return manifest.read(file)[: section.clips]


STAGE = Stage(
    name="rank",
    directory=RANKING,
    section=lambda recipe: recipe.rank,
    parents=lambda recipe: [directory_of(teacher_key(recipe)), DATA],
    run=run,
    uses=("source", "target", "prompt", "dtype", "attention"),
)
