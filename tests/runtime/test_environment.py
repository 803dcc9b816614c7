"""What is set before torch starts: once, not over what is set from outside, and told where it comes too late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

OURS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")


def in_a_process(code: str, *words: str, **variables: str) -> Any:
    """What a program prints as JSON, in a process without our variables but for those given."""
    environ = {name: value for name, value in os.environ.items() if name not in OURS} | variables
    head = "import json, os, sys, warnings\nfrom sordino.runtime import environment\n"
    program = [sys.executable, "-c", head + code, *words]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environ)
    return json.loads(done.stdout)


def test_threads_do_not_spin_and_the_users_own_settings_stay() -> None:
    code = f"environment.prepare(); print(json.dumps({{name: os.environ.get(name) for name in {OURS!r}}}))"
    assert in_a_process(code) == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": None,
        "TRANSFORMERS_VERBOSITY": None,
    }
    assert in_a_process(code, OMP_WAIT_POLICY="ACTIVE")["OMP_WAIT_POLICY"] == "ACTIVE"


def test_libraries_are_silenced_by_who_asks_for_it() -> None:
    code = "environment.quiet_libraries(); print(json.dumps(list(map(os.environ.get, sys.argv[1:]))))"
    assert in_a_process(code, "TQDM_DISABLE", "OMP_WAIT_POLICY") == ["1", None]


def test_it_needs_no_torch_and_works_once() -> None:
    code = """
environment.prepare()
del os.environ["OMP_WAIT_POLICY"]
environment.prepare()
print(json.dumps(["OMP_WAIT_POLICY" in os.environ, "torch" in sys.modules]))
"""
    assert in_a_process(code) == [False, False]


def test_it_warns_where_torch_came_first() -> None:
    code = """
import types
sys.modules["torch"] = types.ModuleType("torch")  # as if it had been imported
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    environment.prepare()
    environment.prepare()
print(json.dumps([[warning.category.__name__, str(warning.message)] for warning in caught]))
"""
    ((category, message),) = in_a_process(code)
    assert category == "RuntimeWarning"
    assert message.startswith("torch was imported before sordino could set its threads")
    assert in_a_process(code, OMP_WAIT_POLICY="PASSIVE") == [], "set from outside in time"
