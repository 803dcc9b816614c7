"""A trained small model at a true size: its decoder grown to the shape of Qwen2-Audio-7B's, computing the same.

Every stage then costs what it costs at 7B, and its scores are those of a model that translates, which random weights
have not. Encoder and projector stay as they are; the projector's output is padded. From file to file, a block of rows
at a time: memory does not depend on the size that is grown to.

    python benchmarks/grow.py runs/demo-en-de/20-teacher /a/disk/with/17GB/grown          # bfloat16
    python benchmarks/grow.py runs/demo-en-de/20-teacher grown --like config.json --dtype float32
    python benchmarks/grow.py runs/demo-en-de/20-teacher /a/disk/with/17GB/grown --noise 0.002

For hidden size h -> H and heads of d -> D:
- Hidden dimensions beyond h are zero everywhere. A norm's mean square is then h/H of what it was: its weight is
  multiplied by sqrt(h/H) and its epsilon by h/H, and it gives the same numbers.
- Rotary pair i of a head of d turns as fast as pair i D/d of a head of D, and goes there. Scores are divided by sqrt(D)
  in place of sqrt(d): the query's weights are multiplied by sqrt(D/d). Each query head has its own copy of the keys
  and values that it shared.
- Layers between the old ones have random weights and output projections of zero, or of deviation --noise in the old
  hidden dimensions: then a layer that is removed is missed a little, as in a real model.
- Rows of the vocabulary beyond the old ones are copies of the audio placeholder's, which no answer holds.

In float32 the hidden states differ by rounding alone. In bfloat16 a weight times sqrt(D/d) is rounded once more.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for what stands in another script

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import torch
from torch import Tensor

from benchmarks.true_size import LAYER, QWEN2_AUDIO_7B
from sordino.checkpoint.writing import Planned, Writer
from sordino.errors import FamilyError, SordinoError, UsageError
from sordino.models import shapes, stored
from sordino.runtime import files
from sordino.runtime.progress import byte_bar, note

BLOCK_ELEMENTS = 2**24  # of a tensor that are held at once
DEVIATION = 0.02  # of random weights
TYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


@dataclass(frozen=True)
class Size:
    """Letters of the family's fields: H, I, V, decoder_layers, heads, kv_heads, head_dim."""

    dims: Mapping[str, int]

    def __getattr__(self, name: str) -> int:
        return self.dims[name]


@dataclass(frozen=True)
class Placed:
    """Where a small tensor lies in a large one. values: (R,) or (R, C); rows: (R,), columns: (C,), their new indices.

    elsewhere: what every other row holds; zero where it is None.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor | None = None
    elsewhere: Tensor | None = None

    def block(self, first: int, last: int, shape: tuple[int, ...]) -> Tensor:
        """Rows from `first` to before `last` of the large tensor, float32."""
        block = torch.zeros(last - first, *shape[1:])
        if self.elsewhere is not None:
            block[:, self.columns] = self.elsewhere
        inside = (self.rows >= first) & (self.rows < last)
        rows, values = self.rows[inside] - first, self.values[inside]
        if self.columns is None:
            block[rows] = values
        else:
            block[rows[:, None], self.columns] = values
        return block


@dataclass(frozen=True)
class Growth:
    """From a stored small model to the tensors of a large one."""

    small: stored.Stored
    of: Size
    to: Size
    layers: Mapping[int, int]  # index in the large model -> in the small one
    noise: float
    unused: int  # token that the new rows of the vocabulary copy

    def read(self, name: str) -> Tensor:
        return self.small.read(self.small.sources()[name]).float()

    def blocks(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
        """A tensor of the large model, by its name in checkpoints, in blocks of rows."""
        layer = LAYER.match(name)
        new = layer is not None and int(layer[2]) not in self.layers
        placed = None if new else self.place(name, layer)
        generator = torch.Generator().manual_seed(seed)
        step = max(1, BLOCK_ELEMENTS // math.prod(shape[1:]))
        for first in range(0, shape[0], step):
            last = min(first + step, shape[0])
            if placed:
                block = placed.block(first, last, shape)
            else:
                assert layer
                block = self.added(layer[3].removeprefix("."), first, (last - first, *shape[1:]), generator)
            yield block.to(dtype)

    def added(self, name: str, first: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Rows of a tensor of a new layer: it reads the residual stream, and writes nothing, or noise, into it."""
        if name.endswith("layernorm.weight"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        if name not in OUTPUTS:
            return torch.empty(shape).normal_(0, DEVIATION, generator=generator)
        block = torch.empty(shape).normal_(0, 1, generator=generator) * self.noise
        block[max(0, self.of.H - first) :] = 0  # the new hidden dimensions stay zero
        return block

    def place(self, name: str, layer: Any) -> Placed:
        """Where the weights of the small model go in a tensor of the large one."""
        hidden, inner = torch.arange(self.of.H), torch.arange(self.of.I)
        if layer is not None:
            source = self.read(f"{layer[1]}{self.layers[int(layer[2])]}{layer[3]}")
            kind = layer[3].removeprefix(".")
            if kind.startswith("self_attn."):
                return self.place_attention(kind, source, hidden)
            if kind in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
                return Placed(source, inner, hidden)
            if kind == "mlp.down_proj.weight":
                return Placed(source, hidden, inner)
            return Placed(source * math.sqrt(self.of.H / self.to.H), hidden)
        source = self.read(name)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return Placed(source, torch.arange(self.of.V), hidden, elsewhere=source[self.unused])
        if name.endswith("language_model.model.norm.weight"):
            return Placed(source * math.sqrt(self.of.H / self.to.H), hidden)
        return Placed(source, torch.arange(len(source)), torch.arange(source.shape[1]) if source.dim() == 2 else None)

    def place_attention(self, kind: str, source: Tensor, hidden: Tensor) -> Placed:
        """Query head k goes to the first of the query heads that share key and value head k."""
        d, D = self.of.head_dim, self.to.head_dim
        group, shared = self.to.heads // self.to.kv_heads, self.of.heads // self.of.kv_heads
        pairs = torch.arange(d // 2) * (D // d)
        inside = torch.cat([pairs, D // 2 + pairs])  # of a head: transformers pairs i with i + d/2

        def spread(step: int) -> Tensor:
            return (torch.arange(self.of.heads)[:, None] * step * D + inside).reshape(-1)

        if kind.startswith("self_attn.o_proj"):
            return Placed(source, hidden, spread(group))
        columns = hidden if source.dim() == 2 else None
        if kind.startswith("self_attn.q_proj"):
            return Placed(source * math.sqrt(D / d), spread(group), columns)
        heads = source.reshape(self.of.kv_heads, d, *source.shape[1:])
        return Placed(heads.repeat_interleave(shared, 0).reshape(-1, *source.shape[1:]), spread(1), columns)


def config_of(small: Mapping[str, Any], shape: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The small model's config.json with the sizes of the other's decoder. Raises FamilyError where they do not fit."""
    text, sizes = dict(small["text_config"]), shape["text_config"]
    scale = text["hidden_size"] / sizes["hidden_size"]
    layers = sizes["num_hidden_layers"]
    text |= {key: sizes[key] for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size",
    )}  # fmt: skip
    text["head_dim"] = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    text["max_position_embeddings"] = max(text["max_position_embeddings"], sizes.get("max_position_embeddings", 0))
    text |= {"rms_norm_eps": text["rms_norm_eps"] * scale, "layer_types": ["full_attention"] * layers, "dtype": dtype}
    return {**small, "text_config": text, "dtype": dtype, "architectures": shape.get("architectures")}


def check(of: Size, to: Size) -> None:
    """Raise FamilyError where the small model does not fit into the large one."""
    for name in ("H", "I", "V", "decoder_layers", "head_dim"):
        if of.dims[name] > to.dims[name]:
            raise FamilyError(f"{name} is {of.dims[name]}, and {to.dims[name]} is smaller.", "Give a larger shape.")
    if to.head_dim % of.head_dim or of.heads > to.kv_heads:
        raise FamilyError(
            f"{of.heads} heads of {of.head_dim} do not fit {to.kv_heads} heads of {to.head_dim} of keys and values.",
            "Heads must grow by a whole factor, and each old query head needs keys of its own.",
        )


def grow(source: Path, directory: Path, shape: Mapping[str, Any], *, dtype: str, noise: float, seed: int) -> None:
    """Write the grown model. Raises FamilyError, ArtifactError; UsageError where `directory` holds something."""
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty.", "Give another directory.")
    small = stored.open_model(str(source))
    if small.speech.family.model_type != "qwen2_audio":
        raise FamilyError(f"{source} is of {small.speech.family.model_type}.", "Give a Qwen2-Audio model.")
    before = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = config_of(before, shape, dtype)
    of, to = Size(shapes.model(before).dims), Size(shapes.model(config).dims)
    check(of, to)
    layers = {i * to.decoder_layers // of.decoder_layers: i for i in range(of.decoder_layers)}
    growth = Growth(small, of, to, layers, noise, small.speech.placeholder_id())
    stored_type, torch_dtype = TYPES[dtype]
    tensors = {tensor.name: tensor.shape for tensor in shapes.model(config).tensors}
    directory.mkdir(parents=True, exist_ok=True)
    planned = {name: Planned(stored_type, shape) for name, shape in tensors.items()}
    with Writer(directory, planned) as out, byte_bar("growing", out.bytes) as advance:
        for number, (name, wide) in enumerate(sorted(tensors.items())):
            out.write(name, growth.blocks(name, wide, torch_dtype, seed * len(tensors) + number))
            advance(planned[name].bytes)
    stored.copy_processor(source, directory)
    for name in ("generation_config.json", "sordino.json"):
        if (source / name).is_file():
            (directory / name).write_bytes((source / name).read_bytes())
    files.write_json(directory / "config.json", config)  # last: without it there is no model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a trained Qwen2-Audio model, as the demo's 20-teacher")
    parser.add_argument("directory", type=Path, help="to write into: empty, or not there yet")
    parser.add_argument("--like", type=Path, help="another shape than Qwen2-Audio-7B's: a config.json")
    parser.add_argument("--dtype", choices=list(TYPES), default="bfloat16")
    parser.add_argument("--noise", type=float, default=0.0, help="deviation of the new layers' output projections")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        shape = json.loads(args.like.read_text(encoding="utf-8")) if args.like else QWEN2_AUDIO_7B
        grow(args.model, args.directory, shape, dtype=args.dtype, noise=args.noise, seed=args.seed)
    except SordinoError as error:
        print(error, file=sys.stderr)
        return 2
    model = shapes.model(json.loads((args.directory / "config.json").read_text(encoding="utf-8")))
    note(f"{args.directory}: {model.parameters / 1e9:.2f} B weights, {model.dims['decoder_layers']} decoder layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
