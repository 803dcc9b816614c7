"""What finetune, distil and qlora share: clips to examples, the training mix, and saving in 16 bits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from sordino.config.run_layout import MATCH_LOG
from sordino.config.schema import MatchSection, MixSection, TrainSection
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.models import saving
from sordino.models.answers import answers_of
from sordino.models.features import EncodedClip, Features
from sordino.models.speech import SpeechModel
from sordino.pipeline.device import device_of
from sordino.pipeline.stage import Job
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.training.collate import Example
from sordino.training.trainer import Trained, freeze, train, weight_dtype


def load_to_train(job: Job, key: str, section: TrainSection) -> SpeechModel:
    """A model of the chain in the type that it is trained in."""
    return job.load(key, dtype=weight_dtype(section, device_of(job.recipe.device)))


def fit(
    job: Job, speech: SpeechModel, clips: Sequence[Clip], section: TrainSection, label: str, round_name: str = ""
) -> Trained:
    """Train `speech` in place on clips with target texts, but for the section's frozen parts; resumes; records losses;
    writes log.jsonl."""
    freeze(speech, section)
    prompt = job.prompt(speech)
    cached = speech.family.audio.cached_parts
    frozen = not any(tensor.requires_grad for part in cached for tensor in speech.tensors_of(part).values())
    features = Features(speech, job.layout.cache) if frozen else None
    dev_clips = job.clips("dev") if job.layout.manifest("dev").exists() else []
    log = job.out / f"log{round_name}.jsonl"
    note(f"  every step's loss: {log}")
    result = train(
        speech,
        examples(job, speech, clips, features, prompt),
        section,
        prompt=prompt,
        seed=job.recipe.seed,
        state=job.state / f"train{round_name}",
        label=label,
        dev=examples(job, speech, dev_clips, features, prompt),
        log=log,
    )
    last = result.log[-1]
    job.record |= {"steps": result.steps, "loss": last["loss"], "dev_loss": last.get("dev_loss")}
    trained = [p.numel() for p in speech.model.parameters() if p.requires_grad]
    job.record |= {"trained_parameters": sum(trained), "device": str(speech.device)}
    return result


def match(job: Job, speech: SpeechModel, clips: Sequence[Clip], section: MatchSection, reference: str) -> None:
    """Train the encoder of `speech` in place, and nothing else, to give the states of another model's encoder.

    reference: key of that model, which is only read. What is trainable is the same afterwards. Resumes, also when all
    is done; writes log-match.jsonl.
    """
    trained = {name: p for name, p in _encoder_parameters(speech).items() if p.requires_grad}
    log, done = job.out / MATCH_LOG, job.state / "matched.safetensors"
    if not done.is_file():
        targets = _encoded_by(job, reference, speech.dtype, clips)
        frozen = [p for name, p in speech.model.named_parameters() if p.requires_grad and name not in trained]
        for parameter in frozen:
            parameter.requires_grad_(False)
        stop = [speech.stop_ids()[0]]  # an answer has one token at least
        pairs, dev = ([Example(one.clip, stop, matched=one) for one in encoded] for encoded in targets)
        train(
            speech,
            pairs,
            section,
            prompt=job.prompt(speech),
            seed=job.recipe.seed,
            state=job.state / "match",
            label="matching encoder states",
            dev=dev,
            log=log,
        )
        for parameter in frozen:
            parameter.requires_grad_(True)
        beside = done.with_suffix(".tmp")
        save_file({name: p.detach().contiguous() for name, p in trained.items()}, beside)
        beside.replace(done)
    with torch.no_grad():
        for name, tensor in load_file(done).items():
            trained[name].copy_(tensor)
    last = files.read_jsonl(log)[-1]
    job.record["match"] = {"steps": last["step"], "error": last["loss"], "dev_error": last.get("dev_loss")}


def _encoder_parameters(speech: SpeechModel) -> dict[str, nn.Parameter]:
    """What encoder states depend on, by its name in the model."""
    inside = {id(tensor) for part in speech.family.audio.cached_parts for tensor in speech.tensors_of(part).values()}
    return {name: p for name, p in speech.model.named_parameters() if id(p) in inside}


def _encoded_by(job: Job, key: str, dtype: torch.dtype, clips: Sequence[Clip]) -> list[list[EncodedClip]]:
    """Features of these clips and of the dev split by a model of the chain, each clip once."""
    speech = job.load(key, dtype=dtype)
    features, prompt = Features(speech, job.layout.cache), job.prompt(speech)
    dev_clips = job.clips("dev") if job.layout.manifest("dev").exists() else []
    return [
        features.encode_all(list({(c.audio, c.start, c.seconds): c for c in each}.values()), prompt, "encoding audio")
        for each in (clips, dev_clips)
    ]


def examples(
    job: Job, speech: SpeechModel, clips: Sequence[Clip], features: Features | None, prompt: str
) -> list[Example]:
    """Clips with target texts -> training examples; encoded beforehand where the audio tower is frozen."""
    style = job.recipe.prompt.style
    answers = answers_of(speech, clips, style)
    if features is None or not clips:
        return [Example(clip, answer) for clip, answer in zip(clips, answers, strict=True)]
    unique = {(c.audio, c.start, c.seconds): c for c in clips}
    with parametrize.cached():  # an encoder trained through rounding is rounded once
        encoded = dict(zip(unique, features.encode_all(list(unique.values()), prompt), strict=True))
    return [
        Example(clip, answer, encoded[clip.audio, clip.start, clip.seconds])
        for clip, answer in zip(clips, answers, strict=True)
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
    """Write the stage's model in bfloat16, whatever type it was trained in: nothing is stored wider than needed."""
    speech.model.to(torch.bfloat16)
    saving.save(speech, job.out)
    job.describe(job.out)
