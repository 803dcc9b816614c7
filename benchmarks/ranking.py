"""Layer ranking: the reference procedure against sordino's, on one run's teacher and select split.

The reference is written plainly from the published method: for every candidate the whole model is deep-copied, one
layer taken out, and every clip translated alone, its audio encoded anew and padded to the full window of the model.
The exact search must find the same removals through the same translations; racing need not.

    python benchmarks/ranking.py runs/demo-en-de --remove 3 --json ranking.json
    python benchmarks/ranking.py runs/demo-en-de --ideas          # what each idea brings, without the reference
    python benchmarks/ranking.py runs/demo-en-de --growth         # cost against clips, candidates and layers
    python benchmarks/ranking.py runs/demo-en-de --orders 300     # how often racing finds exact's removals

Everything runs in float32 in one process; memory is the process's peak resident set against its peak when the model
translates one clip. Times are wall-clock; quote the ratios. Search times leave out the encoding of the
clips, which a run does once and keeps.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import dataclasses
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.runtime import environment

environment.prepare()  # its settings count only before torch is imported: hence the imports below it
environment.quiet_libraries()

import numpy as np
import torch

from sordino.data import manifest
from sordino.data.audio import load_clip
from sordino.data.clip import Clip
from sordino.measure.speed import peak_rss_bytes, reset_peak_rss
from sordino.metrics import registry as metrics
from sordino.models import loading
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, cut, generate, translate
from sordino.models.speech import SpeechModel
from sordino.pipeline import artifact
from sordino.pruning import search
from sordino.pruning.layer import Layer, parse_layer
from sordino.pruning.lots import Key, out_of
from sordino.pruning.ranking import Ranking
from sordino.pruning.scoring import ClipScorer, ScoringOptions, TargetLanguage
from sordino.pruning.search import Removal, Trial, without
from sordino.pruning.speculative import SpeculativeDecoder, default_memory
from sordino.runtime import files
from sordino.runtime.progress import bar, note

MIB = 2**20


@dataclass
class Bench:
    """A run's teacher on its select clips."""

    speech: SpeechModel
    prompt: str
    clips: list[Clip]
    target: str
    criterion: str
    max_new_tokens: int
    encoded: list[EncodedClip] = field(default_factory=list)
    encoding: float = 0.0  # seconds

    @property
    def references(self) -> list[str]:
        return [clip.target_text or "" for clip in self.clips]

    def score(self, texts: list[str]) -> float:
        return metrics.get(self.criterion).corpus(texts, self.references[: len(texts)], self.target)

    def encode(self) -> None:
        self.encoded = list(Features(self.speech, None).encode_each(self.clips, self.prompt))

    def task(self) -> TargetLanguage:
        answers = [self.speech.answer_ids(text) for text in self.references]
        return TargetLanguage(self.target, self.encoded, self.references, answers)

    def pool(self) -> list[Layer]:
        return search.candidates(self.speech, "decoder", 1, 1)


@dataclass
class Result:
    order: list[str]
    trials: list[Trial]
    seconds: float
    peak_bytes: int
    search: float  # of the seconds


def reference(bench: Bench, remove: int) -> Result:
    """The published procedure, plainly."""
    bench.encoding = 0.0  # it encodes every clip for every candidate

    def procedure() -> tuple[list[str], list[Trial]]:
        order: list[Layer] = []
        trials = [Trial(0, None, *_scored(bench, reference_texts(bench, bench.speech.model)))]
        pool = bench.pool()
        total = sum(len(pool) - i for i in range(remove))
        with bar("reference", total) as advance:
            for number in range(1, remove + 1):
                results = []
                for layer in [c for c in pool if c not in order]:
                    model = copy.deepcopy(bench.speech.model)
                    gone = {layer.index, *(r.index for r in order)}
                    _drop(bench, model, gone)
                    results.append(Trial(number, layer, *_scored(bench, reference_texts(bench, model))))
                    advance(1)
                trials += results
                best = max(results, key=lambda t: t.score)
                assert best.layer
                order.append(best.layer)
        return [str(layer) for layer in order], trials

    return _measured(bench, procedure)


def reference_texts(bench: Bench, model: Any) -> list[str]:
    """One clip at a time through the stock model, audio padded to the window and encoded again."""
    speech, texts = SpeechModel(bench.speech.family, model, bench.speech.processor, bench.speech.path), []
    if not callable(speech.processor):  # the stock one wants packages that are not here: the clip at its own length
        heard = Features(speech, None)
        answers = (generate(speech, [heard.encode(c, bench.prompt)], bench.max_new_tokens)[0] for c in bench.clips)
        return [speech.decode(ids) for ids in answers]
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=bench.max_new_tokens,
        eos_token_id=speech.stop_ids(),
        pad_token_id=speech.pad_id(),
    )
    with torch.inference_mode():
        for clip in bench.clips:
            inputs = speech.processor(
                text=[bench.prompt], audio=[load_clip(clip)], sampling_rate=16_000, return_tensors="pt"
            )
            out = model.generate(**inputs, generation_config=greedy)
            texts.append(speech.decode(cut(out[0, inputs["input_ids"].shape[1] :].tolist(), speech.stop_ids())))
    return texts


def _drop(bench: Bench, model: Any, gone: set[int]) -> None:
    from sordino.pruning.layers import prune

    copied = SpeechModel(bench.speech.family, model, bench.speech.processor, bench.speech.path)
    prune(copied, "decoder", [i for i in range(len(copied.layers("decoder"))) if i not in gone])


def _scored(bench: Bench, texts: list[str]) -> tuple[float, int, None, tuple[str, ...]]:
    return bench.score(texts), len(texts), None, tuple(texts)


def ours(bench: Bench, remove: int, *, racing: bool = False) -> Result:
    """sordino's search as `sordino rank` runs it, the encoding of the clips included."""

    def procedure() -> tuple[list[str], list[Trial]]:
        start = time.perf_counter()
        bench.encode()
        bench.encoding = time.perf_counter() - start
        terms = ScoringOptions(bench.criterion, bench.max_new_tokens, default_memory(bench.speech), racing=racing)
        judge = ClipScorer(bench.speech, [bench.task()], terms, lambda h: h)
        trials: list[Trial] = []
        removals: list[Removal] = search.search(bench.pool(), remove, judge, [], trials.append, racing)
        return [str(r.layer) for r in removals], trials

    return _measured(bench, procedure)


def races(bench: Bench, exact: Result) -> list[dict[str, Any]]:
    """What racing picks in each round behind exact's earlier removals, from exact's own translations; lost: chrF."""
    scores = {(t.round, t.layer): t.score for t in exact.trials}
    order = [parse_layer(text) for text in exact.order]
    found: dict[Key, list[int]] = {}
    for trial in exact.trials:
        gone = out_of(order[: max(0, trial.round - 1)], trial.layer)
        for item, text in enumerate(trial.hypotheses or ()):
            found[gone, item] = bench.speech.processor.tokenizer.encode(text, add_special_tokens=False)
    terms = ScoringOptions(bench.criterion, bench.max_new_tokens, default_memory(bench.speech), racing=True)
    judge = ClipScorer(bench.speech, [bench.task()], terms, lambda h: h, translations=found)
    runner = search.Runner(judge, bench.pool(), {}, lambda _: None)
    rows = []
    for number, best in enumerate(order, 1):
        gone = order[: number - 1]
        left = [layer for layer in bench.pool() if layer not in gone]
        picked = runner.race(number, gone, left).layer
        lost = scores[number, best] - scores[number, picked]
        rows.append({"round": number, "exact": str(best), "racing": str(picked), "lost": round(lost, 3)})
    return rows


def give_back_memory() -> None:
    """So that a procedure does not live on what the one before it has left in the heap."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _measured(bench: Bench, procedure: Callable[[], tuple[list[str], list[Trial]]]) -> Result:
    give_back_memory()
    reset_peak_rss()
    start = time.perf_counter()
    order, trials = procedure()
    seconds = time.perf_counter() - start
    return Result(order, trials, seconds, peak_rss_bytes(), seconds - bench.encoding)


def compare(bench: Bench, remove: int) -> dict[str, Any]:
    """Both procedures and the race; prints orders, score tables, times, memory and ratios."""
    give_back_memory()
    reset_peak_rss()
    reference_texts(dataclasses.replace(bench, clips=bench.clips[:1]), bench.speech.model)
    alone = peak_rss_bytes()
    weights = sum(p.numel() * p.element_size() for p in bench.speech.model.parameters())
    exact, race = ours(bench, remove), ours(bench, remove, racing=True)
    plain = reference(bench, remove)
    same = [
        a.hypotheses == b.hypotheses
        for a, b in zip(sorted(plain.trials, key=_key), sorted(exact.trials, key=_key), strict=True)
    ]
    rows = {}
    for name, result in (("reference", plain), ("exact", exact), ("racing", race)):
        rows[name] = {
            "order": result.order,
            "seconds": round(result.seconds, 2),
            "search_seconds": round(result.search, 2),
            "speedup": round(plain.seconds / result.seconds, 1),
            "peak_mib": round(result.peak_bytes / MIB),
            "peak_ratio": round(result.peak_bytes / alone, 3),
        }
        note(f"{name:<10}{json.dumps(rows[name])}")
    picked = races(bench, exact)
    agreed = sum(row["exact"] == row["racing"] for row in picked)
    print(f"\n{'round':<7}{'layer':<12}{'reference':>12}{'exact':>12}  same translations")
    for a, b in zip(sorted(plain.trials, key=_key), sorted(exact.trials, key=_key), strict=True):
        print(f"{a.round:<7}{a.layer or '-'!s:<12}{a.score:>12.4f}{b.score:>12.4f}  {a.hypotheses == b.hypotheses}")
    print(f"\nsame order: {plain.order == exact.order}; same translations in {sum(same)} of {len(same)} trials")
    print(f"exact is {rows['exact']['speedup']}x the reference; racing {exact.seconds / race.seconds:.2f}x exact")
    print(f"without the encoding, which both do alike, racing is {exact.search / race.search:.2f}x exact")
    missed = [f"{row['racing']} for {row['exact']}, {row['lost']} lower" for row in picked if row["lost"] > 0]
    print(f"racing's own order: {' '.join(race.order)}")
    print(f"behind exact's earlier removals it finds {agreed} of {remove}; {'; '.join(missed) or 'no other'}")
    return {"procedures": rows, "same": all(same), "model_mib": round(weights / MIB), "races": picked}


def _key(trial: Trial) -> tuple[int, int]:
    return trial.round, trial.layer.index if trial.layer else -1


def ideas(bench: Bench) -> list[dict[str, Any]]:
    """Round one, with one idea after the other. The first rows run on a tenth of the clips and say so."""
    pool = bench.pool()
    few = bench.clips[: max(1, len(bench.clips) // 10)]
    rows: list[dict[str, Any]] = []

    def add(idea: str, clips: int, work: Callable[[], Any], candidates: int = len(pool)) -> None:
        start = time.perf_counter()
        work()
        spent = time.perf_counter() - start
        rows.append({"idea": idea, "ms_per_translation": round(1000 * spent / clips / candidates, 2)})
        note(f"{idea:<62}{rows[-1]['ms_per_translation']:>10.2f} ms a translation")

    def copied() -> None:
        for layer in pool:
            model = copy.deepcopy(bench.speech.model)
            _drop(bench, model, {layer.index})
            reference_texts(small, model)

    def viewed() -> None:
        for layer in pool:
            with without(bench.speech, [layer]):
                reference_texts(small, bench.speech.model)

    def heard_once(size: int, chosen: list[EncodedClip]) -> Callable[[], None]:
        def work() -> None:
            for layer in pool:
                with without(bench.speech, [layer]):
                    translate(bench.speech, chosen, Decoding(size, bench.max_new_tokens))

        return work

    small = Bench(bench.speech, bench.prompt, few, bench.target, bench.criterion, bench.max_new_tokens)
    bench.encode()
    add("reference: deep copy, full window, one by one", len(few), copied)
    add("views in place of copies", len(few), viewed)
    add("every clip encoded once, at its true length", len(few), heard_once(1, bench.encoded[: len(few)]))
    add("batches of 50 by length", len(bench.clips), heard_once(50, bench.encoded))
    drafts = {i: [ids] for i, ids in enumerate(generate_all(bench))}
    indices = [layer.index for layer in pool]
    for label, together, with_drafts in (
        ("own decoder loop, one candidate after the other", False, False),
        ("... with drafts", False, True),
        ("trunk and pool shared by all candidates", True, False),
        ("... with drafts", True, True),
    ):
        engine = SpeculativeDecoder(bench.speech, bench.max_new_tokens, default_memory(bench.speech))

        def work(
            engine: SpeculativeDecoder = engine,
            together: bool = together,
            used: dict[int, list[list[int]]] = drafts if with_drafts else {},
        ) -> None:
            for group in [indices] if together else [[i] for i in indices]:
                engine.translate(bench.encoded, range(len(bench.encoded)), group, used)

        add(label, len(bench.clips), work)
    terms = ScoringOptions(bench.criterion, bench.max_new_tokens, default_memory(bench.speech))
    base = {((), i): texts[0] for i, texts in drafts.items()}
    judge = ClipScorer(bench.speech, [bench.task()], terms, lambda h: h, translations=base)
    add(
        "... a clip's share in one thread, scores and intervals: exact",
        len(bench.clips),
        lambda: list(judge.trials(1, [], pool, len(bench.clips))),
    )
    return rows


def generate_all(bench: Bench) -> Iterator[list[int]]:
    for encoded in bench.encoded:
        yield generate(bench.speech, [encoded], bench.max_new_tokens)[0]


def growth(bench: Bench) -> list[dict[str, Any]]:
    """Seconds of the exact mode's first round against clips, candidates, and layers of the model."""
    bench.encode()
    drafts = {i: [ids] for i, ids in enumerate(generate_all(bench))}
    rows = []

    def add(what: str, clips: int, candidates: list[int]) -> None:
        engine = SpeculativeDecoder(bench.speech, bench.max_new_tokens, default_memory(bench.speech))
        start = time.perf_counter()
        engine.translate(bench.encoded, range(clips), candidates, drafts)
        layers = len(bench.speech.layers("decoder"))
        rows.append({"what": what, "clips": clips, "candidates": len(candidates), "layers": layers})
        rows[-1]["seconds"] = round(time.perf_counter() - start, 3)
        note(json.dumps(rows[-1]))

    every = [layer.index for layer in bench.pool()]
    for share in (4, 2, 1):
        add("clips", len(bench.clips) // share, every)
    for count in (1, 2, 5, len(every)):
        add("candidates", len(bench.clips), every[-count:])
    total = len(bench.speech.layers("decoder"))
    for gone in (total // 2, total // 4):
        with without(bench.speech, [Layer("decoder", i) for i in range(total - gone - 1, total - 1)]):
            add("layers", len(bench.clips), list(range(1, total - gone - 1)))
    return rows


@dataclass
class Replay:
    """A judge that knows everything beforehand, on the clips in another order. counts: statistics of all clips of a
    translation, by (round, layer); diverged: KL of all clips, by (layers out, layer)."""

    scorer: Any
    counts: dict[tuple[int, Layer | None], Any]
    diverged: dict[tuple[int, Layer], Any]
    order: Any
    clips: int
    higher_is_better: bool = True

    def trials(
        self, number: int, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> Iterator[Trial]:
        for layer in candidates:
            chosen = self.counts[number, layer][self.order[:clips]].sum(0).tolist()
            yield Trial(number, layer, self.scorer._compute_score_from_stats(chosen).score, clips)

    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        return [float(self.diverged[len(removed), layer][self.order[:clips]].sum()) for layer in candidates]

    def resampled(self, trial: Trial) -> Any:
        return np.array([trial.score])


def orders(run: Path, bench: Bench, count: int) -> dict[str, Any]:
    """Replay every round of racing behind exact's earlier removals, with the clips in `count` random orders.

    Translations are those of the run's own exact search; what screening needs is computed once on all clips.
    """
    rows, metric, scorer = exact_trials(run, bench)
    counts = {
        (t.round, t.layer): np.array(scorer._extract_corpus_statistics(list(t.hypotheses or ()), None)) for t in rows
    }
    order = Ranking.read(run / "30-ranking" / "ranking.json").order
    bench.encode()
    judge = ClipScorer(
        bench.speech,
        [bench.task()],
        ScoringOptions("kl", bench.max_new_tokens, default_memory(bench.speech)),
        lambda h: h,
    )
    diverged = {}
    for number in range(1, len(order) + 1):
        if search.screened_in(number) == number:
            gone = order[: number - 1]
            for trial in judge.trials(number, gone, [c for c in bench.pool() if c not in gone], len(bench.clips)):
                assert trial.layer
                diverged[len(gone), trial.layer] = np.array(trial.values)
    rng = np.random.default_rng(0)
    picked: list[list[Layer]] = []
    for _ in range(count):
        replay = Replay(scorer, counts, diverged, rng.permutation(len(bench.clips)), len(bench.clips))
        runner = search.Runner(replay, bench.pool(), {}, lambda _: None)
        picked.append([
            runner.race(number, order[: number - 1], [c for c in bench.pool() if c not in order[: number - 1]]).layer
            for number in range(1, len(order) + 1)
        ])  # fmt: skip
    scores = {(t.round, t.layer): t.score for t in rows}
    found = []
    for number, best in enumerate(order, 1):
        layers = [each[number - 1] for each in picked]
        lost = [scores[number, best] - scores[number, layer] for layer in layers]
        found.append({"round": number, "exact": str(best), "found": round(layers.count(best) / count, 3)})
        found[-1]["lost"] = round(float(np.mean(lost)), 3)
        note(json.dumps(found[-1]))
    mean = {key: round(float(np.mean([row[key] for row in found])), 3) for key in ("found", "lost")}
    print(f"over {count} orders of the clips racing finds exact's removal in {mean['found']:.1%} of rounds; "
          f"a removal is {mean['lost']:.3f} {metric.label} lower on the mean")  # fmt: skip
    return {"rounds": found, **mean}


def exact_trials(run: Path, bench: Bench) -> tuple[list[Trial], Any, Any]:
    """The run's own trials, of an exact search of one language; the metric, and its scorer."""
    rows = [Trial.from_json(row) for row in files.read_jsonl(run / "30-ranking" / "trials.jsonl")]
    if any(len(t.hypotheses or ()) != len(bench.clips) for t in rows):
        raise SystemExit("this needs an exact search of one language on the same clips")
    metric: Any = metrics.get(bench.criterion)
    return rows, metric, metric.scorer(bench.references, bench.target)


def bound(run: Path, bench: Bench, parts: int = 4) -> dict[str, float]:
    """What stopping a candidate for sure would save: the share of translations, from the run's own trials.

    Clips come in `parts`; a candidate stops once even perfect translations of the rest (each equal to its reference)
    would leave it below the round's best, which is assumed to be known from the start: no real search saves more.
    """
    rows, _, scorer = exact_trials(run, bench)
    perfect = np.array(scorer._extract_corpus_statistics(bench.references, None))
    translated = total = 0
    for number in range(1, max(t.round for t in rows) + 1):
        trials = [t for t in rows if t.round == number]
        best = max(t.score for t in trials)
        for trial in trials:
            counts = np.array(scorer._extract_corpus_statistics(list(trial.hypotheses or ()), None))
            edges = [len(counts) * i // parts for i in range(1, parts + 1)]
            seen = next(
                (
                    m
                    for m in edges
                    if scorer._compute_score_from_stats((counts[:m].sum(0) + perfect[m:].sum(0)).tolist()).score < best
                ),
                len(counts),
            )
            translated, total = translated + seen, total + len(counts)
    saved = {"share_saved_at_best": round(1 - translated / total, 3)}
    note(f"a bound that knew the winner beforehand would save {saved['share_saved_at_best']:.0%} of the translations")
    return saved


def open_bench(run: Path, clips: int | None) -> Bench:
    stage = records.read_stage(run / "30-ranking") or {}
    section = stage.get("section", {})
    speech = loading.load_checkpoint(str(run / "20-teacher"), device="cpu", dtype=torch.float32)
    select = manifest.read(run / "10-data" / "select.jsonl")[:clips]
    teacher = records.read_stage(run / "20-teacher") or {}
    ranking = Ranking.read(run / "30-ranking" / "ranking.json")
    target = select[0].target_lang
    return Bench(speech, teacher["prompt"], select, target, ranking.criterion or "", section["max_new_tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--remove", type=int, default=3)
    parser.add_argument("--clips", type=int, default=None, help="so many of the select clips")
    parser.add_argument("--ideas", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--orders", type=int, metavar="N", help="replay racing over so many orders of the clips")
    parser.add_argument("--json", type=Path, default=None, help="write the results there")
    args = parser.parse_args()
    bench = open_bench(args.run, args.clips)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}",
        "versions": artifact.versions(),
        "clips": len(bench.clips),
        "criterion": bench.criterion,
    }
    note(json.dumps(found))
    if args.ideas:
        found["ideas"] = ideas(bench)
        found["bound"] = bound(args.run, bench)
    elif args.orders:
        found["orders"] = orders(args.run, bench, args.orders)
    elif args.growth:
        found["growth"] = growth(bench)
    else:
        found |= compare(bench, args.remove)
    if args.json:
        files.write_json(args.json, found)


if __name__ == "__main__":
    main()
