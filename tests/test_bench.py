"""lm.bench: the plain program computes what ours does, and a measurement makes its table and plot."""

import dataclasses
import json
import multiprocessing
import os

import pytest
import torch

import lm.bench
from lm.base.errors import ConfigError, LMError
from lm.base.memory import HUGE_PAGES
from lm.bench import _product_seconds, gflop, measure
from lm.config.values import make_config
from lm.nn.model import AWDLSTM
from lm.nn.plain import PlainLM
from lm.nn.regularization import regularization_terms
from lm.tables.speed import measurement, text, write_table
from tests.nn.test_model import NO_DROPOUT

CONFIG = make_config(emsize=8, nhid=12, nlayers=2, batch_size=3, bptt=5)


def test_the_plain_program_computes_what_ours_does():
    config = dataclasses.replace(CONFIG, **NO_DROPOUT)
    ours, plain = AWDLSTM(20, config), PlainLM(20, config)
    names = {
        name: name.replace("decoder.bias", "bias").replace("decoder.weight", "encoder.weight")
        for name in ours.state_dict()
    }
    plain.load_state_dict({names[name]: tensor for name, tensor in ours.state_dict().items()})
    ids = torch.randint(20, (6, 3))
    output = ours(ids[:-1], ours.initial_state(3))
    terms = regularization_terms(output.raw, output.after_dropout, config.alpha, config.beta)
    total = ours.loss(output, ids[1:]) + terms["ar"] + terms["tar"]
    assert torch.isclose(total, plain.loss(ids[:-1], ids[1:]), rtol=1e-5)


def test_arithmetic_is_counted_as_three_products_for_every_matrix_and_row():
    # Forward, and the gradients of both factors: 6 operations for each weight and row. The input's gradient of the
    # first layer counts, for it reaches the embedding.
    config = make_config("awd-lstm", "ptb")
    matrices = 10_000 * 400 + 4600 * (400 + 1150) + 4600 * (1150 + 1150) + 1600 * (1150 + 400)
    assert abs(gflop(config, 10_000) - 6e-9 * 1400 * matrices) < 1e-6


def test_a_measuring_process_that_dies_ends_the_measurement(monkeypatch):
    def killed(process):
        real(process)
        process.kill()

    real = multiprocessing.context.SpawnProcess.start
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", killed)
    with pytest.raises(LMError, match="ended early"):
        measure(CONFIG, 50, turns=2, threads=1)


def test_our_step_has_large_pages_in_every_row_of_a_table_and_plain_pytorch_in_none(monkeypatch):
    def start(process):
        asked.append(os.environ.get(HUGE_PAGES))
        real(process)
        process.kill()

    asked: list[str | None] = []
    real = multiprocessing.context.SpawnProcess.start
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    monkeypatch.setenv(HUGE_PAGES, "1")
    for _ in range(2):
        with pytest.raises(LMError, match="ended early"):
            measure(CONFIG, 50, turns=1, threads=1)
    assert asked == ["1", None, "1", None]


def test_a_measurement_has_the_documented_figures_and_makes_a_table_and_a_plot(tmp_path):
    row = measure(CONFIG, 50, turns=2, threads=1)
    assert {
        "tokens_per_s", "seconds_per_step", "plain_tokens_per_s", "ratio", "gemm_seconds", "gemm_ratio", "peak_rss_mb",
        "phases", "kernel", "precision", "threads", "cpu",
    } <= row.keys()  # fmt: skip
    assert row["tokens_per_s"] == round(15 / row["seconds_per_step"])
    assert list(row["phases"]) == ["masks", "forward", "loss", "backward", "update", "rest"]
    assert abs(sum(row["phases"].values()) - row["seconds_per_step"]) < 1e-9
    assert min(row["phases"].values()) > 0
    write_table(tmp_path, [measurement({"tiny": row | {"turns": turns}}) for turns in (2, 3)])
    assert [m["rows"]["tiny"]["turns"] for m in json.loads((tmp_path / "speed.json").read_text())] == [2, 3]
    table = (tmp_path / "README.md").read_text()
    assert table.index("3 turns") < table.index("2 turns")
    assert table.count("| tiny |") == 4  # of each measurement the figures and the phases
    assert table.count("| ms | masks | forward | loss | backward | update | rest |") == 2
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens/s" in text("tiny", row)


def test_a_measurement_on_a_gpu_has_its_own_memory_and_plot(tmp_path):
    row = {
        "tokens_per_s": 500_000, "seconds_per_step": 0.0014, "plain_tokens_per_s": 100_000,
        "plain_seconds_per_step": 0.007, "ratio": 5.0, "kernel": "triton", "precision": "bf16", "cpu": "some CPU",
        "gpu": "some GPU", "torch": "2.13.0", "turns": 3, "peak_rss_mb": 1300, "plain_peak_rss_mb": 1400,
        "peak_gpu_mb": 115, "plain_peak_gpu_mb": 172,
    }  # fmt: skip
    with_products = row | {
        "gemm_seconds": 0.0007, "gemm_ratio": 2.0, "gemm_gflop": 70.0, "phases": {"masks": 0.0001, "rest": 0.0013},
    }  # fmt: skip
    write_table(tmp_path, [measurement({"tiny": row}), measurement({"tiny": with_products})])
    newer, _, older = (tmp_path / "README.md").read_text().rpartition("## ")
    assert "| tiny | triton | 1.40 | 500,000 | 100,000 | 5.00 | 115 | 172 |" in older
    assert "some GPU" in older and "products alone" not in older
    assert "| tiny | triton | 1.40 | 500,000 | 100,000 | 5.00 | 0.70 | 100,000 | 2.00 | 115 | 172 |" in newer
    assert "| ms | masks | rest |" in newer and "| tiny | 0.10 | 1.30 |" in newer
    assert (tmp_path / "speed-gpu.png").exists() and not (tmp_path / "speed.png").exists()
    assert "products" not in text("tiny", row) and "products alone" in text("tiny", with_products)


def test_a_table_cut_short_keeps_the_rows_it_has(tmp_path, main_here, monkeypatch):
    measured = measure(CONFIG, 50, turns=1, threads=1)
    (tmp_path / "speed.json").write_text(json.dumps([{"date": "2026-01-01", "rows": {"old": measured}}]))
    answers = iter([measured, measured])

    def third_fails(*arguments):
        if (answer := next(answers, None)) is None:
            raise LMError("no memory")
        return answer

    monkeypatch.setattr(lm.bench, "measure", third_fails)
    with pytest.raises(LMError, match="no memory"):
        main_here(lm.bench, "--table", tmp_path)
    old, new = json.loads((tmp_path / "speed.json").read_text())
    assert list(old["rows"]) == ["old"] and list(new["rows"]) == ["awd-lstm, PTB", "awd-lstm, WT2"]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"rows": {"a": 1}}]', '{"mine": 1}'])
def test_a_table_that_cannot_be_added_to_is_told_before_measuring(content, tmp_path, main_here, monkeypatch):
    (tmp_path / "speed.json").write_text(content)
    monkeypatch.setattr(lm.bench, "measure", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=r"--table: .*speed\.json"):
        main_here(lm.bench, "--table", tmp_path)
    assert (tmp_path / "speed.json").read_text() == content


@pytest.mark.parametrize("preset", ["awd-qrnn", "awd-lstm-fast"])
def test_a_preset_that_the_plain_program_does_not_know_is_refused(preset, main_here):
    with pytest.raises(ConfigError, match="--preset"):
        main_here(lm.bench, "--preset", preset)


@pytest.mark.parametrize("flag", ["--preset=examples-200", "--dataset=wikitext-2"])
def test_what_a_table_does_not_read_is_refused(flag, tmp_path, main_here):
    with pytest.raises(ConfigError, match="--table: measures rows of its own"):
        main_here(lm.bench, "--table", tmp_path, flag)


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    (tmp_path / "speed.json").write_text("[]")

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_table(tmp_path, [measurement({"a": {}})])
    assert caught.value.filename == str(tmp_path / "speed.json")
    assert (tmp_path / "speed.json").read_text() == "[]"


@pytest.mark.gpu
def test_a_product_takes_longer_with_more_rows():
    few, many = (_product_seconds(rows, 4096, 4096, torch.float32, 5, torch.device("cuda")) for rows in (64, 4096))
    assert 0 < few < many
