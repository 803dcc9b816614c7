"""What finetune, distil and qlora share: clips to examples, the training mix, and saving in 16 bits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch.nn.utils import parametrize

from sordino.config.schema import MixSection, TrainSection
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.models import loading, saving
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pipeline.device import device_of
from sordino.pipeline.stage import Job
from sordino.pipeline.teacher_logits import TeacherLogits, pair_of
from sordino.runtime.progress import note
from sordino.runtime.world import current
from sordino.training.collate import Example
from sordino.training.objectives import cross_entropy
from sordino.training.trainer import Trained, freeze, train, weight_dtype


def load_to_train(job: Job, key: str, section: TrainSection) -> SpeechModel:
    """A model of the chain in the type that it is trained in.

    Where several processes share its weights, they are read by `fit`: each process reads those that it keeps.
    """
    return job.load(key, dtype=weight_dtype(section, device_of(job.recipe.device)), deferred=current().size > 1)


def fit(
    job: Job,
    speech: SpeechModel,
    clips: Sequence[Clip],
    section: TrainSection,
    label: str,
    round_name: str = "",
    teacher: TeacherLogits | None = None,
) -> Trained:
    """Train `speech` in place on clips with target texts, but for the section's frozen parts; resumes; records losses;
    writes log.jsonl."""
    freeze(speech, section)
    prompt = job.prompt(speech)
    cached = speech.family.audio.cached_parts
    frozen = not any(tensor.requires_grad for part in cached for tensor in speech.tensors_of(part).values())
    if frozen:
        loading.read_parts(speech, cached)  # whole, in every process: each encodes some of the clips
    features = Features(speech, job.layout.cache) if frozen else None
    dev_clips = job.clips("dev") if job.layout.manifest("dev").exists() else []
    if features is not None:
        encode_together(features, [*clips, *dev_clips], prompt)
    trained = sum(p.numel() for p in speech.model.parameters() if p.requires_grad)
    device, log = str(speech.device), job.out / f"log{round_name}.jsonl"
    note(f"  every step's loss: {log}")
    result = train(
        speech,
        examples(job, speech, clips, features, prompt, teacher),
        section,
        prompt=prompt,
        seed=job.recipe.seed,
        state=job.state / f"train{round_name}",
        label=label,
        dev=examples(job, speech, dev_clips, features, prompt),
        log=log,
        objective_at=teacher.objective_at if teacher else lambda _: cross_entropy,
    )
    last = result.log[-1]
    job.record |= {"steps": result.steps, "loss": last["loss"], "dev_loss": last.get("dev_loss")}
    job.record |= {"trained_parameters": trained, "device": device, "devices": current().size}
    return result


def encode_together(features: Features, clips: Sequence[Clip], prompt: str) -> None:
    """Fill the cache: each process encodes its part of the clips, and waits for the others."""
    world = current()
    if world.size > 1:
        features.encode_all(world.share(clips), prompt)
        world.wait()


def examples(
    job: Job,
    speech: SpeechModel,
    clips: Sequence[Clip],
    features: Features | None,
    prompt: str,
    teacher: TeacherLogits | None = None,
) -> list[Example]:
    """Clips with target texts -> training examples; encoded beforehand where the audio tower is frozen."""
    answers = answers_of(speech, clips, job.recipe.prompt.style)
    rows = [teacher.rows[pair_of(*pair)] if teacher else None for pair in zip(clips, answers, strict=True)]
    if features is None or not clips:
        return [Example(clip, answer, None, row) for clip, answer, row in zip(clips, answers, rows, strict=True)]
    unique = {(c.audio, c.start, c.seconds): c for c in clips}
    with parametrize.cached():  # an encoder trained through rounding is rounded once
        encoded = dict(zip(unique, features.encode_all(list(unique.values()), prompt), strict=True))
    return [
        Example(clip, answer, encoded[clip.audio, clip.start, clip.seconds], row)
        for clip, answer, row in zip(clips, answers, rows, strict=True)
    ]


def mixed(job: Job, mix: MixSection) -> list[Clip]:
    """The student's training clips: authentic and teacher's pairs without duplicates, repeated, plus extra ones."""
    pairs: list[Clip] = []
    if mix.authentic:
        pairs += job.clips("train")
    if mix.pseudo:
        pairs += manifest.read(job.layout.pseudo_manifest)
    unique = list({(c.audio, c.start, c.target_text): c for c in pairs}.values())
    counts = {"in_domain_pairs": len(pairs), "without_duplicates": len(unique)}
    clips = unique * mix.oversample
    if mix.extra:
        pool = job.clips("extra")
        extra = random.Random(job.recipe.seed).sample(pool, min(mix.extra, len(pool)))
        clips += extra
        counts["extra"] = len(extra)
    job.record["mix"] = counts | {"total": len(clips)}
    return clips


def save(job: Job, speech: SpeechModel) -> None:
    """Write the stage's model in bfloat16, whatever type it was trained in: nothing is stored wider than needed.

    Of several processes the first has it, and writes.
    """
    if not current().first:
        return
    speech.model.to(torch.bfloat16)
    saving.save(speech, job.out)
    job.describe(job.out)
