"""Format mixed: bits for every part of a model under a budget of bytes, by what rounding each part costs.

Costs are measured once for a model and kept in the run's cache, one line a measurement: a killed stage goes on from the
last one, and further budgets for the same model (a sweep) are chosen in a moment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain
from sordino.config.schema import PartCostsSection, Recipe, SensitivitySection
from sordino.errors import ArtifactError, RecipeError
from sordino.formats import bf16, packed
from sordino.layouts import tables
from sordino.models import registry, shapes
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.pipeline import artifact
from sordino.pipeline.forecast import budget_bytes, config_of
from sordino.pipeline.parents import model_hash
from sordino.pipeline.stage import Job
from sordino.pruning.layer import Layer, kept
from sordino.pruning.ranking import Ranking
from sordino.pruning.removal import write_without
from sordino.pruning.speculative import default_memory
from sordino.quantization import allocation, mixture, sensitivity
from sordino.quantization.sensitivity import Change, Cost, Sensitivity
from sordino.report.lines import bits_line
from sordino.runtime import files
from sordino.runtime.progress import bar, note


class MixedPrecision:
    """One model of the chain: measure what its parts cost, choose bits for a budget, write the choice."""

    def __init__(self, job: Job, key: str, section: PartCostsSection) -> None:
        self.job, self.key, self.section = job, key, section
        self.source = job.model(key)
        self.model = shapes.model(registry.read_config(self.source.path))
        spare = self.model.dims["decoder_layers"] - 1  # one layer stays
        drops = isinstance(section, SensitivitySection) and section.drop
        self.order = ranked_next(job, key)[:spare] if drops else []
        self.costs: dict[Change, Cost] = {}

    def measure(self) -> None:
        """Fill `costs`; a line in the cache for each. Raises DataError without a select split, FamilyError."""
        job = self.job
        clips = job.select_clips("export.sensitivity", self.section.clips)
        changes = mixture.changes(self.model, len(self.order))
        file = job.layout.cache / "sensitivity" / f"{self._identity([clip.id for clip in clips])}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.costs = {cost.change: cost for cost in map(Cost.from_json, files.read_jsonl(file))}
        if all(change in self.costs for change in changes):
            return
        speech = job.load(self.key, own_masks=True)
        prompt = job.prompt(speech)
        encoded = Features(speech, job.layout.cache).encode_all(clips, prompt, "encoding the select clips")
        answers = answers_of(speech, clips, job.recipe.prompt.style)
        features = Features(speech, None)  # a rounded encoder's are of no use to anything else
        asker = Sensitivity(
            speech,
            encoded,
            answers,
            self.section.measure,
            default_memory(speech),
            lambda h: features.encode(h.clip, h.prompt),
        )
        with bar(f"what fewer bits cost {self.key}", len(changes), sum(c in self.costs for c in changes)) as advance:
            self.costs = sensitivity.measure(
                asker,
                changes,
                self.order,
                self.costs,
                lambda cost: files.append_jsonl(file, cost.to_json()),
                advance,
            )

    def _identity(self, clips: list[str]) -> str:
        """Of everything that the costs depend on."""
        recipe = self.job.recipe
        facts = {
            "model": model_hash(recipe, self.key),
            "asked": repr((recipe.prompt, recipe.source, recipe.target)),
            "order": [str(layer) for layer in self.order],
            "measure": self.section.measure,
            "clips": clips,
            "computed": [recipe.dtype, recipe.device, recipe.attention],
            "sordino": artifact.versions().get("sordino"),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def choose(self, limit: int) -> allocation.Choice:
        """Bits for at most so many bytes of weights files. Raises RecipeError where that cannot be."""
        costs, order = ({}, []) if self.holds_all(limit) else (self.costs, self.order)
        parts, fixed, drops = mixture.problem(self.model, costs, order)
        return allocation.choose(parts, limit, fixed, drops)

    def holds_all(self, limit: int) -> bool:
        """Whether so many bytes hold the whole model in 16 bits: then nothing has to be measured."""
        parts, fixed, _ = mixture.problem(self.model, {})
        return allocation.smallest(parts, fixed) <= limit

    def allocate(self, limit: int) -> tuple[dict[str, int], dict[str, Any]]:
        """Bits by the names that weights are saved under, for at most so many bytes, and what was chosen, for an audit.

        No layers are dropped. Raises RecipeError where the bytes are too few, or hold the model in 16 bits.
        """
        if self.holds_all(limit):
            raise RecipeError(
                f"a budget of {limit:,} bytes holds the model in 16 bits: nothing is rounded.", "Lower the budget."
            )
        self.measure()
        choice = self.choose(limit)
        bits = mixture.by_name(self.model, choice.bits, range(self.model.dims["decoder_layers"]))
        predicted = tables.safetensors_bytes(tables.mixed(self.model.tensors, bits))
        note(f"  bits: {bits_line(choice.bits)}")
        return bits, self._facts(choice, limit, predicted, [])

    def write(self, choice: allocation.Choice, directory: Path, limit: int) -> dict[str, Any]:
        """Write the chosen model; what was chosen, for its audit. Raises ArtifactError for a file above the limit."""
        gone = self.order[: choice.dropped]
        staying = kept(self.model.dims["decoder_layers"], "decoder", gone)
        source, model = self.source.path, self.model
        shorter = self.job.state / "dropped"
        if gone:
            shutil.rmtree(shorter, ignore_errors=True)
            shorter.mkdir()
            write_without(source, self.source.revision, gone, shorter)
            source, model = str(shorter), shapes.model(registry.read_config(str(shorter)))
        bits = mixture.by_name(model, choice.bits, staying)
        if bits:
            packed.write(source, directory, bits)
        else:  # a budget that leaves everything as it is, but for dropped layers
            bf16.write(source, directory)
        shutil.rmtree(shorter, ignore_errors=True)
        predicted = tables.safetensors_bytes(tables.mixed(model.tensors, bits))
        note(f"  bits: {bits_line(choice.bits)}" + (f"; without {', '.join(map(str, gone))}" if gone else ""))
        return self._facts(choice, limit, predicted, gone)

    def _facts(self, choice: allocation.Choice, limit: int, predicted: int, gone: Sequence[Layer]) -> dict[str, Any]:
        return {
            "budget_bytes": limit,
            "predicted_bytes": predicted,
            "predicted_cost": choice.cost,
            "measure": self.section.measure,
            "clips": self.section.clips,
            "bits": choice.bits,
            "dropped": [str(layer) for layer in gone],
            "costs": [cost.to_json() for cost in self.costs.values()],
        }


def ranked_next(job: Job, key: str) -> list[Layer]:
    """Decoder layers that the ranking would remove next from this model, by their index in it."""
    recipe = job.recipe
    if not recipe.rank:
        return []
    ranking = Ranking.read(job.layout.ranking)
    removed: list[Layer] = []
    if recipe.prune and chain.PRUNED in chain.ancestry(recipe, key):
        removed = ranking.removal_order(recipe.prune.remove)
    return ranking.next_decoder_layers(len(removed))


def limit_of(recipe: Recipe, gigabytes: float | None, ratio: float | None) -> int:
    """A budget in bytes, see forecast.budget_bytes. Raises ArtifactError where the unpruned model's config is lost."""
    config = config_of(recipe)
    if config is None:
        raise ArtifactError(f"the config of {recipe.model} is not on this machine.", "Fetch its config.json.")
    return budget_bytes(shapes.model(config), gigabytes, ratio)
