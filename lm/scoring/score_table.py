"""Given text scored, as the flags of `python -m lm.generate RUN_DIR --score FILE` ask for it: a table, or JSON."""

from __future__ import annotations

import argparse
import json
import logging
import re
from bisect import bisect_left
from typing import Any

from lm.base.errors import ConfigError, CorpusError
from lm.base.process import show
from lm.scoring.adapt_flags import adapt_to_text, add_adaptation_flags, check_one_mode, settings_text
from lm.scoring.score import score_text
from lm.scoring.surprisal import Row, surprisal
from lm.scoring.trained import Trained
from lm.text.english import CHOICES, spans_in, tokenization_for
from lm.text.given import given_text, warn_of_unknown
from lm.text.reading import split_lines

logger = logging.getLogger(__name__)
_NAMES = {"2": "bits", "e": "nats"}


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """`--score` and what belongs to it."""
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--score",
        metavar="FILE",
        action="append",
        help="score the lines of FILE (-: standard input) as they stand; TSV",
    )
    group.add_argument("--independent", action="store_true", help="score each line alone, not as one text")
    rows = group.add_mutually_exclusive_group()
    for row, text in (
        ("token", "surprisal, rank, entropy"),
        ("word", "its tokens summed"),
        ("line", "its tokens summed, their mean, perplexity"),
    ):
        rows.add_argument(
            f"--per-{row}", dest="per", action="store_const", const=row, help=f"a row for each {row}: {text}"
        )
    group.add_argument(
        "--base", choices=list(_NAMES), default="2", help="of the logarithm: bits or nats per token (default: 2)"
    )
    group.add_argument(
        "--top", type=int, default=0, metavar="K", help="show the K likeliest tokens of each prediction (default: 0)"
    )
    group.add_argument(
        "--sentences",
        choices=CHOICES,
        default="plain",
        help="the lines are ordinary English: tokenize them as this corpus; auto: as the model's (default: plain, no)",
    )
    group.add_argument("--ids", action="store_true", help="each line begins with its id and a tab")
    add_adaptation_flags(parser, splits=False)
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="with --adapt dynamic: folder of the run's corpus, if it has moved since training",
    )


def check_score_flags(given: set[str], arguments: argparse.Namespace) -> None:
    """Raise ConfigError for a flag among `given` (names of arguments) that is without what it is for."""
    scores = arguments.score is not None
    if scores and len(arguments.score) > 1:
        raise ConfigError(f"--score: give one file, not {' and '.join(arguments.score)}")
    if scores:
        (arguments.score,) = arguments.score
    for name in ("features", "embeddings"):
        if scores and getattr(arguments, name) is not None:
            raise ConfigError(f"--score: leave it out with --{name}")
    if arguments.independent and not scores and arguments.features is None:
        raise ConfigError("--independent is for scoring: give --score FILE too")
    spellings = {"per": f"--per-{arguments.per}", "adapt": "--adapt", "sentences": "--sentences"}
    for name, spelling in spellings.items():
        if name in given and not scores:
            raise ConfigError(f"{spelling} is for scoring: give --score FILE too")
    if arguments.top and arguments.per != "token":
        raise ConfigError("--top: is for --per-token")
    for name in ("ids", "base"):
        if name in given and arguments.per is None:
            raise ConfigError(f"--{name}: is for --per-token, --per-word or --per-line")
    check_one_mode(given, arguments)


def write_scores(arguments: argparse.Namespace, trained: Trained) -> None:
    """Print what `--score` asks for."""
    text = given_text(arguments.score)
    lines, ids = split_lines(text), None
    if arguments.ids:
        lines, ids = _split_ids(arguments.score, lines)
    sentences, tokenize = tokenization_for(trained.config, arguments.sentences)
    given, lines = lines, [*map(tokenize, lines)]
    warn_of_unknown(trained.tokenizer, "\n".join(lines))
    mode = "independent" if arguments.independent else "continuous"
    head: dict[str, Any] = {"run": str(arguments.run_dir), "file": arguments.score}
    head |= {"sentences": sentences, "mode": mode}
    adapt = None
    if arguments.adapt != ["none"]:
        adapt = adapt_to_text(arguments, trained.model, trained.config)
        head |= {"adapt": arguments.adapt[0], **adapt.settings(), "fast": arguments.adapt_fast}
        logger.info("%s: %s", head["adapt"], settings_text(head))
    if arguments.per is None:
        text = "".join(line + "\n" for line in lines)
        scores = score_text(trained.model, trained.tokenizer, text, independent=arguments.independent, adapt=adapt)
        show(json.dumps(head | scores) + "\n" if arguments.json else _score_table(scores))
        return
    found = surprisal(
        trained.model, trained.tokenizer, lines, independent=arguments.independent, per_word=arguments.per == "word",
        per_line=arguments.per == "line", bits=arguments.base == "2", top=arguments.top, adapt=adapt,
    )  # fmt: skip
    if sentences != "plain" and arguments.per != "line":
        found = map(_placed, found, given, lines)
    named = ([{"id": ids[row["line"] - 1]} | row for row in rows] if ids else rows for rows in found)
    if arguments.json:
        rows = [row for rows in named for row in rows]
        show(json.dumps(head | {"unit": _NAMES[arguments.base], "rows": rows}) + "\n")
        return
    for number, rows in enumerate(named):
        if not number:
            show("\t".join(_cells(rows[0])) + "\n")
        show("".join("\t".join(_cells(row).values()) + "\n" for row in rows))


def _placed(rows: list[Row], sentence: str, line: str) -> list[Row]:
    """The rows of a tokenized line with the places of their words in the sentence as it was given."""
    starts = [word.start() for word in re.finditer(r"\S+", line)]
    spans = [(0, 0), *spans_in(sentence, line.split())]
    ends = (len(sentence), len(sentence))
    # By its end, as a piece of BPE begins with the space before its word.
    places = (ends if row["start"] == len(line) else spans[bisect_left(starts, row["end"])] for row in rows)
    return [row | {"start": start, "end": end} for row, (start, end) in zip(rows, places, strict=True)]


def _split_ids(name: str, lines: list[str]) -> tuple[list[str], list[str]]:
    """What follows the first column of each line, and that column. Raises CorpusError for a line of one column."""
    columns = [line.partition("\t") for line in lines]
    for number, (_, tab, _) in enumerate(columns, 1):
        if not tab:
            raise CorpusError(
                f"--score {name}: line {number} has no tab: --ids takes what stands before a line's first"
            )
    return [rest for _, _, rest in columns], [first for first, _, _ in columns]


def _score_table(scores: dict[str, Any]) -> str:
    """The scores of lines and their total, tab-separated."""
    rows = [["line", *scores["total"]]]
    for name, row in [*enumerate(scores["lines"], 1), ("total", scores["total"])]:
        values = [f"{v:.{6 if k == 'logprob' else 4}f}" if isinstance(v, float) else v for k, v in row.items()]
        rows.append(["" if value is None else str(value) for value in (name, *values)])
    return "".join("\t".join(row) + "\n" for row in rows)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row of surprisal as the cells of a table by their columns."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if name == "top":
            for place, (token, p) in enumerate(value, 1):
                cells |= {f"top{place}": token, f"p{place}": f"{p:.6f}"}
        else:
            cells[name] = f"{value:.6f}" if isinstance(value, float) else str(+value if name == "unknown" else value)
    return {name: cell.replace("\t", "\\t").replace("\r", "\\r") for name, cell in cells.items()}
