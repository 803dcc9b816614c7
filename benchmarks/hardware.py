"""docs/hardware.md: which GPU holds which model in which stage, as `sordino plan` predicts it from configurations.

    python benchmarks/hardware.py > docs/hardware.md

Nothing is loaded and no GPU is needed. The configurations are those that tests/models/configs holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import recipe
from sordino.config.schema import Recipe
from sordino.models import shapes
from sordino.pipeline.forecast import Forecast, forecast

CONFIGS = Path(__file__).parents[1] / "tests" / "models" / "configs"
# Hub id -> file of CONFIGS, smallest first
MODELS = {
    "Qwen/Qwen3-ASR-0.6B-hf": "qwen3_asr_0.6b",
    "Qwen/Qwen3-ASR-1.7B-hf": "qwen3_asr_1.7b",
    "ibm-granite/granite-speech-4.1-2b": "granite_speech_4.1_2b",
    "mistralai/Voxtral-Mini-3B-2507": "voxtral_mini_3b",
    "microsoft/Phi-4-multimodal-instruct": "phi4_multimodal",
    "Qwen/Qwen2-Audio-7B-Instruct": "qwen2_audio_7b",
    "nvidia/audio-flamingo-3-hf": "audioflamingo3_8b",
    "Qwen/Qwen2.5-Omni-7B": "qwen2_5_omni_7b",
    "google/gemma-4-12B-it": "gemma4_12b",
}
GPUS = (8, 12, 16, 24, 32, 48, 80, 96, 141)  # GiB of the cards there are
CONTEXT = 0.5e9  # bytes of a CUDA context
FRAGMENTATION = 1.1  # of the allocator
SECONDS = 30  # of the longest clip
REMOVED = 4  # a quarter of the decoder's layers is pruned
TRAINED = {"precision": "bfloat16", "gradient_checkpointing": True, "batch_size": 8, "accumulate": 8}
STAGES = ("finetune", "rank", "distil", "qlora", "translate")


@dataclass(frozen=True)
class Row:
    """model: Hub id; stages: by name."""

    model: str
    parameters: int
    stages: Mapping[str, Forecast]
    nf4: Forecast  # of translating with the export in 4 bits


def recipe_of(model: str, layers: int, **changes: Any) -> Recipe:
    """The chain as the table has it. layers: of the unpruned decoder."""
    raw: dict[str, Any] = {
        "name": "hardware",
        "model": model,
        "data": {"path": ".", "max_seconds": SECONDS},
        "finetune": TRAINED,
        "rank": {"remove": max(1, layers // REMOVED), "protect_first": 0, "protect_last": 0},
        "prune": {},
        "pseudolabel": {},
        "distil": TRAINED,
        "qlora": {"gradient_checkpointing": True, "batch_size": 8, "accumulate": 8},
        "merge": {},
        "export": {"formats": ["nf4"]},
        "translate": {"batch_size": 1},
    }
    return recipe.parse(raw | changes, [], "benchmarks/hardware.py")


def row_of(model: str, file: str) -> Row:
    config = json.loads((CONFIGS / f"{file}.json").read_text(encoding="utf-8"))
    unpruned = shapes.model(config)
    layers = unpruned.dims["decoder_layers"]
    stages = forecast(recipe_of(model, layers), config, "cuda")
    small = recipe_of(model, layers, translate={"batch_size": 1, "systems": ["nf4"]})
    return Row(model, unpruned.parameters, stages, forecast(small, config, "cuda")["translate"])


def gpu(memory: float) -> str:
    """The smallest that holds so many bytes with a context and what fragmentation costs."""
    needed = memory * FRAGMENTATION + CONTEXT
    return next((f"{size} GB" for size in GPUS if needed <= size * 2**30), "none of these")


def cell(memory: int | None) -> str:
    return "–" if memory is None else f"{memory / 1e9:.1f} ({gpu(memory)})"


def table(rows: list[Row]) -> list[str]:
    lines = [f"| model | parameters | {' | '.join(STAGES)} | translate, nf4 |", f"|---|{'---|' * (len(STAGES) + 2)}"]
    for row in rows:
        cells = [cell(row.stages[stage].memory) for stage in STAGES] + [cell(row.nf4.memory)]
        lines.append(f"| `{row.model}` | {row.parameters / 1e9:.2f} B | {' | '.join(cells)} |")
    return lines


def disk(rows: list[Row]) -> list[str]:
    lines = ["| model | teacher | student | nf4 export | one resume point |", "|---|---|---|---|---|"]
    for row in rows:
        sizes = [row.stages[stage].size for stage in ("finetune", "distil", "export")]
        sizes.append(row.stages["finetune"].resume)
        lines.append(f"| `{row.model}` | {' | '.join('–' if s is None else f'{s / 1e9:.1f}' for s in sizes)} |")
    return lines


PAGE = """# Which GPU for which model and stage

Written by `python benchmarks/hardware.py > docs/hardware.md` from the published configurations and the formulas of
`sordino plan --formulas`. **The figures are predicted.** On an H100 a full fine-tuning of 7.8 B weights took 57 GB
where 47 were predicted; the optimizer has been mended since, not measured again ([log.md](log.md)). On tiny models on a
CPU what trainings keep for their backward pass is 4 to 10 % more than predicted (docs/sizes.md).

Peak memory in GB (10⁹ bytes), and in brackets the smallest card that holds it: a card's GiB against the prediction,
{percent} % for fragmentation and {context} GB for CUDA's context.

{table}

The stages as the table has them, each with clips of {seconds} s (or the model's window, if that is shorter):

- `finetune` and `distil`: all weights, in bfloat16 with gradient checkpointing, one clip at a time (`batch_size: 8`,
  `accumulate: 8`). The default precision on a GPU, bfloat16 autocast of 32-bit weights, takes 16 bytes a weight, not 8.
  `freeze: [encoder]` takes less, and `sordino plan` says how much. `distil` trains a decoder without a quarter of its
  layers.
- `rank`: the model in 16 bits, and a quarter of it for batches (`rank.memory_mb`;
  where that is unset, a GPU gives half of its free memory).
- `qlora`: rank 64 on the student in 4 bits, gradient checkpointing, one clip at a time.
- `translate`: the largest model of the chain in 16 bits, one clip at a time, {tokens} new tokens; in the last column
  the export in 4 bits.

`prune`, `merge`, `trim` and most exports go from file to file and need no GPU: nf4 takes {export} GB of memory at the
most here. `pseudolabel` takes what `translate` takes, at a batch size of its own.

For a recipe of your own: `sordino plan RECIPE --config config.json --predict-for cuda`. On a CPU the default type is
float32, with twice the bytes, and Python with its libraries takes 0.8 GB more.

Files in GB (10⁹ bytes). A training keeps two resume points until it is done:

{disk}
"""


def main() -> None:
    rows = [row_of(*model) for model in MODELS.items()]
    tokens = recipe_of("m", 4).translate
    assert tokens
    print(
        PAGE.format(
            percent=round(100 * (FRAGMENTATION - 1)),
            context=CONTEXT / 1e9,
            table="\n".join(table(rows)),
            seconds=SECONDS,
            tokens=tokens.max_new_tokens,
            export=f"{max(row.stages['export'].memory or 0 for row in rows) / 1e9:.1f}",
            disk="\n".join(disk(rows)),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
