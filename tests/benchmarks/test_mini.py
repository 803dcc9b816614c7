"""sordino-mini's decoder computes what its GGUF file says; the driver of the tables on a pico model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.mini import build, domains, tables
from sordino.data.clip import Clip
from sordino.errors import ArtifactError
from sordino.models.speech import SpeechModel
from tests.data import sounds
from tests.stages.runs import Made, contents, jsonl
from tests.tiny import clip

SHAPE = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 50, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """The permutation of llama.cpp's converter for Llama models."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(llama: LlamaForCausalLM, file: Path) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    state = llama.state_dict()
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    heads = {"attn_q": llama.config.num_attention_heads, "attn_k": llama.config.num_key_value_heads}
    for layer in range(llama.config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            rows = state[f"model.layers.{layer}.{ours}.weight"]
            tensors[f"blk.{layer}.{theirs}"] = interleaved(rows, heads[theirs]) if theirs in heads else rows
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def test_a_llama_of_a_gguf_file_is_a_qwen2_without_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    for weight in llama.parameters():
        weight.normal_(0, 0.3)
    write_gguf(llama, tmp_path / "m.gguf")
    shapes = {"layers": 2, "heads": 6, "kv_heads": 2}
    tensors = build.decoder_tensors(gguf.GGUFReader(tmp_path / "m.gguf"), shapes)
    qwen = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    qwen.load_state_dict({name.replace("model.language_model.", "model."): rows for name, rows in tensors.items()})
    ids = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(qwen(ids).logits, llama(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_fitted_projector_gives_rows_as_long_as_embeddings(speech: SpeechModel, tmp_path: Path) -> None:
    clips = []
    for i, text in enumerate(["a b", "b", "c a"]):
        file = sounds.save(tmp_path / f"{i}.flac", clip(i, 1.0)) or tmp_path / f"{i}.flac"
        clips.append(Clip(str(i), str(file), 1.0, "en", "de", source_text=text))
    before = {name: tensor.clone() for name, tensor in speech.tensors_of("projector").items()}
    build.fit_projector(speech, clips, tmp_path / "cache", epochs=2)
    assert all(not torch.equal(before[name], tensor) for name, tensor in speech.tensors_of("projector").items())
    prompt = build.INSTRUCTION
    text = speech.family.chat.render(speech.processor, build.Prompt(prompt))
    states = [one.states for one in build.Features(speech, None).encode_all(clips, text)]
    rows = torch.cat(speech.project(states)).norm(dim=1).mean()
    used = speech.processor.tokenizer("abc ", add_special_tokens=False)["input_ids"]
    embedded = speech.model.get_input_embeddings().weight[used].norm(dim=1).mean()
    torch.testing.assert_close(rows, embedded, atol=0, rtol=1e-4)


def test_a_phrasebook_becomes_a_corpus_without_its_damaged_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    (given / "audio").mkdir(parents=True)
    sounds.save(given / "audio/1.flac", clip(1, 1.0))
    (given / "audio/2.flac").write_bytes(b"fLaC")
    row = {"seconds": 1.0, "split": "train", "en": "a", "de": "b", "zh": "c"}
    rows = [json.dumps(row | {"id": name, "audio": f"audio/{name}.flac"}) for name in "12"]
    (given / "phrasebook.jsonl").write_text("\n".join(rows) + "\n")
    corpus = build.finished(tmp_path / "corpus", lambda out: build.make_corpus(given, out))
    assert [(c.id, c.source_text, c.target_text) for c in build.training_clips(corpus, "de")] == [("1", "a", "b")]
    assert "left out" in capsys.readouterr().err


def finished_stages(made: Made) -> dict[str, bytes]:
    return {name: data for name, data in contents(made.finished).items() if not name.startswith("cache/")}


def test_tables_go_on_where_they_were_stopped_and_leave_the_teacher_alone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "DEPTHS", {6: ((1, 2, 3), (1, 2, 3))})
    file = made.root / "recipe.yaml" if made.finished else None
    before = finished_stages(made)
    chosen = ["iterative-2", "middle-2", "adapter"]
    stopped = tables.Tables(str(file), [], tmp_path / "out")
    stopped.everything([0], chosen)
    first = jsonl(stopped.results)
    going_on = tables.Tables(str(file), [], tmp_path / "out")
    going_on.everything([0, 1], chosen)
    rows = jsonl(going_on.results)
    assert rows[: len(first)] == first
    assert [(row["name"], row["seed"]) for row in rows[len(first) :]] == [(name, 1) for name in chosen]
    removed = {row["name"]: row["removed"] for row in rows if "removed" in row}
    assert removed["middle-2, not healed"] == ["decoder.2", "decoder.3"]
    assert "| iterative rather than middle | 2 |" in going_on.table()
    assert "Not run: block-2, iterative-3," in going_on.table()
    assert finished_stages(made) == before


def test_tables_of_an_unfinished_run_are_refused(made: Made, tmp_path: Path) -> None:
    file = made.recipe(tmp_path)
    with pytest.raises(ArtifactError, match=r"lacks 10-data.*sordino run"):
        tables.Tables(str(file), [], tmp_path / "out")


def test_every_question_is_about_experiments_that_exist() -> None:
    for layers in tables.DEPTHS:
        names = {one.name.rsplit("-", 1)[0] for one in tables.experiments(layers, 2)}
        names |= {tag + name for tag in tables.TAGS for name in names}
        assert {name for pair in tables.QUESTIONS.values() for name in pair} <= names


def test_tagged_experiments_stand_beside_the_others(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "DEPTHS", {6: ((1, 2, 3), (1, 2, 3))})
    plain, tagged = (tables.Tables(str(made.root / "recipe.yaml"), [], tmp_path, tag) for tag in ("", "equal-"))
    assert [one.name for one in tagged.experiments] == ["equal-" + one.name for one in plain.experiments]
    assert [one.healing for one in tagged.experiments] == [one.healing for one in plain.experiments]


def test_a_corpus_is_cut_into_a_domain_and_what_is_not_of_it(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "train.opus").write_bytes(b"sound")
    row = {"audio": "train.opus", "text_en": "a", "text_de": "b"}
    kinds = [("1", 0, "train"), ("2", 1, "train"), ("3", 1, "test"), ("4", 2, "test")]
    rows = [json.dumps(row | {"id": name, "template": number, "split": split}) for name, number, split in kinds]
    (given / "clips.jsonl").write_text("\n".join(rows) + "\n")
    assert domains.split(given, tmp_path / "out") == {"in": 2, "out": 1}
    for name, expected in (("in", ["1", "4"]), ("out", ["2"])):
        assert [one["id"] for one in jsonl(tmp_path / "out" / name / "clips.jsonl")] == expected
        assert (tmp_path / "out" / name / "train.opus").read_bytes() == b"sound"
