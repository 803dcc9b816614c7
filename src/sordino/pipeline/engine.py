"""Who decodes in bulk: transformers, or vLLM in an environment of its own; and which of them began a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sordino.config import chain
from sordino.config.run_layout import ENGINE
from sordino.config.schema import PseudolabelSection
from sordino.models import vllm
from sordino.models.speech import SpeechModel
from sordino.pipeline.device import device_of
from sordino.pipeline.stage import Job
from sordino.runtime import files

ROOM = "vllm"  # of a stage's state: the decoder's copy, and what is exchanged


def load(job: Job, section: PseudolabelSection) -> SpeechModel:
    """The teacher, to be decoded as the section says. Raises FamilyError where vLLM does not take it."""
    if section.engine == "transformers":
        return job.load(chain.TEACHER)
    recipe, model = job.recipe, job.model(chain.TEACHER)
    speech = vllm.load(
        model.path,
        device=device_of(recipe.device),
        dtype=recipe.dtype,
        attention=recipe.attention,
        revision=model.revision,
        sequences=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        room=job.state / ROOM,
        begun=begun(job),
    )
    speech.encode_batch = recipe.encode_batch
    return speech


def clips_at_once(section: PseudolabelSection) -> int:
    """Clips that are handed to the engine together, and whose rows are kept together."""
    return section.batch_size * (vllm.PART if section.engine == "vllm" else 1)


@contextmanager
def running(speech: SpeechModel) -> Iterator[None]:
    """End the worker, where there is one, whatever happens."""
    try:
        yield
    finally:
        if isinstance(speech.external_decoder, vllm.VllmDecoder):
            speech.external_decoder.close()


def record(job: Job, speech: SpeechModel) -> None:
    """Keep what decodes beside the rows, before the first of them."""
    if isinstance(speech.external_decoder, vllm.VllmDecoder) and not begun(job):
        files.write_json(job.state / ENGINE, speech.external_decoder.versions)


def begun(job: Job) -> dict[str, Any]:
    """Packages and versions that decoded the rows so far; empty where those of stage.json did, or there are none."""
    file = job.state / ENGINE
    return files.read_json(file, {}) if file.is_file() else {}
