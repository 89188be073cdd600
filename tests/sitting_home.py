"""What a sitting (tests/sitting.py) brings home: ledgers, figures, logs, and the best weights in bf16.

At most eight files of 16 MiB. `home.tar.gz` is written anew whenever a run ends; the weights of a study lie in pieces
beside it, as far as they fit.
"""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.base.files import write_atomic
from lm.base.rundir import RunDir
from lm.scoring.export import export_run
from lm.study.ledger import read_ledger
from lm.study.scheduler import Sweep
from tests.parcel import pack, split

logger = logging.getLogger("lm.sitting")
FILES = 8
FILE_BYTES = 16 << 20
ALL_BYTES = 63 << 20
_KEPT = ("config.json", "env.json", "metrics.jsonl", "train.log", "output.log", "result.json", "adapt.txt")


class Home:
    """The folder `out`, filled from `state` (a folder for each study) and the run directories of `sweeps`."""

    def __init__(self, out: Path, state: Path, sweeps: Mapping[str, Sweep], piece_bytes: int = FILE_BYTES) -> None:
        self._out = out
        self._state = state
        self._sweeps = sweeps
        self._piece_bytes = piece_bytes
        self._sent: dict[str, Path] = {}  # whose weights are in `out`, by study
        out.mkdir(parents=True, exist_ok=True)

    def bring(self) -> None:
        """Write home.tar.gz: the studies with their ledgers, and of each run all but its checkpoints."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for study, sweep in self._sweeps.items():
                for name in ("study.toml", "runs.jsonl"):
                    if (path := self._state / study / name).exists():
                        archive.add(path, f"results/{study}/{name}")
                for path in sorted(sweep.folder.glob("*/*")):
                    if path.name in _KEPT:
                        archive.add(path, f"runs/{study}/{path.parent.name}/{path.name}")
            archive.add(self._state / "sitting.log", "sitting.log")
        write_atomic(self._out / "home.tar.gz", lambda file: file.write(content.getvalue()))

    def send_weights(self, studies: Sequence[str]) -> None:
        """Put the best run's weights of each study into the folder, the first named first, as far as they fit."""
        room = ALL_BYTES - (self._out / "home.tar.gz").stat().st_size
        files = FILES - 1
        for study in studies:
            if study not in self._sweeps or (best := self._best(study)) is None:
                continue
            if self._sent.get(study) != best.path:
                self._send(study, best)
                self._sent[study] = best.path
            pieces = list(self._out.glob(f"{study}.*of*"))
            size = sum(path.stat().st_size for path in pieces)
            if len(pieces) > files or size > room:
                logger.info("%s: no room for its weights; a second call with --weights %s brings them", study, study)
                for path in pieces:
                    path.unlink()
            else:
                files -= len(pieces)
                room -= size

    def _best(self, study: str) -> RunDir | None:
        """The run with the lowest valid loss in the study's ledger; while there is none, the one begun first."""
        folder = self._sweeps[study].folder
        done = [line for line in read_ledger(self._state / study / "runs.jsonl") if line["status"] == "completed"]
        runs = [folder / line["id"] for line in sorted(done, key=lambda line: line["valid_loss"])]
        begun = [path for path in folder.glob("*") if RunDir(path).best.exists()]
        runs += sorted(begun, key=lambda path: RunDir(path).config.stat().st_mtime)
        return next((RunDir(path) for path in runs if RunDir(path).best.exists()), None)

    def _send(self, study: str, run_dir: RunDir) -> None:
        export = RunDir(self._state / f"{study}.export")
        shutil.rmtree(export, ignore_errors=True)
        export_run(run_dir, export)
        for path in self._out.glob(f"{study}.*of*"):
            path.unlink()
        pieces = split(pack(export.path), self._piece_bytes)
        for number, piece in enumerate(pieces, start=1):
            write_atomic(self._out / f"{study}.{number}of{len(pieces)}", lambda file, piece=piece: file.write(piece))
