"""`sordino serve`: the options, the socket, the signals."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import signal
import socket
from typing import Any

from sordino.errors import RecipeError

KEY = "SORDINO_API_KEY"
PACKAGES = ("starlette", "uvicorn", "python_multipart")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults are those of serve/settings.py."""
    text = "a model directory, NAME=DIRECTORY, or a run: its teacher and its smallest export"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=text)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument("--api-key", metavar="KEY", help=f"clients must send it as a bearer token (better: ${KEY})")
    parser.add_argument("--to", metavar="LANGUAGE", help="target language of models that do not know theirs")
    parser.add_argument("--from", dest="source", metavar="LANGUAGE", help="source language of such models")
    parser.add_argument("--device", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="default: auto")
    parser.add_argument("--batch-size", type=_positive(int), help="clips decoded at once (default: 16)")
    parser.add_argument("--max-new-tokens", type=_positive(int), help="of a segment (default: 256)")
    parser.add_argument("--pause", type=_positive(float), metavar="SECONDS", help="that end a segment (default: 0.5)")
    parser.add_argument("--max-file-mib", type=_positive(float), metavar="N", help="size of a file (default: 25)")
    parser.add_argument("--max-seconds", type=_positive(float), metavar="N", help="of audio in a file (default: 600)")
    parser.add_argument("--queue", type=_positive(int), metavar="N", help="requests at once, else 429 (default: 64)")
    parser.add_argument("--timeout", type=_positive(float), metavar="SECONDS", help="of a translation (default: 300)")


def _positive(kind: type[int] | type[float]) -> Any:
    def number(text: str) -> float:
        if not kind(text) > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, found {text}")
        return kind(text)

    number.__name__ = "number"  # argparse names it in its message
    return number


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, then finish the requests that run: {served, requests}.

    Raises RecipeError where the extra is missing or the address cannot be used, and what models raise that do not load.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"serve: {', '.join(missing)} is not installed.", "Run: pip install '.[serve]'.")
    from sordino.runtime.progress import note
    from sordino.serve.app import application
    from sordino.serve.catalog import entries
    from sordino.serve.connection import make_server
    from sordino.serve.service import Service

    settings = _settings(args)
    served = entries(args.models, settings)
    listening = _listen(args.host, args.port)
    host, port = listening.getsockname()[:2]
    if not settings.local and settings.api_key is None:
        note(f"{args.host} is reachable from other machines, and no --api-key was given: anyone may use this server")

    def stop() -> None:
        server.should_exit = True

    service = Service(served, settings, failed=stop)
    server = make_server(application(service), settings)
    address = f"[{host}]" if ":" in host else host
    note(f"{', '.join(entry.id for entry in served)}: http://{address}:{port}")
    # uvicorn raises a signal again once it has shut down: that must not end this process half way
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.failure is not None:
        raise service.failure
    requests = sum(service.metrics.values["sordino_requests_total"].values())
    return {"served": [entry.id for entry in served], "requests": round(requests)}


def _settings(args: argparse.Namespace) -> Any:
    from sordino.serve.settings import MIB, Settings

    given = {"source": args.source, "target": args.to, "device": args.device, "dtype": args.dtype}
    given |= {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "pause": args.pause}
    given |= {"max_seconds": args.max_seconds, "queue": args.queue, "timeout": args.timeout}
    given |= {"api_key": args.api_key or os.environ.get(KEY) or None, "local": _is_loopback(args.host)}
    given |= {"max_file_bytes": round(args.max_file_mib * MIB) if args.max_file_mib else None}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises RecipeError where the address cannot be used."""
    if not 0 <= port < 2**16:
        raise RecipeError(f"serve: there is no port {port}.", "Give one from 1 to 65535, or 0 for a free one.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        raise RecipeError(
            f"serve: {host}:{port} cannot be used ({error}).", "Give another --host or --port."
        ) from error
