"""prepare: read the corpus, hear every clip once, deal it into disjoint splits, write manifests.

Every unusable row is reported at once. With `--skip-bad` they are left out and listed in skipped.jsonl.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sordino.config.schema import CorpusSection
from sordino.data import corpora, manifest, splits
from sordino.data.checks import BadClip, check_audio
from sordino.data.choose import choose
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.models import registry
from sordino.pipeline.job import DATA, Job, Stage
from sordino.pipeline.preflight import refuse_sources
from sordino.runtime import files
from sordino.runtime.progress import bar, note

AUDIO, EXTRA_AUDIO = "audio", "audio-extra"  # of corpora that keep theirs inside tables
SHOWN = 10  # problems printed before "and so many more"


def run(job: Job) -> None:
    recipe = job.recipe
    assert recipe.data
    family = registry.family_of(recipe.model, recipe.revision)
    processor = registry.load_processor(family, recipe.model, recipe.revision)
    window = family.audio.window(processor) / SAMPLE_RATE
    bad: list[dict[str, str]] = []
    clips, given = _read(job, recipe.data, window, bad, AUDIO, "hearing the corpus")
    extra: list[Clip] = []
    if recipe.data.extra:
        extra, _ = _read(job, recipe.data.extra, window, bad, EXTRA_AUDIO, "hearing the extra corpus")
    _refuse(job, bad)
    wanted = recipe.data.splits
    sizes = {"select": _size(wanted.select), "dev": _size(wanted.dev), "test": _size(wanted.test)}
    dealt = splits.assign(clips, {k: v for k, v in sizes.items() if v}, recipe.seed, given, split_by=wanted.by)
    needed: list[corpora.Split] = [recipe.translate.split] if recipe.translate else []
    if recipe.finetune:
        needed.append("train")
    if recipe.rank and recipe.rank.method == "iterative":
        needed.append("select")
    for lacking in needed:
        if lacking not in dealt:
            raise DataError(f"there is no {lacking} split, and this recipe needs it.", "Look at data.splits.")
    by_name = {str(split): members for split, members in dealt.items()}
    refuse_sources(recipe, lambda split: by_name.get(split, []))
    for split, members in dealt.items():
        manifest.write(job.out / f"{split}.jsonl", _settled(job, members))
    if extra:
        manifest.write(job.out / "extra.jsonl", _settled(job, extra))
    if bad:
        files.write_text(job.out / "skipped.jsonl", "".join(f"{files.json_line(row)}\n" for row in bad))
    counts = {split: len(members) for split, members in dealt.items()} | ({"extra": len(extra)} if extra else {})
    hours = {k: round(sum(c.seconds or 0 for c in v) / 3600, 3) for k, v in dealt.items()}
    job.record |= {"clips": counts, "hours": hours, "skipped": len(bad), "leaking_split": wanted.by == "segment"}
    note("  " + ", ".join(f"{n} {split}" for split, n in counts.items()) + (f"; {len(bad)} skipped" if bad else ""))


def _read(
    job: Job, section: CorpusSection, window: float, bad: list[dict[str, str]], audio: str, label: str
) -> tuple[list[Clip], dict[str, corpora.Split]]:
    """Usable clips of a corpus and the splits it came with; what is not usable goes to `bad`.

    audio: where in the artefact a corpus that keeps its audio inside tables unpacks it.
    """
    corpus = corpora.load(
        section.corpus,
        section.path,
        job.recipe.source,
        job.recipe.target,
        section.texts,
        audio_dir=job.out / audio,
        subsets=section.subsets,
        split=section.split,
    )
    bad += [{"id": row.id, "problem": row.problem} for row in corpus.problems]
    held_out = audio == EXTRA_AUDIO  # what the extra corpus keeps for testing is not for training
    pool = [clip for clip in corpus.clips if not held_out or corpus.splits.get(clip.id, "train") == "train"]
    clips = choose(
        pool,
        section.rows,
        job.recipe.seed,
        min_seconds=section.min_seconds,
        max_seconds=section.max_seconds,
        max_ratio=section.max_ratio,
    )
    if not clips and pool:
        raise DataError(
            f"No clip of {section.path} is within the limits.", "Widen min_seconds, max_seconds, max_ratio."
        )
    with bar(label, len(clips)) as advance:
        good, broken = check_audio(clips, lambda _: advance(1))
    long = [c for c in good if (c.seconds or 0) > window]
    broken += [
        BadClip(c.id, c.audio, f"{c.audio}: {c.seconds:.1f} s, but the model hears {window:g} s at once.", "Cut it.")
        for c in long
    ]
    bad += [{"id": b.id, "audio": b.audio, "problem": f"{b.problem} {b.remedy}".strip()} for b in broken]
    if not good or len(good) == len(long):
        raise DataError(f"{section.path} holds no usable clip. " + (bad[0]["problem"] if bad else ""))
    left = {c.id for c in long}
    return [c for c in good if c.id not in left], dict(corpus.splits)


def _settled(job: Job, clips: Sequence[Clip]) -> list[Clip]:
    """Clips with unpacked audio where it will be: the directory it is in is renamed when the stage is done."""
    here = f"{job.out.absolute()}{os.sep}"
    there = (job.run_dir / DATA).absolute()
    return [
        replace(clip, audio=str(there / clip.audio.removeprefix(here))) if clip.audio.startswith(here) else clip
        for clip in clips
    ]


def _refuse(job: Job, bad: Sequence[dict[str, Any]]) -> None:
    """Without --skip-bad, unusable rows end the stage with a list of them."""
    if not bad:
        return
    shown = [f"  {row['id']}: {row['problem']}" for row in bad[:SHOWN]]
    if len(bad) > SHOWN:
        shown.append(f"  and {len(bad) - SHOWN} more")
    text = f"{len(bad)} row{'s' * (len(bad) > 1)} of the corpus cannot be used:\n" + "\n".join(shown)
    if not job.options.get("skip_bad"):
        raise DataError(text, "\nMend or remove them, or add --skip-bad to leave them out.")
    note(text + "\n  left out (--skip-bad), listed in skipped.jsonl")


def _size(value: float) -> float:
    """Whole numbers are clips, fractions below 1 are shares."""
    return int(value) if value >= 1 or value == 0 else value


STAGE = Stage(
    name="prepare",
    directory=DATA,
    section=lambda recipe: recipe.data,
    parents=lambda _: ["corpus"],
    run=run,
    uses=("source", "target", "seed"),
)
