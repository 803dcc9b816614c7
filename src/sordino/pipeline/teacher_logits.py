"""The teacher's probabilities of all that a student is trained on, computed once and kept in the run's cache.

The teacher is opened, reads every pair of the mix with its answer given (one forward pass, no decoding), and is closed
again before the student is loaded. What is kept lies in files of 512 answers; a kill loses those at work. Their
directory is named by everything that decides their contents, so that another stage with the same pairs reads them too.
On a cluster workers hold the teacher and read a batch each; the process that trains writes the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from sordino.models.features import identity
from sordino.models.speech import SpeechModel, batches_by_length
from sordino.models.worker import ModelWorker
from sordino.pipeline import workers
from sordino.pipeline.device import device_of
from sordino.pipeline.forecast import TEACHER_BATCH
from sordino.pipeline.parents import model_hash
from sordino.pipeline.stage import Job
from sordino.pipeline.workers import on_cluster
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
Missing = Sequence[tuple[Path, Answers]]  # files, and whose answers each is to hold


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
    handed_out = on_cluster(job.recipe)
    own = missing if handed_out and world.first else [] if handed_out else world.share(missing)
    if own:
        (_hand_out if handed_out else _fill)(job, own, top)
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


@dataclass(frozen=True)
class AnswersTask:
    """One batch of clips with the ids of their answers. top: tokens kept of each position."""

    pairs: Answers
    prompt: str
    top: int


def _fill(job: Job, missing: Missing, top: int) -> None:
    """Write the files that are missing."""
    speech = job.load(chain.TEACHER)
    teacher = ModelWorker(speech, job.layout.cache)
    assert teacher.features  # made here, and once: its lock is for all threads

    def run(tasks: Iterable[AnswersTask]) -> Iterator[tuple[int, Probabilities]]:
        yield from enumerate(parallel_map(speech.device, partial(probabilities, teacher), tasks))

    _write(missing, job.prompt(speech), top, run)


def _hand_out(job: Job, missing: Missing, top: int) -> None:
    """As `_fill`, by workers on the kind of device that trains, which the files' directory is named by."""
    recipe = dataclasses.replace(job.recipe, device=device_of(job.recipe.device).type)
    job = dataclasses.replace(job, recipe=recipe)
    source = job.source(chain.TEACHER)
    with workers.model_workers(job, source, ModelWorker) as executor:
        prompt = job.prompt(workers.without_weights(source, executor.device_type))
        _write(missing, prompt, top, partial(executor.run, probabilities, label="batch"))


def _write(
    missing: Missing,
    prompt: str,
    top: int,
    run: Callable[[Iterable[AnswersTask]], Iterable[tuple[int, Probabilities]]],
) -> None:
    """Each file as soon as all its batches are there. run: has tasks done, and gives each result with its place."""
    lengths = [[(clip.seconds or 0.0) + len(answer) / 1000 for clip, answer in shard] for _, shard in missing]
    places = [(number, batch) for number, row in enumerate(lengths) for batch in batches_by_length(row, TEACHER_BATCH)]
    tasks = (AnswersTask([missing[number][1][i] for i in batch], prompt, top) for number, batch in places)
    parts: list[dict[int, Probabilities]] = [{} for _ in missing]
    with bar("the teacher's probabilities", sum(map(len, lengths))) as advance:
        for place, rows in run(tasks):
            number, batch = places[place]
            file, shard = missing[number]
            counts = [len(shard[i][1]) for i in batch]
            firsts = itertools.accumulate(counts, initial=0)
            parts[number] |= {i: rows.rows(slice(a, a + n)) for i, a, n in zip(batch, firsts, counts, strict=False)}
            if len(parts[number]) == len(shard):
                teacher_rows.store(_ordered(parts[number]), file)
                parts[number] = {}
            advance(len(batch))


def _ordered(parts: Mapping[int, Probabilities]) -> Probabilities:
    """The positions of every answer, in order."""
    ordered = [parts[i] for i in range(len(parts))]
    return Probabilities(torch.cat([part.ids for part in ordered]), torch.cat([part.logs for part in ordered]))


@torch.no_grad()
def probabilities(teacher: ModelWorker, task: AnswersTask) -> Probabilities:
    """The positions of a batch's answers, one answer after the other."""
    speech = teacher.speech
    model = SpeechLM(speech)
    chunk = chunk_rows(model, LOGITS_BYTES)
    assert chunk
    # not kept: of clips that nothing has encoded before, most are seen once
    encoded = [teacher.features.encode(clip, task.prompt, keep=False) for clip, _ in task.pairs]
    batch = encoded_batch(speech, encoded, [answer for _, answer in task.pairs])
    return teacher_rows.of_batch(model, batch, task.top, chunk)
