"""Entry points of the installed package: `lm-train` is `python -m lm.train`, and so on for the seven commands."""

from __future__ import annotations

import functools
import runpy


def _run(name: str) -> None:
    runpy.run_module(f"lm.{name}", run_name="__main__", alter_sys=True)


train = functools.partial(_run, "train")
evaluate = functools.partial(_run, "evaluate")
generate = functools.partial(_run, "generate")
sweep = functools.partial(_run, "sweep")
report = functools.partial(_run, "report")
corpus = functools.partial(_run, "corpus")
bench = functools.partial(_run, "bench")
