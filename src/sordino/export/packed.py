"""compressed-tensors checkpoints of any mixture of widths: named weights in 2, 3, 4 or 8 bits, the rest in bfloat16.

Written weight by weight, so that no model is ever held. What is packed is told to the consumer by regular expressions
over module names. The names in a file are not those of the live modules (`language_model.model.layers` is
`model.language_model.layers` in transformers and `language_model.model.layers` in vLLM), which is why the expressions
leave the word `model` open; before anything is written, they are tried on the model's empty skeleton, and must find
exactly the modules that were meant.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sordino.compress.rounding import Rounded, Scheme, quantise
from sordino.errors import FamilyError
from sordino.families import registry
from sordino.measure import layouts
from sordino.measure.size import is_tied, part_of
from sordino.progress import bar
from sordino.shards.reading import Checkpoint
from sordino.shards.writing import FLOATING, Planned, Writer

LOADS_WITH = "transformers with compressed-tensors: from_pretrained(path); decompressed to 16 bits on loading"
Rounder = Callable[[str, Tensor, Scheme], Rounded]
PACKED, BYTES = "pack-quantized", "int-quantized"  # compressed-tensors' names: dense words; a byte for every integer
LAYERS = re.compile(r"^(.*\.layers)\.(\d+)\.(.*)$")


def round_to_nearest(name: str, weight: Tensor, scheme: Scheme) -> Rounded:
    return quantise(weight, scheme)


def write(
    source: str,
    directory: Path,
    bits: Mapping[str, int],
    *,
    group: int = layouts.PACKED_GROUPS[0],
    rounder: Rounder = round_to_nearest,
) -> None:
    """Write a 16- or 32-bit model directory with `bits` a weight, by the weights' names in its files; 16 keeps one.

    group: columns that share a scale, at most. rounder: (name, weight, scheme) -> the weight, rounded.
    Raises FamilyError for a source that is quantised, names that it lacks, weights that cannot be packed or are not
    finite; ArtifactError for damaged files and a full disk.
    """
    config = registry.read_config(source)
    if "quantization_config" in config:
        raise FamilyError(f"{source} is quantised already.", "Quantise the 16-bit model it was made from.")
    stored = Checkpoint.open(Path(source))
    if is_tied(config) and any(is_embedding(name) for name in bits):
        raise FamilyError(
            f"{source} ties its head to its embedding, and a packed embedding cannot be tied.",
            "Keep the embedding in 16 bits.",
        )
    config |= {"dtype": "bfloat16", "tie_word_embeddings": is_tied(config)}
    if "text_config" in config:
        config["text_config"] |= {"tie_word_embeddings": is_tied(config), "dtype": "bfloat16"}
    shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
    schemes = schemes_of(shapes, bits, group)
    config["quantization_config"] = quantization_config(shapes, schemes)
    check_targets(config, schemes)
    planned: dict[str, Planned] = {}
    for name, tensor in stored.tensors.items():
        if name in schemes:
            found = layouts.quantised(name, tensor.shape, schemes[name].bits, schemes[name].group)
            planned |= {each: Planned(t.dtype, t.shape) for each, t in found.items()}
        else:
            planned[name] = Planned("BF16" if tensor.dtype in FLOATING else tensor.dtype, tensor.shape)
    with Writer(directory, planned) as out, bar("packing weights", len(stored.tensors)) as advance:
        for name in stored.tensors:
            if name in schemes:
                try:
                    rounded = rounder(name, stored.read(name), schemes[name])
                except ValueError as error:
                    raise FamilyError(f"{name} in {source} cannot be rounded: {error}.", "Train it again.") from error
                for suffix, data in rounded.tensors(packed=not is_embedding(name)).items():
                    out.write(f"{name.removesuffix('weight')}{suffix}", data)
            else:
                out.copy(name, stored, name)
            advance(1)
    registry.load_processor(registry.get(config["model_type"]), source).save_pretrained(str(directory))
    generation = Path(source) / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def schemes_of(shapes: Mapping[str, tuple[int, ...]], bits: Mapping[str, int], group: int) -> dict[str, Scheme]:
    """Name -> how it is packed. Raises FamilyError for names that the model lacks and weights that are no matrices."""
    found = {}
    for name, width in bits.items():
        if name not in shapes:
            raise FamilyError(f"the model has no weight '{name}' to pack.", "Name weights as its files do.")
        if width == 16:
            continue
        if len(shapes[name]) != 2 or not name.endswith(".weight") or name.endswith("embed_positions.weight"):
            raise FamilyError(
                f"'{name}' is not the weight of a linear layer or of an embedding.", "Keep it in 16 bits."
            )
        found[name] = Scheme(width, layouts.group_for(shapes[name][1], group))
    return found


def quantization_config(shapes: Mapping[str, tuple[int, ...]], schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """What config.json says of a checkpoint with these packed weights.

    Every matrix that is not packed is on the list of what is ignored: vLLM refuses layers it finds on neither.
    """
    groups: dict[tuple[str, Scheme], list[str]] = defaultdict(list)
    for name, scheme in schemes.items():
        groups[BYTES if is_embedding(name) else PACKED, scheme].append(name)
    formats = {stored for stored, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": PACKED if formats == {PACKED} else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": patterns(name for name, shape in shapes.items() if len(shape) == 2 and name not in schemes),
        "config_groups": {
            f"group_{i}": {
                "targets": patterns(groups[stored, scheme]),
                "format": stored,
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": scheme.bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": scheme.group,
                    "dynamic": False,
                    "actorder": None,
                    "observer": "minmax",
                },
            }
            for i, (stored, scheme) in enumerate(sorted(groups, key=lambda g: (g[0], g[1].bits, g[1].group)))
        },
    }


def patterns(names: Iterable[str]) -> list[str]:
    """Names of weights -> expressions ("re:...") that match the modules' names, in the file and alive, and no others.

    Layers of the same kind share one: re:.*language_model\\.(?:model\\.)?layers\\.(?:0|2)\\.(?:mlp\\.up_proj)$
    """
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)  # (before, after) -> numbers
    found = []
    for name in sorted(names):
        module = name.removesuffix(".weight")
        if layer := LAYERS.match(module):
            layers[layer[1], layer[3]].append(layer[2])
        else:
            found.append(f"re:.*{_open(module)}$")
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (before, after), numbers in layers.items():
        alike[before, tuple(sorted(numbers, key=int))].append(after)
    for (before, those), afters in alike.items():
        kinds = "|".join(re.escape(after) for after in sorted(afters))
        found.append(f"re:.*{_open(before)}\\.(?:{'|'.join(those)})\\.(?:{kinds})$")
    return found


def is_embedding(name: str) -> bool:
    return part_of(name) == "embedding"


def _plain(module: str) -> str:
    """A module's name in the file or alive -> one that is the same for both."""
    parts = [part for part in module.split(".") if part != "model"]
    return "lm_head" if parts[-1] == "lm_head" else ".".join(parts)


def _open(module: str) -> str:
    return r"\.(?:model\.)?".join(re.escape(part) for part in _plain(module).split("."))


def check_targets(config: Mapping[str, Any], schemes: Mapping[str, Scheme]) -> None:
    """Raise FamilyError unless transformers would unpack exactly the weights that are packed, and as they are."""
    import transformers
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_named_modules, match_targets

    family = registry.get(str(config.get("model_type")))
    settings = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "quantization_config"})
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, family.model_class)(settings)
    told = QuantizationConfig.model_validate(config["quantization_config"])
    by_target = {target: group.weights for group in told.config_groups.values() for target in group.targets}
    found = {}
    for name, module in match_named_modules(model, by_target, told.ignore):
        weights = by_target[match_targets(name, module, by_target)[0]]
        found[_plain(name)] = Scheme(weights.num_bits, weights.group_size)
    wanted = {_plain(name.removesuffix(".weight")): scheme for name, scheme in schemes.items()}
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        raise FamilyError(
            f"{len(wrong)} modules of this {family.model_type} model would not be unpacked as they were packed, "
            f"{wrong[0]} among them.",
            "Use the versions of transformers and compressed-tensors that sordino names.",
        )
