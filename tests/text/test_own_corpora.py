"""Own corpora through the commands: without test, in other files, with a capped vocabulary, on bytes."""

import gzip
import json
import math

import pytest

from lm import corpus, evaluate, report, sweep
from lm.base.errors import ConfigError, CorpusError
from lm.config.values import config_id, make_config
from lm.text.cards import published_layout
from lm.text.finding import load_corpus
from lm.text.tokenization import Tokenization
from lm.text.units import summary
from lm.train import configure
from tests.conftest import TINY

SHORT = [*TINY, "--max-steps=4", "--no-tensorboard"]


@pytest.fixture(scope="module")
def rows_dir(small_dir, tmp_path_factory):
    """The small corpus as compressed rows, without test."""
    folder = tmp_path_factory.mktemp("corpora") / "rows"
    folder.mkdir()
    for split, name in (("train", "train-1.jsonl.gz"), ("valid", "validation-1.jsonl.gz")):
        lines = (small_dir / f"{split}.txt").read_text().splitlines()
        (folder / name).write_bytes(gzip.compress("".join(json.dumps({"text": f"{n}"}) + "\n" for n in lines).encode()))
    return folder


def test_a_corpus_without_test_goes_through_every_command(rows_dir, train_here, main_here, tmp_path):
    assert set(json.loads(main_here(corpus, "--data", rows_dir, "--json"))["tokens"]) == {"train", "valid"}
    run = ["--data", rows_dir, *SHORT, "--out-dir", tmp_path / "run"]
    first = train_here(*run)
    assert (first["test_loss"], first["status"], set(first["corpus_sha256"])) == (None, "completed", {"train", "valid"})
    assert "test" not in summary(first)
    written = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    train_here(*run, "--resume=auto")
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == written
    (row,) = json.loads(main_here(evaluate, tmp_path / "run", "--json"))["splits"]
    assert (row["split"], row["loss"]) == ("valid", pytest.approx(first["valid_loss"], rel=1e-6))
    with pytest.raises(CorpusError, match="rows: has no test split"):
        main_here(evaluate, tmp_path / "run", "--split", "test")
    main_here(evaluate, tmp_path / "run", "--export", tmp_path / "export")
    assert "not scored" in (tmp_path / "export" / "README.md").read_text()
    study = tmp_path / "study"
    main_here(sweep, "--data", rows_dir, *SHORT[:-1], "--alpha", "0", "--seed", "1", "--out", study, "--jobs", "1")
    (line,) = (study / "runs.jsonl").read_text().splitlines()
    assert json.loads(line)["test_ppl"] is None
    main_here(report, study)
    assert "valid ppl" in (study / "README.md").read_text()


def test_a_capped_vocabulary_is_part_of_what_a_run_is(small_dir, train_here, main_here, tmp_path):
    flags = ["--vocab-size=12", "--min-count=2", "--lowercase"]
    shown = json.loads(main_here(corpus, "--data", small_dir, *flags, "--json"))
    assert (shown["vocab_size"], shown["unk"]["train"] > 0) == (12, True)
    run = ["--data", small_dir, *SHORT, "--out-dir", tmp_path / "run"]
    result = train_here(*run, *flags)
    assert {name: result["config"][name] for name in ("vocab_size", "min_count", "lowercase")} == {
        "vocab_size": 12, "min_count": 2, "lowercase": True,
    }  # fmt: skip
    rows = json.loads(main_here(evaluate, tmp_path / "run", "--json"))["splits"]
    assert rows[1]["loss"] == pytest.approx(result["test_loss"], rel=1e-6)
    with pytest.raises(ConfigError, match=r"--vocab-size 12 \(now 0\)"):
        train_here(*run, "--max-steps=5", "--resume=auto")
    with pytest.raises(ConfigError, match=r"--finetune: .*--lowercase True \(now False\)"):
        train_here("--finetune", tmp_path / "run", "--no-lowercase", "--out-dir", tmp_path / "fine")
    kinds = [Tokenization(), Tokenization(vocab_size=12), Tokenization(min_count=2), Tokenization(lowercase=True)]
    assert len({load_corpus(None, small_dir, tmp_path, kind).path for kind in kinds}) == 4


def test_younger_fields_at_their_defaults_change_no_identity():
    assert config_id(make_config()) == config_id(make_config(vocab_size=0, min_count=1, lowercase=False))
    changed = [{}, {"vocab_size": 9}, {"min_count": 2}, {"lowercase": True}]
    assert len({config_id(make_config(**values)) for values in changed}) == 4


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tokenizer=char", "--vocab-size=9"], "--vocab-size: works with --tokenizer word only"),
        (["--tokenizer=bpe", "--vocab-size=9"], "--vocab-size: .* only; use --bpe-vocab-size"),
        (["--tokenizer=byte", "--lowercase"], "--lowercase: works with --tokenizer word only"),
        (["--tokenizer=bpe", "--min-count=2"], "--min-count: works with --tokenizer word only"),
        (["--tokenizer=byte", "--bpe-vocab-size=300"], "--bpe-vocab-size: works with --tokenizer bpe only"),
        (["--vocab-size=2"], "--vocab-size: must be 0 .* or at least 3"),
        (["--min-count=0"], "--min-count: must be at least 1"),
    ],
)
def test_contradictory_flags_are_refused_by_name(small_dir, flags, reason):
    with pytest.raises(ConfigError, match=reason):
        configure(["--data", str(small_dir), *flags])


def test_the_command_line_says_so_with_exit_codes(cli, rows_dir):
    assert cli("corpus", "--data", rows_dir, "--tokenizer=byte", "--vocab-size=9").returncode == 2
    done = cli("corpus", "--data", rows_dir, "--min-count=99999")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: --min-count: no word of train comes 99999 times",
    )
    done = cli("corpus", "--data", rows_dir, "--vocab-size=9", "--json")
    assert (done.returncode, json.loads(done.stdout)["vocab_size"]) == (0, 9)
    assert "has no test split" in done.stderr


def test_bits_are_per_byte_on_bytes_and_per_character_where_words_are_characters(small_dir, train_here, tmp_path):
    result = train_here("--data", small_dir, *SHORT, "--tokenizer=byte", "--out-dir", tmp_path / "bytes")
    assert result["test_bits_per_byte"] == pytest.approx(result["test_loss"] / math.log(2))
    assert summary(result).startswith("small: bits per byte train ")
    for split in ("train", "valid", "test"):
        text = (small_dir / f"{split}.txt").read_text()
        (tmp_path / f"{split}.txt").write_text(published_layout(" ".join(line) for line in text.splitlines()))
    result = train_here("--data", tmp_path, *SHORT, "--out-dir", tmp_path / "characters")
    assert result["test_bits_per_char"] == pytest.approx(result["test_loss"] / math.log(2))
    assert "test_word_ppl" not in result
