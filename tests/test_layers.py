"""The layering of the design: imports go down, between packages as between modules, and importing does nothing."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

LM = Path(__file__).resolve().parent.parent / "lm"
# From the ground up; the commands, modules at the top of lm/, stand above all of them.
PACKAGES = ["base", "config", "text", "nn", "training", "scoring", "study", "tables", "commands"]
MODULES = sorted(path for path in LM.rglob("*.py") if path.stem != "__init__")
# Imported where an optional package is found only.
NEEDS = {
    LM / "nn/kernels/triton_loss.py": "triton",
    LM / "nn/kernels/triton_steps.py": "triton",
    LM / "nn/kernels/triton_qrnn.py": "triton",
    LM / "scoring/modeling_awd_lstm.py": "transformers",
}


def name_of(module: Path) -> str:
    return "lm." + ".".join(module.relative_to(LM).with_suffix("").parts)


def imported(module: Path) -> set[str]:
    """Modules of this project that a module imports anywhere, in functions too."""
    names = {name_of(path) for path in MODULES}
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lm":
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & names


def package_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else "commands"


def test_every_module_stands_in_a_package_of_the_design():
    assert {package_of(name_of(module)) for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_imports_no_higher_package(module):
    for name in imported(module):
        assert PACKAGES.index(package_of(name)) <= PACKAGES.index(package_of(name_of(module))), f"imports {name}"


def test_imports_have_no_cycle():
    graph = {name_of(module): imported(module) for module in MODULES}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name in graph if name not in done and graph[name] <= done}
        assert ready, f"cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_a_package_with_imports_of_its_own_would_load_more_than_is_asked_for():
    for init in LM.glob("*/**/__init__.py"):
        tree = ast.parse(init.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)], init


def loaded_by(module: str, tmp_path: Path) -> set[str]:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        env={"PYTHONPATH": str(LM.parent), "PATH": ""},
    )  # fmt: skip
    return set(done.stdout.split())


def test_training_loads_nothing_of_adaptation_sampling_or_studies(tmp_path):
    loaded = {name for name in loaded_by("lm.train", tmp_path) if name.startswith("lm.")}
    assert not {name for name in loaded if package_of(name) in ("study", "tables")}
    assert {name for name in loaded if package_of(name) == "scoring"} <= {
        "lm.scoring", "lm.scoring.evaluation", "lm.scoring.loading", "lm.scoring.reading",
        "lm.scoring.corpus",
        "lm.scoring.opening",
        "lm.scoring.validation",
    }  # fmt: skip


@pytest.mark.parametrize("module", ["lm", "lm.report", "lm.corpus", "lm.sweep"])
def test_what_needs_no_pytorch_does_not_load_it(module, tmp_path):
    assert "torch" not in loaded_by(module, tmp_path)


def test_importing_every_module_prints_nothing_and_writes_nothing(tmp_path):
    modules = [m for m in MODULES if m not in NEEDS or importlib.util.find_spec(NEEDS[m])]
    code = "import importlib\n" + "\n".join(f"importlib.import_module('{name_of(m)}')" for m in modules)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(LM.parent), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
