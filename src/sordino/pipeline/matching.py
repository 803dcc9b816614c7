"""An encoder healed inside a stage: trained to give the states that another model's encoder gives of the same clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sordino.config.run_layout import MATCH_LOG
from sordino.config.schema import MatchSection
from sordino.data.clip import Clip
from sordino.models.features import EncodedClip, Features
from sordino.models.speech import SpeechModel
from sordino.pipeline.stage import Job
from sordino.runtime import files
from sordino.training.collate import Example
from sordino.training.trainer import train


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
