"""The predicted bytes of torch.save against torch.save."""

import io
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from sordino.checkpoint.reading import Tensor, read_header
from sordino.measure.torch_save import torch_save_bytes

NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64",
    torch.bool: "BOOL", torch.int8: "I8", torch.int32: "I32", torch.float64: "F64", torch.int16: "I16",
}  # fmt: skip


def described(state):
    return {name: Tensor(NAMES[t.dtype], tuple(t.shape), t.nbytes) for name, t in state.items()}


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return len(buffer.getvalue())


@pytest.mark.parametrize("count", [0, 1, 2, 9, 63, 64, 300, 999, 1000, 1001, 2001])
def test_many_tensors(count):
    state = {f"layers.{i}.weight": torch.zeros(1 + i % 7, 1 + i % 3) for i in range(count)}
    assert torch_save_bytes(described(state)) == saved(state)


@pytest.mark.parametrize("dtype", NAMES)
def test_types(dtype):
    state = {
        "a": torch.zeros(3, 5, dtype=dtype),
        "b": torch.zeros(70000, dtype=dtype),
        "c": torch.zeros(2, dtype=dtype),
    }
    assert torch_save_bytes(described(state)) == saved(state)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4, 5), (2, 3, 4, 5), (2, 0, 3), (300,), (70000,)])
def test_shapes(shape):
    state = {"weight": torch.zeros(shape), "é": torch.zeros(3)}
    assert torch_save_bytes(described(state)) == saved(state)


def test_tied_tensors_share_a_storage():
    weight = torch.zeros(50, 8)
    state = {"embed_tokens.weight": weight, "norm.weight": torch.ones(8), "lm_head.weight": weight.detach()}
    own = {name: t for name, t in state.items() if name != "lm_head.weight"}
    assert torch_save_bytes(described(own), aliases={"lm_head.weight": "embed_tokens.weight"}) == saved(state)
    assert torch_save_bytes(described(state)) - saved(state) >= weight.nbytes


def test_a_named_file(tmp_path):
    state = {"a": torch.zeros(10)}
    torch.save(state, tmp_path / "whisper.pt")
    assert torch_save_bytes(described(state), archive="whisper") == (tmp_path / "whisper.pt").stat().st_size


def test_a_modules_state_dict():
    """Exact where every module holds tensors; of those that hold none, a few bytes are missing."""
    model = nn.ModuleDict({"first": nn.Linear(30, 40), "second": nn.ModuleDict({"norm": nn.LayerNorm(40)})})
    state = model.state_dict()
    assert torch_save_bytes(described(state), module=True) == saved(state)


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral"])
def test_a_checkpoint(pico_dir, family):
    file = pico_dir(family) / "model.safetensors"
    assert torch_save_bytes(read_header(file)) == saved(load_file(file))


def test_from_a_header(tmp_path):
    save_file(
        {"b.weight": torch.zeros(9, 9), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors"
    )
    header = read_header(tmp_path / "x.safetensors")
    assert torch_save_bytes(header) == saved(load_file(tmp_path / "x.safetensors"))


def hollow_saved(state, file):
    """Bytes of torch.save without the data: the file is as long as it would be, sparse, and no memory is touched."""
    with torch.serialization.skip_data():
        torch.save(state, file)
    size = file.stat().st_size
    file.unlink()
    return size


def test_beyond_four_gibibytes(tmp_path):
    sizes = {"small": 100, "big": 2**32 + 77, "after": 33, "limit": 2**32 - 1, "below": 2**32 - 2, "last": 7}
    for order in (list(sizes), ["limit", "small", "below", "last"], ["below", "after", "small"]):
        state = {name: torch.empty(sizes[name], dtype=torch.uint8) for name in order}
        assert torch_save_bytes(described(state), archive="x") == hollow_saved(state, tmp_path / "x.pt")


def test_qwen2_audio_7b(tmp_path):
    """16.79 GB as the organisers of IWSLT would measure them; the versions of its modules are 0.0003 % of that."""
    config = Qwen2AudioConfig(
        text_config={"model_type": "qwen2", "intermediate_size": 11008, "vocab_size": 156_032, "hidden_size": 4096}
    )
    with torch.device("meta"):
        on_meta = Qwen2AudioForConditionalGeneration(config).state_dict()
    state = OrderedDict((name, torch.empty(t.shape, dtype=torch.bfloat16)) for name, t in on_meta.items())
    state._metadata = on_meta._metadata
    real = hollow_saved(state, tmp_path / "x.pt")
    assert real / 1e9 == pytest.approx(16.79, abs=0.005)
    assert torch_save_bytes(described(state), module=True, archive="x") == pytest.approx(real, rel=1e-6)
    assert torch_save_bytes(described(state), archive="x") == pytest.approx(real, rel=1e-5)
