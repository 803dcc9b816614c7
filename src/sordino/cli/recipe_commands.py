"""Commands that take a recipe: the whole chain, and each of its stages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.cli import replacing
from sordino.cli.command import Command, Parser, Result, output
from sordino.config import records
from sordino.runtime import files
from sordino.runtime.environment import launched
from sordino.runtime.progress import note

if TYPE_CHECKING:
    from sordino.config.schema import Recipe

# what a stage is called on the command line where its own name is a command for files
STAGE_OF = {"translate-test": "translate"}


def _recipe(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that comes with sordino")
    parser.rest("overrides", "key=value", "settings that replace the recipe's")


def _changing(parser: Parser) -> None:
    _recipe(parser)
    replacing.argument(parser)


def _working(parser: Parser) -> None:
    _changing(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable clips out and list them")


def _planning(parser: Parser) -> None:
    _recipe(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="the model's config.json, to predict sizes from")
    parser.add_argument("--predict-for", choices=["cuda", "cpu"], help="device of the predictions (default: recipe's)")
    parser.add_argument("--formulas", action="store_true", help="print how sizes and memory are predicted")


def _evaluating(parser: Parser) -> None:
    _changing(parser)
    note = "compare COMET with the original, which is installed in DIR (1.4 GB; default: in the run)"
    parser.add_argument("--comet-check", type=Path, nargs="?", const=Path(), metavar="DIR", help=note)


def _load(args: argparse.Namespace) -> Recipe:
    from sordino.config import recipe

    return recipe.load(args.recipe, args.overrides)


def _told(args: argparse.Namespace) -> Recipe:
    """The recipe, with a word on what it asks for in vain."""
    from sordino.pipeline import preflight

    recipe = _load(args)
    for line in preflight.notes(recipe):
        note(line)
    return recipe


def _run(args: argparse.Namespace) -> Result:
    from sordino.pipeline import runner

    recipe = _told(args)
    ran = runner.run(recipe, {"skip_bad": args.skip_bad}, replacing.allow(recipe, args.yes))
    _end_of_helpers()
    if not ran:
        print("nothing to do: every stage is done", file=sys.stderr)
    return {"run": str(recipe.directory), "ran": ran} | _results(recipe, args.json)


def _end_of_helpers() -> None:
    """Of the processes that a launcher started, the first one alone reports."""
    if launched()[0]:
        raise SystemExit(0)


def _results(recipe: Recipe, quiet: bool) -> Result:
    """Print the table of all systems where the run has got that far; the scores for --json."""
    from sordino.config.run_layout import PAGE, REPORT, SCORES_FILE
    from sordino.pipeline import runner

    directory = recipe.directory / REPORT
    if runner.by_name("report").section(recipe) is None or records.read_stage(directory) is None:
        return {}
    if not quiet:
        from sordino.pipeline.results import systems_of
        from sordino.report import advice
        from sordino.report.table import table

        systems = systems_of(recipe)
        output().print(table(systems))
        print(f"report: {directory / PAGE}")
        for line in advice.last_lines(systems):
            print(line)
    return {"report": str(directory / PAGE), "scores": files.read_json(directory / SCORES_FILE)}


def _plan(args: argparse.Namespace) -> Result:
    from sordino.measure import predict, show
    from sordino.pipeline import planning, runner
    from sordino.pipeline.forecast import config_of

    recipe = _load(args)
    config = config_of(recipe, args.config)
    lines = runner.plan(recipe, config, args.predict_for)
    rows = [line.to_json() for line in lines]
    told = planning.told_of(recipe, lines)
    missing = [message.partition(":")[0] for message in told["not_installed"]]
    by_stage = {
        "export": [name for name in missing if name != "vllm"],
        "pseudolabel": [n for n in missing if n == "vllm"],
    }
    rows = [row | ({"not_installed": by_stage[row["stage"]]} if by_stage.get(row["stage"]) else {}) for row in rows]
    if not args.json:
        output().print(show.plan_table(rows, str(recipe.directory), recipe.model if config is None else None))
        spread = show.devices_table(rows)
        if spread is not None:
            output().print(spread)
        for title, messages in told.items():
            print("".join(f"{title.replace('_', ' ')}: {message}\n" for message in messages), end="")
        if args.formulas:
            print(predict.FORMULAS)
    result: Result = {"run": str(recipe.directory), "plan": rows} | told
    return result | ({"formulas": predict.FORMULAS} if args.formulas else {})


def _check(args: argparse.Namespace) -> Result:
    from sordino.pipeline import runner

    recipe = _load(args)
    problems = runner.check(recipe)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not args.json:
        count = sum((recipe.directory / stage.directory).is_dir() for stage, _ in runner.stages_of(recipe))
        intact = f"{count} finished stages, all intact" if count else "no stage is finished"
        print(f"{recipe.directory}: " + (f"{len(problems)} problems" if problems else intact))
    return {"run": str(recipe.directory), "problems": problems, "exit": 2 if problems else 0}


def _stage(args: argparse.Namespace) -> Result:
    from sordino.pipeline import runner

    recipe, name = _told(args), STAGE_OF.get(args.command, args.command)
    options = {"skip_bad": getattr(args, "skip_bad", False)}
    ran = runner.run_one(name, recipe, options, replacing.allow(recipe, args.yes))
    _end_of_helpers()
    directory = recipe.directory / runner.by_name(name).directory
    return {"run": str(recipe.directory), "stage": name, "ran": ran, "directory": str(directory)}


def _report(args: argparse.Namespace) -> Result:
    return _stage(args) | _results(_load(args), args.json)


def _evaluate(args: argparse.Namespace) -> Result:
    result = _stage(args)
    if args.comet_check is None:
        return result
    from sordino.inference import scoring
    from sordino.report.lines import lines

    place = args.comet_check if args.comet_check.name else None
    result["checks"] = scoring.check_comet(_load(args), place)
    if not args.json:
        print("\n".join(lines(result)))
    return result if all(check["agrees"] for check in result["checks"]) else result | {"exit": 2}


def _settings_arguments(parser: Parser) -> None:
    parser.add_argument(
        "stage", nargs="?", metavar="STAGE", help="a stage, or recipe, resources or prompt; default: all"
    )


def _settings(args: argparse.Namespace) -> Result:
    from sordino.config import reference

    rows = reference.settings(args.stage)
    if not args.json:
        print(reference.text(args.stage))
    return {"settings": [row.to_json() for row in rows]}


def _sweep(args: argparse.Namespace) -> Result:
    from sordino.config.run_layout import SWEEP, SWEEP_FILE, SWEEP_PAGE
    from sordino.pipeline import runner

    if _load(args).sweep is None:
        args.overrides = [*args.overrides, "sweep={}"]
    recipe = _told(args)
    directory = recipe.directory / SWEEP
    ran = runner.run(recipe, {"skip_bad": args.skip_bad}, replacing.allow(recipe, args.yes))
    _end_of_helpers()
    result: Result = files.read_json(directory / SWEEP_FILE)
    if not args.json:
        from sordino.pipeline.sweeping import report_of
        from sordino.report.lines import sweep_lines
        from sordino.report.table import table

        output().print(table(report_of(recipe, directory).systems))
        for line in (*sweep_lines(result), f"plot: {directory / SWEEP_PAGE}"):
            print(line)
    return {"run": str(recipe.directory), "ran": ran, "page": str(directory / SWEEP_PAGE)} | result


CHAIN = {
    "run": Command(
        "run every stage of a recipe that is missing or out of date",
        _working,
        _run,
        """sordino run demo
        sordino run demo target=zh distil.epochs=2 device=cpu""",
    ),
    "plan": Command(
        "show what would run, and why, and what it will take",
        _planning,
        _plan,
        """sordino plan demo rank.remove=4
        sordino plan paper_b_en_de --config config.json --predict-for cuda""",
    ),
    "check": Command(
        "compare every finished file of a run with its record",
        _recipe,
        _check,
        "sordino check demo",
    ),
    "sweep": Command(
        "the chain, then smaller forms of its models: bytes against quality, the frontier and its knee",
        _working,
        _sweep,
        """sordino sweep demo
        sordino sweep demo 'sweep.of=[merged]' 'sweep.formats=[mixed,nf4]'""",
        "sweep",
    ),
    "settings": Command(
        "every setting of a recipe: type, default, limits and meaning",
        _settings_arguments,
        _settings,
        """sordino settings
        sordino settings rank""",
    ),
}


def _stage_command(name: str, help: str, example: str) -> Command:
    return Command(help, _changing, _stage, example, STAGE_OF.get(name, name))


STAGES = {
    "prepare": Command(
        "read the corpus, check every clip, deal disjoint splits",
        _working,
        _stage,
        "sordino prepare demo --skip-bad",
        "prepare",
    ),
    **{
        name: _stage_command(name, help, example)
        for name, help, example in (
            ("finetune", "full-parameter fine-tuning: the teacher", "sordino finetune demo finetune.epochs=2"),
            (
                "rank",
                "the order in which translation can spare layers",
                "sordino rank demo rank.remove=4 rank.search=racing",
            ),
            ("prune", "drop the ranked layers", "sordino prune demo prune.remove=3"),
            (
                "pseudolabel",
                "the teacher translates the training audio",
                "sordino pseudolabel demo pseudolabel.filter.min_chrf=40",
            ),
            ("distil", "heal the pruned student", "sordino distil demo distil.lr=5e-5"),
            ("qlora", "train a low-rank adapter on the 4-bit model", "sordino qlora demo qlora.rank=16 qlora.alpha=32"),
            ("merge", "fold the adapter into the 16-bit model", "sordino merge demo"),
            ("trim", "shrink the vocabulary to what the translations need", "sordino trim demo trim.tokens=2000"),
            ("qat", "train through the rounding of a small export", "sordino qat demo qat.budget_ratio=0.15"),
            ("export", "write the deployable forms", "sordino export demo 'export.formats=[nf4,w4a16]'"),
            (
                "translate-test",
                "every system of the run translates the test split (the stage translate)",
                "sordino translate-test demo translate.batch_size=8",
            ),
        )
    },
    "evaluate": Command(
        "scores, sizes and speeds of every system (text files: see score)",
        _evaluating,
        _evaluate,
        """sordino evaluate demo 'evaluate.metrics=[chrf,comet]'
        sordino evaluate demo --comet-check""",
        "evaluate",
    ),
    "report": Command(
        "one offline page of all results, and the table",
        _changing,
        _report,
        "sordino report demo report.samples=20",
        "report",
    ),
}
