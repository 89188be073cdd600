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
import math
import os
from typing import Any

from lm.base.device import pick_device
from lm.base.errors import ConfigError, run_cli
from lm.base.names import flag
from lm.base.process import show
from lm.base.rundir import RunDir
from lm.base.threads import choose_threads
from lm.config.bounds import choices
from lm.config.flags import Parser
from lm.config.schema import RunOptions
from lm.nn.model import AWDLSTM
from lm.scoring.features import add_vector_flags, check_vector_flags, write_asked
from lm.scoring.prompts import continue_prompt
from lm.scoring.score_table import add_score_flags, check_score_flags, write_scores
from lm.scoring.trained import load
from lm.text.given import given_text, warn_of_unknown
from lm.text.reading import split_lines, universal_newlines
from lm.text.tokenizer import TextTokenizer

# Against too little memory.
SMALLER = "--samples, --beam, --cache-window or text"
# Tokens, samples or hypotheses: more would fill the memory before anything is said.
_MOST = 1_000_000


def _generate(arguments: argparse.Namespace, model: AWDLSTM, tokenizer: TextTokenizer) -> None:
    prompts = arguments.prompt
    warn_of_unknown(tokenizer, "\n".join(prompts))
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


def _parse() -> argparse.Namespace:
    """The command line. Raises ConfigError for a value or a combination that makes no sense."""
    parser = Parser("python -m lm.generate", description="Sample text from a run, or score given text.")
    parser.add_argument("run_dir", type=RunDir, metavar="RUN_DIR", help="run directory of lm.train, or an export")
    text = parser.add_argument_group("generating")
    text.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="text to continue, at the start of a line (default: none); may be given several times",
    )
    text.add_argument("--prompt-file", metavar="FILE", help="more prompts, one a line (-: standard input)")
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
    add_score_flags(parser)
    add_vector_flags(parser)
    parser.add_argument(
        "--device", choices=choices(RunOptions, "device"), default="auto", help="auto: CUDA if there is one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    check_vector_flags(arguments)
    check_score_flags(given, arguments)
    _check_generating(arguments)
    return arguments


def _check_generating(arguments: argparse.Namespace) -> None:
    """Fill in defaults; raises ConfigError for a value or a combination that makes no sense."""
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1111}
    search = {"greedy": False, "beam": 0}
    defaults = {"prompt": [], "prompt_file": "", "tokens": 200, "samples": 1, "unk": False, "detokenize": False}
    defaults |= {"stop": [], "no_repeat_ngram": 0, "jsonl": False} | sampling | search
    given = {name: flag(name) for name in defaults if getattr(arguments, name) is not None}
    others = [name for name in ("score", "features", "embeddings") if getattr(arguments, name) is not None]
    if others and given:
        raise ConfigError(f"{next(iter(given.values()))} is for generating: leave it out with --{others[0]}")
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
        arguments.prompt += split_lines(given_text(arguments.prompt_file))
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


def _utf8(argument: str, name: str) -> str:
    """A word of the command line, which a locale without UTF-8 gives in pieces. Raises ConfigError."""
    try:
        return universal_newlines(os.fsencode(argument).decode())
    except UnicodeError:
        raise ConfigError(f"{name}: not UTF-8 text") from None


def main() -> None:
    """Command line."""
    arguments = _parse()
    choose_threads()
    trained = load(arguments.run_dir, pick_device(arguments.device))
    if arguments.score is not None:
        write_scores(arguments, trained)
    elif arguments.features is not None or arguments.embeddings is not None:
        write_asked(arguments, trained.model, trained.tokenizer)
    else:
        _generate(arguments, trained.model, trained.tokenizer)


if __name__ == "__main__":
    run_cli(main, SMALLER)
