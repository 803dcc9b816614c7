"""w4a16-gptq: stored as w4a16, rounded by GPTQ for what the decoder hears and answers on real clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.formats import packed, w4a16
from sordino.layouts import tables
from sordino.quantization.gptq import Calibration, round_decoder
from sordino.quantization.integer import Rounded, Scheme, unpack
from sordino.runtime.progress import bar

LOADS_WITH = "vLLM; transformers with compressed-tensors: from_pretrained(path), which unpacks it"


def write(source: str, directory: Path, revision: str | None = None, *, calibration: Calibration, state: Path) -> None:
    """source: as of w4a16. calibration: its model and clips, which is rounded in place; state: where finished layers
    are kept, so that an interrupted run goes on from the last one. Raises FamilyError, ArtifactError as packed.write.
    """
    bits = w4a16.bits_of(source, revision)
    packed.write(source, directory, bits, rounder=rounder(calibration, bits, state), revision=revision)


def rounder(calibration: Calibration, bits: Mapping[str, int], state: Path) -> packed.Rounder:
    """What packed.write rounds these weights with: GPTQ for the decoder's linear layers, to nearest for all others.

    bits: as packed.write takes them, with groups of the usual size.
    """
    prefix = f"{calibration.speech.family.stacks['decoder'].path}."
    live = calibration.speech.family.tensors.live_name
    files = round_layers(calibration, {n: b for n, b in bits.items() if b < 16 and live(n).startswith(prefix)}, state)

    def found(name: str, weight: Tensor, scheme: Scheme) -> Rounded:
        return _read(files[name], scheme) if name in files else packed.round_to_nearest(name, weight, scheme)

    return found


def round_layers(calibration: Calibration, bits: Mapping[str, int], state: Path) -> dict[str, Path]:
    """GPTQ of the weights in `bits`, by saved names: name -> its file, which is there from an earlier run or made."""
    state.mkdir(exist_ok=True)
    speech = calibration.speech
    live = {name: speech.family.tensors.live_name(name).removesuffix(".weight") for name in bits}
    modules = dict(speech.model.named_modules())
    schemes = {
        live[name]: Scheme(width, tables.group_for(modules[live[name]].weight.shape[1])) for name, width in bits.items()
    }

    there: set[int] = set()

    def earlier(index: int) -> dict[str, Rounded] | None:
        inside = [name for name in schemes if f".layers.{index}." in name]
        try:
            finished = {name: _read(_file(state, name), schemes[name]) for name in inside}
        except (OSError, SafetensorError, KeyError):  # not there, or torn by a power failure
            return None
        there.add(index)
        return finished

    with bar("rounding by GPTQ", len(speech.layers("decoder"))) as advance:
        for index, rounded in round_decoder(calibration, schemes, earlier):
            for name, weight in rounded.items() if index not in there else ():
                file = _file(state, name)
                beside = file.with_suffix(".tmp")
                save_file(weight.tensors(), beside)
                beside.replace(file)
            advance(1)
    return {name: _file(state, live[name]) for name in bits}


def _file(state: Path, name: str) -> Path:
    return state / f"{name}.safetensors"


def _read(file: Path, scheme: Scheme) -> Rounded:
    stored = load_file(file)
    codes = unpack(stored["weight_packed"], scheme.bits, int(stored["weight_shape"][1]))
    return Rounded(codes, stored["weight_scale"], scheme)
