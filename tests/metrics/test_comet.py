"""The native COMET against unbabel-comet's own numbers (comet_goldens.json says how they were made).

`make test-comet` installs the original (1.4 GB) and compares again; that test is left out of every other run.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sordino.cli import main
from sordino.errors import DataError, RecipeError
from sordino.metrics import comet_check, comet_model, registry
from tests.metrics import tiny_comet

GOLDENS = json.loads((Path(__file__).parent / "comet_goldens.json").read_text(encoding="utf-8"))
TEXTS = GOLDENS["texts"]
ROWS = (TEXTS["hypotheses"], TEXTS["references"], "de")
# the goldens' processor and another one round the last bits of a sum differently
FLOAT32 = 1e-5
# two roundings: processors with float16 arithmetic add up in it, others in float32; a GPU in an order of its own
FLOAT16 = 2**-8 if torch.cuda.is_available() else 2**-9


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Variant -> directory of its checkpoint."""
    root = tmp_path_factory.mktemp("comet")
    for variant in tiny_comet.VARIANTS:
        tiny_comet.build(root / variant, variant)
    return root


@pytest.fixture
def files(tmp_path):
    for name in ("sources", "hypotheses", "references"):
        (tmp_path / name).write_text("".join(f"{text.strip()}\n" for text in TEXTS[name]), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("variant", tiny_comet.VARIANTS)
def test_segments_are_the_originals(variant, models):
    gold = GOLDENS["variants"][variant]
    score = registry.get(f"comet:{models / variant}").score(*ROWS, sources=TEXTS["sources"], bootstrap=0)
    assert score.segments == pytest.approx(gold["float32"], abs=FLOAT32)
    assert score.value == pytest.approx(gold["system"], abs=FLOAT32)
    assert score.interval is None and score.name == "comet"
    assert len(set(score.segments)) > len(score.segments) / 2  # the texts do tell apart


@pytest.mark.parametrize("variant", tiny_comet.VARIANTS)
def test_half_precision_prints_what_comet_score_prints(variant, models):
    printed = GOLDENS["variants"][variant]["comet-score"]
    file = models / variant / "checkpoints" / "model.ckpt"
    score = registry.get(f"comet-half:{file}").score(*ROWS, sources=TEXTS["sources"], bootstrap=0)
    lines = [f"hyp\tSegment {i}\tscore: {value:.4f}" for i, value in enumerate(score.segments)]
    lines.append(f"hyp\tscore: {score.value:.4f}")
    if torch.__version__.split("+")[0] == GOLDENS["origin"]["torch"].split("+")[0] and lines == printed:
        return  # to the last printed digit
    for mine, original in zip(lines, printed, strict=True):
        assert mine.rsplit(" ", 1)[0] == original.rsplit(" ", 1)[0]
        assert float(mine.rsplit(" ", 1)[1]) == pytest.approx(
            float(original.rsplit(" ", 1)[1]), rel=FLOAT16, abs=FLOAT16
        )


def test_the_command_line_prints_the_originals_digits(models, files, capsys):
    command = ["score", str(files / "hypotheses"), "--references", str(files / "references")]
    command += ["--sources", str(files / "sources"), "--metrics", f"comet:{models / 'wmt22'}"]
    assert main(command) == 0
    name, value, interval, signature = capsys.readouterr().out.strip().split("\t")
    assert (name, value) == ("comet", f"{GOLDENS['variants']['wmt22']['system']:.4f}")
    low, high = (float(bound) for bound in interval.strip("[]").split(","))
    assert low < float(value) < high
    assert signature.startswith("comet:wmt22|rev:sha256-") and signature.endswith(
        "|native|dtype:float32|bs:1000|seed:0"
    )


def test_the_interval_is_of_the_resampled_means(models):
    score = registry.get(f"comet:{models / 'wmt22'}").score(*ROWS, sources=TEXTS["sources"], bootstrap=40, seed=5)
    draws = np.random.default_rng(5)
    count = len(score.segments)
    means = [np.mean([score.segments[i] for i in draws.integers(0, count, size=count)]) for _ in range(40)]
    assert score.interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_source_and_reference_both_count(models):
    metric = registry.get(f"comet:{models / 'wmt22'}")
    texts = TEXTS["hypotheses"]
    value = metric.corpus(*ROWS, sources=TEXTS["sources"])
    assert metric.corpus(*ROWS, sources=TEXTS["sources"][::-1]) != pytest.approx(value, abs=1e-3)
    assert metric.corpus(texts, TEXTS["references"][::-1], "de", TEXTS["sources"]) != pytest.approx(value, abs=1e-3)


def test_no_source_text_is_refused(models):
    metric = registry.get(f"comet:{models / 'wmt22'}")
    with pytest.raises(DataError, match="comet needs the source texts"):
        metric.score(["a"], ["b"], "de")
    with pytest.raises(DataError, match="needs source_text: 2 of 3 clips lack it, first 1"):
        metric.score(["a"] * 3, ["b"] * 3, "de", sources=["x", None, " "])
    with pytest.raises(DataError, match="1 translations cannot be scored with 2 source texts"):
        metric.score(["a"], ["b"], "de", sources=["x", "y"])
    with pytest.raises(DataError, match="clip 0 of 1 has no reference"):
        metric.score(["a"], [""], "de", sources=["x"])


def rebuilt(models, tmp_path, change=None, settings=None):
    """A copy of a checkpoint with its content or hparams.yaml changed."""
    file = tiny_comet.build(tmp_path / "changed")
    stored = torch.load(file, weights_only=True)
    if change:
        change(stored)
        torch.save(stored, file)
    if settings:
        hparams = tmp_path / "changed" / "hparams.yaml"
        hparams.write_text(yaml.safe_dump(yaml.safe_load(hparams.read_text()) | settings))
    return registry.get(f"comet:{tmp_path / 'changed'}")


class Trap:
    """A pickle that would write a file when it is read without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_a_checkpoint_that_holds_code_is_refused_unrun(models, tmp_path):
    metric = rebuilt(models, tmp_path, lambda stored: stored.update(callbacks=Trap(tmp_path / "ran")))
    with pytest.raises(DataError, match="not a checkpoint of plain weights") as caught:
        metric.score(["a"], ["b"], "de", sources=["x"])
    assert "weights_only" not in str(caught.value)  # torch's advice is to run what the file holds
    assert not (tmp_path / "ran").exists()
    (tmp_path / "changed" / "checkpoints" / "model.ckpt").write_bytes(
        pickle.dumps({"state_dict": Trap(tmp_path / "ran")})
    )
    with pytest.raises(DataError, match="not a checkpoint of plain weights"):
        registry.get(f"comet:{tmp_path / 'changed'}").score(["a"], ["b"], "de", sources=["x"])
    assert not (tmp_path / "ran").exists()


def test_trainer_classes_in_a_checkpoint_are_stood_in_for(models, tmp_path, monkeypatch):
    """Checkpoints of older trainers name their callbacks' classes as keys."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks")
    module.EarlyStopping = type("EarlyStopping", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    metric = rebuilt(models, tmp_path, lambda stored: stored.update(callbacks={module.EarlyStopping: {"wait": 1}}))
    assert metric.corpus(*ROWS, sources=TEXTS["sources"]) == pytest.approx(
        GOLDENS["variants"]["wmt22"]["system"], abs=FLOAT32
    )


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, {"class_identifier": "unified_metric"}, "class 'unified_metric'; only 'regression_metric'"),
        (None, {"class_identifier": None}, "class None"),
        (lambda s: s["hyper_parameters"].update(encoder_model="BERT"), None, "unsupported settings .*BERT"),
        (lambda s: s["hyper_parameters"].update(pool="median"), None, "unsupported settings .*median"),
        (lambda s: s["hyper_parameters"].update(activations="ReLU"), None, "unknown activation 'ReLU'"),
        (lambda s: s["state_dict"].pop("layerwise_attention.gamma"), None, "no layerwise_attention.gamma"),
        (lambda s: s["state_dict"].pop("estimator.ff.0.bias"), None, "no estimator.ff.0.bias"),
        (lambda s: s["state_dict"].pop("encoder.model.embeddings.LayerNorm.bias"), None, "has no weights for"),
        (lambda s: s.pop("state_dict"), None, "not a checkpoint of plain weights"),
        (lambda s: s.update(state_dict=[]), None, "has no weights for"),
        (lambda s: s["hyper_parameters"].update(pretrained_model=5), None, "unsupported settings"),
        (lambda s: s["hyper_parameters"].update(layer=[1]), None, r"layer \[1\] is neither a number nor 'mix'"),
        (lambda s: s["hyper_parameters"].update(activations=None), None, "unknown activation None"),
        (lambda s: s["state_dict"].update({"estimator.ff.x.weight": torch.ones(1)}), None, "does not load as a COMET"),
        (lambda s: s["state_dict"]["estimator.ff.0.bias"].fill_(float("nan")), None, "a score that is no number"),
        (None, {"pool": ["avg"], "class_identifier": ["x"]}, r"class \['x'\]"),
    ],
)
def test_other_checkpoints_are_refused(change, settings, message, models, tmp_path):
    with pytest.raises(DataError, match=message):
        rebuilt(models, tmp_path, change, settings).score(["a"], ["b"], "de", sources=["x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000, "hparams.yaml: not YAML to work with: it is nested too deeply"),
        ("a: &a [*a]", "hparams.yaml:1: not YAML to work with"),
        ("layer: !!int abc", "hparams.yaml: a value is not of the type"),
        ("- 5", "class None"),
        ("\x07", "hparams.yaml: not YAML"),
    ],
)
def test_settings_that_are_no_yaml_to_work_with(text, message, models, tmp_path):
    metric = rebuilt(models, tmp_path, None)
    (tmp_path / "changed" / "hparams.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        metric.score(["a"], ["b"], "de", sources=["x"])


def test_a_broken_encoder_is_named(models, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        metric = rebuilt(models, tmp_path / name, None)
        (tmp_path / name / "changed" / "encoder" / name).write_text("[]")
        with pytest.raises(DataError, match="does not load as a COMET model"):
            metric.score(["a"], ["b"], "de", sources=["x"])


def test_models_that_are_not_there(tmp_path):
    def score(model):
        return registry.get(f"comet:{model}").score(["a"], ["b"], "de", sources=["x"])

    with pytest.raises(DataError, match=r"no COMET checkpoint .*lost.ckpt"):
        score(tmp_path / "lost.ckpt")
    with pytest.raises(DataError, match=r"no COMET model: hparams.yaml is missing"):
        score(tmp_path)
    with pytest.raises(DataError, match=r"hparams.yaml of Unbabel/wmt22-comet-da,.*hf download Unbabel/wmt22-comet-da"):
        score("wmt22-comet-da")  # the tests are offline


def test_names_and_labels():
    assert registry.canonical(" COMET:Models/XX ") == "comet:Models/XX"
    assert registry.get("comet").model == "wmt22-comet-da"
    labels = {"comet": "COMET", "comet-half": "COMET fp16", "comet:wmt20-comet-da": "COMET wmt20-comet-da",
              "comet:some/mine/": "COMET mine", "comet:here/mine/checkpoints/model.ckpt": "COMET mine"}  # fmt: skip
    assert {name: registry.get(name).label for name in labels} == labels
    for wrong in ("comet:", "chrf:model"):
        with pytest.raises(RecipeError, match="comet:DIRECTORY"):
            registry.get(wrong)


def test_sparsemax_is_a_projection_onto_the_simplex():
    found = comet_model.sparsemax(torch.tensor([0.3, 1.2, 1.1, -2.0]))
    assert found.tolist() == pytest.approx([0, 0.55, 0.45, 0])
    assert comet_model.sparsemax(torch.zeros(5)).tolist() == pytest.approx([0.2] * 5)


def check_command(files, models, *more):
    command = ["score", str(files / "hypotheses"), "--references", str(files / "references"), *more]
    model = models / "wmt22"
    return main([*command, "--sources", str(files / "sources"), "--metrics", f"chrf,comet:{model},comet-half:{model}"])


def test_the_check_compares_every_segment(models, files, capsys, monkeypatch):
    gold = list(GOLDENS["variants"]["wmt22"]["float32"])
    half = [float(line.rsplit(" ", 1)[1]) for line in GOLDENS["variants"]["wmt22"]["comet-score"][:-1]]
    monkeypatch.setattr(comet_check, "install", lambda directory: directory)
    monkeypatch.setattr(comet_check, "_original", lambda python, where, columns, halved: half if halved else gold)
    monkeypatch.setattr(comet_check, "TOLERANCE", 4e-3)  # goldens of another processor, see FLOAT16
    place = str(files / "environment")
    assert check_command(files, models, "--comet-check", place) == 0
    assert "comet of hypotheses agrees with the original" in capsys.readouterr().out
    gold[7] += 0.01
    assert check_command(files, models, "--comet-check", place, "--json") == 2
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(row["metric"], row["agrees"]) for row in checks] == [("comet", False), ("comet-half", True)]
    assert checks[0]["largest"] == pytest.approx(0.01, abs=1e-4)
    assert check_command(files, models, "--comet-check") == 2
    assert "--comet-check: expected one argument" in capsys.readouterr().err


def test_the_check_touches_no_directory_of_others(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty and no Python environment"):
        comet_check.install(tmp_path)


@pytest.mark.isolated
def test_the_original_agrees(models, files, capsys):
    """Installs the original for real."""
    assert check_command(files, models, "--comet-check", str(files / "environment"), "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [row["metric"] for row in checks] == ["comet", "comet-half"]
    assert all(row["largest"] <= 1e-5 for row in checks)
