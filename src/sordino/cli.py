"""The command line: a table of commands, lazy imports, exit codes.

Everything for people goes to stderr, results to stdout. With `--json` stdout ends with exactly one JSON object on one
line. Exit codes: 0 done, 1 a bug of ours (with a traceback), 2 something the user can fix (one clear message),
130 interrupted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sordino
from sordino.config import records
from sordino.errors import RecipeError, SordinoError, is_out_of_memory
from sordino.runtime import files
from sordino.serve import command as serve

if TYPE_CHECKING:
    from sordino.config.schema import Recipe

STAGES = {
    "prepare": "read the corpus, check every clip, deal disjoint splits",
    "finetune": "full-parameter fine-tuning: the teacher",
    "rank": "the order in which translation can spare layers",
    "prune": "drop the ranked layers",
    "pseudolabel": "the teacher translates the training audio",
    "distil": "heal the pruned student",
    "qlora": "train a low-rank adapter on the 4-bit model",
    "merge": "fold the adapter into the 16-bit model",
    "trim": "shrink the vocabulary to what the translations need",
    "export": "write the deployable forms",
    "translate": "a recipe's systems translate the test split; or: MODEL AUDIO... --to LANGUAGE",
    "evaluate": "scores, sizes, speeds of a recipe; or: HYPOTHESES --references REFERENCES",
    "report": "one offline page of all results",
    "sweep": "the chain, then smaller forms of its models: bytes against quality, the frontier and its knee",
}


@dataclass(frozen=True)
class Command:
    """help: one line; arguments: adds to the parser; run: returns what --json prints."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    _before_torch()
    parser = _parser()
    args, late = parser.parse_known_args(argv)
    rest = next((name for name in ("audio", "folders", "overrides") if hasattr(args, name)), None)
    if late and (rest is None or any(word.startswith("-") for word in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late and rest:  # argparse takes no positionals behind an option: `translate MODEL --to German a.wav`
        setattr(args, rest, [*getattr(args, rest), *late])
    try:
        result = COMMANDS[args.command].run(args)
    except SordinoError as error:
        print(f"sordino: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if not is_out_of_memory(error):
            raise
        way = "Lower --batch-size, or take another --device." if hasattr(args, "batch_size") else "Free some of it."
        print(f"sordino: there is not enough memory. {way}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sordino: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return int(result.get("exit", 0))


def _before_torch() -> None:
    """Settings that count only before torch starts its threads; each can be overridden from outside.

    Waiting threads that spin steal the cores from the working ones on a small shared machine (steps became 7 to 10
    times slower), and glibc gives every large tensor's pages back to the kernel at once (2 times slower).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries among our own
    # transformers warns of its own deprecations each time a model is quantized
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):  # another C library
            return
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD, bytes
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
        mallopt(-8, 1)  # M_ARENA_MAX: with more, every thread keeps the memory of its own largest step


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sordino",
        description="Make audio language models small without losing their voice.",
        epilog="Start with: sordino run recipes/demo.yaml",
    )
    parser.add_argument("--version", action="version", version=f"sordino {sordino.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="end stdout with one JSON object on one line")
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable clips out and list them")


def _load(args: argparse.Namespace) -> Recipe:
    from sordino.config import recipe

    return recipe.load(args.recipe, args.overrides)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.pipeline import runner

    recipe = _load(args)
    ran = runner.run(recipe, {"skip_bad": args.skip_bad})
    if not ran:
        print("nothing to do: every stage is done", file=sys.stderr)
    return {"run": str(recipe.directory), "ran": ran} | _results(recipe, args.json)


def _results(recipe: Recipe, quiet: bool) -> dict[str, Any]:
    """Print the table of all systems where the run has got that far; the scores for --json."""
    from sordino.pipeline.job import REPORT
    from sordino.stages import report as report_stage

    directory = recipe.directory / REPORT
    if report_stage.STAGE.section(recipe) is None or records.read_stage(directory) is None:
        return {}
    if not quiet:
        from rich.console import Console

        from sordino.report.table import table

        built = report_stage.build(recipe)
        Console(width=None if sys.stdout.isatty() else 160).print(table(built.systems))
        print(f"report: {directory / 'report.html'}")
    return {"report": str(directory / "report.html"), "scores": files.read_json(directory / "scores.json")}


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="the model's config.json, to predict sizes from")
    parser.add_argument("--predict-for", choices=["cuda", "cpu"], help="device of the predictions (default: recipe's)")
    parser.add_argument("--formulas", action="store_true", help="print how sizes and memory are predicted")


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from sordino.measure import predict, show
    from sordino.pipeline import runner
    from sordino.pipeline.forecast import config_of

    recipe = _load(args)
    config = config_of(recipe, args.config)
    lines = runner.plan(recipe, config, args.predict_for)
    if not args.json:
        rows = [line.to_json() for line in lines]
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(show.plan_table(rows, str(recipe.directory), recipe.model if config is None else None))
        if args.formulas:
            print(predict.FORMULAS)
    found: dict[str, Any] = {"run": str(recipe.directory), "plan": [line.to_json() for line in lines]}
    return found | ({"formulas": predict.FORMULAS} if args.formulas else {})


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.pipeline import runner

    recipe = _load(args)
    problems = runner.check(recipe)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not args.json:
        print(f"{recipe.directory}: " + (f"{len(problems)} problems" if problems else "every finished stage is intact"))
    return {"run": str(recipe.directory), "problems": problems, "exit": 2 if problems else 0}


def _stage(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.pipeline import runner

    recipe = _load(args)
    ran = runner.run_one(args.command, recipe, {"skip_bad": args.skip_bad})
    where = recipe.directory / runner.by_name(args.command).directory
    result: dict[str, Any] = {"run": str(recipe.directory), "stage": args.command, "ran": ran, "directory": str(where)}
    if args.command == "report":
        result |= _results(recipe, args.json)
    return result


def _sweep(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.pipeline import runner
    from sordino.pipeline.job import SWEEP

    if _load(args).sweep is None:
        args.overrides = [*args.overrides, "sweep={}"]
    recipe = _load(args)
    directory = recipe.directory / SWEEP
    ran = runner.run(recipe, {"skip_bad": args.skip_bad})
    result: dict[str, Any] = files.read_json(directory / "sweep.json")
    if not args.json:
        from rich.console import Console

        from sordino.report.lines import sweep_lines
        from sordino.report.table import table
        from sordino.stages import sweep

        Console(width=None if sys.stdout.isatty() else 160).print(table(sweep.build(recipe, directory).systems))
        for line in (*sweep_lines(result), f"plot: {directory / 'sweep.html'}"):
            print(line)
    return {"run": str(recipe.directory), "ran": ran, "page": str(directory / "sweep.html")} | result


def _is_recipe(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {text}")
    return int(text)


def _seconds(text: str) -> float:
    if not 0 < float(text) < 3600:
        raise argparse.ArgumentTypeError(f"must be above 0, found {text}")
    return float(text)


def _given(args: argparse.Namespace, settings: dict[str, str]) -> list[str]:
    """Options that were given beside a recipe, as the key=value that they are short for."""
    return [f"{key}={getattr(args, name)}" for name, key in settings.items() if getattr(args, name) is not None]


def _refuse_beside_recipe(args: argparse.Namespace, options: dict[str, str | None]) -> None:
    """Options of the other form of a command, which a recipe would leave unused. Raises RecipeError.

    options: attribute -> the setting to give instead, None where a recipe knows no such thing.
    """
    for name, key in options.items():
        if getattr(args, name) is not None:
            option = "--from" if name == "source" else f"--{name.replace('_', '-')}"
            instead = f"Say {key}=... for a run of its own." if key else "Leave it out: the run has its own."
            raise RecipeError(f"{args.command}: {option} is not used with a recipe.", instead)


def _using_arguments(parser: argparse.ArgumentParser) -> None:
    """How a model translates audio: of translate and submit."""
    parser.add_argument("--to", default=None, metavar="LANGUAGE", help="target language, e.g. German or de")
    parser.add_argument("--from", dest="source", default=None, metavar="LANGUAGE", help="source language")
    parser.add_argument("--device", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="default: auto")
    parser.add_argument("--batch-size", type=_count, help="clips (default: 16, or the recipe's)")
    parser.add_argument("--max-new-tokens", type=_count, help="default: 256, or the recipe's")
    note = "a YAML list of {wav, offset, duration}; without it, talks are cut where nobody speaks (extra: vad)"
    parser.add_argument("--segments", type=Path, metavar="FILE", help=note)
    parser.add_argument("--pause", type=_seconds, metavar="SECONDS", help="of silence that end a piece (default: 0.5)")


def _pause(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.pause is None else {"pause": args.pause}


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of it, as keywords."""
    asked = {"target": args.to, "source": args.source, "device": args.device, "dtype": args.dtype}
    asked |= {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    return {name: value for name, value in asked.items() if value is not None}


def _translate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|RECIPE", help="a model of a run, an export, or a recipe")
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files (or key=value after a recipe)")
    _using_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, and resume there")
    parser.add_argument("--skip-bad", action="store_true", help=argparse.SUPPRESS)


def _translate(args: argparse.Namespace) -> dict[str, Any]:
    if _is_recipe(args.model):
        beside = dict.fromkeys(("segments", "out", "pause"))
        _refuse_beside_recipe(args, {"to": "target", "source": "source"} | beside)
        settings = {"device": "device", "dtype": "dtype"}
        settings |= {"batch_size": "translate.batch_size", "max_new_tokens": "translate.max_new_tokens"}
        args.recipe, args.overrides = args.model, [*args.audio, *_given(args, settings)]
        return _stage(args)
    from sordino.inference import long_audio, translation

    if not args.audio:
        raise RecipeError("translate: no audio files.", "Name one or more after the model.")
    asked = _asked(args)
    if args.segments or args.out or long_audio.needed(args.audio):
        options = long_audio.Options(**asked, **_pause(args))
        result = long_audio.translate_talks(args.model, args.audio, args.segments, args.out, options)
        for skipped in result["skipped"]:
            print(f"{skipped['id']}: {skipped['problem']}: an empty line", file=sys.stderr)
    else:
        result = {"hypotheses": translation.translate_files(args.model, args.audio, **asked)}
    if not args.json and result.get("out"):
        print(f"{len(result['hypotheses'])} pieces: {result['out']}")
    elif not args.json:
        for row in result["hypotheses"]:
            text = row["text"] if len(result["hypotheses"]) == 1 else " ".join(row["text"].splitlines())
            print(text if len(args.audio) == 1 else f"{row['audio']}\t{text}")
    return result


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|RUN", help="a model of a run, or a run with one export")
    parser.add_argument("folders", nargs="*", metavar="TESTSET", help="recordings, FILE_ORDER, a YAML list")
    parser.add_argument("--team", required=True, help="short name, as in the files' names")
    parser.add_argument("--constrained", action="store_true", help="only the allowed data was used; checked")
    parser.add_argument("--contrastive", action="store_true", help="not the primary submission")
    note = "what the model was trained on, where its lineage does not say"
    parser.add_argument("--datasets", metavar="TEXT", help=note)
    parser.add_argument("--out", type=Path, default=Path("submissions"), metavar="DIR", help="default: submissions")
    _using_arguments(parser)


def _submit(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.inference import long_audio
    from sordino.submission.pack import Entry, submit

    if not args.folders:
        raise RecipeError("submit: no test sets.", "Name one or more folders after the model.")
    entry = Entry(args.team, args.constrained, args.contrastive, args.datasets)
    options = long_audio.Options(**_asked(args), **_pause(args))
    result = submit(args.model, list(map(Path, args.folders)), entry, args.out, options, args.segments)
    for key, empty in result["empty"].items():
        if empty:
            print(
                f"{key}: {len(empty)} of {result['segments'][key]} lines are empty: {', '.join(empty)}", file=sys.stderr
            )
    if not args.json:
        for key, file in result["files"].items():
            print(f"{key}\t{result['segments'][key]} lines\t{file}")
        print(f"description\t{result['description']}")
    return result


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hypotheses", metavar="HYPOTHESES|RECIPE", help="a text file, a line a segment, or a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--references", type=Path, metavar="FILE", help="a text file, a line a segment")
    parser.add_argument("--sources", type=Path, metavar="FILE", help="the transcripts, which COMET needs")
    parser.add_argument("--to", metavar="LANGUAGE", help="language of the texts (default: de): sets BLEU's tokenizer")
    parser.add_argument("--metrics", help="comma-separated (default: bleu,chrf,chrf++); also comet, comet:MODEL")
    note = (
        "of the references: translations cut in another way (text, or segments.jsonl) are brought onto it (mweralign)"
    )
    parser.add_argument("--segments", type=Path, metavar="FILE", help=note)
    note = "compare COMET with the original, which is installed in DIR (1.4 GB; default for a recipe: in its run)"
    parser.add_argument("--comet-check", type=Path, nargs="?", const=Path(), metavar="DIR", help=note)
    parser.add_argument("--skip-bad", action="store_true", help=argparse.SUPPRESS)


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.inference import translation

    place = args.comet_check
    if _is_recipe(args.hypotheses):
        _refuse_beside_recipe(args, {"to": "target", "references": None, "sources": None, "segments": None})
        if args.metrics is not None:
            args.overrides = [*args.overrides, f"evaluate.metrics=[{args.metrics}]"]
        args.recipe = args.hypotheses
        result = _stage(args)
        if place is not None:
            result["checks"] = translation.check_comet(_load(args), place if place.name else None)
    elif not args.references:
        raise RecipeError("evaluate: no references.", "Add --references FILE.")
    elif place is not None and not place.name:
        raise RecipeError("--comet-check: say where the original may be installed.", "E.g. --comet-check DIRECTORY.")
    else:
        names = (args.metrics or "bleu,chrf,chrf++").split(",")
        files = Path(args.hypotheses), args.references
        result = translation.score_files(*files, args.to or "de", names, args.sources, place, args.segments)
    if not args.json:
        from sordino.report.lines import lines

        for line in lines(result):
            print(line)
    if "scores" in result:
        result["scores"] = [{k: v for k, v in s.items() if k != "segments"} for s in result["scores"]]
    agreed = all(check["agrees"] for check in result.get("checks", []))
    return result if agreed else result | {"exit": 2}


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model or adapter directory, or one .safetensors")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.json instead: sizes from shapes alone")
    parser.add_argument("--decoder-layers", type=int, metavar="N", help="with --config: as if pruned to N layers")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="with --config: as if trimmed to N tokens")


def _inspect(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from sordino.measure import audit, show, size
    from sordino.models import shapes

    if (args.model is None) == (args.config is None):
        raise RecipeError("inspect: give a model directory, a .safetensors file, or --config config.json.")
    if args.model and (args.decoder_layers, args.vocabulary) != (None, None):
        raise RecipeError(
            "inspect: --decoder-layers and --vocabulary are of shapes, not of a model's files.",
            f"Use --config {Path(args.model) / 'config.json'}.",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.config:
        config = size.read_json(args.config, required=True)
        model = shapes.model(config, vocabulary=args.vocabulary, decoder_layers=args.decoder_layers)
        if not args.json:
            console.print(show.config_tables(model, str(args.config)))
        return {"config": str(args.config)} | show.config_json(model)
    found = audit.audit(Path(args.model))
    if not args.json:
        console.print(show.audit_tables(found))
    measured = size.measure(Path(args.model)).to_json() if Path(args.model).is_dir() else None
    return {"model": args.model, "size": measured, "audit": found.to_json()}


def _families(args: argparse.Namespace) -> dict[str, Any]:
    from sordino.models import registry

    rows = {name: registry.get(name).model_class for name in registry.FAMILIES}
    if not args.json:
        for name, model_class in rows.items():
            print(f"{name}\t{model_class}")
    return {"families": rows}


COMMANDS: dict[str, Command] = {
    "run": Command("run every stage of a recipe that is missing or out of date", _recipe_arguments, _run),
    "plan": Command("show what would run, and why, and what it will take", _plan_arguments, _plan),
    "check": Command("compare every finished file of a run with its record", _recipe_arguments, _check),
    **{name: Command(text, _recipe_arguments, _stage) for name, text in STAGES.items()},
    "translate": Command(STAGES["translate"], _translate_arguments, _translate),
    "evaluate": Command(STAGES["evaluate"], _evaluate_arguments, _evaluate),
    "sweep": Command(STAGES["sweep"], _recipe_arguments, _sweep),
    "serve": Command("a server with OpenAI's API and a page with a microphone", serve.arguments, serve.run),
    "submit": Command("an IWSLT submission: translated test sets and the description", _submit_arguments, _submit),
    "inspect": Command("what a model directory weighs, from its headers alone", _inspect_arguments, _inspect),
    "families": Command("the model families sordino knows", lambda _: None, _families),
}


if __name__ == "__main__":
    sys.exit(main())
