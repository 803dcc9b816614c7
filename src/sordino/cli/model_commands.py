"""Commands that take a model: translate audio, submit, describe, publish, weigh; and the families there are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.cli.command import Command, Parser, Result, count, output, seconds
from sordino.config.run_layout import EXPORT, STUDENT, TEACHER
from sordino.errors import UsageError
from sordino.runtime.progress import note
from sordino.runtime.terminal import message, printable, whole
from sordino.serve import command as serve

if TYPE_CHECKING:
    from sordino.models.family import Family

RUN = "runs/demo-en-de"  # of the examples


def _how(parser: Parser) -> None:
    """How a model translates audio: of translate and submit."""
    parser.add_argument("--to", metavar="LANGUAGE", help="target language, e.g. German or de (default: the model's)")
    parser.add_argument("--from", dest="source", metavar="LANGUAGE", help="source language (default: the model's)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument(
        "--dtype", choices=dtypes, default="auto", help="auto (default): float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--batch-size", type=count, default=16, metavar="N", help="clips at once (default: 16)")
    parser.add_argument(
        "--max-new-tokens", type=count, default=256, metavar="N", help="of a translation (default: 256)"
    )
    note = "a YAML list of {wav, offset, duration}; without it, talks are cut where nobody speaks (extra: vad)"
    parser.add_argument("--segments", type=Path, metavar="FILE", help=note)
    note = "of silence that end a chunk (default: 0.5)"
    parser.add_argument("--pause", type=seconds, default=0.5, metavar="SECONDS", help=note)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("source", "device", "dtype", "batch_size", "max_new_tokens")
    return {"target": args.to} | {name: getattr(args, name) for name in names}


def _translate_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL|RUN", help="a model, an export, an adapter, a Hub id, or a run")
    parser.rest("audio", "AUDIO", "audio files of any length")
    _how(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, and resume there")
    note = "vllm: decode many clips in an environment of its own (docs/vllm.md)"
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help=note)


def _translate(args: argparse.Namespace) -> Result:
    from sordino.inference import long_audio, translation

    if not args.audio:
        raise UsageError("translate: no audio files.", "Name one or more after the model.")
    _choose(args)
    _warn_of_languages(args)
    if args.segments or args.out or long_audio.needed(args.model, args.audio):
        options = long_audio.Options(**_options(args), pause=args.pause, engine=args.engine)
        result = long_audio.translate_recordings(args.model, args.audio, args.segments, args.out, options)
        for skipped in result["skipped"]:
            print(message(f"{skipped['id']}: {skipped['problem']}: an empty line"), file=sys.stderr)
    else:
        result = {
            "hypotheses": translation.translate_files(args.model, args.audio, engine=args.engine, **_options(args))
        }
    if not args.json and result.get("out"):
        print(f"{len(result['hypotheses'])} chunks: {result['out']}")
    elif not args.json:
        for row in result["hypotheses"]:
            text = row["text"] if len(result["hypotheses"]) == 1 else " ".join(row["text"].splitlines())
            print(whole(text) if len(args.audio) == 1 else f"{printable(row['audio'], None)}\t{whole(text)}")
    return result


def _choose(args: argparse.Namespace) -> None:
    """Put the best model of a run in its place."""
    from sordino.inference import runs

    args.model, model = runs.chosen(args.model)
    if model is not None:
        note(
            f"translating with {model}, the best of the run's exports" if model.export else f"translating with {model}"
        )


def _warn_of_languages(args: argparse.Namespace) -> None:
    from sordino.inference import model

    warning = model.untrained(args.model, *model.languages_of(args.model, args.source, args.to))
    if warning:
        note(warning)


def _submit_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL|RUN", help="a model of a run, or a run with one export")
    parser.rest("folders", "TESTSET", "recordings, FILE_ORDER, a YAML list")
    parser.add_argument("--team", required=True, help="short name, as in the files' names")
    parser.add_argument("--constrained", action="store_true", help="only the allowed data was used; checked")
    parser.add_argument("--contrastive", action="store_true", help="not the primary submission")
    note = "what the model was trained on, where its lineage does not say"
    parser.add_argument("--datasets", metavar="TEXT", help=note)
    parser.add_argument("--out", type=Path, default=Path("submissions"), metavar="DIR", help="default: submissions")
    _how(parser)


def _submit(args: argparse.Namespace) -> Result:
    from sordino.inference import long_audio
    from sordino.publishing.choice import chosen_model
    from sordino.submission.pack import Entry, submit

    if not args.folders:
        raise UsageError("submit: no test sets.", "Name one or more folders after the model.")
    args.model = str(chosen_model(Path(args.model)))
    _warn_of_languages(args)
    entry = Entry(args.team, args.constrained, args.contrastive, args.datasets)
    options = long_audio.Options(**_options(args), pause=args.pause)
    result = submit(args.model, list(map(Path, args.folders)), entry, args.out, options, args.segments)
    for key, empty in result["empty"].items():
        if empty:
            counts = f"{len(empty)} of {result['segments'][key]} lines are empty"
            print(f"{key}: {counts}: {', '.join(empty)}", file=sys.stderr)
    if not args.json:
        for key, file in result["files"].items():
            print(f"{key}\t{result['segments'][key]} lines\t{file}")
        print(f"description\t{result['description']}")
    return result


def _statement_arguments(parser: Parser) -> None:
    """What only the publisher knows: of card and publish."""
    note = "the base model on the Hub, where the run was given a directory"
    parser.add_argument("--base-model", metavar="OWNER/NAME", help=note)
    note = "of the model, by the Hub's name for it (default: that of the base model's card, if it names one)"
    parser.add_argument("--license", metavar="NAME", help=note)
    parser.add_argument("--data-license", metavar="TEXT", help="of the training data, where it is no published corpus")


def _card_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL|RUN", help="a model of a run, an export, or a run with one export")
    _statement_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there (default: print it)")


def _card(args: argparse.Namespace) -> Result:
    from sordino.errors import ArtifactError
    from sordino.publishing import card, hub
    from sordino.publishing.choice import chosen_model
    from sordino.publishing.facts import Statement
    from sordino.runtime import files

    model = chosen_model(Path(args.model))
    known = hub.described(model, Statement(args.base_model, args.license, args.data_license))
    text = card.render(known)
    if args.out and args.out.resolve().is_relative_to(model.resolve()):
        raise ArtifactError(
            f"{args.out} lies in the model's directory, whose files are as its stage wrote them.",
            "Name another place; `sordino publish` uploads the whole card by itself.",
        )
    if args.out:
        files.write_text(args.out, text)
    elif not args.json:
        print(text, end="")
    return {"model": str(model), "card": text, "scored": known.scored is not None}


def _publish_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="EXPORT|RUN", help="an export, a model of a run, or a run with one export")
    parser.add_argument("name", metavar="OWNER/NAME", help="the repository on the Hugging Face Hub")
    parser.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="check, list files and bytes, and upload nothing")
    _statement_arguments(parser)


def _publish(args: argparse.Namespace) -> Result:
    from sordino.publishing import hub
    from sordino.publishing.choice import chosen_model
    from sordino.publishing.facts import Statement

    model = chosen_model(Path(args.model))
    upload = hub.prepare(model, args.name, Statement(args.base_model, args.license, args.data_license))
    for line in upload.notes:
        print(f"note: {line}", file=sys.stderr)
    sizes = upload.sizes()
    result = {"repo": args.name, "files": sizes, "bytes": sum(sizes.values()), "notes": list(upload.notes)}
    if not args.dry_run:
        result |= hub.push(upload, args.public)
    if not args.json:
        for name, size in sizes.items():
            print(f"{size:>14,}  {name}")
        print(f"{result['bytes']:>14,}  bytes in {len(sizes)} files")
        place = "nothing was uploaded" if args.dry_run else result["url"]
        print(f"{'public' if args.public else 'private'}: {place}")
    return result


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model, adapter or run directory, or one .safetensors"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.json instead: sizes from shapes alone")
    parser.add_argument("--decoder-layers", type=count, metavar="N", help="with --config: as if pruned to N layers")
    parser.add_argument("--vocabulary", type=count, metavar="N", help="with --config: as if trimmed to N tokens")


def _inspect(args: argparse.Namespace) -> Result:
    if (args.model is None) == (args.config is None):
        raise UsageError("inspect: give a model directory, a .safetensors file, or --config config.json.")
    if args.config:
        return _inspect_config(args)
    if (args.decoder_layers, args.vocabulary) != (None, None):
        raise UsageError(
            "inspect: --decoder-layers and --vocabulary are of shapes, not of a model's files.",
            f"Use --config {Path(args.model) / 'config.json'}.",
        )
    from sordino.inference import runs
    from sordino.measure import audit, show, size

    path = Path(args.model)
    if runs.is_run(path):
        return _inspect_run(path, args.json)
    result = audit.audit(path)
    if not args.json:
        output().print(show.audit_tables(result))
    measured = size.measure(path).to_json() if path.is_dir() else None
    return {"model": args.model, "size": measured, "audit": result.to_json()}


def _inspect_run(run: Path, quiet: bool) -> Result:
    """The models of a run, with what they weigh."""
    from sordino.inference import runs
    from sordino.measure import show, size

    rows = [
        {
            "model": model.key,
            "label": model.label,
            "path": str(model.path),
            "weights_bytes": size.measure(model.path).weights_bytes,
            "chrf": model.score,
        }
        for model in runs.models_of(run)
    ]
    if not quiet:
        output().print(show.run_table(rows, str(run)))
    return {"run": str(run), "models": rows}


def _inspect_config(args: argparse.Namespace) -> Result:
    from sordino.measure import show, size
    from sordino.models import shapes

    config = size.read_json(args.config, required=True)
    model = shapes.model(config, vocabulary=args.vocabulary, decoder_layers=args.decoder_layers)
    if not args.json:
        output().print(show.config_tables(model, str(args.config)))
    return {"config": str(args.config)} | show.config_json(model)


def _families(args: argparse.Namespace) -> Result:
    from sordino.models import registry

    rows = {name: _works(registry.get(name)) for name in registry.FAMILIES}
    if not args.json:
        from rich.table import Table

        table = Table(
            "model_type", "class of transformers", "rank and prune", "system prompt", "export", "sizes in plan"
        )
        for name, row in rows.items():
            prune = f"{' and '.join(row['prune'])} layers{'' if row['fast_ranking'] else ' (slow)'}"
            system, sizes = ("yes" if row[key] else "no" for key in ("system_prompt", "sizes"))
            table.add_row(name, row["class"], prune, system, ", ".join(row["export"]), sizes)
        output().print(table)
    return {"families": rows}


def _works(family: Family) -> dict[str, Any]:
    """What a family's own facts say of it."""
    from sordino.formats import registry as formats

    fast = family.decoder.line is not None
    lacking = [*([] if family.tensors.gguf else formats.WITH_PACKAGES), *([] if fast else formats.CALIBRATED)]
    return {
        "class": family.model_class,
        "prune": list(family.scopes),
        "fast_ranking": fast,
        "system_prompt": family.chat.takes_system,
        "export": [name for name in formats.FORMATS if name not in lacking],
        "sizes": bool(family.tensors.tables),
    }


def _nothing(_: Parser) -> None:
    pass


COMMANDS = {
    "translate": Command(
        "translate audio files with a model",
        _translate_arguments,
        _translate,
        f"""sordino translate {RUN}/{EXPORT}/nf4 recording.wav --to German
        sordino translate {RUN}/{STUDENT} *.wav --json
        sordino translate {RUN} recording.wav
        sordino translate MODEL talk.flac --to de --out out/talk""",
    ),
    "submit": Command(
        "an IWSLT submission: translated test sets and the description",
        _submit_arguments,
        _submit,
        f"sordino submit {RUN}/{EXPORT}/nf4 tst2027 --team KIT --constrained",
    ),
    "serve": Command(
        "a server with OpenAI's API and a page with a microphone",
        serve.arguments,
        serve.run,
        f"""sordino serve {RUN}
        sordino serve small={RUN}/{EXPORT}/nf4 teacher={RUN}/{TEACHER} --port 8000""",
    ),
    "card": Command(
        "a model's card: how it was made, what it scores and weighs, how to load it",
        _card_arguments,
        _card,
        f"""sordino card {RUN}/{EXPORT}/nf4
        sordino card {RUN} --license apache-2.0 --out card.md""",
    ),
    "publish": Command(
        "upload a model and its card to the Hugging Face Hub, private unless --public",
        _publish_arguments,
        _publish,
        f"""sordino publish {RUN}/{EXPORT}/nf4 my-name/demo-en-de-nf4 --dry-run
        sordino publish {RUN} my-name/demo-en-de-nf4 --license apache-2.0 --public""",
    ),
    "inspect": Command(
        "what a model directory weighs, from its headers alone",
        _inspect_arguments,
        _inspect,
        f"""sordino inspect {RUN}/{EXPORT}/nf4
        sordino inspect {RUN}
        sordino inspect --config config.json --decoder-layers 24""",
    ),
    "families": Command(
        "the model families that sordino supports, and what works for each", _nothing, _families, "sordino families"
    ),
}
