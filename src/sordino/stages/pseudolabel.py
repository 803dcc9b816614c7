"""pseudolabel: the teacher translates the training audio (sequence-level knowledge distillation, Kim & Rush 2016).

keep: several different samples of a clip. What fails the filter goes to rejected.jsonl with the reason.
candidates.jsonl keeps all that the teacher answered, so that another filter costs no translating.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.config import records
from sordino.config.run_layout import CANDIDATES, DATA, ENGINE, PSEUDO, REJECTED, TEACHER, split_file
from sordino.config.schema import PseudolabelSection, Recipe
from sordino.data import manifest
from sordino.data.clip import TEACHER_PREFIX, Clip
from sordino.errors import DataError
from sordino.pipeline import artifact
from sordino.pipeline.artifact import Parent
from sordino.pipeline.parents import parents_of
from sordino.pipeline.stage import Grown, Job, Stage
from sordino.runtime import files
from sordino.runtime.progress import note

if TYPE_CHECKING:
    from sordino.metrics.filters import Reason, Translation

RESUMABLE = ("filter", "keep", "batch_size")


def run(job: Job, section: PseudolabelSection) -> None:
    from sordino.measure.speed import release_memory
    from sordino.metrics import filters
    from sordino.pipeline import corpus, engine, pseudolabels

    clips = job.clips("train")
    progress = job.state / "pseudo.jsonl"
    take_over(job, progress)
    rows = pseudolabels.translate_clips(job, section, clips, progress)
    files.write_text(job.out / CANDIDATES, "".join(files.json_line(row) + "\n" for row in rows))
    chosen = pseudolabels.choose(rows, clips, section)
    translations = [translation for _, translation in chosen]
    limits = filters.Limits(**dataclasses.asdict(section.filter), device=job.recipe.device)
    release_memory()  # the teacher's, before COMET's is taken
    rejected = filters.reasons(translations, job.recipe.target, limits, corpus.listener_of(job.recipe).control_tokens)
    reasons = Counter(reason for reason, _ in rejected.values())
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    if len(rejected) == len(translations):
        raise DataError(
            f"pseudolabel: none of the teacher's {len(translations)} translations passes the filter ({counts}).",
            "Raise max_new_tokens (cut) or loosen pseudolabel.filter; what was translated is kept.",
        )
    write(job, chosen, rejected)
    decoded_by = engine.begun(job)
    if decoded_by:
        job.record["engine"] = decoded_by
    same = sum(one.text == one.reference for one in translations)
    pairs = len(translations) - len(rejected)
    job.record |= {
        "clips": len(clips),
        "pairs": pairs,
        "rejected": dict(reasons),
        "cut": sum(one.cut for one in translations),
        "empty": sum(not one.text.strip() for one in translations),
        "same_as_reference": same,
    }
    note(f"  {pairs} pairs, {same} equal to the reference; rejected: {counts or 'none'}")


def take_over(job: Job, progress: Path) -> None:
    """Begin with what a finished stage translated that differs in the filter alone."""
    directory = job.layout.root / PSEUDO
    settings = STAGE.settings(job.recipe)
    if settings is None or progress.exists():
        return
    if differs_in_filter_alone(job.recipe, settings, parents_of(STAGE, job.recipe)):
        done = records.read_stage(directory)
        if done and done.get("engine"):
            files.write_json(job.state / ENGINE, done["engine"])
        files.write_text(progress, (directory / CANDIDATES).read_text(encoding="utf-8"))


def differs_in_filter_alone(recipe: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> bool:
    """Whether the finished stage has all that this one would translate."""
    directory = recipe.directory / PSEUDO
    done = records.read_stage(directory)
    if done is None:
        return False
    unfiltered = records.with_settings_of(settings, done, RESUMABLE)
    return artifact.why_stale(directory, unfiltered, parents) is None


def grown(recipe: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> Grown:
    """As asked for, and whether every translation that is there stays."""
    return dict(settings), list(parents), differs_in_filter_alone(recipe, settings, parents)


def write(job: Job, chosen: Sequence[tuple[Clip, Translation]], rejected: Mapping[str, Reason]) -> None:
    """The manifest of what passed; the rest with the reasons."""
    teacher = records.read_stage(job.layout.root / TEACHER)
    assert teacher
    origin = TEACHER_PREFIX + teacher["hash"][:16]
    passed = [dataclasses.replace(c, target_text=one.text, origin=origin) for c, one in chosen if c.id not in rejected]
    manifest.write(job.out / split_file("train"), passed)
    rows = [
        {"id": one.id, "text": one.text, "reason": rejected[one.id][0], "found": rejected[one.id][1]}
        for _, one in chosen
        if one.id in rejected
    ]
    files.write_text(job.out / REJECTED, "".join(files.json_line(row) + "\n" for row in rows))


STAGE = Stage(
    name="pseudolabel",
    directory=PSEUDO,
    section=lambda recipe: recipe.pseudolabel,
    parents=lambda _: [TEACHER, DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
    resumable=RESUMABLE,
    beside=True,
    grown=grown,
)
