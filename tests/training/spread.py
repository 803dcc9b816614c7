"""What test_sharding.py runs in two processes at once: python -m torch.distributed.run ... -m tests.training.spread DIR

DIR holds pico models and their clips. Every case leaves its log and its trained weights there, written by one process.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sordino import cli
from sordino.config.schema import QloraSection, TrainSection
from sordino.errors import DataError, FamilyError
from sordino.models import adapters, loading
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.runtime import progress, world
from sordino.training import objectives, sharding, trainer
from sordino.training.collate import Example
from tests.data import sounds
from tests.tiny import QUESTION

ANSWERS = ("Guten Tag.", "Ja", "Der Zug ist zu spät.", "Brot", "Das Fenster ist offen.")
# five clips by four: a step of one clip, in which a second process has none
PLAIN = TrainSection(batch_size=4, lr=1e-3, epochs=10, max_steps=5, checkpoint_steps=2, weight_decay=0.01)
SECTIONS: dict[str, TrainSection] = {
    "plain": PLAIN,
    "parts": dataclasses.replace(PLAIN, accumulate=2, gradient_checkpointing=True, max_steps=3),
    "encoder-frozen": dataclasses.replace(PLAIN, freeze=("encoder",), max_steps=3),
    "sharded-bfloat16": dataclasses.replace(PLAIN, precision="bfloat16-sharded", max_steps=5),
    "bfloat16": dataclasses.replace(PLAIN, precision="bfloat16", lr=1e-2),
    "mixed-bfloat16": dataclasses.replace(PLAIN, precision="bfloat16-mixed"),
    "tied": dataclasses.replace(PLAIN, max_steps=3),
    "adapter": QloraSection(batch_size=4, lr=1e-2, max_steps=3, checkpoint_steps=2, rank=4, alpha=8),
}
MODELS = {"tied": "tied-model"}  # of the cases that have another than "model"
BROKEN = "language_model.lm_head.weight"  # of the broken model
SEED = 3


def load(folder: Path, section: TrainSection, model: str = "model", whole: bool = False) -> SpeechModel:
    """whole: even where it is shared, every process reads all of it first."""
    device = torch.device("cpu")
    dtype = trainer.weight_dtype(section, device)
    deferred = world.current().size > 1 and not isinstance(section, QloraSection) and not whole
    opener = loading.open_deferred if deferred else loading.load_checkpoint
    speech = opener(str(folder / model), device="cpu", dtype=dtype)
    if isinstance(section, QloraSection):
        adapters.attach(speech, adapters.LoraOptions(r=section.rank, alpha=section.alpha), SEED)
    else:
        trainer.freeze(speech, section)
    if "encoder" in section.freeze:
        loading.read_parts(speech, speech.family.audio.cached_parts)
    return speech


def pairs(folder: Path, speech: SpeechModel, section: TrainSection) -> tuple[list[Example], str]:
    prompt = speech.family.chat.render(speech.processor, QUESTION)
    rows = []
    for i, text in enumerate(ANSWERS):
        clip = sounds.clip(f"c{i}", folder / f"{i}.wav", seconds=0.3 + 0.13 * i)
        rows.append(Example(clip, speech.answer_ids(text)))
    if "encoder" in section.freeze:
        features = Features(speech, folder / "cache")
        rows = [dataclasses.replace(row, encoded=features.encode(row.clip, prompt)) for row in rows]
    return rows, prompt


def run(
    folder: Path, name: str, state: Path, whole: bool = False, **options: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The log and the trained weights of a case."""
    section = SECTIONS[name]
    speech = load(folder, section, MODELS.get(name, "model"), whole)
    examples, prompt = pairs(folder, speech, section)
    trained = [n for n, p in speech.model.named_parameters() if p.requires_grad]
    log = trainer.train(
        speech, examples, section, prompt=prompt, seed=SEED, state=state, label=name, dev=examples[:3], **options
    ).log
    weights = speech.model.state_dict()
    return list(log), {n: weights[n].detach().clone().contiguous() for n in trained}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    here = world.join(torch.device("cpu"))
    out: dict[str, Any] = {}

    def note(name: str, log: Sequence[dict[str, float]], weights: dict[str, torch.Tensor]) -> None:
        out[name] = log
        if here.first:
            save_file(weights, folder / f"{name}.safetensors")

    with progress.reported_to(None):
        limit, trainer.LOGITS_BYTES = trainer.LOGITS_BYTES, 4 * 400 * 5  # the parts' logits in chunks
        for name in SECTIONS:
            note(name, *run(folder, name, folder / f"two-{name}"))
        trainer.LOGITS_BYTES = limit
        for name in ("plain", "encoder-frozen", "tied"):
            note(f"{name}-whole", *run(folder, name, folder / f"whole-{name}", whole=True))
        note("plain-resumed", *run(folder, "plain", folder / "two-plain"))  # from step 4
        if here.first:
            shutil.copytree(folder / "one-plain", folder / "one-to-two")
        here.wait()
        note("plain-from-one", *run(folder, "plain", folder / "one-to-two"))
        out["adapters-agree"] = agree(run(folder, "adapter", folder / "again")[1])
        out["refused"] = refused(folder)
        out["broken"] = broken(folder)
        straight(folder)
        if here.first:
            (folder / "out.json").write_text(json.dumps(out))
    here.wait()


def straight(folder: Path) -> None:
    """A stage as a user's own torchrun starts it: the whole command in every process."""
    recipe = str(folder / "recipe.yaml")
    try:
        code = cli.main(["finetune", recipe, "name=straight"])
    except SystemExit as done:  # of all but the first
        assert world.current().rank, "the first process says what it did"
        code = int(str(done.code))
    assert code == 0


def agree(weights: dict[str, torch.Tensor]) -> bool:
    """Whether all processes hold the same numbers."""
    total = sum(float(tensor.double().abs().sum()) for tensor in weights.values())
    sums = world.current().sum(total, total * total)
    return sums[0] ** 2 == sums[1] * world.current().size


def refused(folder: Path) -> str:
    """A loss that is no number in one process's clips ends all of them, with the same words."""

    def broken(logits: torch.Tensor, targets: objectives.Targets) -> torch.Tensor:
        loss = objectives.cross_entropy(logits, targets)
        return loss * float("nan") if world.current().rank == 1 else loss

    objective: objectives.Objective = broken
    try:
        run(folder, "plain", folder / "refused", objective_at=lambda _: objective)
    except DataError as error:
        return str(error)
    return ""


def broken(folder: Path) -> list[float]:
    """How many processes refuse a model with a weight in it that is no number; only one of them has it."""
    speech = load(folder, PLAIN, "broken-model")
    try:
        sharding.shard(objectives.Step(speech), "float32", world.current())
    except FamilyError as error:
        return world.current().sum(float(BROKEN in str(error)))
    return world.current().sum(0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
