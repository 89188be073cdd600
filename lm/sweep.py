"""Run a study: every configuration of its grid with every seed, one ledger line a finished run.

python -m lm.sweep results/ptb-200                                      # what results/ptb-200/study.toml asks
python -m lm.sweep --preset examples-200 --dataset ptb --alpha 0 1 2 --seed 1 2 3 --out results/ar
python -m lm.sweep results/ar --refine alpha                            # then a finer grid around the best alpha

Started again, it runs what the ledger lacks and continues killed runs from their checkpoints. A run that diverged is in
the ledger and would diverge again: delete its line to repeat it. Any other failed run is tried again.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import argparse
import contextlib
import itertools
import json
import logging
import sys
import typing
from collections.abc import Sequence
from typing import Any, Literal

from lm.base import names
from lm.base.errors import DivergedError, run_cli
from lm.base.process import show
from lm.config.bounds import choices
from lm.config.flags import ALIASES, Parser, flag_groups
from lm.config.schema import RunOptions, TrainConfig
from lm.study import search
from lm.study.executors import Job
from lm.study.from_flags import SINGLE, save_study, study_from_flags, with_refine
from lm.study.records import label
from lm.study.scheduler import Sweep, SweepFailed
from lm.study.specification import load_study
from lm.text.windows import windows_warning

logger = logging.getLogger("lm.sweep")
# Against too little memory.
SMALLER = "--jobs or study"


def plan(sweep: Sweep) -> list[Job]:
    """Jobs of the study's grid, after a look at every value that the study can come to. Raises ConfigError."""
    study = sweep.study
    settings = sweep.study.refine
    jobs = [sweep.job(configuration, seed) for configuration, seed in study.runs()]
    if settings:
        search.check_settings(study, settings, sweep.config(study.baseline, study.seeds[0]))
        if "field" in settings:
            for part, value in itertools.product(search.parts(study, settings), search.first_values(study, settings)):
                sweep.config(study.baseline | part | {settings["field"]: value}, study.seeds[0])
        for name, values in settings.get("space", {}).items():
            for value in values if isinstance(values, list) else (values["low"], values["high"]):
                sweep.config(study.baseline | {name: value}, study.seeds[0])
        if "search" in settings:
            search.require_optuna()
    for warning in sorted({windows_warning(job.config) for job in jobs} - {""}):
        logger.warning(warning)
    return jobs


def look_further(sweep: Sweep) -> None:
    """What `[refine]` asks, if anything, once the grid is done."""
    study = sweep.study
    settings = sweep.study.refine
    if "field" in settings:
        for part in search.parts(study, settings):
            tried = search.refine(study, settings, sweep.measure, part)
            best = min(tried, key=lambda value: (tried[value], value))
            logger.info(
                "refined: %s has the lowest mean valid loss, %.4f nats per word",
                label(part | {settings["field"]: best}),
                tried[best],
            )
    elif settings:
        config = sweep.config(study.baseline, study.seeds[0])
        search.search(study, settings, config.epochs, sweep.measure, sweep.prune)


def dry_run(sweep: Sweep, jobs: Sequence[Job], as_json: bool) -> str:
    """What would run, a command a line, or as one JSON object."""
    missing = sweep.missing(jobs)
    if as_json:
        commands = [{"run": job.name, "command": sweep.command(job, sweep.folder)} for job in missing]
        return json.dumps({"study": str(sweep.study.path), "asked": len(jobs), "missing": commands}) + "\n"
    lines = [f"{len(jobs)} runs asked for, {len(jobs) - len(missing)} in the ledger, to run: {len(missing)}"]
    lines += [f"{job.name}\n    {sweep.command(job, sweep.folder)}" for job in missing]
    return "\n".join(lines + ["then what [refine] finds worth trying"] * bool(sweep.study.refine)) + "\n"


def finish(sweep: Sweep, jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Report, and raise SweepFailed or DivergedError if a run of the grid has no result."""
    study = sweep.study
    sweep.results.refresh()
    records = [record for run in {job.id: None for job in jobs} if (record := sweep.results.get(run))]
    diverged = [
        f"seed {r.get('seed')}, {r.get('command')}: {r.get('error')}" for r in records if r.get("status") == "diverged"
    ]
    if args.report:
        from lm import report

        analysis = report.report(str(study.path))
        if not args.json:
            show(report.report_text(analysis))
    if args.json:
        counts = {"started": sweep.started, "completed": sum(r.get("status") == "completed" for r in records)}
        summary = {"study": str(study.path), "ledger": str(study.ledger), **counts, "diverged": diverged}
        show(json.dumps(summary | {"failed": list(sweep.failures.values())}) + "\n")
    logger.info("ledger: %s; table and plots: python -m lm.report %s", study.ledger, study.path)
    if sweep.failures:
        lines = "\n".join(f"  {text}" for text in sweep.failures.values())
        raise SweepFailed(f"{len(sweep.failures)} runs failed; the same command tries them again:\n{lines}")
    if diverged:
        raise DivergedError(f"{len(diverged)} runs of {study.path} diverged:\n  " + "\n  ".join(diverged))


def parse_args(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line of a sweep. Raises ConfigError."""
    parser = Parser(
        prog="python -m lm.sweep",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", metavar="STUDY_DIR", help="folder with study.toml")
    parser.add_argument("--out", metavar="DIR", help="folder for a study that the flags below describe")
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="runs at a time (default: one a GPU, or what the CPUs carry)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of a run (default: 1)")
    parser.add_argument(
        "--processes-per-run", type=int, default=1, metavar="N",
        help="processes of a run, which split its batch: each has a GPU, or --threads CPU threads (default: 1)",
    )  # fmt: skip
    parser.add_argument("--device", choices=choices(RunOptions, "device"), default="auto", help="as in lm.train")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where to compute")
    parser.add_argument(
        "--ray-address",
        default="",
        metavar="HOST:PORT",
        help="head of the Ray cluster (default: a running one, or a new one here)",
    )
    parser.add_argument(
        "--refine", metavar="FIELD", help="coarse to fine over this field, after the grid (see lm.study.search)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="finer passes of --refine (default: 1)")
    parser.add_argument(
        "--search", choices=("random", "hyperband"), help="search by Optuna, after the grid (see lm.study.search)"
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="configurations that --search draws (default: every one)"
    )
    parser.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="run directories land in DIR/STUDY/ (default: runs)"
    )
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the study's tables and plots at the end",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    _grid_flags(parser)
    args = parser.parse_args(arguments)
    if bool(args.study) == bool(args.out):
        parser.error("give STUDY_DIR, or --out DIR and the study's flags")
    args.refine = args.refine and names.field(args.refine)
    if not (0 <= args.jobs <= 4096 and 1 <= args.threads <= 1024):
        parser.error("--jobs: at least 0 and at most 4096; --threads: at least 1 and at most 1024")
    if not 1 <= args.processes_per_run <= 1024:
        parser.error("--processes-per-run: at least 1 and at most 1024")
    return args


def _grid_flags(parser: Parser) -> None:
    """Add a flag for every configuration field; several values make it a field of the grid."""
    parser.add_argument("--preset", default=argparse.SUPPRESS, metavar="NAME", help="start from a preset")
    hints = typing.get_type_hints(TrainConfig)
    for title, fields in flag_groups():
        group = parser.add_argument_group(f"{title} (several values: a field of the grid)")
        for field, text in fields:
            if field.name not in hints:
                continue
            hint = hints[field.name]
            keywords: dict[str, Any] = {
                "nargs": "+", "action": "extend", "type": hint, "metavar": hint.__name__.upper()[:1],
            }  # fmt: skip
            if hint is bool:
                keywords = {"nargs": "*", "type": _boolean, "metavar": "true|false"}
                group.add_argument(
                    names.flag(f"no_{field.name}"),
                    dest=field.name,
                    action="store_const",
                    const=[False],
                    default=argparse.SUPPRESS,
                    help=argparse.SUPPRESS,
                )
            elif typing.get_origin(hint) is Literal:
                keywords = {"nargs": "+", "action": "extend", "choices": typing.get_args(hint)}
            elif typing.get_origin(hint) is tuple:
                keywords = {"nargs": "*", "type": int, "metavar": "N"}
            elif field.name in SINGLE:
                keywords = {"metavar": "TEXT"}
            spellings = [names.flag(field.name), *ALIASES.get(field.name, ())]
            group.add_argument(
                *spellings, dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **keywords
            )


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def main() -> None:
    """Command line."""
    args = parse_args(__doc__ or "", None)
    study = with_refine(study_from_flags(args) if args.out else load_study(args.study), args)
    sweep = Sweep(study, args)
    jobs = plan(sweep)
    if args.dry_run:
        show(dry_run(sweep, jobs, args.json))
        return
    save_study(study)
    with contextlib.closing(sweep), contextlib.redirect_stdout(sys.stderr):  # Ray prints its news on stdout
        sweep.run(jobs)
        with contextlib.suppress(SweepFailed):  # `finish` tells of the failures
            if not sweep.failures:
                look_further(sweep)
    finish(sweep, jobs, args)


if __name__ == "__main__":
    run_cli(main, SMALLER)
