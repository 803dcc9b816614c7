"""What every stage of a recipe will write and how much memory it takes, from the model's config alone.

Nothing is loaded. What a stage trains on is not known before it runs, so that the longest clip is taken:
data.max_seconds, else the model's window.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import chain
from sordino.config.run_layout import RunLayout
from sordino.config.schema import DistilSection, QatSection, QloraSection, Recipe, TrainSection
from sordino.data.manifest import read
from sordino.formats.registry import MIXED
from sordino.layouts import gguf, tables
from sordino.measure import flops, predict
from sordino.measure.inefficiencies import WEIGHTS
from sordino.measure.size import read_json
from sordino.models import registry, shapes
from sordino.pipeline import token_selection
from sordino.pipeline.device import device_type
from sordino.pruning.layer import parse_layer

DEVICES = (1, 2, 4, 8)
LEARNING = (DistilSection, QloraSection, QatSection)  # what can learn a teacher's probabilities
TEACHER_BATCH = 8  # answers of a pass in which the teacher's probabilities are computed
RANK_BATCH_BYTES = 96 * 2**20  # rank.memory_mb's default is a quarter of the model, but not less
LAYOUT_OF = {"w4a16-gptq": "w4a16"}  # formats that are stored as another one is


@dataclass(frozen=True)
class Forecast:
    """Bytes. size: of the artefact, None where only texts and scores are written; memory: at the peak of the stage;
    use: at the peak when the artefact translates; resume: of one resume point, two of which may lie on disk; cache: in
    the run's cache, the teacher's probabilities of the mix."""

    size: int | None = None
    memory: int | None = None
    use: int | None = None
    resume: int | None = None
    parts: Mapping[str, int] | None = None  # of memory: weights, gradients, moments, activations, gathered
    devices: Mapping[int, Mapping[str, float | None]] | None = None  # a training on so many: parts on each, and hours
    cache: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps."""
        return {k: getattr(self, k) for k in ("size", "memory", "use", "resume", "parts", "devices", "cache")}


def config_of(recipe: Recipe, file: Path | None = None) -> dict[str, Any] | None:
    """The base model's config.json: a given file, the model's directory, or the local Hub cache; None without any."""
    if file is not None:
        return read_json(file, required=True)
    if not registry.is_hub_id(recipe.model):
        return registry.read_config(recipe.model) if Path(recipe.model).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(recipe.model, "config.json", revision=recipe.revision)
    return read_json(Path(cached), required=True) if isinstance(cached, str) else None


def forecast(recipe: Recipe, config: Mapping[str, Any], device: str | None = None) -> dict[str, Forecast]:
    """Stage name -> what it will take. device: cuda or cpu, instead of the recipe's.

    Raises FamilyError for a family whose shapes are not known.
    """
    return _Stages(recipe, config, device or recipe.device).all()


def budget_bytes(unpruned: shapes.Model, gigabytes: float | None, ratio: float | None) -> int:
    """A budget of format mixed in bytes. A ratio is of what the recipe's unpruned model takes in bfloat16."""
    if gigabytes is not None:
        return int(gigabytes * 1e9)
    assert ratio is not None
    return int(ratio * tables.safetensors_bytes(tables.stored(unpruned.tensors, "bf16")))


def whole_bytes(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Of the weights file of what a recipe exports, in 16 bits; as if nothing were trimmed, which takes counting."""
    model = _Stages(dataclasses.replace(recipe, trim=None), config, recipe.device).model(chain.EXPORTS.key)
    return tables.safetensors_bytes(tables.stored(model.tensors, "bf16"))


class _Stages:
    """A recipe's models by key, with the shapes that each will have."""

    def __init__(self, recipe: Recipe, config: Mapping[str, Any], device: str) -> None:
        self.recipe = recipe
        self.cpu = (device_type(device) if device == "auto" else device) == "cpu"
        wide = recipe.dtype == "float32" or (recipe.dtype == "auto" and self.cpu)
        self.width = 4 if wide else 2  # bytes a weight outside training
        self.base = shapes.model(config)
        layers = _layers_after_pruning(recipe, self.base)
        pruned = shapes.model(config, **layers)
        self.shapes = {chain.BASE: self.base, chain.PRUNED: pruned}  # of the models whose shape is not their start's
        if recipe.trim:
            of = self.model(chain.start_of(recipe, chain.TRIMMED)).dims
            rows = min(token_selection.rows_left(recipe) or of["V"], of["V"])
            layers = {name: of[name] for name in layers}
            self.shapes[chain.TRIMMED] = shapes.model(config, **layers, vocabulary=rows)
        self.first_removed = shapes.model(config, decoder_layers=self.base.dims["decoder_layers"] - 1)
        self.beside = _beside(recipe.model)
        seconds = (recipe.data.max_seconds if recipe.data else None) or self.base.window_seconds
        self.seconds = min(seconds, self.base.window_seconds)

    def model(self, key: str) -> shapes.Model:
        """Of a model of the chain; of chain.EXPORTS.key, what is exported."""
        return next(self.shapes[step] for step in chain.ancestry(self.recipe, key) if step in self.shapes)

    def all(self) -> dict[str, Forecast]:
        recipe = self.recipe
        pruned = self.shapes[chain.PRUNED]
        stages: dict[str, Forecast] = {}
        if recipe.finetune:
            stages["finetune"] = self.full(self.base, self.base, recipe.finetune)
        if recipe.rank:
            weights = predict.weights_bytes(self.model(chain.ranked_model(recipe)), width=self.width)
            room = recipe.rank.memory_mb * 2**20 if recipe.rank.memory_mb else max(weights // 4, RANK_BATCH_BYTES)
            stages["rank"] = Forecast(memory=weights + room)
        if recipe.prune:
            made = predict.exporting(pruned, "bf16")
            stages["prune"] = Forecast(self.disk(pruned), made, self.use(pruned))
        if recipe.pseudolabel:
            section = recipe.pseudolabel
            stages["pseudolabel"] = Forecast(memory=self.use(self.base, section.batch_size, section.max_new_tokens))
        if recipe.distil:
            start = pruned if recipe.distil.heal == "once" else self.first_removed
            stages["distil"] = self.full(start, pruned, recipe.distil)
        if recipe.qlora:
            stages["qlora"] = self.qlora()
        if recipe.merge:
            model = self.model(chain.MERGED)
            stages["merge"] = Forecast(self.disk(model), 4 * model.parameters, self.use(model))
        if recipe.trim:
            trimmed = self.shapes[chain.TRIMMED]
            stages["trim"] = Forecast(self.disk(trimmed), use=self.use(trimmed))
        if recipe.qat:
            stages["qat"] = self.qat(recipe.qat)
        if recipe.export:
            stages["export"] = self.export()
        if recipe.translate:
            uses = [self.use(self.model(key), key=key) for key in chain.scored(recipe)]
            stages["translate"] = Forecast(memory=max(uses, default=None))
        return stages

    def full(self, start: shapes.Model, end: shapes.Model, section: TrainSection) -> Forecast:
        def memory(devices: int) -> predict.Memory:
            return predict.full_training(
                start,
                self.batch(section, devices),
                self.precision(section),
                checkpointing=section.gradient_checkpointing,
                frozen=section.freeze,
                optimizer=section.optimizer,
                devices=devices,
            )

        own = memory(self.recipe.resources.devices)
        point = predict.resume_point(memory(1))
        spread = self.spread(start, section, memory)
        peak, cache = max(own.peak, self.teacher_pass(section)), self.teacher_logits(section)
        return Forecast(self.disk(end), peak, self.use(end), point, own.to_json(), spread, cache)

    def qlora(self) -> Forecast:
        section = self.recipe.qlora
        assert section
        model = self.model(chain.ADAPTER)
        adapter = predict.Adapter(section.rank, section.scope == "decoder", section.quantize == "nf4")

        def memory(devices: int) -> predict.Memory:
            return predict.adapter_training(
                model,
                self.batch(section, devices),
                self.precision(section),
                adapter,
                width=self.width,
                checkpointing=section.gradient_checkpointing,
                optimizer=section.optimizer,
            )

        own = memory(self.recipe.resources.devices)
        size = tables.safetensors_bytes(tables.stored(self.lora(model), "float32"))
        use, spread = self.use(model, key=chain.ADAPTER), self.spread(model, section, memory)
        peak, cache = max(own.peak, self.teacher_pass(section)), self.teacher_logits(section)
        return Forecast(size, peak, use, predict.resume_point(own), own.to_json(), spread, cache)

    def spread(
        self, model: shapes.Model, section: TrainSection, memory: Callable[[int], predict.Memory]
    ) -> dict[int, dict[str, float | None]] | None:
        """A training on 1, 2, 4, 8 devices, where the recipe says anything of its resources."""
        resources = self.recipe.resources
        if resources.devices == 1 and resources.tflops is None:
            return None
        counts = sorted({*DEVICES, resources.devices})
        operations = self.operations(model, section)
        rate = resources.tflops * 1e12 if resources.tflops else None
        return {
            count: {
                **memory(count).to_json(),
                "hours": flops.hours(operations, rate, count) if operations and rate else None,
            }
            for count in counts
        }

    def operations(self, model: shapes.Model, section: TrainSection) -> float | None:
        """Of a whole training; None where it is not known how many clips there will be."""
        manifest = RunLayout(self.recipe.directory).manifest("train")
        clips = read(manifest) if manifest.is_file() else []
        seconds = statistics.mean(clip.seconds or self.seconds for clip in clips) if clips else self.seconds
        count = len(clips) * section.epochs
        mix = getattr(section, "mix", None)
        if mix:
            count = (len(clips) * (mix.authentic + mix.pseudo) * mix.oversample + mix.extra) * section.epochs
        if section.max_steps is not None:
            most = section.max_steps * section.batch_size
            count = min(count, most) if clips else most
        adapter = isinstance(section, QloraSection)
        of_clip = flops.of_clip(
            model, seconds, checkpointing=section.gradient_checkpointing, frozen=section.freeze, adapter=adapter
        )
        return of_clip * count or None

    def lora(self, model: shapes.Model) -> tuple[shapes.Shape, ...]:
        section = self.recipe.qlora
        assert section
        return shapes.lora(model, section.rank, decoder_only=section.scope == "decoder")

    def qat(self, section: QatSection) -> Forecast:
        """As training all weights, the encoder too where it is healed, and the rounded ones beside."""
        model = self.model(chain.QAT)
        whole = dataclasses.replace(section, freeze=()) if section.match else section
        trained = self.full(model, model, whole)
        rounded = 4 * model.parameters
        return dataclasses.replace(
            trained,
            size=self.in_format(model, section.format, section),
            memory=(trained.memory or 0) + rounded,
            use=self.use(model, key=chain.QAT),
            parts={**(trained.parts or {}), "rounded": rounded},
        )

    def export(self) -> Forecast:
        assert self.recipe.export
        model = self.model(chain.EXPORTS.key)
        formats = [str(name) for name in self.recipe.export.formats]
        if chain.exports_qat(self.recipe):
            return Forecast(self.in_format(model, formats[0], self.recipe.qat), use=self.use(model, key=formats[0]))
        if any(LAYOUT_OF.get(name, name) not in (*tables.TITLES, MIXED) for name in formats):
            return Forecast()
        size = sum(self.in_format(model, name) for name in formats)
        made = [self.making(model, name) for name in formats]
        uses = [self.use(model, key=name) for name in formats]
        return Forecast(size, max(made, default=None), max(uses, default=None))

    def making(self, model: shapes.Model, name: str) -> int:
        if name == MIXED:
            loaded = predict.weights_bytes(model, width=self.width)  # to measure what its parts are worth
            return loaded + max(loaded // 4, RANK_BATCH_BYTES)
        made = predict.exporting(model, name, width=self.width)
        if name in gguf.FORMATS:
            made += max(tensor.bytes for tensor in tables.stored(model.tensors, name).values())
        return made

    def in_format(self, model: shapes.Model, name: str, section: QatSection | None = None) -> int:
        """Bytes on disk; of a mixture its budget: bits are spent until it is full, or nothing is left to round."""
        if name != MIXED:
            return self.disk(model, LAYOUT_OF.get(name, name))
        budgeted = section or self.recipe.export
        assert budgeted
        limit = budget_bytes(self.base, budgeted.budget_gb, budgeted.budget_ratio)
        return min(limit + self.beside, self.disk(model))

    def quantized(self, key: str) -> bool:
        """Whether a system is held in nf4 while translating."""
        if key == chain.ADAPTER:
            return self.recipe.qlora is not None and self.recipe.qlora.quantize == "nf4"
        if key == chain.QAT:
            return self.recipe.qat is not None and self.recipe.qat.format == "nf4"
        return key == "nf4"

    def disk(self, model: shapes.Model, layout: str = "bf16") -> int:
        return tables.disk_bytes(tables.stored(model.tensors, layout)) + self.beside

    def use(
        self,
        model: shapes.Model,
        clips: int | None = None,
        new_tokens: int | None = None,
        key: str = chain.BASE,
    ) -> int:
        section = self.recipe.translate
        clips = clips or (section.batch_size if section else 16)
        new_tokens = new_tokens or (section.max_new_tokens if section else 256)
        batch = predict.Batch(clips, self.seconds)
        quantized = self.quantized(key)
        peak = predict.translating(model, batch, new_tokens, width=self.width, quantized=quantized).peak
        if key in gguf.FORMATS:
            peak += predict.hybrid_bytes(model, key, width=self.width) - self.width * model.parameters
        if key == chain.ADAPTER and self.recipe.qlora:
            peak += 4 * shapes.count(self.lora(model))
        return peak

    def batch(self, section: TrainSection, devices: int = 1) -> predict.Batch:
        """Of one device, one clip at least."""
        return predict.Batch(
            max(1, section.batch_size // section.accumulate // devices), self.seconds, learns_logits(section)
        )

    def teacher_pass(self, section: TrainSection) -> int:
        """Memory in which the teacher reads the pairs, before the student is loaded; 0 where it does not."""
        return self.use(self.base, TEACHER_BATCH, 1) if learns_logits(section) else 0

    def teacher_logits(self, section: TrainSection) -> int | None:
        """Bytes of the teacher's probabilities of the mix; None where there are none, or no clips are known yet."""
        layout = RunLayout(self.recipe.directory)
        if not isinstance(section, LEARNING) or not learns_logits(section):
            return None
        if not layout.manifest("train").is_file():
            return None
        seconds = self.speech(layout.manifest("train")) * section.mix.authentic
        if section.mix.pseudo:
            labelled = layout.pseudo_manifest.is_file()
            seconds += self.speech(layout.pseudo_manifest if labelled else layout.manifest("train"))
        if section.mix.extra and layout.manifest("extra").is_file():
            seconds += self.speech(layout.manifest("extra"), section.mix.extra)
        top = min(section.logits.top, self.base.dims["V"])
        return round(seconds * predict.ANSWER_TOKENS_A_SECOND) * predict.position_bytes(top)

    def speech(self, file: Path, most: int | None = None) -> float:
        """Seconds of a manifest's clips; of `most` of them, their share."""
        clips = read(file)
        seconds = sum(clip.seconds or self.seconds for clip in clips)
        return seconds if most is None else seconds * min(1.0, most / len(clips))

    def precision(self, section: TrainSection) -> predict.Precision:
        if section.precision != "auto":
            return section.precision
        return "float32" if self.cpu else "bfloat16-mixed"


def learns_logits(section: TrainSection) -> bool:
    return isinstance(section, LEARNING) and section.logits.weight > 0


def _layers_after_pruning(recipe: Recipe, base: shapes.Model) -> dict[str, int]:
    """Layers that stay. Where a ranking may take them from either stack, the smaller encoder layers go."""
    decoder, encoder = base.dims["decoder_layers"], base.dims["encoder_layers"]
    if recipe.prune and recipe.rank:
        layers = [parse_layer(text) for text in recipe.rank.layers]
        count = recipe.prune.remove or (len(layers) if recipe.rank.method == "explicit" else recipe.rank.remove)
        if recipe.rank.method == "explicit":
            decoder -= sum(layer.scope == "decoder" for layer in layers[:count])
            encoder -= sum(layer.scope == "encoder" for layer in layers[:count])
        elif recipe.rank.scope == "decoder":
            decoder -= count
        else:
            encoder -= min(count, encoder)
    return {"decoder_layers": max(decoder, 0), "encoder_layers": max(encoder, 0)}


def _beside(model: str) -> int:
    """Bytes of a local model's other files (processor, tokenizer, config), which every checkpoint carries too."""
    if not Path(model).is_dir():
        return 0
    return sum(f.stat().st_size for f in Path(model).iterdir() if f.is_file() and f.suffix not in WEIGHTS)
