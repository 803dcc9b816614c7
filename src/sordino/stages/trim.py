"""trim: drop the tokens that the target language does not need from tokenizer, embedding, head and configs.

The other tensors are copied byte for byte (those of a 32-bit base model in 16 bits). coverage.json says how much of
every split can still be said with the tokens that were kept; held-out splits are counted there, never asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sordino.config import chain
from sordino.config.run_layout import COVERAGE, DATA, PSEUDO, TRIMMED
from sordino.config.schema import TrimSection
from sordino.errors import FamilyError
from sordino.pipeline import token_selection
from sordino.pipeline.stage import Job, Stage
from sordino.runtime import files
from sordino.runtime.progress import bar, note
from sordino.vocabulary import tokenizer, trimming
from sordino.vocabulary.tokenizer import tokenized
from sordino.vocabulary.trimming import Bpe, Coverage

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel

SHOWN = 20  # dropped tokens listed, most frequent first
HELD_OUT = ("select", "dev", "test")


def run(job: Job, _: TrimSection) -> None:
    from sordino.checkpoint.reading import Checkpoint
    from sordino.models import stored
    from sordino.vocabulary import writing

    recipe = job.recipe
    source = job.model(chain.start_of(recipe, chain.TRIMMED))
    model = stored.open_model(source.path, source.revision)
    speech = tokenizer.without_weights(str(model.checkpoint.directory))
    bpe = tokenizer.bpe_of(speech)
    configs = tokenizer.token_configs(speech, model.speech.model.config)
    rows = configs[-1].vocab_size
    named = tokenizer.named_ids(configs) | trimming.named_ids(writing.generation_config(model), rows)
    splits = texts_by_split(job)
    training = token_selection.training_texts(recipe)
    total = sum(len(token_selection.texts(recipe, name)) for name in training) + 2 * sum(map(len, splits.values()))
    with bar("counting tokens", total) as advance:
        kept = token_selection.choose(recipe, speech, bpe, named, training, advance)
        writing.describe(model, configs, bpe, kept, job.out)
        small = tokenizer.without_weights(str(job.out))
        writing.check_tokenizer(bpe, kept, small)
        covered: dict[str, Coverage] = {}
        dropped: dict[str, Counter[int]] = {}
        for name, texts in splits.items():
            before, after = (list(tokenized(one, texts, advance)) for one in (speech, small))
            covered[name], dropped[name] = trimming.cover(before, after, kept)
    refuse_changes(covered)
    writing.write_weights(model, kept, job.out)
    job.describe(job.out)
    coverage: dict[str, Any] = {
        "tokens": {"before": len(bpe), "after": kept.tokens},
        "rows": {"before": rows, "after": len(kept.rows)},
        "weights_bytes": {"before": model.checkpoint.bytes, "after": Checkpoint.open(job.out).bytes},
        "counted": training,
        "splits": {name: one.to_json() for name, one in covered.items()},
        "dropped": {
            "training": listed(speech, bpe, sum((dropped[name] for name in training), Counter())),
            "held_out": listed(speech, bpe, sum((dropped[name] for name in HELD_OUT if name in dropped), Counter())),
        },
    }
    files.write_json(job.out / COVERAGE, coverage)
    job.record |= {name: coverage[name] for name in ("tokens", "rows", "weights_bytes", "counted", "splits")}
    saved = coverage["weights_bytes"]["before"] - coverage["weights_bytes"]["after"]
    note(f"  {rows} -> {len(kept.rows)} rows, {saved / 1e6:.2f} MB less; " + "; ".join(summary(covered)))


def texts_by_split(job: Job) -> dict[str, list[str]]:
    """Translations by split, the teacher's among them."""
    names = [name for name in ("train", "extra", *HELD_OUT) if token_selection.manifest_of(job.recipe, name).is_file()]
    names += [token_selection.PSEUDO] if job.recipe.pseudolabel else []
    return {name: token_selection.texts(job.recipe, name) for name in names}


def refuse_changes(covered: Mapping[str, Coverage]) -> None:
    """Raise FamilyError where a text of kept tokens is cut otherwise than before: this is no BPE as we know it."""
    changed = {name: one.changed for name, one in covered.items() if one.changed}
    if changed:
        raise FamilyError(
            f"the trimmed tokenizer cuts texts of kept tokens differently: {changed} of each split.", "Leave trim: out."
        )


def listed(speech: SpeechModel, bpe: Bpe, dropped: Counter[int]) -> list[dict[str, Any]]:
    """The most frequent dropped tokens, as the tokenizer spells them and as text."""
    rows = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return [{"token": bpe.tokens[i], "text": speech.processor.tokenizer.decode([i]), "count": n} for i, n in rows]


def summary(covered: Mapping[str, Coverage]) -> list[str]:
    rows = {name: one.to_json() for name, one in covered.items() if one.texts}
    return [f"{name} {row['tokens_inside_percent']} % of tokens inside" for name, row in rows.items()]


STAGE = Stage(
    name="trim",
    directory=TRIMMED,
    section=lambda recipe: recipe.trim,
    parents=lambda recipe: [
        chain.directory_of(chain.start_of(recipe, chain.TRIMMED)),
        DATA,
        *([PSEUDO] if recipe.pseudolabel else []),
    ],
    run=run,
    uses=("source", "target", "prompt"),
)
