"""How a command begins and ends: its streams, its exit code, and signals while it imports and shuts down."""

import ast
import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lm
from lm.base.errors import run_cli

COMMANDS = [path.stem for path in Path(lm.__file__).parent.glob("*.py") if path.stem != "__init__"]
HEAD = """
import os, signal, sys, time
from lm.base.process import begin, show
begin()
from lm.base.errors import ConfigError, Interrupted, run_cli
"""
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")


def start(program, environment, **keywords):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", HEAD + program], env=environment, text=True, **pipes | keywords)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_are_open_on_the_null_device_before_any_file(closed, environment, tmp_path):
    program = f"""
def main():
    assert open({str(tmp_path / "file")!r}, "w").fileno() > 2
    print("to stderr", file=sys.stderr)
    show("to stdout")
    assert 0 not in {closed} or sys.stdin.buffer.read() == b""
run_cli(main)"""
    process = start(program, environment, preexec_fn=lambda: [os.close(number) for number in closed])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert (out, err) == ("" if 1 in closed else "to stdout", "" if 2 in closed else "to stderr\n")


@needs_full
@pytest.mark.parametrize(
    ("full", "main", "code"),
    [
        ("stderr", "raise ConfigError('wrong')", 2),
        ("stderr", "raise Interrupted('stopped', 130)", 130),
        ("stdout", "show('result')", 1),
        ("stdout", "raise ConfigError('wrong')", 2),
    ],
)
def test_a_full_stream_changes_no_exit_code_and_is_named(full, main, code, environment):
    with open("/dev/full", "w") as device:
        process = start(f"\ndef main():\n    {main}\nrun_cli(main)", environment, **{full: device})
        _, err = process.communicate()
    assert process.returncode == code
    if code == 1:
        assert err == "error: standard output: No space left on device\n"


def test_an_interrupt_while_importing_is_one_line(environment):
    process = start("print('importing', flush=True)\ntime.sleep(60)", environment)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == ("interrupted\n", 130)


def test_signals_change_nothing_while_python_shuts_down(environment):
    program = """
import atexit
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)])
def main():
    raise Interrupted("stopped", 143)
run_cli(main)"""
    process = start(program, environment)
    assert (process.communicate()[1], process.returncode) == ("error: stopped\n", 143)


@pytest.mark.parametrize("name", [*COMMANDS, "study.executors"])
def test_a_command_begins_before_it_imports(name):
    tree = ast.parse(Path(lm.__file__).parent.joinpath(*name.split(".")).with_suffix(".py").read_text())
    first = [part for part in tree.body[1:] if getattr(part, "module", "") != "__future__"][0]
    assert ast.unparse(first) == "if __name__ == '__main__':\n    from lm.base.process import begin\n    begin()"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_needs_no_docstrings(name, monkeypatch, capsys):
    """`python -OO` takes them away."""
    module = importlib.import_module(f"lm.{name}")
    monkeypatch.setattr(module, "__doc__", None)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert (ended.value.code, "usage" in capsys.readouterr().out) == (0, True)


@pytest.mark.parametrize(
    ("error", "smaller", "code", "text"),
    [
        (MemoryError(), "--jobs", 2, "out of memory: use a smaller --jobs"),
        (MemoryError(), "", 2, "out of memory ("),
        (RuntimeError("CUDA out of memory"), "", 2, "out of memory ("),
        (OSError(errno.ENOSPC, "no room", "file"), "", 1, "error: file: no room"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates"), "", 2, r"'caf\udce9'; rename it"),
    ],
)
def test_what_ends_a_command_is_one_message(error, smaller, code, text, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_cli(main, smaller)
    said = capsys.readouterr().err
    assert (ended.value.code, text in said, said.count("\n")) == (code, True, 1), said
