"""What is asked of the allocator and of the kernel, and when."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lm.base import memory
from lm.base.files import ROOT

BEGIN = "from lm.base.process import begin; begin(); import os; print(os.environ.get('THP_MEM_ALLOC_ENABLE'))"


@pytest.fixture(params=["avx2", "avx512_bf16", "amx_bf16"])
def flags(request, monkeypatch, tmp_path):
    """A CPU's flags, as the kernel would list them."""
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {request.param} sse\n", encoding="utf-8")
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / "cpuinfo")
    return request.param


def test_large_pages_are_asked_for_where_fp32_is_computed(flags, monkeypatch):
    monkeypatch.setenv(memory.HUGE_PAGES, "")  # so that it is restored
    monkeypatch.delenv(memory.HUGE_PAGES)
    memory.use_huge_pages()
    assert os.environ.get(memory.HUGE_PAGES) == ("1" if flags == "avx2" else None)


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_the_user_says_about_pages_stands(value):
    command = [sys.executable, "-c", BEGIN]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {memory.HUGE_PAGES: value}, capture_output=True, text=True
    )
    assert done.stdout.strip() == value


def test_blocks_go_back_from_16_mb_on_in_fp32_and_not_in_bf16(flags, monkeypatch):
    asked = {}
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=asked.__setitem__))
    memory.keep_freed_memory()
    assert asked[memory._M_MMAP_THRESHOLD] == (2**24 if flags == "avx2" else 2**30)
    assert asked[memory._M_TRIM_THRESHOLD] == 2**31 - 1


def test_keeping_freed_memory_is_harmless_without_glibc(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory.keep_freed_memory()
