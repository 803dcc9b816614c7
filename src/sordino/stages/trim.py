"""trim: drop the tokens that the target language does not need from tokenizer, embedding, head and configs.

The other tensors are copied byte for byte (those of a 32-bit base model in 16 bits). coverage.json says how much of
every split can still be said with the tokens that were kept; held-out splits are counted there, never asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sordino.checkpoint.reading import Checkpoint
from sordino.checkpoint.writing import Writer
from sordino.errors import FamilyError
from sordino.models import stored
from sordino.models.speech import SpeechModel
from sordino.models.stored import Stored
from sordino.pipeline import token_selection
from sordino.pipeline.job import DATA, PSEUDO, Job, Stage, directory_of, trim_source
from sordino.runtime import files
from sordino.runtime.progress import bar, byte_bar, note
from sordino.vocabulary import trimming
from sordino.vocabulary.trimming import Bpe, Kept

SPAN = 4096  # rows read at once
SHOWN = 20  # dropped tokens listed, most frequent first
HELD_OUT = ("select", "dev", "test")


def run(job: Job) -> None:
    recipe = job.recipe
    key = trim_source(recipe)
    model = stored.open_model(job.path(key), recipe.revision if key == "base" else None)
    speech = token_selection.unloaded(str(model.checkpoint.directory))
    bpe = token_selection.bpe_of(speech)
    configs = token_selection.sections(speech, model.speech.model.config)
    rows = configs[-1].vocab_size
    named = token_selection.named(configs) | trimming.named_ids(generation_config(model), rows)
    splits = splits_there(job)
    training = token_selection.training_texts(recipe)
    total = sum(len(token_selection.texts(recipe, name)) for name in training) + 2 * sum(map(len, splits.values()))
    with bar("counting tokens", total) as advance:
        kept = token_selection.choose(recipe, speech, bpe, named, training, advance)
        describe(model, configs, bpe, kept, job.out)
        small = token_selection.unloaded(str(job.out))
        check_tokenizer(bpe, kept, small)
        found: dict[str, trimming.Coverage] = {}
        dropped: dict[str, Counter[int]] = {}
        for name, texts in splits.items():
            before, after = (list(token_selection.tokenised(one, texts, advance)) for one in (speech, small))
            found[name], dropped[name] = trimming.cover(before, after, kept)
    refuse_changes(found)
    write_weights(model, kept, job.out)
    job.describe(job.out)
    coverage: dict[str, Any] = {
        "tokens": {"before": len(bpe), "after": kept.tokens},
        "rows": {"before": rows, "after": len(kept.rows)},
        "weights_bytes": {"before": model.checkpoint.bytes, "after": Checkpoint.open(job.out).bytes},
        "counted": training,
        "splits": {name: one.to_json() for name, one in found.items()},
        "dropped": {
            "training": listed(speech, bpe, sum((dropped[name] for name in training), Counter())),
            "held_out": listed(speech, bpe, sum((dropped[name] for name in HELD_OUT if name in dropped), Counter())),
        },
    }
    files.write_json(job.out / "coverage.json", coverage)
    job.record |= {name: coverage[name] for name in ("tokens", "rows", "weights_bytes", "counted", "splits")}
    saved = coverage["weights_bytes"]["before"] - coverage["weights_bytes"]["after"]
    note(f"  {rows} -> {len(kept.rows)} rows, {saved / 1e6:.2f} MB less; " + "; ".join(summary(found)))


def splits_there(job: Job) -> dict[str, list[str]]:
    """Texts by split, the teacher's translations as 'pseudo'."""
    names = [name for name in ("train", "extra", *HELD_OUT) if token_selection.manifest_of(job.recipe, name).is_file()]
    names += ["pseudo"] if job.recipe.pseudolabel else []
    return {name: token_selection.texts(job.recipe, name) for name in names}


def generation_config(model: Stored) -> dict[str, Any]:
    file = model.checkpoint.directory / stored.GENERATION
    return files.read_json(file) if file.is_file() else {}


def describe(model: Stored, configs: Sequence[Any], bpe: Bpe, kept: Kept, out: Path) -> None:
    """Write everything but the weights: processor, tokenizer, configs."""
    for config in configs:
        for name, value in trimming.renumber(token_selection.settings(config), kept).items():
            setattr(config, name, value)
    model.describe(out)
    for stale in ("vocab.json", "merges.txt", "added_tokens.json"):  # older forms of what tokenizer.json says
        (out / stale).unlink(missing_ok=True)
    tokenizer = json.dumps(trimming.trim_tokenizer(bpe, kept), ensure_ascii=False, separators=(",", ":"))
    files.write_text(out / "tokenizer.json", tokenizer)
    old = files.read_json(out / "tokenizer_config.json")
    files.write_json(out / "tokenizer_config.json", trimming.trim_tokenizer_config(old, kept))
    generation = files.read_json(out / stored.GENERATION)
    files.write_json(out / stored.GENERATION, generation | trimming.renumber(generation, kept))


def check_tokenizer(bpe: Bpe, kept: Kept, small: SpeechModel) -> None:
    """Raise FamilyError where transformers numbers the tokens otherwise than the rows."""
    names = {entry["id"]: entry["content"] for entry in bpe.tokenizer["added_tokens"]}
    wanted = {names.get(old, bpe.tokens.get(old)): new for new, old in enumerate(kept.rows[: kept.tokens])}
    if small.processor.tokenizer.get_vocab() != wanted:
        raise FamilyError(
            f"the trimmed tokenizer of {small.path} numbers its tokens differently when it is loaded.",
            "Leave trim: out.",
        )


def refuse_changes(found: Mapping[str, trimming.Coverage]) -> None:
    """Raise FamilyError where a text of kept tokens is cut otherwise than before: this is no BPE as we know it."""
    changed = {name: one.changed for name, one in found.items() if one.changed}
    if changed:
        raise FamilyError(
            f"the trimmed tokenizer cuts texts of kept tokens differently: {changed} of each split.", "Leave trim: out."
        )


def write_weights(model: Stored, kept: Kept, out: Path) -> None:
    """The checkpoint with the kept rows of embedding and head alone."""
    checkpoint, sources = model.checkpoint, model.sources()
    parts = (model.speech.part(name) for name in ("embeddings", "head"))
    cut = {model.name_of[id(tensor)] for part in parts for tensor in part.parameters()}
    planned = {name: stored.planned_16bit(checkpoint, source) for name, source in sources.items()}
    for name, source in sources.items():
        if source in cut:
            shape = checkpoint.tensors[source].shape
            planned[name] = replace(planned[name], shape=(len(kept.rows), *shape[1:]))
    with Writer(out, planned) as writer, byte_bar("trimming", checkpoint.bytes) as advance:
        for name, source in sources.items():
            if source in cut:
                writer.write(name, (piece.bfloat16() for piece in gathered(checkpoint, source, kept.rows)))
            else:
                writer.copy(name, checkpoint, source)
            advance(checkpoint.tensors[source].bytes)


def gathered(checkpoint: Checkpoint, name: str, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """The given rows of a tensor, in order, a piece at a time."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or not rows[end - 1] < rows[end] < rows[start] + SPAN:
            first = rows[start]
            yield checkpoint.read(name, (first, rows[end - 1] + 1))[torch.tensor(rows[start:end]) - first]
            start = end


def listed(speech: SpeechModel, bpe: Bpe, dropped: Counter[int]) -> list[dict[str, Any]]:
    """The most frequent dropped tokens, as the tokenizer spells them and as text."""
    rows = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return [{"token": bpe.tokens[i], "text": speech.processor.tokenizer.decode([i]), "count": n} for i, n in rows]


def summary(found: Mapping[str, trimming.Coverage]) -> list[str]:
    rows = {name: one.to_json() for name, one in found.items() if one.texts}
    return [f"{name} {row['tokens_inside_percent']} % of tokens inside" for name, row in rows.items()]


STAGE = Stage(
    name="trim",
    directory="63-trimmed",
    section=lambda recipe: recipe.trim,
    parents=lambda recipe: [
        directory_of(trim_source(recipe)),
        DATA,
        *([PSEUDO] if recipe.pseudolabel else []),
    ],
    run=run,
    uses=("source", "target", "prompt"),
)
