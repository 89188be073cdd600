"""Run a study: every cell of its grid with every seed, one ledger line a finished run.

python -m lm.sweep results/ptb-200                                      # what results/ptb-200/study.toml asks
python -m lm.sweep --preset examples-200 --dataset ptb --alpha 0 1 2 --seed 1 2 3 --out results/ar
python -m lm.sweep results/ar --refine alpha                            # then a finer grid around the best alpha

Started again, it runs what the ledger lacks and continues killed runs from their checkpoints. A run that diverged is in
the ledger and would diverge again: delete its line to repeat it. Any other failed run is tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence

from lm import search
from lm.corpus import identify
from lm.errors import DivergedError, run_cli
from lm.executors import Job
from lm.scheduler import Sweep, SweepFailed, settled
from lm.study import load_study
from lm.studyfile import parse_args, save_study, study_from_flags, with_refine

logger = logging.getLogger("lm.sweep")


def plan(sweep: Sweep) -> list[Job]:
    """Jobs of the study's grid, after a look at every value that the study can come to. Raises ConfigError."""
    study, settings = sweep.study, sweep.study.refine
    if settings:
        search.check_settings(study, settings, sweep.config(study.baseline, study.seeds[0]))
        for name, values in settings.get("space", {}).items():
            for value in values if isinstance(values, list) else (values["low"], values["high"]):
                sweep.config(study.baseline | {name: value}, study.seeds[0])
        if "search" in settings:
            search.require_optuna()
    return [sweep.job(cell, seed) for cell, seed in study.runs()]


def look_further(sweep: Sweep) -> None:
    """What `[refine]` asks, if anything, once the grid is done."""
    study, settings = sweep.study, sweep.study.refine
    if "field" in settings:
        tried = search.refine(study, settings, sweep.measure)
        best = min(tried, key=lambda value: (tried[value], value))
        logger.info(
            "refined: %s %g has the lowest mean valid loss, %.4f nats per word",
            settings["field"],
            best,
            tried[best],
        )
    elif settings:
        config = sweep.config(study.baseline, study.seeds[0])
        search.search(study, settings, config.epochs, sweep.measure, sweep.prune)


def dry_run(sweep: Sweep, jobs: Sequence[Job], as_json: bool) -> str:
    """What would run, a command a line, or as one JSON object."""
    missing = sweep.missing(jobs)
    if as_json:
        commands = [{"run": job.name, "command": sweep.command(job)} for job in missing]
        return json.dumps({"study": str(sweep.study.path), "asked": len(jobs), "missing": commands}) + "\n"
    lines = [f"{len(jobs)} runs asked for, {len(jobs) - len(missing)} in the ledger, to run: {len(missing)}"]
    lines += [f"{job.name}\n    {sweep.command(job)}" for job in missing]
    return "\n".join(lines + ["then what [refine] finds worth trying"] * bool(sweep.study.refine)) + "\n"


def finish(sweep: Sweep, jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Report, and raise SweepFailed or DivergedError if a run of the grid has no result."""
    study, asked = sweep.study, {job.id for job in jobs}
    records = [record for run, record in settled(study).items() if run in asked]
    diverged = [
        f"seed {r.get('seed')}, {r.get('command')}: {r.get('error')}" for r in records if r.get("status") == "diverged"
    ]
    if args.report:
        from lm import report

        analysis = report.report(str(study.path))
        if not args.json:
            sys.stdout.write(report.report_text(analysis))
    if args.json:
        counts = {"started": sweep.started, "completed": sum(r.get("status") == "completed" for r in records)}
        summary = {"study": str(study.path), "ledger": str(study.ledger), **counts, "diverged": diverged}
        sys.stdout.write(json.dumps(summary | {"failed": list(sweep.failures.values())}) + "\n")
    logger.info("ledger: %s; table and plots: python -m lm.report %s", study.ledger, study.path)
    if sweep.failures:
        lines = "\n".join(f"  {text}" for text in sweep.failures.values())
        raise SweepFailed(f"{len(sweep.failures)} runs failed; the same command tries them again:\n{lines}")
    if diverged:
        raise DivergedError(f"{len(diverged)} runs of {study.path} diverged:\n  " + "\n  ".join(diverged))


def main() -> None:
    """Command line."""
    args = parse_args(__doc__ or "", None)
    study = with_refine(study_from_flags(args, identify) if args.out else load_study(args.study), args)
    sweep = Sweep(study, args)
    jobs = plan(sweep)
    if args.dry_run:
        sys.stdout.write(dry_run(sweep, jobs, args.json))
        return
    save_study(study)
    with contextlib.closing(sweep), contextlib.redirect_stdout(sys.stderr):  # Ray prints its news on stdout
        sweep.run(jobs)
        with contextlib.suppress(SweepFailed):  # `finish` tells of the failures
            if not sweep.failures:
                look_further(sweep)
    finish(sweep, jobs, args)


if __name__ == "__main__":
    run_cli(main)
