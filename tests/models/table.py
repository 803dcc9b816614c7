"""The tables of families in README.md and docs/families.md: facts from here, ticks from what tests/models tried.

python -m tests.models.table     # a minute; writes them between their markers
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sordino.models import registry, shapes
from tests.models.capabilities import CAPABILITIES, works
from tests.tiny import DECODER_LAYERS, ENCODER_LAYERS

ROOT = Path(__file__).parents[2]
CONFIGS = Path(__file__).parent / "configs"
PAGES = ("README.md", "docs/families.md")
BEGIN, END = "<!-- families: written by `python -m tests.models.table` -->", "<!-- end of families -->"
Ticks = Mapping[str, Mapping[str, bool]]  # family -> column -> whether it works


@dataclass(frozen=True)
class Facts:
    """configs: published Hub id -> file of tests/models/configs, the example first. more: further Hub ids."""

    title: str
    configs: Mapping[str, str]
    languages: str
    licence: str
    engines: str
    more: tuple[str, ...] = ()
    note: str = ""


LLAMA_RUN = "transformers; llama.cpp through `sordino translate` (tiny models, run); vLLM by reading"
FACTS = {
    "qwen2_audio": Facts(
        "Qwen2-Audio",
        {"Qwen/Qwen2-Audio-7B-Instruct": "qwen2_audio_7b"},
        "English, Chinese and six more",
        "Apache-2.0",
        LLAMA_RUN.replace("by reading", "(w4a16 on a CPU, bulk translation from embeddings: tiny models)"),
        ("Qwen/Qwen2-Audio-7B",),
    ),
    "voxtral": Facts(
        "Voxtral",
        {"mistralai/Voxtral-Mini-3B-2507": "voxtral_mini_3b"},
        "English, French, German, Spanish, Italian, Portuguese, Dutch, Hindi",
        "Apache-2.0",
        LLAMA_RUN,
        ("mistralai/Voxtral-Small-24B-2507",),
    ),
    "gemma4_unified": Facts(
        "Gemma 4, without encoder",
        {"google/gemma-4-12B-it": "gemma4_12b"},
        "140 and more (by its card)",
        "Apache-2.0",
        LLAMA_RUN,
        ("google/gemma-4-12B",),
    ),
    "gemma4": Facts(
        "Gemma 4 E2B, E4B",
        {"google/gemma-4-E2B-it": "gemma4_e2b", "google/gemma-4-E4B-it": "gemma4_e4b"},
        "140 and more (by its card)",
        "Apache-2.0",
        "transformers; vLLM by reading",
    ),
    "granite_speech": Facts(
        "Granite Speech",
        {
            "ibm-granite/granite-speech-4.1-2b": "granite_speech_4.1_2b",
            "ibm-granite/granite-speech-3.3-2b": "granite_speech_3.3_2b",
        },
        "English from and to French, German, Spanish, Portuguese, Japanese; 3.3 into Chinese too",
        "Apache-2.0",
        LLAMA_RUN,
        ("ibm-granite/granite-4.0-1b-speech",),
    ),
    "qwen2_5_omni": Facts(
        "Qwen2.5-Omni, its thinker",
        {"Qwen/Qwen2.5-Omni-7B": "qwen2_5_omni_7b"},
        "English, Chinese and more",
        "Apache-2.0; the 3B for research only",
        LLAMA_RUN,
        ("Qwen/Qwen2.5-Omni-3B",),
    ),
    "phi4_multimodal": Facts(
        "Phi-4-multimodal",
        {"microsoft/Phi-4-multimodal-instruct": "phi4_multimodal"},
        "English, Chinese, German, French, Italian, Japanese, Spanish, Portuguese",
        "MIT",
        "transformers",
    ),
    "audioflamingo3": Facts(
        "Audio Flamingo 3",
        {"nvidia/audio-flamingo-3-hf": "audioflamingo3_8b"},
        "English (by its card; translates what it is fine-tuned for)",
        "NVIDIA OneWay Noncommercial",
        LLAMA_RUN,
        note="not for commercial use",
    ),
    "qwen3_asr": Facts(
        "Qwen3-ASR",
        {"Qwen/Qwen3-ASR-1.7B-hf": "qwen3_asr_1.7b", "Qwen/Qwen3-ASR-0.6B-hf": "qwen3_asr_0.6b"},
        "recognises 52; translates what it is fine-tuned for",
        "Apache-2.0",
        LLAMA_RUN,
    ),
}


def attempt(directory: Path) -> Ticks:
    """Every capability of every family, tried on a tiny model that is made in the directory."""
    ticks: dict[str, dict[str, bool]] = {}
    for family in registry.FAMILIES:
        source = directory / family / "model"
        registry.get(family).tiny(str(source), DECODER_LAYERS, ENCODER_LAYERS, 1)
        ticks[family] = {c.column: works(c, source, directory / family / c.column) for c in CAPABILITIES}
    return ticks


def size(file: str) -> str:
    """Parameters and layers by a published configuration."""
    model = shapes.model(json.loads((CONFIGS / f"{file}.json").read_text(encoding="utf-8")))
    counts = [
        f"{model.dims[f'{scope}_layers']} {scope}" for scope in ("decoder", "encoder") if scope in model.family.stacks
    ]
    return f"{model.parameters / 1e9:.2f} B, {' and '.join(counts)} layers"


def memory() -> dict[str, str]:
    """Hub id -> GB to fine-tune, to rank and to run in nf4, by docs/hardware.md."""
    rows = re.findall(r"^\| `([^`]+)` \| [\d.]+ B \| (.*) \|$", (ROOT / "docs/hardware.md").read_text("utf-8"), re.M)
    cells = {model: [cell.split(" (")[0] for cell in row.split(" | ")] for model, row in rows}
    return {model: f"{row[0]}, {row[1]}, {row[-1]}" for model, row in cells.items()}


def tick(works: bool) -> str:
    return "✓" if works else "–"


def table(page: str, ticks: Ticks) -> str:
    """The rows of one page, in the order of FACTS."""
    columns = [capability.column for capability in CAPABILITIES]
    if page == "README.md":
        before, after = ["family", "for example"], ["GB to fine-tune, rank, run in nf4"]
    else:
        before, after = ["family", "Hub ids", "size", "languages", "licence"], ["engines that take the pruned files"]
    lines = [[*before, *columns, *after], ["---"] * (len(before) + len(columns) + len(after))]
    predicted = memory()
    for family, facts in FACTS.items():
        own = [tick(ticks[family][column]) for column in columns]
        example = next(iter(facts.configs))
        if page == "README.md":
            named = f"`{example}`" + f", {facts.note}" * bool(facts.note)
            lines.append([facts.title, named, *own, predicted.get(example, "")])
        else:
            sizes = "; ".join(size(file) for file in facts.configs.values())
            ids = ", ".join([*facts.configs, *facts.more])
            lines.append([f"`{family}`", ids, sizes, facts.languages, facts.licence, *own, facts.engines])
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def block(text: str) -> str:
    """What stands between the markers of a page. Raises ValueError where they are not there once."""
    inside = re.findall(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", text, re.S)
    if len(inside) != 1:
        raise ValueError(f"{len(inside)} places for the table of families")
    return str(inside[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        ticks = attempt(Path(directory))
    for page in PAGES:
        file = ROOT / page
        text = file.read_text(encoding="utf-8")
        marked = f"{BEGIN}\n{block(text)}\n{END}"
        file.write_text(text.replace(marked, f"{BEGIN}\n{table(page, ticks)}\n{END}"), encoding="utf-8")


if __name__ == "__main__":
    main()
