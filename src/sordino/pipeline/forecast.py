"""What every stage of a recipe will write and how much memory it takes, from the model's config alone.

Nothing is loaded. What a stage trains on is not known before it runs, so that the longest clip is taken:
data.max_seconds, else the model's window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config.schema import Recipe, TrainSection
from sordino.layouts import gguf, tables
from sordino.measure import predict
from sordino.measure.inefficiencies import WEIGHTS
from sordino.measure.size import read_json
from sordino.models import devices, registry, shapes
from sordino.pipeline import token_selection
from sordino.pipeline.job import export_source, qlora_start, systems, teacher_key, trim_source
from sordino.pruning import search

RANK_BATCH_BYTES = 96 * 2**20  # rank.memory_mb's default is a quarter of the model, but not less
QUANTISED = ("adapter", "nf4")  # systems that are held in nf4 while translating
LAYOUT_OF = {"w4a16-gptq": "w4a16"}  # formats that are stored as another one is


@dataclass(frozen=True)
class Forecast:
    """Bytes. size: of the artefact, None where only texts and scores are written; memory: at the peak of the stage;
    use: at the peak when the artefact translates; resume: of one resume point, two of which may lie on disk."""

    size: int | None = None
    memory: int | None = None
    use: int | None = None
    resume: int | None = None
    parts: Mapping[str, int] | None = None  # of memory: weights, gradients, moments, activations, step

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps."""
        return {k: getattr(self, k) for k in ("size", "memory", "use", "resume", "parts")}


def config_of(recipe: Recipe, file: Path | None = None) -> dict[str, Any] | None:
    """The base model's config.json: a given file, the model's directory, or the local Hub cache; None without any."""
    if file is not None:
        return read_json(file, required=True)
    if not registry.is_hub_id(recipe.model):
        return registry.read_config(recipe.model) if Path(recipe.model).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(recipe.model, "config.json", revision=recipe.revision)
    return read_json(Path(found), required=True) if isinstance(found, str) else None


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


class _Stages:
    """A recipe's models by key, with the shapes that each will have."""

    def __init__(self, recipe: Recipe, config: Mapping[str, Any], device: str) -> None:
        self.recipe = recipe
        device = devices.default_device().type if device == "auto" else device
        self.cpu = device == "cpu"
        wide = recipe.dtype == "float32" or (recipe.dtype == "auto" and self.cpu)
        self.width = 4 if wide else 2  # bytes a weight outside training
        self.base = shapes.model(config)
        left = _left(recipe, self.base)
        self.pruned = shapes.model(config, **left)
        self.trimmed = self.pruned
        if recipe.trim:
            of = self.model(trim_source(recipe)).dims
            rows = min(token_selection.rows_left(recipe) or of["V"], of["V"])
            left = {name: of[name] for name in left}
            self.trimmed = shapes.model(config, **left, vocabulary=rows)
        self.first_removed = shapes.model(config, decoder_layers=self.base.dims["decoder_layers"] - 1)
        self.beside = _beside(recipe.model)
        seconds = (recipe.data.max_seconds if recipe.data else None) or self.base.window_seconds
        self.seconds = min(seconds, self.base.window_seconds)

    def model(self, key: str) -> shapes.Model:
        if key in ("base", "teacher"):
            return self.base
        if key in ("pruned", "student"):
            return self.pruned
        if key in ("adapter", "merged"):
            return self.model(qlora_start(self.recipe))
        if key == "trimmed":
            return self.trimmed
        return self.model(export_source(self.recipe))

    def all(self) -> dict[str, Forecast]:
        recipe = self.recipe
        found: dict[str, Forecast] = {}
        if recipe.finetune:
            found["finetune"] = self.full(self.base, self.base, recipe.finetune)
        if recipe.rank:
            weights = predict.weights_bytes(self.model(teacher_key(recipe)), width=self.width)
            room = recipe.rank.memory_mb * 2**20 if recipe.rank.memory_mb else max(weights // 4, RANK_BATCH_BYTES)
            found["rank"] = Forecast(memory=weights + room)
        if recipe.prune:
            made = predict.exporting(self.pruned, "bf16")
            found["prune"] = Forecast(self.disk(self.pruned), made, self.use(self.pruned))
        if recipe.pseudolabel:
            section = recipe.pseudolabel
            found["pseudolabel"] = Forecast(memory=self.use(self.base, section.batch_size, section.max_new_tokens))
        if recipe.distil:
            start = self.pruned if recipe.distil.heal == "once" else self.first_removed
            found["distil"] = self.full(start, self.pruned, recipe.distil)
        if recipe.qlora:
            found["qlora"] = self.qlora()
        if recipe.merge:
            model = self.model("merged")
            found["merge"] = Forecast(self.disk(model), 4 * model.parameters, self.use(model))
        if recipe.trim:
            found["trim"] = Forecast(self.disk(self.trimmed), use=self.use(self.trimmed))
        if recipe.export:
            found["export"] = self.export()
        if recipe.translate:
            keys = recipe.translate.systems or tuple(systems(recipe))
            uses = [self.use(self.model(key), key=key) for key in keys]
            found["translate"] = Forecast(memory=max(uses, default=None))
        return found

    def full(self, start: shapes.Model, end: shapes.Model, section: TrainSection) -> Forecast:
        memory = predict.full_training(
            start,
            self.batch(section),
            self.precision(section),
            checkpointing=section.gradient_checkpointing,
            frozen=section.freeze,
        )
        resume = predict.resume_point(memory)
        return Forecast(self.disk(end), memory.peak, self.use(end), resume, memory.to_json())

    def qlora(self) -> Forecast:
        section = self.recipe.qlora
        assert section
        model = self.model("adapter")
        adapter = predict.Adapter(section.rank, section.scope == "decoder", section.quantize == "nf4")
        memory = predict.adapter_training(
            model,
            self.batch(section),
            self.precision(section),
            adapter,
            width=self.width,
            checkpointing=section.gradient_checkpointing,
        )
        size = tables.safetensors_bytes(tables.stored(self.lora(model), "float32"))
        use = self.use(model, key="adapter")
        return Forecast(size, memory.peak, use, predict.resume_point(memory), memory.to_json())

    def lora(self, model: shapes.Model) -> tuple[shapes.Shape, ...]:
        section = self.recipe.qlora
        assert section
        return shapes.lora(model, section.rank, decoder_only=section.scope == "decoder")

    def export(self) -> Forecast:
        assert self.recipe.export
        model = self.model(export_source(self.recipe))
        formats = [str(name) for name in self.recipe.export.formats]
        layout = {name: LAYOUT_OF.get(name, name) for name in formats}
        if any(name not in (*tables.TITLES, "mixed") for name in layout.values()):
            return Forecast()
        size = sum(self.mixed(model) if name == "mixed" else self.disk(model, layout[name]) for name in formats)
        made = [self.making(model, name) for name in formats]
        uses = [self.use(model, key=name) for name in formats]
        return Forecast(size, max(made, default=None), max(uses, default=None))

    def making(self, model: shapes.Model, name: str) -> int:
        if name == "mixed":
            loaded = predict.weights_bytes(model, width=self.width)  # to measure what its parts are worth
            return loaded + max(loaded // 4, RANK_BATCH_BYTES)
        made = predict.exporting(model, name, width=self.width)
        if name in gguf.FORMATS:
            made += max(tensor.bytes for tensor in tables.stored(model.tensors, name).values())
        return made

    def mixed(self, model: shapes.Model) -> int:
        """The budget: bits are spent until it is full, or nothing is left to spend them on."""
        section = self.recipe.export
        assert section
        limit = budget_bytes(self.base, section.budget_gb, section.budget_ratio)
        return min(limit + self.beside, self.disk(model))

    def quantized(self, key: str) -> bool:
        if key == "adapter":
            return self.recipe.qlora is not None and self.recipe.qlora.quantize == "nf4"
        return key in QUANTISED

    def disk(self, model: shapes.Model, layout: str = "bf16") -> int:
        return tables.disk_bytes(tables.stored(model.tensors, layout)) + self.beside

    def use(
        self,
        model: shapes.Model,
        clips: int | None = None,
        new_tokens: int | None = None,
        key: str = "base",
    ) -> int:
        section = self.recipe.translate
        clips = clips or (section.batch_size if section else 16)
        new_tokens = new_tokens or (section.max_new_tokens if section else 256)
        batch = predict.Batch(clips, self.seconds)
        quantized = self.quantized(key)
        peak = predict.translating(model, batch, new_tokens, width=self.width, quantized=quantized).peak
        if key in gguf.FORMATS:
            peak += predict.hybrid_bytes(model, key, width=self.width) - self.width * model.parameters
        if key == "adapter" and self.recipe.qlora:
            peak += 4 * shapes.count(self.lora(model))
        return peak

    def batch(self, section: TrainSection) -> predict.Batch:
        return predict.Batch(section.batch_size // section.accumulate, self.seconds)

    def precision(self, section: TrainSection) -> predict.Precision:
        if section.precision != "auto":
            return section.precision
        return "float32" if self.cpu else "bfloat16-mixed"


def _left(recipe: Recipe, base: shapes.Model) -> dict[str, int]:
    """Layers left after pruning. Where a ranking may take them from either stack, the smaller encoder layers go."""
    decoder, encoder = base.dims["decoder_layers"], base.dims["encoder_layers"]
    if recipe.prune and recipe.rank:
        layers = [search.parse_layer(text) for text in recipe.rank.layers]
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
