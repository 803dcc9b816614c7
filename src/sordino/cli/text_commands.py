"""Commands that take text files."""

from __future__ import annotations

import argparse
from pathlib import Path

from sordino.cli.command import Command, Parser, Result
from sordino.errors import UsageError


def _score_arguments(parser: Parser) -> None:
    note = "a text file, a line a segment, or rows with a text (.jsonl)"
    parser.add_argument("hypotheses", type=Path, metavar="HYPOTHESES", help=note)
    parser.add_argument("--references", type=Path, metavar="FILE", help="a text file, a line a segment")
    parser.add_argument("--sources", type=Path, metavar="FILE", help="the transcripts, which COMET needs")
    note = "language of the texts (default: de): sets BLEU's tokenizer"
    parser.add_argument("--to", default="de", metavar="LANGUAGE", help=note)
    note = "comma-separated (default: bleu,chrf,chrf++); also comet, comet:MODEL"
    parser.add_argument("--metrics", default="bleu,chrf,chrf++", help=note)
    note = "of the references: translations cut elsewhere (text, or segments.jsonl) are brought onto them (mweralign)"
    parser.add_argument("--segments", type=Path, metavar="FILE", help=note)
    note = "compare COMET with the original, which is installed in DIR (1.4 GB)"
    parser.add_argument("--comet-check", type=Path, metavar="DIR", help=note)


def _score(args: argparse.Namespace) -> Result:
    from sordino.inference import scoring
    from sordino.report.lines import lines

    if not args.references:
        raise UsageError("score: no references.", "Add --references FILE.")
    names = args.metrics.split(",")
    result = scoring.score_files(
        args.hypotheses, args.references, args.to, names, args.sources, args.comet_check, args.segments
    )
    if not args.json:
        print("\n".join(lines(result)))
    result["scores"] = [{k: v for k, v in score.items() if k != "segments"} for score in result["scores"]]
    return result if all(check["agrees"] for check in result.get("checks", [])) else result | {"exit": 2}


COMMANDS = {
    "score": Command(
        "score translations against references",
        _score_arguments,
        _score,
        """sordino score hyp.txt --references ref.de --to German
        sordino score hyp.txt --references ref.de --sources src.en --metrics bleu,chrf,comet
        sordino score out/talk/segments.jsonl --references talk.de --segments talk.yaml""",
    ),
}
