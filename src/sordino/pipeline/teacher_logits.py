"""The teacher's probabilities of all that a student is trained on, computed once and kept in the run's cache.

The teacher is opened, reads every pair of the mix with its answer given (one forward pass, no decoding), and is closed
again before the student is loaded. What is kept lies in files of 512 answers; a kill loses the one at work. Their
directory is named by everything that decides their contents, so that another stage with the same pairs reads them too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sordino.config import chain
from sordino.config.schema import LogitsSection
from sordino.data.clip import Clip
from sordino.errors import RecipeError
from sordino.measure.predict import LOGITS_BYTES
from sordino.measure.speed import release_memory
from sordino.models import prompts
from sordino.models.answers import Probabilities, SpeechLM, answers_of, encoded_batch
from sordino.models.features import Features, identity
from sordino.models.speech import SpeechModel, batches_by_length
from sordino.pipeline.device import device_of
from sordino.pipeline.forecast import TEACHER_BATCH
from sordino.pipeline.parents import model_hash
from sordino.pipeline.stage import Job
from sordino.runtime.executor import parallel_map
from sordino.runtime.progress import bar
from sordino.runtime.world import current
from sordino.training import teacher_rows
from sordino.training.objectives import Distillation, Objective, chunk_rows, cross_entropy
from sordino.training.teacher_rows import StoredRows
from sordino.vocabulary.tokenizer import token_configs, without_weights

DIRECTORY = "teacher-logits"  # in the cache
SHARD = 512  # answers of one file
Pair = tuple[str, float, float | None, tuple[int, ...]]  # a stretch of audio and the ids of its answer
Answers = Sequence[tuple[Clip, Sequence[int]]]


@dataclass(frozen=True)
class TeacherLogits:
    """What a student learns from beside texts. rows: where the teacher's probabilities of every pair lie."""

    section: LogitsSection
    rows: Mapping[Pair, StoredRows]

    def objective_at(self, done: float) -> Objective:
        """The loss when this share of the steps is done."""
        texts_only = done >= 1 - self.section.ce_only_end
        return cross_entropy if texts_only else Distillation(self.section.weight)


def pair_of(clip: Clip, answer: Sequence[int]) -> Pair:
    return clip.audio, clip.start, clip.seconds, tuple(answer)


def teacher_logits(job: Job, section: LogitsSection, clips: Sequence[Clip], student: str) -> TeacherLogits | None:
    """Of clips with target texts; None where training is on texts alone. student: key of the model that is trained.

    Raises RecipeError for a student of another vocabulary, ArtifactError for a damaged file of the cache.
    """
    if not section.weight:
        return None
    teacher, trained = (
        without_weights(job.model(key).path, job.model(key).revision) for key in (chain.TEACHER, student)
    )
    rows = refuse_other_vocabulary(teacher, trained)
    top = min(section.top, rows)
    answers = answers_of(teacher, clips, job.recipe.prompt.style)
    unique = list({pair_of(clip, answer): (clip, answer) for clip, answer in zip(clips, answers, strict=True)}.values())
    shards = [unique[first : first + SHARD] for first in range(0, len(unique), SHARD)]
    directory = job.layout.cache / DIRECTORY / _name(job, teacher, unique, top)
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:05}.safetensors" for number in range(len(shards))]
    world = current()
    missing = [(file, shard) for file, shard in zip(files, shards, strict=True) if not file.exists()]
    world.wait()  # nobody writes before all have looked: their parts are of the same list
    if own := world.share(missing):
        _fill(job, own, top)
        release_memory()  # the teacher's, before the student is loaded
    world.wait()
    for file, shard in zip(files, shards, strict=True):
        teacher_rows.check(file, sum(len(answer) for _, answer in shard), top)
    positions = sum(len(answer) for _, answer in unique)
    job.record["teacher_logits"] = {"positions": positions, "bytes": sum(file.stat().st_size for file in files)}
    places = (place for file, shard in zip(files, shards, strict=True) for place in _of(file, shard))
    return TeacherLogits(section, dict(places))


def refuse_other_vocabulary(teacher: SpeechModel, student: SpeechModel) -> int:
    """Rows of the vocabulary that both share. Raises RecipeError where they do not: probabilities are of its rows."""
    from transformers import AutoConfig

    rows = [
        token_configs(model, model.family.core(AutoConfig.from_pretrained(model.path)))[-1].vocab_size
        for model in (teacher, student)
    ]
    one, other = (model.processor.tokenizer.get_vocab() for model in (teacher, student))
    if rows[0] != rows[1] or one != other:
        raise RecipeError(
            f"logits: {teacher.path} has a vocabulary of {len(one)} tokens in {rows[0]} rows, and {student.path}, "
            f"which is to learn its probabilities, another: {len(other)} tokens in {rows[1]} rows.",
            "Set logits.weight to 0 to train on texts alone, or trim the vocabulary afterwards.",
        )
    return int(rows[0])


def _name(job: Job, teacher: SpeechModel, pairs: Answers, top: int) -> str:
    """Of everything that decides what the teacher says of the pairs, and in which files it stands."""
    recipe = job.recipe
    prompt = prompts.render(teacher, recipe.prompt, recipe.source, recipe.target)
    settings = [model_hash(recipe, chain.TEACHER), top, prompt, recipe.dtype, recipe.attention, TEACHER_BATCH, SHARD]
    settings += [recipe.encode_batch] if recipe.encode_batch > 1 else []
    digest = hashlib.sha256(json.dumps([*settings, device_of(recipe.device).type]).encode())
    for clip, answer in pairs:
        digest.update(json.dumps([identity(clip), list(answer)]).encode())
    return digest.hexdigest()[:24]


def _of(file: Path, shard: Answers) -> list[tuple[Pair, StoredRows]]:
    """Where in a file each pair lies."""
    rows, first = [], 0
    for clip, answer in shard:
        rows.append((pair_of(clip, answer), StoredRows(file, first, len(answer))))
        first += len(answer)
    return rows


def _fill(job: Job, missing: Sequence[tuple[Path, Answers]], top: int) -> None:
    """Write the files that are missing."""
    speech = job.load(chain.TEACHER)
    features, prompt = Features(speech, job.layout.cache), job.prompt(speech)
    with bar("the teacher's probabilities", sum(len(shard) for _, shard in missing)) as advance:
        for file, shard in missing:
            teacher_rows.store(_shard(features, shard, prompt, top), file)
            advance(len(shard))


@torch.no_grad()
def _shard(features: Features, shard: Answers, prompt: str, top: int) -> Probabilities:
    """The positions of every answer, in order."""
    speech = features.speech
    model = SpeechLM(speech)
    chunk = chunk_rows(model, LOGITS_BYTES)
    assert chunk
    lengths = [(clip.seconds or 0.0) + len(answer) / 1000 for clip, answer in shard]
    batches = batches_by_length(lengths, TEACHER_BATCH)

    def work(batch: Sequence[int]) -> Probabilities:
        # not kept: of clips that nothing has encoded before, most are seen once
        encoded = [features.encode(shard[i][0], prompt, keep=False) for i in batch]
        return teacher_rows.of_batch(model, encoded_batch(speech, encoded, [shard[i][1] for i in batch]), top, chunk)

    parts: dict[int, Probabilities] = {}
    for batch, rows in zip(batches, parallel_map(speech.device, work, batches), strict=True):
        first = 0
        for i in batch:
            parts[i] = rows.rows(slice(first, first + len(shard[i][1])))
            first += len(shard[i][1])
    ordered = [parts[i] for i in range(len(shard))]
    return Probabilities(torch.cat([part.ids for part in ordered]), torch.cat([part.logs for part in ordered]))
