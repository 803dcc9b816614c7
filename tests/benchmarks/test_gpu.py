"""benchmarks/gpu.py in small on a CPU: every block runs, so that on a GPU nothing is new but CUDA itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import gpu, training, true_size
from sordino.formats import registry as formats
from tests.models import fake_vllm
from tests.stages.runs import Made


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run in this process, and not in one of their own, which costs seconds each."""

    def in_process(words: Sequence[str], name: str, seconds: float) -> gpu.Row:
        args = dict(zip(words[1::2], words[2::2], strict=False))
        bench = gpu.Bench(Path(words[0]), Path(args["--run"]), "cpu", True)
        return json.loads(json.dumps(gpu.BLOCKS[args["--block"]][name](bench)))

    monkeypatch.setattr(gpu, "in_process", in_process)


def words(work: Path, made: Made, block: str) -> list[str]:
    return [str(work), "--block", block, "--run", str(made.finished), "--device", "cpu", "--tiny"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def rows(work: Path, block: str) -> dict[str, gpu.Row]:
    names = [name for name in gpu.BLOCKS[block] if (work / f"{block}-{name}.json").is_file()]
    return {name: json.loads((work / f"{block}-{name}.json").read_text()) for name in names}


def test_block_a_compares_with_the_cpu(made: Made, work: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words(work, made, "a")) == 0
    told = rows(work, "a")
    assert told["float32"]["same"] == told["float32"]["clips"] == 3
    assert 0 < told["bfloat16"]["largest_difference"] < 0.1
    assert told["tests"]["failed"] == []
    assert "passed" in told["tests"]["result"]
    assert "block a, CPU" in capsys.readouterr().out


def test_block_b_ranks_the_grown_model(made: Made, work: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words(work, made, "b")) == 0
    told = rows(work, "b")
    assert told["exact"]["candidates"] == 6  # of 8 layers, first and last kept
    assert len(told["exact"]["order"]) == 1
    assert told["exact"]["texts"][:2] == told["reference"]["texts"]  # the same procedure, in float32
    out = capsys.readouterr().out
    assert "the reference procedure would take" in out
    assert "same texts as the reference: True" in out


def test_block_c_trains_and_decodes(
    made: Made, work: Path, here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "in_process", one_system)
    assert gpu.main(words(work, made, "c")) == 0
    told = rows(work, "c")
    assert told["teacher"]["steps"] == told["qlora"]["steps"] == 2
    assert told["teacher"]["predicted_bytes"] > told["qlora"]["predicted_bytes"] > 0
    assert told["bf16"]["tokens"] > 0 and told["nf4"]["tokens"] > 0 and told["w4a16"]["tokens"] > 0
    assert told["trainer"]["losses_apart"] < 1e-4  # the same work as transformers' Trainer
    assert told["encode"]["clips_per_second_1"] > 0 and told["encode"]["clips_per_second_4"] > 0
    assert "aten::mm" in (work / "profile.txt").read_text() and len(told["profile"]["most"]) == 5
    assert "predicted" in capsys.readouterr().out


def one_system(words: Sequence[str], name: str) -> gpu.Row:
    return training.measure(training.parser().parse_args([*words]), name)


def test_block_d_prunes_and_exports(
    made: Made, work: Path, here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(words(work, made, "d")) == 0
    told = rows(work, "d")
    assert told["to-w4a16"]["bytes"] < told["prune"]["bytes"]
    assert not (work / "pruned").exists()
    monkeypatch.setattr(true_size, "export", lambda *_: pytest.fail("exported again"))
    assert gpu.main(words(work, made, "d")) == 0  # finished steps are read
    assert set(formats.FORMATS) >= {"nf4", "w4a16", "gguf-q8_0"}


def test_block_e_asks_vllm(made: Made, work: Path, here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORDINO_VLLM", str(fake_vllm.install(tmp_path / "vllm")))
    assert gpu.main(words(work, made, "e")) == 0
    told = rows(work, "e")["vllm"]
    assert told["same"] == told["clips"] == 3
    assert told["vllm decoding alone, 16"] > 0


def test_what_is_missing_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([str(tmp_path), "--block", "b"]) == 2
    told = capsys.readouterr().err
    assert "no finished teacher: run --block a first" in told
    assert "torch finds no CUDA device" in told


def test_a_step_that_fails_is_named_and_tried_again(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, as on a GPU: there is no vLLM."""
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "nowhere"))
    assert gpu.main(words(tmp_path / "work", made, "e")) == 1
    assert "failed to run" in capsys.readouterr().out
    assert not (tmp_path / "work" / "e-vllm.json").exists()
    assert gpu.main([*words(tmp_path / "work", made, "e"), "--minutes", "0"]) == 1
    assert "the same command goes on here" in capsys.readouterr().out
