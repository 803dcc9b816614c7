"""Write a model with some tokens of its vocabulary: processor, tokenizer, configs, and the kept rows of its weights.

The other tensors are copied byte for byte, those of a 32-bit model in 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sordino.checkpoint.writing import Writer
from sordino.errors import FamilyError
from sordino.models import stored
from sordino.models.speech import SpeechModel, module_at
from sordino.models.stored import Stored
from sordino.runtime import files
from sordino.runtime.progress import byte_bar
from sordino.vocabulary import trimming
from sordino.vocabulary.tokenizer import own_settings
from sordino.vocabulary.trimming import Bpe, Kept

SPAN = 4096  # rows read at once
OLDER_FORMS = ("vocab.json", "merges.txt", "added_tokens.json")  # of what tokenizer.json says


def generation_config(model: Stored) -> dict[str, Any]:
    file = model.checkpoint.directory / stored.GENERATION
    return files.read_json(file) if file.is_file() else {}


def describe(model: Stored, configs: Sequence[Any], bpe: Bpe, kept: Kept, out: Path) -> None:
    """Write everything but the weights: processor, tokenizer, configs."""
    for config in configs:
        for name, value in trimming.renumber(own_settings(config), kept).items():
            setattr(config, name, value)
    model.describe(out)
    for stale in OLDER_FORMS:
        (out / stale).unlink(missing_ok=True)
    tokenizer = json.dumps(trimming.trim_tokenizer(bpe, kept), ensure_ascii=False, separators=(",", ":"))
    files.write_text(out / "tokenizer.json", tokenizer)
    old = files.read_json(out / "tokenizer_config.json")
    files.write_json(out / "tokenizer_config.json", trimming.trim_tokenizer_config(old, kept))
    generation = files.read_json(out / stored.GENERATION)
    files.write_json(out / stored.GENERATION, generation | trimming.renumber(generation, kept))


def check_tokenizer(bpe: Bpe, kept: Kept, small: SpeechModel) -> None:
    """Raise FamilyError where transformers numbers the tokens otherwise than the rows."""
    names = {token["id"]: token["content"] for token in bpe.tokenizer["added_tokens"]}
    expected = {names.get(old, bpe.tokens.get(old)): new for new, old in enumerate(kept.rows[: kept.tokens])}
    if small.processor.tokenizer.get_vocab() != expected:
        raise FamilyError(
            f"the trimmed tokenizer of {small.path} numbers its tokens differently when it is loaded.",
            "Leave trim: out.",
        )


def write_weights(model: Stored, kept: Kept, out: Path) -> None:
    """The checkpoint with the kept rows of embedding, head and other tables of tokens alone."""
    checkpoint, sources = model.checkpoint, model.sources()
    parts = [model.speech.part(name) for name in ("embeddings", "head")]
    parts += [module_at(model.speech.model, path) for path in model.speech.family.tensors.rows]
    cut = {model.name_of[id(tensor)] for part in parts for tensor in part.parameters()}
    planned = {name: stored.planned_16bit(checkpoint, source) for name, source in sources.items()}
    for name, source in sources.items():
        if source in cut:
            shape = checkpoint.tensors[source].shape
            planned[name] = replace(planned[name], shape=(len(kept.rows), *shape[1:]))
    with Writer(out, planned) as writer, byte_bar("trimming", checkpoint.bytes) as advance:
        for name, source in sources.items():
            if source in cut:
                writer.write(name, (piece.bfloat16() for piece in gathered(model, source, kept.rows)))
            else:
                writer.copy(name, checkpoint, source)
            advance(checkpoint.tensors[source].bytes)


def gathered(model: Stored, name: str, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """The given rows of a tensor, in order, a piece at a time."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or not rows[end - 1] < rows[end] < rows[start] + SPAN:
            first = rows[start]
            yield model.read(name, (first, rows[end - 1] + 1))[torch.tensor(rows[start:end]) - first]
            start = end
