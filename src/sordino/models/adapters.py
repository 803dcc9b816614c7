"""Low-rank adapters (LoRA: arXiv:2106.09685; rank-stabilised scaling: arXiv:2312.03732) on a speech model.

The adapter is put into the loaded model in place: `SpeechModel.model` stays the stock module, with some linear
layers wrapped, so that embed, tower, project and generate work as before, on a 4-bit base too (QLoRA).
An adapter is loaded whole or refused: peft itself only warns about weights that are missing and goes on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.errors import ArtifactError, reason
from sordino.models.config_file import ADAPTER_CONFIG as CONFIG
from sordino.models.config_file import ADAPTER_WEIGHTS as WEIGHTS
from sordino.models.embedded import PLAIN
from sordino.models.nf4 import is_quantized
from sordino.models.speech import SpeechModel
from sordino.runtime import foreign
from sordino.runtime.foreign import Types
from sordino.runtime.terminal import quoted

NAME = "default"  # peft's name of the adapter inside a model; not part of what is stored

AdapterScope = Literal["all", "decoder"]


@dataclass(frozen=True)
class LoraOptions:
    """scope: "all" adapts every linear layer, audio tower and projector included; "decoder" only the decoder's.

    The update is B A x * alpha / sqrt(r) with rslora, alpha / r without.
    """

    r: int = 64
    alpha: int = 128
    rslora: bool = True
    dropout: float = 0.0
    scope: AdapterScope = "all"


def targets(speech: SpeechModel, scope: AdapterScope) -> list[str]:
    """Full names of the linear layers an adapter of this scope wraps, in model order; never the head, and none that
    speech does not run."""
    family = speech.family
    linear = (name for name, module in speech.model.named_modules() if isinstance(module, nn.Linear))
    part = {name: family.part_at(name) for name in linear if family.tensors.runs(name)}
    return [name for name in part if part[name] == "decoder" or (scope == "all" and part[name] != "head")]


def attach(speech: SpeechModel, options: LoraOptions, seed: int) -> Any:
    """Put a fresh adapter into the model and freeze all else -> PeftModel. The same seed gives the same weights.

    A fresh adapter changes nothing (B is zero). Raises ArtifactError where the model carries one already.
    """
    from peft import LoraConfig

    _refuse_adapted(speech)
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        bias="none",
        target_modules=targets(speech, options.scope),
    )
    return _inject(speech, config, seed)


def save(peft_model: Any, directory: Path, base: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which names `base` as its base model.

    Equal adapters give equal bytes. Raises FamilyError for weights that are no numbers.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(_tensors(peft_model).items())}
    refuse_nonfinite(directory, tensors.items())
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(peft_model.peft_config[NAME])
    config.base_model_name_or_path = base
    config.inference_mode = True
    model_class = type(peft_model.get_base_model())  # by which AutoPeftModel finds the class of the base
    config.auto_mapping = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    config.save_pretrained(str(directory))
    stored = foreign.read_json(directory / CONFIG, raises=ArtifactError)
    text = json.dumps(stored, indent=2, ensure_ascii=False, sort_keys=True)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def load(speech: SpeechModel, directory: Path, *, trainable: bool = False) -> Any:
    """Put a stored adapter into the model -> PeftModel, in evaluation mode.

    Raises ArtifactError for a damaged adapter, one that lacks weights or holds others than its configuration
    says, and one whose layers or sizes are not this model's, FamilyError for weights that are no numbers; the model is
    then as it was.
    """
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_adapted(speech)
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise ArtifactError(f"{directory} holds no {file}, so it is not an adapter.")
    _check_config(directory)
    try:
        config = LoraConfig.from_pretrained(str(directory))
        stored = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ArtifactError(
            f"the adapter in {directory} is damaged ({reason(error)}).", "Copy or train it again."
        ) from error
    refuse_nonfinite(directory, stored.items())
    config.target_modules = _resolve(speech, config.target_modules, directory)
    config.inference_mode = not trainable
    _check(stored, _expected(speech, config), directory)
    peft_model = _inject(speech, config, seed=0)
    own = _tensors(peft_model)
    assert own.keys() == stored.keys()  # `_check` saw to it, or peft names its weights otherwise now
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])
    peft_model.eval()
    return peft_model


def _check_config(directory: Path) -> None:
    """Raise ArtifactError for an adapter that is more than A and B, and for numbers that peft would fail on later."""
    file, again = directory / CONFIG, "Copy or train it again."
    number = (int, float)
    types: dict[str, Types] = {
        "peft_type": str, "r": int, "lora_alpha": number, "lora_dropout": number, "target_modules": (list, str),
    }  # fmt: skip
    config = foreign.read_json(file, raises=ArtifactError, remedy=again, required=types)
    other = sorted(name for name, usual in PLAIN.items() if name in config and config[name] not in usual)
    if other:
        problem = f"{file}: {other[0]} is {quoted(config[other[0]], 60)}, and adapters of that kind are not read here."
        raise ArtifactError(problem, "Train one with qlora, or merge it with peft (merge_and_unload).")
    if config["r"] < 1 or not 0 <= config["lora_dropout"] < 1:
        raise ArtifactError(f"{file}: r or lora_dropout is out of range.", again)


def merge(speech: SpeechModel) -> None:
    """Add the adapter to the weights it sits on and take it out: the model is plain and stock again, and frozen.

    The sum is made in float32 and rounded once to the weights' type. Raises ArtifactError where there is no
    adapter and on a quantized base, whose weights would be rounded a second time.
    """
    layers = _adapted(speech.model)
    if not layers:
        raise ArtifactError("this model carries no adapter to merge.", "Load the adapter first.")
    if any(is_quantized(layer.get_base_layer()) for layer in layers.values()):
        raise ArtifactError(
            "an adapter is not merged into 4-bit weights, which would be rounded twice.",
            "Load the 16-bit model that was quantized, merge into that, and quantize the result.",
        )
    for name, layer in layers.items():
        base = layer.get_base_layer()
        with torch.no_grad():
            total = base.weight.float() + layer.get_delta_weight(NAME).float()
            base.weight.copy_(total.to(base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(speech.model.get_submodule(parent), child, base)
    vars(speech.model).pop("peft_config", None)


def _inject(speech: SpeechModel, config: Any, seed: int) -> Any:
    from peft import get_peft_model

    names, training = list(config.target_modules), speech.model.training
    config.base_model_name_or_path = None  # `save` names it; peft would warn of a name that changed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(speech.model, config)
    wrapped = sorted(_adapted(speech.model))
    if wrapped != sorted(names):  # peft matches names by their ends
        other = sorted(set(wrapped) ^ set(names))
        raise ArtifactError(f"peft adapted other layers than asked, {other[0]} among {len(other)}.")
    peft_model.peft_config[NAME].target_modules = sorted(names)  # peft shortens the list, in no fixed order
    peft_model.train(training)
    return peft_model


def _refuse_adapted(speech: SpeechModel) -> None:
    if _adapted(speech.model):
        raise ArtifactError("this model carries an adapter already.", "Merge it, or load the model afresh.")


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Name -> layer of every wrapped linear layer."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _tensors(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's weights under the names that are stored."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return tensors


def _resolve(speech: SpeechModel, names: Any, directory: Path) -> list[str]:
    """Full names of the layers that an adapter's configuration lists, by full names or by their ends."""
    if not isinstance(names, (list, set, tuple)) or not names:
        raise ArtifactError(f"{directory / CONFIG} does not list its target_modules.", "List them by name.")
    linear = targets(speech, "all")
    layers: set[str] = set()
    for name in sorted(names):
        matches = [layer for layer in linear if layer == name or layer.endswith(f".{name}")]
        if not matches:
            raise ArtifactError(
                f"the adapter in {directory} sits on {name}, which this model does not have.",
                "Use the model that the adapter was trained on, with the same layers kept.",
            )
        layers.update(matches)
    return sorted(layers)


def _expected(speech: SpeechModel, config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the adapter weights that this configuration means on this model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in config.target_modules:
        layer = speech.model.get_submodule(name)
        shapes[f"base_model.model.{name}.lora_A.weight"] = (config.r, layer.in_features)
        shapes[f"base_model.model.{name}.lora_B.weight"] = (layer.out_features, config.r)
    return shapes


def _check(stored: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    other = [name for name in expected.keys() & stored.keys() if tuple(stored[name].shape) != expected[name]]
    for problem, names in (("lacks", missing), ("has no place for", unknown), ("has another size of", other)):
        if names:
            raise ArtifactError(
                f"the adapter in {directory} does not fit this model: it {problem} {len(names)} weights, "
                f"{sorted(names)[0]} among them.",
                "Use the model that the adapter was trained on, or train the adapter again.",
            )


def base_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """How an adapter's base is loaded, for training and for use: options of registry.load, from qlora's settings.

    An adapter of the decoder alone leaves encoder and projector in 16 bits: what they hear is what was encoded before.
    """
    if section["quantize"] != "nf4":
        return {}
    return {"quantize": "nf4", "kept": ("encoder", "projector") if section["scope"] == "decoder" else ()}
