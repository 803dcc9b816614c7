"""A first recipe for somebody's own data: written from a look at the folder, commented, ready for `sordino plan`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from sordino.config.schema import Recipe
from sordino.data import splits
from sordino.data.clip import MAX_SECONDS, MIN_SECONDS, Clip
from sordino.data.splits import SplitBy
from sordino.data.survey import Survey, tables
from sordino.errors import DataError
from sordino.languages import language_name
from sordino.models import registry, shapes
from sordino.pipeline.forecast import config_of

SEED = 0
SMALL = 200_000_000  # parameters; a smaller model learns at a higher rate
REMOVED = 4  # one decoder layer in so many goes, as in the paper's 8 of 32
SHARES = (0.1, 0.15, 0.2, 0.25)  # of the clips, for each held-out split, the first that groups allow
FEW = 200  # training clips below which little is learnt


@dataclass(frozen=True)
class Start:
    """What a recipe is written for. model: as the recipe names it; base: its config's, None where that is not here.

    dealt: clips of every split; sizes: data.splits, of what the table leaves open; by: group, or segment where there
    are too few groups.
    """

    survey: Survey
    model: str
    base: shapes.Model | None
    dealt: Mapping[str, int]
    sizes: Mapping[str, int]
    by: SplitBy

    @property
    def window(self) -> float:
        """Seconds that the model hears at once."""
        return self.base.window_seconds if self.base else MAX_SECONDS

    @property
    def is_small(self) -> bool:
        return self.base is not None and self.base.parameters < SMALL


def start(found: Survey, model: str = registry.USUAL) -> Start:
    """Deal the clips that a model can hear. Raises DataError where there are too few; FamilyError for the model."""
    config = config_of(Recipe(model=model)) if registry.is_hub_id(model) else registry.read_config(model)
    if config is not None:
        registry.of_config(config, model)
    base = shapes.model(config) if config is not None and shapes.known(config) else None
    window = base.window_seconds if base else MAX_SECONDS
    longer, shorter = found.outside(window)
    unusable = {clip.id for clip in (*longer, *shorter)}
    clips = [clip for clip in found.clips if clip.id not in unusable]
    if not clips:
        raise DataError(
            f"{found.folder} holds no clip of {MIN_SECONDS:g} to {window:g} s, which is what {model} hears at once.",
            "Cut the recordings, or give every row `start` and `seconds`.",
        )
    sizes, by, dealt = _deal(found, clips)
    if "test" not in dealt and "dev" not in dealt:
        raise DataError(
            f"{found.table} puts every clip into train, and nothing is left to be scored.",
            "Call some of them test in its split column, or leave their cells empty.",
        )
    return Start(found, model, base, dealt, sizes, by)


def _deal(found: Survey, clips: list[Clip]) -> tuple[dict[str, int], SplitBy, dict[str, int]]:
    """Sizes of the splits that the table leaves open, how they are drawn, and how many clips each split gets."""
    here = {clip.id for clip in clips}
    given = {name: split for name, split in found.given.items() if name in here}
    free = len(clips) - len(given)
    lacking = [name for name in splits.DRAWN if name not in given.values()] if free else []
    for by in get_args(SplitBy):
        for share in SHARES:
            sizes = {str(name): max(1, min(splits.USUAL, int(share * free))) for name in reversed(lacking)}
            try:
                dealt = splits.assign(
                    clips, sizes, SEED, given, split_by=by, fixed=True, guessed=found.corpus.guessed_groups
                )
            except DataError:
                continue
            counts = {str(split): len(members) for split, members in dealt.items()}
            if counts.get("train", 0) * 3 >= len(clips):
                return sizes, by, counts
    raise DataError(f"{found.folder} has {len(clips)} usable clips, too few to train and test on.", "Add more.")


def missing(begun: Start) -> list[str]:
    """What a user may want to add or to know, in words."""
    found, told = begun.survey, []
    bad = len(found.corpus.problems) + len(found.unreadable)
    longer, shorter = found.outside(begun.window)
    if bad:
        told.append(f"rows that cannot be used: {bad}; mend them, or run with --skip-bad, which leaves them out")
    if longer:
        told.append(
            f"clips longer than the {begun.window:g} s that the model hears at once: {len(longer)}, left out; cut them "
            "(start, seconds)"
        )
    if shorter:
        told.append(f"clips shorter than {MIN_SECONDS:g} s: {len(shorter)}, left out")
    if found.unlisted:
        told.append(f"audio files in no row: {len(found.unlisted)}, {found.unlisted[0].name} among them")
    if not any(clip.source_text for clip in found.clips):
        told.append(f"transcripts (text_{found.source}): COMET and the report's samples want them")
    if found.corpus.guessed_groups:
        told.append("a column that says who speaks, or which talk it is (group): one may stand in train and in test")
    if begun.by == "segment":
        told.append(
            f"groups: {found.groups} are too few to hold some out; clips are dealt one by one, which leaks, and scores "
            "will be too high"
        )
    if "select" not in begun.dealt:
        told.append("clips of the split select, which choose layers: those in the middle go instead")
    if "test" not in begun.dealt:
        told.append("clips of the split test: dev will be scored")
    if begun.dealt.get("train", 0) < FEW:
        told.append(f"training clips: {begun.dealt.get('train', 0)} are few; expect little below {FEW}")
    if found.assumed:
        told.append(f"a column of what is spoken: {language_name(found.source)} is assumed (--from)")
    return told


def described(begun: Start) -> list[str]:
    """What was found, in lines."""
    found = begun.survey
    languages = f"{language_name(found.source)} to {language_name(found.target)}"
    mean = found.seconds / len(found.clips)
    groups = f", {found.groups:,} groups" if found.groups else ""
    return [
        f"{found.table}: {len(found.clips):,} clips, {found.seconds / 3600:.2f} hours, {languages}",
        f"  {mean:.1f} s a clip, the longest {found.longest:.1f} s{groups}",
        f"  splits: {', '.join(f'{count:,} {split}' for split, count in begun.dealt.items())}",
        *(f"  {note}" for note in found.corpus.notes),
    ]


def recipe(begun: Start) -> str:
    """The recipe's YAML."""
    found = begun.survey
    hours = found.seconds / 3600
    pair = f"{language_name(found.source)} to {language_name(found.target)}"
    texts = [f"  texts: {_scalar(found.table.name)}"] if len(tables(found.folder)) > 1 else []
    longer, shorter = found.outside(begun.window)
    limits = [f"  max_seconds: {begun.window:g}  # longer: {len(longer)}"] if longer else []
    limits += [f"  min_seconds: {MIN_SECONDS:g}  # shorter: {len(shorter)}"] if shorter else []
    lines = [
        f"# Written by `sordino init`: {len(found.clips):,} clips, {hours:.2f} hours, {pair}.",
        "# `sordino plan` says what runs and what it takes, `sordino settings` lists every setting there is.",
        f"name: {_scalar(_name(found.folder) + '-{source}-{target}')}  # the run's directory, in runs/",
        f"model: {_scalar(begun.model)}  # a directory or a Hub id; `sordino families` lists what works",
        f"source: {found.source}",
        f"target: {found.target}",
        f"seed: {SEED}",
        "",
        "data:",
        "  corpus: folder  # audio files and one table",
        f"  path: {_scalar(found.folder.as_posix())}  # relative to where the command runs",
        *texts,
        *limits,
        *_splits(begun),
        "",
        *_training(begun, "finetune", "the teacher: the model learns your data", 3),
        "",
        *_ranking(begun),
        "",
        "prune:",
        "",
        "pseudolabel:  # the teacher translates the training audio, for the student to learn from",
        "",
        *_training(begun, "distil", "the pruned student learns from the teacher and from your translations", 2),
        "",
        "# qlora:  # another training, of an adapter on the 4-bit student; then `merge:` folds it in",
        "#   epochs: 1",
        "# merge:",
        "",
        "export:",
        "  formats: [nf4]  # 4 bits for transformers; w4a16 is for vLLM, gguf-q4_k_m for laptops (docs/formats.md)",
        "",
        "translate:",
        *([] if "test" in begun.dealt else ["  split: dev"]),
        "  batch_size: 16",
        "",
        "evaluate:",
        f"  metrics: [bleu, chrf, chrf++]{_comet(found)}",
    ]
    return "\n".join(lines) + "\n"


def _splits(begun: Start) -> list[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in begun.dealt.items())
    lines = [f"  # {counts}; select chooses layers, dev is watched while training, test is scored at the end"]
    if not begun.sizes:
        return lines  # the table's own
    leaks = begun.by == "segment"
    sizes = ", ".join(f"{name}: {count}" for name, count in begun.sizes.items()) + (", by: segment" if leaks else "")
    return [*lines, f"  splits: {{{sizes}}}" + ("  # too few talks or speakers: this leaks" if leaks else "")]


def _ranking(begun: Start) -> list[str]:
    layers = begun.base.dims["decoder_layers"] if begun.base else None
    remove = f"  remove: {max(1, (layers or 32) // REMOVED)}  # of {layers or 'its 32'} decoder layers; fewer is safer"
    if "select" in begun.dealt:
        return ["rank:  # which decoder layers can go, by translating the select split without each", remove]
    return ["rank:  # by translating, once some clips are in the split select", "  method: middle", remove]


def _training(begun: Start, name: str, what: str, epochs: int) -> list[str]:
    lines = [f"{name}:  # {what}"]
    if begun.base is None or "encoder" in begun.base.family.parts:
        lines.append("  freeze: [encoder]  # its features are then computed once; without this line it is trained too")
    lines += [f"  epochs: {epochs}", f"  batch_size: {16 if begun.is_small else 8}"]
    lines += [f"  lr: {'1.0e-3' if begun.is_small else '1.0e-5'}", "  warmup_ratio: 0.05"]
    if not begun.is_small:
        lines += ["  precision: bfloat16", "  gradient_checkpointing: true  # less memory, a third more time"]
    return lines


def _comet(found: Survey) -> str:
    transcripts = all(clip.source_text for clip in found.clips)
    return "  # comet too: docs/evaluation.md" if transcripts else "  # comet needs transcripts"


def _name(folder: Path) -> str:
    """A folder's name as a plain name for a run."""
    return re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "mine"


def _scalar(text: str) -> str:
    """A YAML scalar on one line, quoted where it must be."""
    dumped: str = yaml.safe_dump(text, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...")
