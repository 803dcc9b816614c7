"""compressed-tensors checkpoints of any mixture of widths: named weights in 2, 3, 4 or 8 bits, the rest in bfloat16.

Written weight by weight, so that no model is ever held. What is packed is told to the consumer by regular expressions
over module names. The names in a file are not those of the live modules (`language_model.model.layers` is
`model.language_model.layers` in transformers and `language_model.model.layers` in vLLM), which is why the expressions
leave the word `model` open; before anything is written, they are tried on the model's empty skeleton, and must find
exactly the modules that were meant.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sordino.checkpoint.writing import Planned, Writer
from sordino.errors import FamilyError
from sordino.layouts import tables
from sordino.models import stored
from sordino.models.parts import part_of
from sordino.models.speech import SpeechModel
from sordino.quantization.integer import Rounded, Scheme, quantize
from sordino.runtime.progress import byte_bar

LOADS_WITH = "transformers with compressed-tensors: from_pretrained(path); decompressed to 16 bits on loading"
Rounder = Callable[[str, Tensor, Scheme], Rounded]
PACKED, BYTES = "pack-quantized", "int-quantized"  # compressed-tensors' names: dense words; a byte for every integer
LAYERS = re.compile(r"^(.*\.layers)\.(\d+)\.(.*)$")


def round_to_nearest(name: str, weight: Tensor, scheme: Scheme) -> Rounded:
    return quantize(weight, scheme)


def write(
    source: str,
    directory: Path,
    bits: Mapping[str, int],
    *,
    group: int = tables.PACKED_GROUPS[0],
    rounder: Rounder = round_to_nearest,
    revision: str | None = None,
) -> None:
    """Write a 16- or 32-bit model directory or Hub id with `bits` a weight, by the names they are saved under.

    What is not named, or named with 16, is kept. group: columns that share a scale, at most. rounder: (name, weight,
    scheme) -> the weight, rounded. Raises FamilyError for a source that is quantized or not what its config says, names
    that it lacks, weights that cannot be packed or are not finite; ArtifactError for damaged files and a full disk.
    """
    model = stored.open_model(source, revision)
    checkpoint, sources = model.checkpoint, model.sources()
    shapes = {name: checkpoint.tensors[origin].shape for name, origin in sources.items()}
    schemes = schemes_of(shapes, bits, group)
    live = model.speech.model
    tied = live.get_output_embeddings().weight is live.get_input_embeddings().weight
    if tied and any(is_embedding(name) for name in schemes):
        raise FamilyError(
            f"{source} ties its head to its embedding, and a packed embedding cannot be tied.",
            "Keep the embedding in 16 bits.",
        )
    told = quantization_config(shapes, schemes, model.speech.family.tensors.live_name)
    check_targets(model.speech, told, schemes)
    planned: dict[str, Planned] = {}
    for name, origin in sources.items():
        if name in schemes:
            stored_tensors = tables.quantized(name, shapes[name], schemes[name].bits, schemes[name].group)
            planned |= {each: Planned(t.dtype, t.shape) for each, t in stored_tensors.items()}
        else:
            planned[name] = stored.planned_16bit(checkpoint, origin)
    model.describe(directory, told)
    total = sum(checkpoint.tensors[origin].bytes for origin in sources.values())
    with Writer(directory, planned) as out, byte_bar("packing weights", total) as advance:
        for name, origin in sources.items():
            if name in schemes:
                try:
                    rounded = rounder(name, model.read(origin), schemes[name])
                except ValueError as error:
                    raise FamilyError(f"{name} in {source} cannot be rounded: {error}.", "Train it again.") from error
                for suffix, data in rounded.tensors(packed=not is_embedding(name)).items():
                    out.write(f"{name.removesuffix('weight')}{suffix}", data)
            else:
                out.copy(name, checkpoint, origin)
            advance(checkpoint.tensors[origin].bytes)


def schemes_of(shapes: Mapping[str, tuple[int, ...]], bits: Mapping[str, int], group: int) -> dict[str, Scheme]:
    """Name -> how it is packed. Raises FamilyError for names that the model lacks and weights that are no matrices."""
    by_layer = {}
    for name, width in bits.items():
        if name not in shapes:
            raise FamilyError(f"the model has no weight '{name}' to pack.", "Name weights as its files do.")
        if width == 16:
            continue
        if len(shapes[name]) != 2 or not name.endswith(".weight") or name.endswith("embed_positions.weight"):
            raise FamilyError(
                f"'{name}' is not the weight of a linear layer or of an embedding.", "Keep it in 16 bits."
            )
        by_layer[name] = Scheme(width, tables.group_for(shapes[name][1], group))
    return by_layer


def quantization_config(
    shapes: Mapping[str, tuple[int, ...]], schemes: Mapping[str, Scheme], live: Callable[[str], str]
) -> dict[str, Any]:
    """What config.json says of a checkpoint with these packed weights. live: a name in the file -> in the model.

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
        "ignore": patterns(live(name) for name, shape in shapes.items() if len(shape) == 2 and name not in schemes),
        "config_groups": {
            f"group_{i}": {
                "targets": patterns(map(live, groups[stored, scheme])),
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
    """Names of live weights -> expressions ("re:...") that match the modules' names, alive and in vLLM, and no others.

    Layers of the same kind share one: re:.*language_model\\.(?:model\\.)?layers\\.(?:0|2)\\.(?:mlp\\.up_proj)$
    """
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)  # (before, after) -> numbers
    groups = []
    for name in sorted(names):
        module = name.removesuffix(".weight")
        if layer := LAYERS.match(module):
            layers[layer[1], layer[3]].append(layer[2])
        else:
            groups.append(f"re:.*{_open(module)}$")
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (before, after), numbers in layers.items():
        alike[before, tuple(sorted(numbers, key=int))].append(after)
    for (before, those), afters in alike.items():
        kinds = "|".join(re.escape(after) for after in sorted(afters))
        groups.append(f"re:.*{_open(before)}\\.(?:{'|'.join(those)})\\.(?:{kinds})$")
    return groups


def is_embedding(name: str) -> bool:
    return part_of(name) == "embedding"


def _open(module: str) -> str:
    """A module's name as an expression, with the word `model` left open."""
    parts = [part for part in module.split(".") if part != "model"]
    return r"\.(?:model\.)?".join(map(re.escape, parts[-1:] if part_of(f"{module}.weight") == "head" else parts))


def check_targets(speech: SpeechModel, told: Mapping[str, Any], schemes: Mapping[str, Scheme]) -> None:
    """Raise FamilyError unless transformers would unpack exactly the weights that are packed, and as they are."""
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_named_modules, match_targets

    config = QuantizationConfig.model_validate(told)
    by_target = {target: group.weights for group in config.config_groups.values() for target in group.targets}
    by_name = {}
    for name, module in match_named_modules(speech.model, by_target, config.ignore):
        weights = by_target[match_targets(name, module, by_target)[0]]
        by_name[speech.family.tensors.saved_name(f"{name}.weight")] = Scheme(weights.num_bits, weights.group_size)
    wrong = sorted(name for name in by_name.keys() | schemes.keys() if by_name.get(name) != schemes.get(name))
    if wrong:
        raise FamilyError(
            f"{len(wrong)} weights of this {speech.family.model_type} model would not be unpacked as they were packed, "
            f"{wrong[0]} among them.",
            "Use the versions of transformers and compressed-tensors that sordino names.",
        )
