"""Scores against sacreBLEU itself: its command line to the printed digit, its API to the last."""

import subprocess
import sys

import numpy as np
import pytest
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF as SacreCHRF
from sacrebleu.significance import _bootstrap_resample

from sordino.cli import main
from sordino.errors import DataError, RecipeError
from sordino.metrics import overlap, registry
from sordino.metrics.base import Score
from sordino.metrics.overlap import bleu_tokenizer, bootstrap_interval

TEXTS = {
    "de": (
        ["Wir entfernen die Schichten, die wir nicht brauchen.", "Das ist ein kleines Modell (sehr klein).",
         "", "Danke."],
        ["Wir entfernen jene Schichten, die wir nicht brauchen.", "Dies ist ein kleines Modell (sehr klein).",
         "Noch eine Frage?", "Vielen Dank."],
    ),
    "zh": (
        ["我们移除了不需要的层。", "这是一个小模型。", "谢谢大家 GPT-2 模型", "问题是什么？"],
        ["我们移除不需要的层。", "这是一个很小的模型。", "谢谢大家，GPT-2 模型。", "还有什么问题？"],
    ),
}  # fmt: skip
CLI = {
    "bleu": ["-m", "bleu", "-tok"],
    "chrf": ["-m", "chrf", "--chrf-word-order", "0"],
    "chrf++": ["-m", "chrf", "--chrf-word-order", "2"],
}


def test_files_of_different_lengths_are_refused_by_name(tmp_path, capsys):
    for name, lines in (("hyp", 2), ("ref", 3), ("src", 2), ("none", 0)):
        (tmp_path / name).write_text("eins\n" * lines, encoding="utf-8")
    command = ["score", str(tmp_path / "hyp"), "--references"]
    assert main([*command, str(tmp_path / "ref"), "--sources", str(tmp_path / "src")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for text in ("hyp has 2 lines", "ref has 3 lines", "src has 2 lines"):
        assert text in printed.err
    assert main([*command, str(tmp_path / "none")]) == 2
    assert "none has 0 lines" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "lost")]) == 2
    assert "there is no file" in capsys.readouterr().err


def reference_metric(name, language):
    if name == "bleu":
        return SacreBLEU(tokenize={"zh": "zh"}.get(language, "13a"))
    return SacreCHRF(word_order=2 if name == "chrf++" else 0)


@pytest.mark.parametrize("language", TEXTS)
def test_scores_are_those_of_sacrebleus_command_line(language, tmp_path, capsys):
    hypotheses, references = TEXTS[language]
    (tmp_path / "hyp").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    (tmp_path / "ref").write_text("".join(f"{line}\n" for line in references), encoding="utf-8")
    for name, options in CLI.items():
        tokenizer = [{"zh": "zh"}.get(language, "13a")] if name == "bleu" else []
        command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-w", "6", *options, *tokenizer]
        # -f text prints "NAME|SIGNATURE = SCORE ..."
        ran = subprocess.run([*command, "-f", "text"], cwd=tmp_path, capture_output=True, text=True, check=True)
        signature, printed = ran.stdout.split("|", 1)[1].split(" = ")[:2]
        score = registry.get(name).score(hypotheses, references, language, bootstrap=0)
        assert f"{score.value:.6f}" == printed.split()[0]
        assert score.signature == signature
        files = [str(tmp_path / "hyp"), "--references", str(tmp_path / "ref")]
        assert main(["score", *files, "--to", language, "--metrics", name]) == 0
        key, value, _, signature = capsys.readouterr().out.strip().split("\t")
        assert (key, value) == (name, f"{float(printed.split()[0]):.2f}")
        assert "bs:1000|seed:0" in signature


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("name", CLI)
def test_value_and_search_value_equal_the_api_to_the_last_digit(name, language):
    hypotheses, references = TEXTS[language]
    expected = reference_metric(name, language).corpus_score(hypotheses, [references]).score
    metric = registry.get(name)
    assert 0 < expected < 100
    assert metric.corpus(hypotheses, references, language) == expected
    assert metric.score(hypotheses, references, language, bootstrap=10).value == expected
    # The references' counts are cached: other hypotheses after them must not see the first ones' score.
    assert metric.corpus(references, references, language) == pytest.approx(100)
    assert metric.corpus(hypotheses, references, language) == expected


@pytest.mark.parametrize("name", CLI)
def test_bootstrap_is_sacrebleu_on_resampled_sets(name, monkeypatch):
    rng = np.random.default_rng(7)
    words = np.array(["wir", "entfernen", "Schichten", "die", "das", "Modell", "nicht", "braucht", ",", "und", "."])
    references = [" ".join(rng.choice(words, size=rng.integers(4, 12))) for _ in range(23)]
    hypotheses = [" ".join(word for word in text.split() if rng.random() > 0.2) for text in references]
    score = registry.get(name).score(hypotheses, references, "de", bootstrap=60, seed=3)

    values = []
    draws = np.random.default_rng(3)
    for _ in range(60):
        drawn = draws.integers(0, 23, size=23)
        resampled = [[hypotheses[i] for i in drawn], [[references[i] for i in drawn]]]
        values.append(reference_metric(name, "de").corpus_score(*resampled).score)
    assert score.interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-12)
    assert score.interval[0] < score.value < score.interval[1]

    # and they are sacreBLEU's own draws, so its signature is the truth
    monkeypatch.setenv("SACREBLEU_SEED", "3")
    metric = reference_metric(name, "de")
    stats = metric._extract_corpus_statistics(hypotheses, [references])
    own = [found.score for found in _bootstrap_resample(stats, metric, 60)[1]]
    assert own == pytest.approx(values)
    metric.corpus_score(hypotheses, [references], n_bootstrap=60)
    assert score.signature == metric.get_signature().format()
    assert "bs:60|seed:3" in score.signature


def test_another_seed_moves_the_interval_and_nothing_else():
    hypotheses, references = TEXTS["de"]
    one, other = (registry.get("chrf").score(hypotheses, references, "de", seed=seed, bootstrap=50) for seed in (0, 1))
    assert one.interval != other.interval
    assert (one.value, one.segments) == (other.value, other.segments)
    assert one == registry.get("chrf").score(hypotheses, references, "de", seed=0, bootstrap=50)


def test_segments_are_sentence_scores():
    hypotheses, references = TEXTS["de"]
    bleu = SacreBLEU(effective_order=True)
    pairs = zip(hypotheses, references, strict=True)
    expected = [bleu.sentence_score(text, [reference]).score for text, reference in pairs]
    segments = registry.get("bleu").score(hypotheses, references, "de", bootstrap=0).segments
    assert segments == tuple(expected)
    assert segments[2] == 0  # the empty one
    pairs = zip(hypotheses, references, strict=True)
    chrf = [SacreCHRF().sentence_score(text, [reference]).score for text, reference in pairs]
    assert registry.get("chrf").score(hypotheses, references, "de", bootstrap=0).segments == tuple(chrf)


def test_a_constant_set_has_no_spread():
    metric = SacreCHRF()
    rows = metric._extract_corpus_statistics(["ein Haus"] * 5, [["ein Haus am See"] * 5])
    low, high = bootstrap_interval(metric, np.array(rows), 20, 0)
    assert low == pytest.approx(high)


def test_tokenizer_of_names_and_codes():
    assert [bleu_tokenizer(name) for name in ("zh", "Chinese", "zh-CN", "zh_TW")] == ["zh"] * 4
    assert [bleu_tokenizer(name) for name in ("de", "German", "Swahili")] == ["13a"] * 3


def test_japanese_without_mecab_says_so(monkeypatch):
    monkeypatch.setattr(overlap, "find_spec", lambda name: None)
    hypotheses, references = ["これは 小さい モデル です"] * 2, ["これは 小さな モデル です"] * 2
    score = registry.get("bleu").score(hypotheses, references, "ja", bootstrap=0)
    assert bleu_tokenizer("Japanese") == "13a" and score.signature.endswith("|note:ja-mecab-not-installed")
    assert "note:" not in registry.get("chrf").score(hypotheses, references, "ja", bootstrap=0).signature
    assert "note:" not in registry.get("bleu").score(hypotheses, references, "de", bootstrap=0).signature
    monkeypatch.setattr(overlap, "find_spec", lambda name: object())
    assert bleu_tokenizer("ja") == "ja-mecab"


@pytest.mark.parametrize("name", CLI)
def test_what_cannot_be_scored_is_refused(name):
    metric = registry.get(name)
    for call in (metric.corpus, metric.score):
        with pytest.raises(DataError, match=r"2 translations .* 1 references"):
            call(["a", "b"], ["a"], "de")
        with pytest.raises(DataError, match="no translations"):
            call([], [], "de")
        for missing in (None, "", " \n"):
            with pytest.raises(DataError, match="clip 1 of 2 has no reference"):
                call(["a", "b"], ["a", missing], "de")
        with pytest.raises(DataError, match="translation 0 is None"):
            call([None], ["a"], "de")


def test_names():
    assert registry.get("chrF") is registry.get("chrf")
    assert registry.get("chrfpp").name == registry.get("ChrF++").name == "chrf++"
    assert registry.get("BLEU").label == "BLEU"
    assert all(registry.get(name).higher_is_better for name in registry.METRICS)
    with pytest.raises(RecipeError, match=r"no metric 'blue'.*Did you mean 'bleu'"):
        registry.get("blue")
    with pytest.raises(RecipeError, match=r"Metrics: bleu, chrf, chrf\+\+"):
        registry.get("accuracy")


def test_score_survives_json():
    import json

    score = registry.get("chrf").score(*TEXTS["de"], "de", bootstrap=20)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    bare = Score("chrf", 1.0, "s", None, None)
    assert Score.from_json(bare.to_json()) == bare
