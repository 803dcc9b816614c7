"""The paper's tables on one teacher: which layers go, how many, and what heals them. Several seeds, paired differences.

    python benchmarks/mini/tables.py demo --out tables-demo                              12 layers, minutes each
    python benchmarks/mini/tables.py benchmarks/mini/teacher.yaml --out tables-mini      30 layers, hours each
    python benchmarks/mini/tables.py demo --out tables-demo --print                      the tables of what is done

The recipe's own run must be finished up to pseudolabel; only its cache is added to. An experiment is settings that
differ from the recipe's. They are run in the order of their worth; OUT/results.jsonl gets a line as each one is
finished, so that the same command goes on where it was stopped. Rankings are shared. What this version of sordino does
not know yet is refused by its recipes, and listed with the refusal.

Experiments on other settings of the whole recipe get a tag, so that one OUT has them all:

    tables.py demo distil.epochs=3 distil.max_steps=237 --tag equal- --only equal-iterative-6 --out tables-demo
    tables.py demo name=mbr pseudolabel.method=mbr distil.max_steps=237 --tag mbr- --only mbr-pseudo-6 --out tables-demo

A seed is that of healing: the order of the clips. The teacher, the ranking and the splits are the same for all.
Scores are of dev and test together, on which nothing was chosen. Differences are means over the seeds; their 95 %
intervals are of 1,000 paired bootstrap resamples of the clips (Koehn 2004), the same for all systems.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import numpy as np

from sordino.config import recipe as recipes
from sordino.config import run_layout
from sordino.config.schema import Recipe
from sordino.data.clip import Clip
from sordino.errors import ArtifactError, RecipeError, SordinoError
from sordino.metrics import registry
from sordino.metrics.overlap import Overlap, percentile_interval
from sordino.models import generation, loading, prompts
from sordino.models.features import Features
from sordino.pipeline import runner
from sordino.pipeline.stage import Job
from sordino.pruning.ranking import Ranking
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.stages import distil, qlora

GIVEN = (run_layout.DATA, run_layout.TEACHER, run_layout.PSEUDO)
HELD_OUT = ("dev", "test")
RESAMPLES = 1000
METRICS = ("chrf++", "bleu")
LATER = ("qlora", "merge", "trim", "export", "sweep", "translate", "evaluate", "report")
# decoder layers -> removals of the main comparison, and of the whole curve
DEPTHS = {12: ((4, 6, 8), (2, 4, 6, 8)), 30: ((8, 12, 16), (4, 8, 10, 12, 16))}


@dataclass(frozen=True)
class Experiment:
    """ranking: settings of rank, which with `remove` name the pruned model; healing: settings of distil, or of qlora.

    remove: 0 for an adapter on the whole teacher.
    """

    name: str
    remove: int
    ranking: tuple[str, ...] = ()
    healing: tuple[str, ...] = ()

    def searched(self, most: int) -> tuple[str, ...]:
        """Settings of the ranking: a search goes as deep as anybody needs, and is made once."""
        named = any(text in ("rank.method=middle", "rank.method=block") for text in self.ranking)
        return (*self.ranking, f"rank.remove={self.remove if named else most}")


def experiments(layers: int, epochs: float) -> Iterator[Experiment]:
    """In the order of their worth."""
    if layers not in DEPTHS:
        raise RecipeError(f"a decoder of {layers} layers is not among {[*DEPTHS]}.", "Add its removals to DEPTHS.")
    main, curve = DEPTHS[layers]
    methods = {
        "iterative": (),
        "middle": ("rank.method=middle",),
        "block": ("rank.method=block",),
    }
    for remove in (main[1], main[2], main[0]):
        for method, settings in methods.items():
            yield Experiment(f"{method}-{remove}", remove, settings)
    half = main[1]
    twice = f"distil.epochs={2 * epochs:g}"  # of both, equal pairs count once: fewer steps than this
    yield Experiment(f"authentic-{half}", half, (), ("distil.mix.pseudo=false", twice))
    yield Experiment(f"pseudo-{half}", half, (), ("distil.mix.authentic=false", twice))
    yield Experiment(f"logits-{half}", half, (), ("distil.logits.weight=0.8",))
    yield Experiment("adapter", 0, (), ("qlora.start=teacher",))
    for remove in curve:
        if remove not in main:
            yield Experiment(f"iterative-{remove}", remove)
    for criterion in ("loss", "kl", "influence", "angular"):
        # a recipe that races does so for translation scores; these are cheap enough for all clips
        yield Experiment(f"{criterion}-{half}", half, (f"rank.criterion={criterion}", "rank.search=exact"))
    yield Experiment(f"both-{half}", half, ("rank.scope=both",))
    yield Experiment(f"extra-{half}", half, (), ("distil.mix.pseudo=false", "distil.mix.extra=1000000", twice))
    yield Experiment(f"each-{half}", half, (), ("distil.heal=each", f"distil.epochs={epochs / half:g}"))


TAGS = ("equal-", "mbr-", "mbr3-")  # as many steps; of MBR samples the best; the best three (pseudolabel.keep=3)
# what is asked of two experiments: the first minus the second
QUESTIONS = {
    "iterative rather than middle": ("iterative", "middle"),
    "iterative rather than a block": ("iterative", "block"),
    "with pseudo-labels rather than without": ("iterative", "authentic"),
    "pseudo-labels alone rather than texts alone": ("pseudo", "authentic"),
    "both rather than pseudo-labels alone": ("iterative", "pseudo"),
    "the teacher's logits rather than texts alone": ("logits", "iterative"),
    "chrF++ rather than loss": ("iterative", "loss"),
    "chrF++ rather than KL": ("iterative", "kl"),
    "chrF++ rather than influence": ("iterative", "influence"),
    "chrF++ rather than angular distance": ("iterative", "angular"),
    "decoder rather than both": ("iterative", "both"),
    "with pseudo-labels rather than without, at equal steps": ("equal-iterative", "authentic"),
    "the best of four MBR samples rather than the greedy translation": ("mbr-pseudo", "pseudo"),
    "three MBR samples rather than one": ("mbr3-pseudo", "mbr-pseudo"),
    "with out-of-domain clips rather than without": ("extra", "authentic"),
    "healing once rather than after every removal": ("iterative", "each"),
}


class Tables:
    """A teacher's run, the experiments on it, and OUT."""

    def __init__(self, recipe: str, settings: Sequence[str], out: Path, tag: str = "") -> None:
        self.file, self.settings, self.out = recipe, tuple(settings), out
        self.base = recipes.load(recipe, settings)
        if self.base.rank is None or self.base.distil is None or self.base.translate is None:
            raise RecipeError(f"{recipe} must have rank, distil and translate.", "Take demo or teacher.yaml.")
        self.options = generation.Decoding(self.base.translate.batch_size, self.base.translate.max_new_tokens)
        lacking = [name for name in GIVEN if not (self.base.directory / name / "stage.json").is_file()]
        if lacking:
            raise ArtifactError(f"{self.base.directory} lacks {', '.join(lacking)}.", f"First: sordino run {recipe}")
        self.layers = len(files.read_json(self.base.directory / GIVEN[1] / "config.json")["text_config"]["layer_types"])
        self.experiments = [
            dataclasses.replace(one, name=tag + one.name) for one in experiments(self.layers, self.base.distil.epochs)
        ]
        self.most = max(e.remove for e in self.experiments)
        self.results = out / "results.jsonl"
        out.mkdir(parents=True, exist_ok=True)

    def workplace(self, name: str, *given: Path) -> Path:
        """OUT/name with the teacher's finished stages and cache, and `given` stages."""
        directory, cache = self.out / name, self.base.directory / run_layout.CACHE
        directory.mkdir(parents=True, exist_ok=True)
        cache.mkdir(exist_ok=True)
        for place in (*(self.base.directory / stage for stage in GIVEN), *given, cache):
            if not (directory / place.name).exists():
                (directory / place.name).symlink_to(place.resolve())
        return directory

    def load(self, name: str, *settings: str) -> Recipe:
        """The recipe of a workplace. Raises RecipeError for settings that this version does not know."""
        return recipes.load(self.file, [*self.settings, *settings, f"out={self.out}", f"name={name}"])

    def ranked(self, one: Experiment) -> Path:
        """The ranking's directory, shared by all experiments that rank alike."""
        settings = one.searched(self.most)
        name = "-".join(["rank", *(text.split("=")[1] for text in settings)])
        recipe = self.load(name, *settings, *without("prune", "pseudolabel", "distil"))
        place = self.workplace(name)
        self.run(recipe, "rank")
        return place / run_layout.RANKING

    def pruned(self, one: Experiment) -> Path:
        """The pruned model's directory, shared by all that heal it."""
        ranking = self.ranked(one)
        name = f"{ranking.parent.name}-pruned-{one.remove}"
        settings = [*one.searched(self.most), f"prune.remove={one.remove}", *without("pseudolabel", "distil")]
        place = self.workplace(name, ranking)
        self.run(self.load(name, *settings), "prune")
        return place / run_layout.PRUNED

    def run(self, recipe: Recipe, *stages: str) -> None:
        """Run the last of the stages that need it; the teacher's own must be finished as the recipe has them."""
        for line in runner.lines_of(recipe):
            if line.why is not None and line.stage not in stages:
                raise ArtifactError(f"{self.base.directory}: {line.stage}: {line.why}.", f"sordino run {self.file}")
        runner.run(recipe)

    def texts(self, recipe: Recipe, model: Path) -> list[str]:
        """A model's translations of the held-out clips."""
        speech = loading.open_model(str(model), device=recipe.device, dtype=recipe.dtype)
        prompt = prompts.render(speech, recipe.prompt, recipe.source, recipe.target)
        encoded = Features(speech, self.base.directory / run_layout.CACHE).encode_all(self.clips(), prompt)
        return [hypothesis.text for hypothesis in generation.translate(speech, encoded, self.options)]

    def clips(self) -> list[Clip]:
        job = Job(self.base, self.out, {})
        return [dataclasses.replace(clip, id=f"{split}/{clip.id}") for split in HELD_OUT for clip in job.clips(split)]

    def done(self, name: str, seed: int | None) -> bool:
        return any((row["name"], row["seed"]) == (name, seed) for row in files.read_jsonl(self.results))

    def record(self, name: str, seed: int | None, **facts: Any) -> None:
        files.append_jsonl(self.results, {"name": name, "seed": seed, **facts})
        note(f"{name}, seed {seed}: done")

    def unhealed(self, one: Experiment) -> None:
        """The pruned model itself, a row without a seed."""
        name = f"{one.name}, not healed"
        if one.healing or not one.remove or self.done(name, None):
            return
        model = self.pruned(one)
        order = Ranking.read(self.ranked(one) / run_layout.RANKING_FILE).removal_order(one.remove)
        self.record(name, None, removed=[str(layer) for layer in order], texts=self.texts(self.base, model))

    def healed(self, one: Experiment, seed: int) -> None:
        """Heal and translate, unless it is done. A killed training goes on; weights go when they have translated."""
        if self.done(one.name, seed):
            return
        name = f"{one.name}-seed-{seed}"
        stage = qlora if not one.remove else distil
        settings = [*one.searched(self.most), *one.healing, f"seed={seed}"]
        if stage is qlora:
            settings += without("rank", "prune", "distil", keep="qlora")
        else:
            settings += [f"prune.remove={one.remove}", *without()]
        recipe = self.load(name, *settings)
        given = [self.pruned(one), self.ranked(one)] if one.remove else []
        place = self.workplace(name, *given)
        wanted = stage.STAGE.settings(recipe)
        assert wanted
        runner.run_stage(stage.STAGE, wanted, recipe, {})  # and not those before it, which have the teacher's seed
        model = place / stage.STAGE.directory
        facts = files.read_json(model / "stage.json")
        kept = {key: facts[key] for key in ("steps", "loss", "dev_loss", "seconds")}
        self.record(one.name, seed, settings=settings, **kept, texts=self.texts(recipe, model))
        shutil.rmtree(place)

    def everything(self, seeds: Sequence[int], only: Sequence[str]) -> None:
        """Run what is not done. What recipes refuse is recorded nowhere and tried again the next time."""
        if not self.done("teacher", None):
            self.record("teacher", None, texts=self.texts(self.base, self.base.directory / run_layout.TEACHER))
        chosen = [one for one in self.experiments if not only or one.name in only]
        for _, alike in itertools.groupby(chosen, key=lambda one: one.remove):
            possible = [one for one in alike if self.is_possible(one)]
            for one in possible:
                self.unhealed(one)
            for seed, one in itertools.product(seeds, possible):  # what is compared stands side by side early
                self.healed(one, seed)

    def is_possible(self, one: Experiment) -> bool:
        """Whether this version of sordino has the experiment's settings; if not, it says which it lacks."""
        try:
            self.load(one.name, *one.ranking, *one.healing)
        except RecipeError as error:
            note(f"{one.name}: refused: {error}")
            return False
        return True

    # ------------------------------------------------------------ tables

    def table(self) -> str:
        """Scores and answers of what is done, in Markdown."""
        references = [clip.target_text or "" for clip in self.clips()]
        scores: dict[str, dict[tuple[str, int | None], tuple[float, Any]]] = {}
        rows = files.read_jsonl(self.results)
        for metric in METRICS:
            overlap = registry.get(metric)
            assert isinstance(overlap, Overlap)
            scores[metric] = {
                (row["name"], row["seed"]): overlap.resampled(
                    row["texts"], references, self.base.target, count=RESAMPLES, seed=0
                )
                for row in rows
            }
        lines = [f"{self.layers} decoder layers, {len(references)} clips.", ""]
        lines += ["| system | seeds | chrF++ (95 %) | % of the teacher's | BLEU |", "|---|---|---|---|---|"]
        teacher = scores["chrf++"]["teacher", None][0]
        for name in dict.fromkeys(row["name"] for row in rows):
            seeds = [seed for other, seed in scores["chrf++"] if other == name]
            value, low, high = _mean([scores["chrf++"][name, seed] for seed in seeds])
            bleu, *_ = _mean([scores["bleu"][name, seed] for seed in seeds])
            each = " ".join(f"{scores['chrf++'][name, seed][0]:.1f}" for seed in seeds) if seeds != [None] else ""
            share = 100 * value / teacher
            lines.append(f"| {name} | {each} | {value:.1f} ({low:.1f}–{high:.1f}) | {share:.1f} | {bleu:.1f} |")
        lines += ["", "| question | removed | by seed | chrF++ difference (95 %) |", "|---|---|---|---|"]
        for question, (first, second) in QUESTIONS.items():
            states = itertools.product(sorted({e.remove for e in self.experiments}), (", not healed", ""))
            for remove, state in states:
                pair = (f"{first}-{remove}{state}", f"{second}-{remove}{state}")
                seeds = [s for name, s in scores["chrf++"] if name == pair[0] and (pair[1], s) in scores["chrf++"]]
                if not seeds:
                    continue
                both = [[scores["chrf++"][name, seed] for name in pair] for seed in seeds]
                value, low, high = _mean([(a[0] - b[0], a[1] - b[1]) for a, b in both])
                each = " ".join(f"{a[0] - b[0]:+.1f}" for a, b in both)
                each = each if seeds != [None] else ""
                lines.append(f"| {question} | {remove}{state} | {each} | {value:+.1f} ({low:+.1f} to {high:+.1f}) |")
        waiting = [e.name for e in self.experiments if not any(row["name"] == e.name for row in rows)]
        return "\n".join([*lines, "", f"Not run: {', '.join(waiting) or 'none'}."])


def without(*stages: str, keep: str = "") -> list[str]:
    """Settings that leave out these stages and all that come behind healing, but for one."""
    return [f"{name}=false" for name in (*stages, *LATER) if name != keep]


def _mean(pairs: Sequence[tuple[float, Any]]) -> tuple[float, float, float]:
    """(value, resamples) of several seeds -> the mean and its 95 % interval."""
    low, high = percentile_interval(np.mean([resampled for _, resampled in pairs], axis=0))
    return float(np.mean([value for value, _ in pairs])), low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="as `sordino run` takes it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the recipe, e.g. target=zh")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="experiments, e.g. middle-6")
    parser.add_argument("--tag", default="", help="before their names, where the same OUT has them of other settings")
    parser.add_argument("--print", action="store_true", help="the tables of what is done, and nothing else")
    args = parser.parse_args()
    tables = Tables(args.recipe, args.settings, args.out, args.tag)
    if not args.print:
        tables.everything(args.seeds, args.only)
    text = tables.table()
    files.write_text(args.out / "tables.md", text + "\n")
    print(text)
    print(f"{os.cpu_count()} cores", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except SordinoError as error:
        sys.exit(f"error: {error}")
