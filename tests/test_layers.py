"""The layering of the design: a module imports from lower layers only, and importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LM = Path(__file__).resolve().parent.parent / "lm"
LAYERS = [
    {"errors", "files", "presets", "bounds", "config", "runtime"},
    {
        "flags",
        "tokenizer",
        "cards",
        "dropout",
        "loss",
        "lstm",
        "regularization",
        "checkpoint",
        "metrics",
        "graphs",
        "ledger",
        "study",
        "figures",
    },
    {"pydocs", "subword", "encoded", "corpus", "batching", "model", "optim", "plain"},
    {"run", "rundir", "evaluate", "adapt", "tune", "score", "generate", "units", "look", "export"},
    {"train"},
    {"stats", "tables", "cells", "analysis", "answer", "plots", "compare", "report"},
    {"studyfile", "live", "executors", "cluster", "search", "scheduler", "sweep", "speed", "bench"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lm"):
            names |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
    return names


MODULES = sorted(path for path in LM.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_no_higher_layer(module):
    assert module.stem in LEVEL, "give the new module a layer"
    for name in imported(module):
        assert LEVEL[name] <= LEVEL[module.stem], f"{module.stem} imports {name}"


def test_imports_have_no_cycle():
    graph = {module.stem: imported(module) for module in MODULES}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name in graph if name not in done and graph[name] <= done}
        assert ready, f"cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_importing_every_module_prints_nothing_and_writes_nothing(tmp_path):
    code = "import importlib\n" + "\n".join(f"importlib.import_module('lm.{m.stem}')" for m in MODULES)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(LM.parent), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
