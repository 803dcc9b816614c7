"""The teacher's translations of the training clips: greedy, or several samples of which the best agreed-upon is taken.

Decoded by transformers, or greedily by vLLM; a file that one of them began is never continued by the other.
MBR (metrics/mbr.py) takes the sample that the others agree with most. Finished batches are kept over a kill; the
batches are always the same, so that a resumed stage writes the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sordino.config.schema import PseudolabelSection
from sordino.data.clip import Clip
from sordino.metrics import mbr
from sordino.metrics.filters import Translation
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import EpsilonSampling, batches, generate, uniform
from sordino.models.speech import SpeechModel
from sordino.pipeline import engine
from sordino.pipeline.stage import Job
from sordino.runtime import files
from sordino.runtime.progress import bar

Row = dict[str, Any]  # id, sample, text, cut


def translate_clips(job: Job, section: PseudolabelSection, clips: Sequence[Clip], progress: Path) -> list[Row]:
    """All that the teacher answers: a row for every clip and sample, in the order of the clips.

    progress: file of the rows so far, to which every finished batch is added.
    """
    samples = section.samples if section.method == "mbr" else 1
    speech = engine.load(job, section)
    encoded = Features(speech, job.layout.cache).encode_all(clips, job.prompt(speech))
    pairs = [(i, sample) for i in range(len(clips)) for sample in range(samples)]
    rows = {(row["id"], row["sample"]): row for row in files.read_jsonl(progress)}
    with engine.running(speech), bar("the teacher translates", len(pairs), len(rows)) as advance:
        for batch in batches([encoded[i] for i, _ in pairs], engine.clips_at_once(section)):
            part = [pairs[place] for place in batch]
            if all((clips[i].id, sample) in rows for i, sample in part):
                continue
            new = translate_batch(job, section, speech, encoded, part)
            new = {key: row for key, row in new.items() if key not in rows}
            engine.record(job, speech)
            files.append_jsonl(progress, *new.values())
            rows |= new
            advance(len(new))
    return [rows[clips[i].id, sample] for i, sample in pairs]


def translate_batch(
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
    answers = generate(speech, [encoded[i] for i, _ in part], section.max_new_tokens, sampling)
    return {
        (encoded[i].clip.id, sample): {
            "id": encoded[i].clip.id,
            "sample": sample,
            "text": speech.decode(ids),
            "cut": len(ids) >= section.max_new_tokens,
        }
        for (i, sample), ids in zip(part, answers, strict=True)
    }


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
