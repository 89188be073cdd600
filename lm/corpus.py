"""Find or download, verify, encode and cache a corpus: `python -m lm.corpus --dataset ptb`.

The known corpora are described in `lm/text/corpora.toml`. Any folder with `train.txt`, `valid.txt` and, if there is
one, `test.txt`, one sentence or paragraph a line, is a corpus too. See `lm.text.layout` for other files, and
`lm.text.tokenization` for how lines are tokenized.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import json

from lm.base.errors import run_cli
from lm.base.names import flag
from lm.base.process import show
from lm.config.bounds import choices
from lm.config.flags import Parser, field_help
from lm.config.schema import DataConfig
from lm.config.values import make_config
from lm.text.cards import known_corpora
from lm.text.corpus import Corpus
from lm.text.finding import configured_corpus

# Against too little memory.
SMALLER = "--vocab-size, --bpe-vocab-size or text"


def _report(corpus: Corpus) -> str:
    """A corpus for a human reader."""
    card = known_corpora().get(corpus.name)
    words = corpus.tokenizer.kind == "word"
    rows = [
        f"{corpus.name}: {card.title}; {card.licence}" if card else corpus.name,
        f"text    {corpus.source}",
        f"cache   {corpus.path or 'none'}",
        f"types   {corpus.vocab_size:,}" + ("" if words else f" ({corpus.tokenizer.kind})"),
        f"{'split':<8}{'lines':>10}{'' if words else '       words'}{'tokens':>12}{'unknown':>10}  sha256 of the text",
    ]
    for split, ids in corpus.splits.items():
        counts = f"{corpus.lines[split]:>10,}" + ("" if words else f"{corpus.words[split]:>12,}")
        counts += f"{len(ids):>12,}{corpus.unk[split]:>10,}"
        rows.append(f"{split:<8}{counts}  {corpus.sha256[split]}")
    return "\n".join(rows)


def main() -> None:
    """Command line: prepare a corpus and report its counts."""
    parser = Parser("python -m lm.corpus", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--dataset", metavar="NAME", help=f"one of {', '.join(known_corpora())}, or a folder in data/")
    texts = field_help(DataConfig)
    parser.add_argument("--data", metavar="DIR", help=texts["data"])
    parser.add_argument(
        "--tokenizer", choices=choices(DataConfig, "tokenizer"), default=DataConfig.tokenizer, help=texts["tokenizer"]
    )
    for name in ("bpe_vocab_size", "vocab_size", "min_count"):
        default = getattr(DataConfig, name)
        parser.add_argument(flag(name), type=int, metavar="N", default=default, help=texts[name])
    parser.add_argument("--lowercase", action="store_true", help=texts["lowercase"])
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args()
    fields = ("tokenizer", "bpe_vocab_size", "vocab_size", "min_count", "lowercase")
    own = {name: getattr(args, name) for name in fields}
    corpus = configured_corpus(make_config(dataset=args.dataset or "", data=args.data or "", **own))
    report = {
        "dataset": corpus.name,
        "vocab_size": corpus.vocab_size,
        "tokens": {split: len(ids) for split, ids in corpus.splits.items()},
        "unk": corpus.unk,
        "sha256": corpus.sha256,
        "path": str(corpus.path) if corpus.path else None,
        "tokenizer": corpus.tokenizer.kind,
        "words": corpus.words,
    }
    show(f"{json.dumps(report) if args.json else _report(corpus)}\n")


if __name__ == "__main__":
    run_cli(main, SMALLER)
