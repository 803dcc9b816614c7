"""pseudolabel: the teacher translates the training audio (sequence-level knowledge distillation, Kim & Rush 2016).

Greedy, or several samples of which the one is taken that the others agree with most (MBR, metrics/mbr.py). What fails
the filter goes to rejected.jsonl with the reason. Finished batches are kept over a kill; the batches are always the
same, so a resumed stage writes the same file. candidates.jsonl keeps all that the teacher said, so that another filter
costs no translating.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sordino.config import records
from sordino.config.schema import PseudolabelSection
from sordino.data import manifest
from sordino.data.clip import TEACHER_PREFIX, Clip
from sordino.errors import DataError
from sordino.measure.speed import release_memory
from sordino.metrics import filters, mbr
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import EpsilonSampling, batches, generate, uniform
from sordino.models.speech import SpeechModel
from sordino.pipeline import artifact
from sordino.pipeline.job import DATA, PSEUDO, Job, Stage, parents_of, resolved
from sordino.runtime import files
from sordino.runtime.progress import bar, note

CANDIDATES, REJECTED = "candidates.jsonl", "rejected.jsonl"
Row = dict[str, Any]  # id, sample, text, cut


def run(job: Job) -> None:
    section = job.recipe.pseudolabel
    assert section
    clips = manifest.read(job.run_dir / DATA / "train.jsonl")
    rows = translated(job, section, clips)
    lines = "".join(files.json_line(row) + "\n" for row in rows)
    files.write_text(job.out / CANDIDATES, lines)
    said = chosen(rows, clips, section)
    limits = filters.Limits(**dataclasses.asdict(section.filter), device=job.recipe.device)
    release_memory()  # the teacher's, before COMET's is taken
    rejected = filters.reasons(said, job.recipe.target, limits)
    reasons = Counter(reason for reason, _ in rejected.values())
    counted = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    if len(rejected) == len(said):
        raise DataError(
            f"pseudolabel: none of the teacher's {len(said)} translations passes the filter ({counted}).",
            "Raise max_new_tokens (cut) or loosen pseudolabel.filter; what was translated is kept.",
        )
    write(job, clips, said, rejected)
    same = sum(one.text == one.reference for one in said)
    job.record |= {
        "clips": len(clips),
        "pairs": len(said) - len(rejected),
        "rejected": dict(reasons),
        "cut": sum(one.cut for one in said),
        "empty": sum(not one.text.strip() for one in said),
        "same_as_reference": same,
    }
    note(f"  {len(said) - len(rejected)} pairs, {same} equal to the reference; rejected: {counted or 'none'}")


def translated(job: Job, section: PseudolabelSection, clips: Sequence[Clip]) -> list[Row]:
    """All that the teacher says: a row for every clip and sample, in the order of the clips."""
    progress = job.state / "pseudo.jsonl"
    take_over(job, progress)
    samples = section.samples if section.method == "mbr" else 1
    speech = job.load("teacher")
    encoded = Features(speech, job.cache).encode_all(clips, job.prompt(speech))
    wanted = [(i, sample) for i in range(len(clips)) for sample in range(samples)]
    found = {(row["id"], row["sample"]): row for row in files.read_jsonl(progress)}
    with bar("the teacher translates", len(wanted), len(found)) as advance:
        for batch in batches([encoded[i] for i, _ in wanted], section.batch_size):
            part = [wanted[place] for place in batch]
            if all((clips[i].id, sample) in found for i, sample in part):
                continue
            new = said_of(job, section, speech, encoded, part)
            new = {key: row for key, row in new.items() if key not in found}
            files.append_jsonl(progress, *new.values())
            found |= new
            advance(len(new))
    return [found[clips[i].id, sample] for i, sample in wanted]


def said_of(
    job: Job,
    section: PseudolabelSection,
    speech: SpeechModel,
    encoded: Sequence[EncodedClip],
    part: Sequence[tuple[int, int]],
) -> dict[tuple[str, int], Row]:
    """One batch of (clip, sample), translated."""
    sampling = None
    if section.method == "mbr":
        draws = [uniform(job.recipe.seed, encoded[i].clip.id, sample, section.max_new_tokens) for i, sample in part]
        sampling = EpsilonSampling(torch.stack(draws).to(speech.device), section.temperature, section.epsilon)
    rows = generate(speech, [encoded[i] for i, _ in part], section.max_new_tokens, sampling)
    return {
        (encoded[i].clip.id, sample): {
            "id": encoded[i].clip.id,
            "sample": sample,
            "text": speech.decode(ids),
            "cut": len(ids) >= section.max_new_tokens,
        }
        for (i, sample), ids in zip(part, rows, strict=True)
    }


def take_over(job: Job, progress: Path) -> None:
    """Begin with what a finished stage translated that differs in the filter alone."""
    directory = job.run_dir / PSEUDO
    done, settings = records.read_stage(directory), resolved(STAGE, job.recipe)
    if done is None or settings is None or progress.exists():
        return
    unfiltered = settings | {name: done["section"].get(name) for name in RESUMABLE}
    if artifact.why_stale(directory, unfiltered, parents_of(STAGE, job.recipe)) is None:
        files.write_text(progress, (directory / CANDIDATES).read_text(encoding="utf-8"))


def chosen(rows: Sequence[Row], clips: Sequence[Clip], section: PseudolabelSection) -> list[filters.Translation]:
    """One translation a clip. Where cut ones are filtered, MBR takes none, unless there are no others."""
    samples = len(rows) // len(clips)
    found = []
    with bar("choosing translations", len(clips)) as advance:
        for i, clip in enumerate(clips):
            mine = rows[i * samples : (i + 1) * samples]
            whole = [row for row in mine if not (row["cut"] and section.filter.cut)] or mine
            row = whole[mbr.choose([row["text"] for row in whole])]
            found.append(
                filters.Translation(clip.id, row["text"], row["cut"], clip.target_text or "", clip.source_text)
            )
            advance(1)
    return found


def write(
    job: Job, clips: Sequence[Clip], said: Sequence[filters.Translation], rejected: dict[str, filters.Reason]
) -> None:
    """The manifest of what passed; the rest with the reasons."""
    done = records.read_stage(job.run_dir / "20-teacher")
    assert done
    origin = TEACHER_PREFIX + done["hash"][:16]
    pairs = zip(clips, said, strict=True)
    kept = [dataclasses.replace(c, target_text=one.text, origin=origin) for c, one in pairs if c.id not in rejected]
    manifest.write(job.out / "train.jsonl", kept)
    rows = [
        {"id": one.id, "text": one.text, "reason": rejected[one.id][0], "found": rejected[one.id][1]}
        for one in said
        if one.id in rejected
    ]
    files.write_text(job.out / REJECTED, "".join(files.json_line(row) + "\n" for row in rows))


RESUMABLE = ("filter", "batch_size")
STAGE = Stage(
    name="pseudolabel",
    directory=PSEUDO,
    section=lambda recipe: recipe.pseudolabel,
    parents=lambda _: ["20-teacher", DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention"),
    resumable=RESUMABLE,
)
