"""What runs where Python lacks parts of POSIX, as on Windows, or where the locale is not UTF-8."""

import os
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import lm
from lm.base.files import ROOT, check_regular, read_file, same_place
from lm.base.memory import peak_rss_mb

WITHOUT_POSIX = """
import builtins, importlib, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in {names}:
    importlib.import_module(name)
print("imported")
"""


def test_no_module_needs_posix_to_be_imported():
    found = (module.name for module in pkgutil.walk_packages(lm.__path__, "lm."))
    # The file that an export for transformers holds needs that library, which needs POSIX.
    names = sorted(name for name in found if "triton" not in name and not name.endswith("modeling_awd_lstm"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX.format(names=names)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "imported\n", done.stderr


def test_peak_memory_without_proc_and_resource(monkeypatch, tmp_path):
    monkeypatch.setattr("lm.base.memory.Path", lambda name: tmp_path / "missing")
    assert peak_rss_mb() > 10
    memory = SimpleNamespace(rss=1e6, peak_wset=12e6)
    process = SimpleNamespace(memory_info=lambda: memory)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert peak_rss_mb() == 12


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_commands_write_utf8_whatever_the_locale_says(locale):
    code = "from lm.base.errors import run_cli; import sys, logging; from lm.base.process import show\n"
    code += "def main():\n show('แมว 😀\\n'); logging.getLogger('lm').info('é'); print('ß', file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", code.encode("ascii", "backslashreplace").decode() + "run_cli(main)"],
        cwd=ROOT,
        env=os.environ | locale,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "แมว 😀\n".encode()
    assert done.stderr == "é\nß\n".encode()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            check_regular(tmp_path / place)
    (tmp_path / "file").write_bytes(b"a")
    assert read_file(tmp_path / "file") == b"a"


def test_a_place_is_one_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    os.symlink("run", "link")
    assert same_place("link", tmp_path / "run")
    assert same_place("run/", "./link/../run")
    assert same_place("new", tmp_path / "new")
    assert not same_place("run", "new")
