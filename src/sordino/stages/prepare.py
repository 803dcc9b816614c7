"""prepare: read the corpus, hear every clip once, deal it into disjoint splits, write manifests.

Every unusable row is reported at once. With `--skip-bad` they are left out and listed in skipped.jsonl.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import replace

from sordino.config.run_layout import DATA, SKIPPED, split_file
from sordino.config.schema import DataSection, Recipe
from sordino.data import leaks, manifest, splits
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.pipeline.parents import corpus_parents
from sordino.pipeline.preflight import refuse_sources
from sordino.pipeline.stage import CORPUS, Job, Stage
from sordino.runtime import files
from sordino.runtime.progress import note

AUDIO, EXTRA_AUDIO = "audio", "audio-extra"  # of corpora that keep theirs inside tables
SHOWN = 10  # problems printed before "and so many more"


def run(job: Job, section: DataSection) -> None:
    from sordino.pipeline import corpus

    recipe = job.recipe
    listener = corpus.listener_of(recipe)
    own = corpus.read(recipe, section, listener, job.out / AUDIO, "hearing the corpus")
    extra = corpus.Corpus()
    if section.extra:
        directory = job.out / EXTRA_AUDIO
        extra = corpus.read(recipe, section.extra, listener, directory, "hearing the extra corpus", training_only=True)
    bad = own.bad + extra.bad
    if bad:
        refuse_or_tell(job, corpus.listed(bad, SHOWN))
    sizes = {name: _size(getattr(section.splits, name)) for name in ("select", "dev", "test")}
    notes = own.notes + extra.notes
    dealt = splits.assign(
        own.clips,
        {k: v for k, v in sizes.items() if v},
        recipe.seed,
        own.splits,
        split_by=section.splits.by,
        fixed=own.fixed,
        guessed=own.guessed,
        notes=notes,
    )
    by_name = {str(split): members for split, members in dealt.items()}
    refuse_lacking(recipe, by_name)
    refuse_sources(recipe, lambda split: by_name.get(split, []))
    hours = {name: round(sum(c.seconds or 0 for c in clips) / 3600, 3) for name, clips in by_name.items()}
    if extra.clips:
        by_name["extra"] = extra.clips
    for split, clips in by_name.items():
        manifest.write(job.out / split_file(split), _settled(job, clips))
    if bad:
        files.write_text(job.out / SKIPPED, "".join(f"{files.json_line(row)}\n" for row in bad))
    leaked = leaks.notes(by_name)
    counts = {split: len(clips) for split, clips in by_name.items()}
    leaking = section.splits.by == "segment" or any(line.startswith(leaks.RECORDINGS) for line in leaked)
    job.record |= {"clips": counts, "hours": hours, "skipped": len(bad), "leaking_split": leaking}
    note("  " + ", ".join(f"{n} {split}" for split, n in counts.items()) + (f"; {len(bad)} skipped" if bad else ""))
    for line in [*notes, *leaked]:
        note(f"  {line}")
    corpus_parents(recipe, remember=True)


def refuse_lacking(recipe: Recipe, dealt: Container[str]) -> None:
    """Raise DataError where the recipe needs a split that has no clips."""
    needed: list[str] = [recipe.translate.split] if recipe.translate else []
    if recipe.finetune:
        needed.append("train")
    if recipe.rank and recipe.rank.method == "iterative":
        needed.append("select")
    for split in needed:
        if split not in dealt:
            raise DataError(
                f"there is no {split} split, and this recipe needs it.",
                "Look at data.splits, and at the split column: nothing is drawn from clips it names.",
            )


def _settled(job: Job, clips: Sequence[Clip]) -> list[Clip]:
    """Clips with unpacked audio where it will be: the directory it is in is renamed when the stage is done."""
    here = f"{job.out.absolute()}{os.sep}"
    there = job.layout.data.absolute()
    return [
        replace(clip, audio=str(there / clip.audio.removeprefix(here))) if clip.audio.startswith(here) else clip
        for clip in clips
    ]


def refuse_or_tell(job: Job, problems: str) -> None:
    """Without --skip-bad, unusable rows end the stage with a list of them."""
    if not job.options.get("skip_bad"):
        raise DataError(problems, "\nMend or remove them, or add --skip-bad to leave them out.")
    note(problems + "\n  left out (--skip-bad), listed in skipped.jsonl")


def _size(value: float) -> float:
    """Whole numbers are clips, fractions below 1 are shares."""
    return int(value) if value >= 1 or value == 0 else value


STAGE = Stage(
    name="prepare",
    directory=DATA,
    section=lambda recipe: recipe.data,
    parents=lambda _: [CORPUS],
    run=run,
    uses=("source", "target", "seed"),
)
