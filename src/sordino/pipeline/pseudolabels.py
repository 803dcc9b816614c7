"""The teacher's translations of the training clips: greedy, or several samples of which the best agreed-upon is taken.

Decoded by transformers, or greedily by vLLM; a file that one of them began is never continued by the other.
MBR (metrics/mbr.py) takes the sample that the others agree with most. Finished batches are kept over a kill; the
batches are always the same, so that a resumed stage writes the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sordino.config import chain
from sordino.config.schema import PseudolabelSection
from sordino.data.clip import Clip
from sordino.metrics import mbr
from sordino.metrics.filters import Translation
from sordino.models import worker
from sordino.models.features import EncodedClip
from sordino.models.generation import EpsilonSampling, batches, generate, uniform
from sordino.models.worker import ModelWorker
from sordino.pipeline import engine, workers
from sordino.pipeline.stage import Job
from sordino.pipeline.workers import on_cluster
from sordino.runtime import files
from sordino.runtime.progress import bar

Row = dict[str, Any]  # id, sample, text, cut


@dataclass(frozen=True)
class LabelTask:
    """One batch. samples: number of each clip's sample, for its own random numbers;"""

    clips: tuple[EncodedClip, ...]
    samples: tuple[int, ...]
    section: PseudolabelSection
    seed: int


def translate_clips(job: Job, section: PseudolabelSection, clips: Sequence[Clip], progress: Path) -> list[Row]:
    """All that the teacher answers: a row for every clip and sample, in the order of the clips.

    progress: file of the rows so far, to which every finished batch is added.
    """
    if on_cluster(job.recipe):
        source = job.source(chain.TEACHER)
        with workers.model_workers(job, source, ModelWorker) as executor:
            prompt = job.prompt(workers.without_weights(source, executor.device_type))
            encoded = worker.encode_all(executor, clips, prompt, job.recipe.encode_batch)
            return label(job, section, encoded, progress, partial(executor.run, translate_batch, label="batch"))
    teacher = ModelWorker(engine.load(job, section), job.layout.cache)
    encoded = teacher.features.encode_all(clips, job.prompt(teacher.speech))

    def run(tasks: Iterable[LabelTask]) -> Iterator[tuple[int, list[Row]]]:
        for place, task in enumerate(tasks):
            rows = translate_batch(teacher, task)
            engine.record(job, teacher.speech)
            yield place, rows

    with engine.running(teacher.speech):
        return label(job, section, encoded, progress, run)


def label(
    job: Job,
    section: PseudolabelSection,
    encoded: Sequence[EncodedClip],
    progress: Path,
    run: Callable[[Iterable[LabelTask]], Iterable[tuple[int, list[Row]]]],
) -> list[Row]:
    """As `translate_clips`. run: has batches translated, and gives the rows of each with its place."""
    samples = section.samples if section.method == "mbr" else 1
    pairs = [(i, sample) for i in range(len(encoded)) for sample in range(samples)]
    keys = [(encoded[i].clip.id, sample) for i, sample in pairs]
    rows = {(row["id"], row["sample"]): row for row in files.read_jsonl(progress)}
    lacking = [
        batch
        for batch in batches([encoded[i] for i, _ in pairs], engine.clips_at_once(section))
        if not all(keys[place] in rows for place in batch)
    ]
    tasks = (
        LabelTask(
            tuple(encoded[pairs[place][0]] for place in batch),
            tuple(pairs[place][1] for place in batch),
            section,
            job.recipe.seed,
        )
        for batch in lacking
    )
    with bar("the teacher translates", len(pairs), len(rows)) as advance:
        for _, batch_rows in run(tasks):
            new = {(row["id"], row["sample"]): row for row in batch_rows}
            new = {key: row for key, row in new.items() if key not in rows}
            files.append_jsonl(progress, *new.values())
            rows |= new
            advance(len(new))
    return [rows[key] for key in keys]


def translate_batch(teacher: ModelWorker, task: LabelTask) -> list[Row]:
    """One batch, translated by the teacher."""
    section, speech = task.section, teacher.speech
    sampling = None
    if section.method == "mbr":
        samples = zip(task.clips, task.samples, strict=True)
        draws = [uniform(task.seed, clip.clip.id, sample, section.max_new_tokens) for clip, sample in samples]
        sampling = EpsilonSampling(torch.stack(draws).to(speech.device), section.temperature, section.epsilon)
    answers = generate(speech, task.clips, section.max_new_tokens, sampling)
    return [
        {
            "id": one.clip.id,
            "sample": sample,
            "text": speech.decode(ids),
            "cut": len(ids) >= section.max_new_tokens,
        }
        for one, sample, ids in zip(task.clips, task.samples, answers, strict=True)
    ]


def choose(rows: Sequence[Row], clips: Sequence[Clip], section: PseudolabelSection) -> list[tuple[Clip, Translation]]:
    """`keep` different translations of a clip at most, the most agreed-upon first (MBR-n, Wang et al. 2024,
    arxiv.org/abs/2407.10456), each with its clip, whose id is its own: the second's ends in #2.

    Where cut ones are filtered, MBR takes none, unless there are no others.
    """
    samples = len(rows) // len(clips)
    translations = []
    with bar("choosing translations", len(clips)) as advance:
        for i, clip in enumerate(clips):
            mine = rows[i * samples : (i + 1) * samples]
            whole = [row for row in mine if not (row["cut"] and section.filter.cut)] or mine
            for place, best in enumerate(mbr.ranked([row["text"] for row in whole])[: section.keep], 1):
                row = whole[best]
                own = clip if place == 1 else replace(clip, id=f"{clip.id}#{place}")
                reference = clip.target_text or ""
                translations.append((own, Translation(own.id, row["text"], row["cut"], reference, clip.source_text)))
            advance(1)
    return translations
