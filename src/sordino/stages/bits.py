"""Format mixed: bits for every part of a model under a budget of bytes, by what rounding each part costs.

Costs are measured once for a model and kept in the run's cache, one line a measurement: a killed stage goes on from the
last one, and further budgets for the same model (a sweep) are chosen in a moment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino import artifact
from sordino.compress import budget, layers, sensitivity
from sordino.compress.drafting import default_memory
from sordino.compress.importance import Layer, parse_layer
from sordino.compress.judging import position
from sordino.compress.sensitivity import Change, Cost, Sensitivity, part_of_weight
from sordino.errors import ArtifactError
from sordino.export import bf16, packed
from sordino.families import registry, stored
from sordino.features import Features
from sordino.measure import layouts, shapes
from sordino.measure.size import LAYER
from sordino.progress import bar, note
from sordino.recipe import Recipe, SensitivitySection
from sordino.stages.forecast import budget_bytes, config_of
from sordino.stages.job import RANKING, Job, base_parent, directory_of, qlora_start, trim_source

MIXED = "mixed"  # the format's name
KEPT = 16  # bits of what is not rounded
OFFSETS = '"data_offsets":[{0},{0}]'  # of a tensor in a file's header


class Mixer:
    """One model of the chain: measure what its parts cost, choose bits for a budget, write the choice."""

    def __init__(self, job: Job, key: str, section: SensitivitySection) -> None:
        self.job, self.key, self.section = job, key, section
        self.model = shapes.model(registry.read_config(job.path(key)))
        self.order = ranked_next(job, key) if section.drop else []
        self.costs: dict[Change, Cost] = {}

    def parts(self) -> dict[str, list[shapes.Shape]]:
        """Part -> its weights as stored."""
        found: dict[str, list[shapes.Shape]] = {}
        for tensor in self.model.tensors:
            part = part_of_weight(tensor.name)
            if part and tensor.kind != "other":
                found.setdefault(part, []).append(tensor)
        return found

    def changes(self) -> list[Change]:
        """All that is measured. A head tied to its embedding keeps both in 16 bits: no format packs them together."""
        rounded = [part for part in self.parts() if not (self.model.tied and part == "embedding")]
        widths = {"embedding": (layouts.EMBEDDING_BITS,)}
        found = [Change(part, bits) for part in rounded for bits in widths.get(part, layouts.PACKED_BITS)]
        return found + [Change(dropped=count + 1) for count in range(len(self.order))]

    def measure(self) -> None:
        """Fill `costs`; a line in the cache for each. Raises DataError without a select split, FamilyError."""
        job = self.job
        clips = job.select_clips("export.sensitivity", self.section.clips)
        changes = self.changes()
        file = job.cache / "sensitivity" / f"{self._identity([clip.id for clip in clips])}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.costs = {cost.change: cost for cost in map(Cost.from_json, artifact.read_jsonl(file))}
        if all(change in self.costs for change in changes):
            return
        speech = job.load(self.key)
        if job.recipe.attention == "flash_attention_2":  # forced passes need masks of their own
            speech.model.set_attn_implementation("sdpa")
        prompt = job.prompt(speech)
        heard = Features(speech, job.cache).hear_all(clips, prompt, "encoding the select clips")
        answers = [speech.answer_ids(clip.target_text or "", job.recipe.prompt.style) for clip in clips]
        features = Features(speech, None)  # a rounded encoder's are of no use to anything else
        asker = Sensitivity(
            speech,
            heard,
            answers,
            self.section.measure,
            default_memory(speech),
            lambda h: features.hear(h.clip, h.prompt),
        )
        with bar(f"what fewer bits cost {self.key}", len(changes), sum(c in self.costs for c in changes)) as advance:
            self.costs = sensitivity.measure(
                asker,
                changes,
                self.order,
                self.costs,
                lambda cost: artifact.append_jsonl(file, cost.to_json()),
                advance,
            )

    def _identity(self, clips: list[str]) -> str:
        """Of everything that the costs depend on."""
        recipe = self.job.recipe
        made = artifact.read_stage(self.job.run_dir / directory_of(self.key)) if self.key != "base" else None
        facts = {
            "model": made["hash"] if made else base_parent(recipe).hash,
            "asked": repr((recipe.prompt, recipe.source, recipe.target)),
            "order": [str(layer) for layer in self.order],
            "measure": self.section.measure,
            "clips": clips,
            "computed": [recipe.dtype, recipe.device, recipe.attention],
            "sordino": artifact.versions().get("sordino"),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def choose(self, limit: int) -> budget.Choice:
        """Bits for at most so many bytes of weights files. Raises RecipeError where that cannot be."""
        parts, fixed, drops = self._problem()
        return budget.choose(parts, limit, fixed, drops)

    def smallest(self) -> int:
        """Bytes below which there is no choice."""
        parts, fixed, drops = self._problem()
        return budget.smallest(parts, fixed, drops)

    def _problem(self) -> tuple[dict[str, list[budget.Option]], int, list[budget.Drop]]:
        """Options of the parts, bytes of what is never rounded, and the layers that may be dropped."""
        parts = self.parts()
        options = {part: [self._option(part, tensors, KEPT, 0.0)] for part, tensors in parts.items()}
        for cost in self.costs.values():
            if cost.change.part:
                part = cost.change.part
                options[part].append(self._option(part, parts[part], cost.change.bits, cost.value))
        in_parts = {tensor.name for tensors in parts.values() for tensor in tensors}
        others = [tensor for tensor in self.model.tensors if tensor.name not in in_parts]
        drops = []
        for count, layer in enumerate(self.order, 1):
            gone = tuple(f"decoder.{layer.index}.{half}" for half in ("attention", "mlp"))
            beside = [
                t for t in others if t.part == "decoder" and (m := LAYER.search(t.name)) and m[1] == str(layer.index)
            ]
            value = self.costs[Change(dropped=count)].value
            drops.append(budget.Drop(str(layer), gone, self._bytes(layouts.mixed(beside, {})), value))
        return options, self._bytes(layouts.mixed(others, {})) + layouts.safetensors_bytes({}) + 8, drops

    def _option(self, part: str, tensors: list[shapes.Shape], bits: int, cost: float) -> budget.Option:
        found = layouts.mixed(tensors, {tensor.name: bits for tensor in tensors})
        return budget.Option(bits, self._bytes(found), cost)

    def _bytes(self, tensors: layouts.Stored) -> int:
        """Of tensors in a file and of their entries in its header, whose offsets are taken to be as long as can be."""
        offsets = OFFSETS.format("9" * len(str(2 * self.model.parameters)))
        entries = (
            f'"{name}":{{"dtype":"{t.dtype}","shape":{json.dumps(t.shape, separators=(",", ":"))},{offsets}}},'
            for name, t in tensors.items()
        )
        return layouts.data_bytes(tensors) + sum(map(len, entries))

    def write(self, choice: budget.Choice, directory: Path, limit: int) -> dict[str, Any]:
        """Write the chosen model; what was chosen, for its audit. Raises ArtifactError for a file above the limit."""
        gone = self.order[: choice.dropped]
        left = [i for i in range(self.model.dims["decoder_layers"]) if Layer("decoder", i) not in gone]
        source, model = self.job.path(self.key), self.model
        shorter = self.job.state / "dropped"
        if gone:
            shutil.rmtree(shorter, ignore_errors=True)
            model_on_disk = stored.open_model(source, self.job.recipe.revision if self.key == "base" else None)
            layers.prune(model_on_disk.speech, "decoder", left)
            shorter.mkdir()
            model_on_disk.write_16bit(shorter, "copying what is left")
            source, model = str(shorter), shapes.model(registry.read_config(str(shorter)))
        bits = {
            tensor.name: width
            for tensor in model.tensors
            if tensor.kind != "other" and (width := choice.bits.get(_old_part(tensor.name, left), KEPT)) != KEPT
        }
        if bits:
            packed.write(source, directory, bits)
        else:  # a budget that leaves everything as it is, but for dropped layers
            bf16.write(source, directory)
        shutil.rmtree(shorter, ignore_errors=True)
        predicted = layouts.safetensors_bytes(layouts.mixed(model.tensors, bits))
        note(f"  bits: {described(choice.bits)}" + (f"; without {', '.join(map(str, gone))}" if gone else ""))
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


def _old_part(name: str, left: list[int]) -> str:
    """The part of a weight of the shorter model, by the layers' numbers in the whole one."""
    part = part_of_weight(name) or ""
    stack, _, rest = part.partition(".")
    if stack != "decoder":
        return part
    index, _, half = rest.partition(".")
    return f"decoder.{left[int(index)]}.{half}"


def described(bits: Mapping[str, int]) -> str:
    """'2 bits decoder.1.mlp; 3 bits encoder.0 encoder.4; ...'."""
    widths = sorted(set(bits.values()))
    return "; ".join(f"{width} bits {' '.join(part for part in bits if bits[part] == width)}" for width in widths)


def ranked_next(job: Job, key: str) -> list[Layer]:
    """Decoder layers that the ranking would remove next from this model, by their index in it."""
    recipe = job.recipe
    if not recipe.rank:
        return []
    order = [parse_layer(text) for text in artifact.read_json(job.run_dir / RANKING / "ranking.json")["order"]]
    start = trim_source(recipe) if key == "trimmed" else key
    start = qlora_start(recipe) if start == "merged" else start
    count = (recipe.prune.remove or len(order)) if recipe.prune and start in ("pruned", "student") else 0
    gone, found = order[:count], []
    for layer in order[count:]:
        index = position(gone, layer)
        if layer.scope != "decoder" or index is None:  # an encoder layer's turn: what comes after it must wait
            break
        found.append(Layer("decoder", index))
    return found


def limit_of(recipe: Recipe, gigabytes: float | None, ratio: float | None) -> int:
    """A budget in bytes, see forecast.budget_bytes. Raises ArtifactError where the unpruned model's config is lost."""
    config = config_of(recipe)
    if config is None:
        raise ArtifactError(f"the config of {recipe.model} is not on this machine.", "Fetch its config.json.")
    return budget_bytes(shapes.model(config), gigabytes, ratio)
