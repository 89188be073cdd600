"""Sample text from a run, or score given text: `python -m lm.generate RUN_DIR [--prompt TEXT | --score FILE]`.

The same command writes a model's vectors (`--features`, `--embeddings`, see `lm.scoring.features`).

Shapes: T time, B batch (samples or hypotheses), V vocabulary.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

from lm.base.device import pick_device
from lm.base.errors import ConfigError, CorpusError, run_cli
from lm.base.names import flag
from lm.base.process import show
from lm.base.rundir import RunDir
from lm.base.threads import choose_threads
from lm.config.flags import Parser
from lm.nn.model import AWDLSTM
from lm.scoring.features import add_vector_flags, check_vector_flags, write_asked
from lm.scoring.prompts import continue_prompt
from lm.scoring.score import score_text
from lm.scoring.surprisal import surprisal
from lm.scoring.trained import load
from lm.text.reading import check_text, read_text, split_lines, text_of, universal_newlines
from lm.text.tokenizer import TextTokenizer

logger = logging.getLogger("lm.generate")
# Against too little memory.
SMALLER = "--samples, --beam or text"
# Tokens, samples or hypotheses: more would fill the memory before anything is said.
_MOST = 1_000_000


def _score(arguments: argparse.Namespace, model: AWDLSTM, tokenizer: TextTokenizer) -> None:
    if arguments.score == "-":
        text = check_text(sys.stdin.buffer.read(), "standard input")
    else:
        text = text_of(read_text(Path(arguments.score)))
    mode = "independent" if arguments.independent else "continuous"
    head = {"run": str(arguments.run_dir), "file": arguments.score, "mode": mode}
    if arguments.per_token or arguments.per_word:
        _surprisal(arguments, head, text, model, tokenizer)
        return
    _warn_of_unknown(tokenizer, text)
    scores = score_text(model, tokenizer, text, independent=arguments.independent)
    if arguments.json:
        show(json.dumps(head | scores) + "\n")
        return
    show("\t".join(["line", *scores["total"]]) + "\n")
    for name, row in [*enumerate(scores["lines"], 1), ("total", scores["total"])]:
        values = [f"{v:.{6 if k == 'logprob' else 4}f}" if isinstance(v, float) else v for k, v in row.items()]
        show("\t".join(["" if value is None else str(value) for value in (name, *values)]) + "\n")


def _warn_of_unknown(tokenizer: TextTokenizer, text: str) -> None:
    """Name what the vocabulary lacks: scores of untokenized sentences are largely those of `<unk>`."""
    if unknown := tokenizer.unknown(text):
        some = ", ".join([*unknown][:10]) + (", ..." if len(unknown) > 10 else "")
        logger.warning("--score: not in the vocabulary, read as <unk>: %s (%d in all)", some, unknown.total())


def _surprisal(
    arguments: argparse.Namespace, head: dict[str, Any], text: str, model: AWDLSTM, tokenizer: TextTokenizer
) -> None:
    lines = split_lines(text)
    ids: list[str] | None = None
    if arguments.ids:
        ids, lines = _split_ids(arguments.score, lines)
    _warn_of_unknown(tokenizer, "\n".join(lines))
    found = surprisal(
        model, tokenizer, lines, independent=arguments.independent, per_word=arguments.per_word,
        bits=arguments.base == "2", top=arguments.top,
    )  # fmt: skip
    named = ([{"id": ids[row["line"] - 1]} | row for row in rows] if ids else rows for rows in found)
    if arguments.json:
        unit = "bits" if arguments.base == "2" else "nats"
        show(json.dumps(head | {"unit": unit, "rows": [row for rows in named for row in rows]}) + "\n")
        return
    for number, rows in enumerate(named):
        if not number:
            show("\t".join(_cells(rows[0])) + "\n")
        show("".join("\t".join(_cells(row).values()) + "\n" for row in rows))


def _split_ids(name: str, lines: list[str]) -> tuple[list[str], list[str]]:
    """The first column of each line, and the rest. Raises CorpusError for a line of one column."""
    columns = [line.partition("\t") for line in lines]
    for number, (_, tab, _) in enumerate(columns, 1):
        if not tab:
            raise CorpusError(f"{name}: line {number} has no tab: --ids takes what stands before a line's first")
    return [first for first, _, _ in columns], [rest for _, _, rest in columns]


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


def _generate(arguments: argparse.Namespace, model: AWDLSTM, tokenizer: TextTokenizer) -> None:
    prompts = arguments.prompt
    if arguments.jsonl:  # each prompt's as soon as it is there
        for prompt in prompts:
            for number, (text, one) in enumerate(continue_prompt(arguments, prompt, model, tokenizer)):
                drawn = {} if arguments.greedy or arguments.beam else {"seed": arguments.seed + number}
                head = {"prompt": prompt, "sample": number + 1} | drawn
                show(json.dumps(head | {"text": text} | dataclasses.asdict(one)) + "\n")
        return
    samples = [continue_prompt(arguments, prompt, model, tokenizer) for prompt in prompts]
    if arguments.json:
        rows = [[{"text": text} | dataclasses.asdict(one) for text, one in some] for some in samples]
        report: dict[str, Any] = {"run": str(arguments.run_dir)}
        if len(prompts) == 1:
            report |= {"prompt": prompts[0], "tokens": arguments.tokens, "samples": rows[0]}
        else:
            found = [{"prompt": prompt, "samples": some} for prompt, some in zip(prompts, rows, strict=True)]
            report |= {"tokens": arguments.tokens, "prompts": found}
        show(json.dumps(report) + "\n")
        return
    for prompt, some in zip(prompts, samples, strict=True):
        if len(prompts) > 1:
            show(f"=== {prompt}\n")
        for number, (text, one) in enumerate(some, 1):
            if len(some) > 1:
                show(f"--- {number}: log-probability {one.logprob:.4f} nats\n")
            show(text + "\n")


def _build_parser() -> Parser:
    parser = Parser("python -m lm.generate", description="Sample text from a run, or score given text.")
    parser.add_argument("run_dir", type=RunDir, metavar="RUN_DIR", help="run directory of lm.train, or an export")
    text = parser.add_argument_group("generating")
    text.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="text to continue, at the start of a line (default: none); may be given several times",
    )
    text.add_argument("--prompt-file", metavar="FILE", help="more prompts, one a line")
    text.add_argument("--tokens", type=int, metavar="N", help="tokens to generate, <eos> included (default: 200)")
    text.add_argument("--samples", type=int, metavar="N", help="number of texts; with --beam the N best (default: 1)")
    text.add_argument(
        "--unk", action=argparse.BooleanOptionalAction, help="allow <unk> in the text (default: --no-unk)"
    )
    text.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help=r"end a text before TEXT (\n: the end of a line); may be given several times; not with --beam",
    )
    text.add_argument("--no-repeat-ngram", type=int, metavar="N", help="let no N tokens come twice (default: 0, off)")
    text.add_argument("--detokenize", action="store_const", const=True, help="print readable English")
    text.add_argument("--temperature", type=float, metavar="X", help="divide the logits by X (default: 1)")
    text.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest words (default: 0, all)")
    text.add_argument("--top-p", type=float, metavar="X", help="draw from the likeliest words, X in sum (default: 1)")
    text.add_argument("--seed", type=int, metavar="N", help="seed of the first text, N + 1 of the next (default: 1111)")
    text.add_argument("--greedy", action="store_const", const=True, help="take the likeliest word each time")
    text.add_argument("--beam", type=int, metavar="N", help="search for the likeliest text with N hypotheses")
    text.add_argument(
        "--jsonl",
        action="store_const",
        const=True,
        help="print a JSON object a text, with each token's log-probability",
    )
    score = parser.add_argument_group("scoring")
    score.add_argument(
        "--score",
        metavar="FILE",
        action="append",
        help="score the lines of FILE (-: standard input) as they stand; TSV",
    )
    score.add_argument("--independent", action="store_true", help="score each line alone, not as one text")
    score.add_argument("--per-token", action="store_true", help="a row for each token: surprisal, rank, entropy")
    score.add_argument("--per-word", action="store_true", help="a row for each word: its tokens summed")
    score.add_argument(
        "--base", choices=["2", "e"], default="2", help="of the logarithm: bits or nats per token (default: 2)"
    )
    score.add_argument(
        "--top", type=int, default=0, metavar="K", help="show the K likeliest tokens of each prediction (default: 0)"
    )
    score.add_argument("--ids", action="store_true", help="each line begins with its id and a tab")
    add_vector_flags(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Fill in defaults; raises ConfigError for a value or a combination that makes no sense."""
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1111}
    search = {"greedy": False, "beam": 0}
    defaults = {"prompt": [], "prompt_file": "", "tokens": 200, "samples": 1, "unk": False, "detokenize": False}
    defaults |= {"stop": [], "no_repeat_ngram": 0, "jsonl": False} | sampling | search
    given = {name: flag(name) for name in defaults if getattr(arguments, name) is not None}
    if arguments.score is not None:
        if len(arguments.score) > 1:
            raise ConfigError(f"--score: give one file, not {' and '.join(arguments.score)}")
        arguments.score = arguments.score[0]
    check_vector_flags(arguments)
    others = [name for name in ("score", "features", "embeddings") if getattr(arguments, name) is not None]
    if others and given:
        raise ConfigError(f"{next(iter(given.values()))} is for generating: leave it out with --{others[0]}")
    if "score" in others and len(others) > 1:
        raise ConfigError(f"--score: leave it out with --{others[1]}")
    _check_scoring(arguments)
    if (chosen := given.keys() & search) and (drawing := [given[name] for name in sampling if name in given]):
        raise ConfigError(f"{drawing[0]} is for sampling: leave it out with {given[min(chosen)]}")
    if len(given.keys() & search) == 2:
        raise ConfigError("--greedy is --beam 1: give one of the two")
    for name, spelling in given.items():
        if name in ("tokens", "samples", "beam") and not 1 <= getattr(arguments, name) <= _MOST:
            raise ConfigError(f"{spelling} must be at least 1 and at most {_MOST}, got {getattr(arguments, name)}")
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.jsonl and arguments.json:
        raise ConfigError("--jsonl: leave it out with --json")
    if arguments.stop and arguments.beam > 1:
        raise ConfigError("--stop: leave it out with --beam, whose texts all have --tokens")
    arguments.stop = [_utf8(stop, "--stop").replace("\\n", "\n") for stop in arguments.stop]
    if "" in arguments.stop:
        raise ConfigError("--stop: must not be empty")
    arguments.prompt = [_utf8(prompt, "--prompt") for prompt in arguments.prompt]
    if arguments.prompt_file:
        arguments.prompt += split_lines(text_of(read_text(Path(arguments.prompt_file))))
    arguments.prompt = arguments.prompt or [""]
    _check_ranges(arguments)


def _check_ranges(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.temperature < math.inf:
        raise ConfigError(f"--temperature must be above 0, got {arguments.temperature} (for the limit 0: --greedy)")
    if not 0 <= arguments.top_k < 1 << 31:
        raise ConfigError(f"--top-k must be at least 0 and below 2^31, got {arguments.top_k}")
    if arguments.no_repeat_ngram < 0:
        raise ConfigError(f"--no-repeat-ngram must be at least 0, got {arguments.no_repeat_ngram}")
    if not 0 < arguments.top_p <= 1:
        raise ConfigError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}")
    if not 0 <= arguments.seed < 1 << 53:
        raise ConfigError(f"--seed must be from 0 to 2^53 - 1, got {arguments.seed}")
    width = 1 if arguments.greedy else arguments.beam
    if width and arguments.samples > width:
        raise ConfigError(f"--samples {arguments.samples}: a beam of {width} has no more than {width}")


def _check_scoring(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for a flag of scoring without what it is for."""
    for name in ("independent", "per_token", "per_word"):
        read = arguments.score is not None or (name == "independent" and arguments.features is not None)
        if getattr(arguments, name) and not read:
            raise ConfigError(f"{flag(name)} is for scoring: give --score FILE too")
    if arguments.per_token and arguments.per_word:
        raise ConfigError("--per-token and --per-word: give one of the two")
    if arguments.top and not arguments.per_token:
        raise ConfigError("--top: is for --per-token")
    if (arguments.ids or arguments.base != "2") and not (arguments.per_token or arguments.per_word):
        raise ConfigError(f"{'--ids' if arguments.ids else '--base'}: is for --per-token or --per-word")


def _utf8(argument: str, name: str) -> str:
    """A word of the command line, which a locale without UTF-8 gives in pieces. Raises ConfigError."""
    try:
        return universal_newlines(os.fsencode(argument).decode())
    except UnicodeError:
        raise ConfigError(f"{name}: not UTF-8 text") from None


def main() -> None:
    """Command line."""
    arguments = _build_parser().parse_args()
    _check(arguments)
    choose_threads()
    trained = load(arguments.run_dir, pick_device(arguments.device))
    vectors = arguments.features is not None or arguments.embeddings is not None
    act = write_asked if vectors else _generate if arguments.score is None else _score
    act(arguments, trained.model, trained.tokenizer)


if __name__ == "__main__":
    run_cli(main, SMALLER)
