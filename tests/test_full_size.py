"""What tests.full_size measures at the size of WikiText-103, at a thousandth of it; and the texts that it makes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lm.text.words import WordTokenizer
from tests import full_size, full_size_page
from tests.decoder_cost import decoder_cost
from tests.full_size import Done, Site, Size
from tests.made_text import character_table, word_table, write_size, write_tokens

ROOT = Path(__file__).resolve().parent.parent
SPEED = ROOT / "results" / "speed"


def test_a_made_up_text_has_the_tokens_and_types_that_were_asked_for(tmp_path):
    write_tokens(path := tmp_path / "a", word_table(3000), 300_000, seed=1)
    tokenizer = WordTokenizer.from_text(text := path.read_text())
    assert (tokenizer.vocab_size, len(tokenizer.encode(text))) == (3000, 300_000)
    assert text.endswith("\n")
    write_tokens(again := tmp_path / "b", word_table(3000), 300_000, seed=1)
    assert again.read_bytes() == path.read_bytes()


def test_words_follow_zipfs_law_and_the_fourth_most_frequent_is_the_line_end(tmp_path):
    table = word_table(3000)
    write_tokens(path := tmp_path / "a", table, 300_000, seed=1)
    counts = Counter(path.read_text().replace("\n", " \n ").split(" "))
    frequent = ["\n" if word == b"\n" else word.decode().strip() for word in table[:8]]
    ranks = np.arange(1, 9)
    expected = 300_000 * np.log1p(1 / ranks) / np.log(3000)
    assert [counts[word] for word in frequent] == pytest.approx(expected.tolist(), rel=0.05)
    assert frequent[3] == "\n"


@pytest.mark.parametrize("size", [40_000, 40_001, 40_002, 40_003])
def test_a_text_of_a_given_size_has_it_to_the_byte_and_cuts_no_word_or_character(size, tmp_path):
    write_size(path := tmp_path / "words", table := word_table(500), size, seed=2)
    assert len(content := path.read_bytes()) == size
    assert {*content.split()} <= {entry.strip() for entry in table}
    write_size(path := tmp_path / "characters", character_table(), size, seed=2)
    assert len(content := path.read_bytes()) == size
    assert content.decode()[-1] == "\n"


def test_characters_have_as_many_bytes_between_them_as_enwik8(tmp_path):
    write_size(path := tmp_path / "a", character_table(), 400_000, seed=3)
    assert len(set(path.read_bytes())) == 205
    assert 80 < 400_000 / path.read_bytes().count(b"\n") < 96


def test_a_commands_memory_and_time_are_those_of_its_process(tmp_path):
    (tmp_path / "takes.py").write_text("kept = bytearray(b'1') * 200_000_000\nprint('{\"size\": %d}' % len(kept))\n")
    (tmp_path / "fails.py").write_text("raise SystemExit(3)\n")
    site, seen = Site(tmp_path, Size(), 1), []
    done = site.run("takes", watch=seen.append)
    assert done.report == {"size": 200_000_000}
    assert 0 < done.cpu_seconds < 2 * done.seconds
    assert len(set(seen)) == 1
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        site.run("fails")
    # Memory starts at that of the process that starts the command, which is large here and small there.
    program = "from tests.full_size import *; print(Site(Path(sys.argv[1]), Size(), 1).run('takes').peak_mb)"
    small = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert 200 < float(small.stdout) < 400


@pytest.fixture
def forked(cli, monkeypatch):
    """Commands as forks, which spares each the import of PyTorch; what they took is made up."""

    def run(site, module, *arguments, watch=None):
        if module == "tests.decoder_cost":
            types = int(arguments[1])
            return Done(decoder_cost(types, 8, 20, 1, list(map(int, arguments[5:]))), 1.0, 1.0, 1.0)
        done = cli(module.removeprefix("lm."), *arguments, folder=site.folder)
        assert done.returncode == 0, done.stderr
        return Done(json.loads(done.stdout), 1.0, 2.0, 3.0)

    monkeypatch.setattr(Site, "run", run)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["full_size", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        full_size.main()
    return ended.value.code


def test_every_row_is_measured_and_shown_at_a_thousandth_of_the_size(forked, monkeypatch, tmp_path):
    out = tmp_path / "out"
    common = ["--out", out, "--keep", tmp_path / "texts", "--scale", 0.001, "--threads", 1]
    names = [name for name in full_size.plan(Size()) if name != "train LSTM"]  # as another one
    assert run_main(monkeypatch, *common, "--only", *names) == 0
    rows = json.loads((out / "full-size.json").read_text())
    assert list(rows) == names
    assert rows["encode words"]["tokens"] == {"train": 103_227, "valid": 400, "test": 400}
    assert [rows[f"encode {name}"]["types"] for name in ("words", "bytes", "large")] == [268, 257, 500]
    assert rows["train QRNN"]["train_tokens"] == 103_227
    text = (out / "full-size.md").read_text()
    assert all(f"| {full_size_page.LABELS[name]} |" in text for name in rows)
    monkeypatch.setitem(full_size_page.BOUNDS, "encode large", 2)
    before = rows["encode words"]
    assert run_main(monkeypatch, *common, "--only", "encode large") == 1
    assert json.loads((out / "full-size.json").read_text())["encode words"] == before


def test_the_rate_leaves_out_the_start_and_the_first_update():
    assert full_size.cpu_rate(1000, {0: 7.0, 1: 20.0, 2: 30.0, 4: 50.0}) == 100
    assert full_size.cpu_rate(1000, {0: 7.0, 1: 20.0}) == 0


def test_a_day_is_extrapolated_from_cpu_seconds():
    row = {"parameters": 1, "batch_size": 2, "bptt": 3, "timed_updates": 4, "tokens_per_s": 5, "peak_mb": 6}
    row |= {"tokens_per_cpu_s": 1000, "threads": 2, "train_tokens": 86_400_000}
    assert full_size_page.training_row("x", row)[-2:] == ("173M", "2.00")


def test_the_committed_page_and_the_docs_show_the_committed_figures_which_keep_the_bounds():
    rows = json.loads((SPEED / "full-size.json").read_text())
    assert list(rows) == list(full_size.plan(Size()))
    assert {row["scale"] for row in rows.values()} == {1}
    assert not full_size_page.exceeded(rows)
    assert (SPEED / "full-size.md").read_text() == full_size_page.page(rows)
    docs = " ".join((ROOT / "docs" / "text.md").read_text().split())
    for name in ("decoder", "decoder with cutoffs"):
        label, cpu_s, peak = full_size_page.decoder_row(full_size_page.LABELS[name], rows[name])
        assert f"| {label} | {cpu_s} | {peak:,} |" in docs
    large = rows["encode large"]
    assert f"takes {large['peak_mb']} MB of memory and {large['cpu_seconds']:.0f} s of CPU time" in docs
    assert f"{100 * rows['decoder with cutoffs']['in_last_cluster']:.0f} % lie in the last cluster" in docs
