"""Tables, statistics and plots of studies, from `study.toml` and `runs.jsonl` alone (PyTorch is not needed).

python -m lm.report results/ptb-200                     # README.md, table.csv and plots; prints the table
python -m lm.report results/ptb-200 --html              # and report.html, a page to sort, filter and zoom in
python -m lm.report --compare results/ptb-200 published # side by side, see lm.tables.compare
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import json
from pathlib import Path

from lm.base.errors import run_cli
from lm.base.process import show
from lm.config.flags import Parser
from lm.tables.compare import compare, compare_json, compare_text
from lm.tables.page import report, report_json, report_text
from lm.tables.web import require_bokeh, write_page


def main(arguments: list[str] | None = None) -> None:
    """Command line: report studies, or compare sources."""
    parser = Parser("python -m lm.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY_DIR", help="folder with study.toml and runs.jsonl")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        metavar="SOURCE",
        help="two or more of: a study, a run directory, or the word published; the first study or run is the reference",
    )
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write a web page that needs no network (default: report.html in the study; needs Bokeh)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args(arguments)
    if bool(args.studies) == bool(args.compare):
        parser.error("give study folders, or --compare A B")
    if args.html is not None:
        if args.compare or (args.html and len(args.studies) > 1):
            parser.error("--html: is for studies, and FILE for one")
        require_bokeh()
    if args.compare:
        rows = compare(args.compare)
        show(json.dumps(compare_json(rows)) + "\n" if args.json else compare_text(rows))
        return
    analyses = [report(path) for path in args.studies]
    for analysis in analyses if args.html is not None else []:
        write_page(analysis, Path(args.html) if args.html else analysis.study.path / "report.html")
    if args.json:
        show(json.dumps({"studies": [report_json(analysis) for analysis in analyses]}) + "\n")
    else:
        show("\n".join(report_text(analysis) for analysis in analyses))


if __name__ == "__main__":
    run_cli(main)
