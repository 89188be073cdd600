"""Hidden states and word vectors, through the command line."""

import json

import numpy as np
import pytest
import torch

import lm.generate
from lm.base.errors import ConfigError
from lm.scoring.trained import load
from tests.conftest import TINY

TEXT = "w1 w2 zork\n\nw7 w9 w9\n"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def plain_states(trained, ids, layer):
    """Of a text in one piece, from a state of zeros."""
    with torch.no_grad():
        tokens_TB = torch.tensor(ids).long().unsqueeze(1)
        output = trained.model(tokens_TB, trained.model.initial_state(1))
        return (output.raw[layer - 1] if layer else trained.model.encoder(tokens_TB))[:, 0].numpy()


def written(main_here, tiny_run, text, out, *flags):
    assert main_here(lm.generate, tiny_run, "--features", text, "--out", out, *flags) == f"{out}\n"
    return np.load(out)


def test_words_that_the_model_does_not_know_are_named(main_here, tiny_run, text, tmp_path, caplog):
    written(main_here, tiny_run, text, tmp_path / "x.npz")
    assert "not in the vocabulary, read as <unk>: zork (1 in all)" in caplog.text


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_are_those_of_one_pass_over_the_text_token_by_token(main_here, tiny_run, text, tmp_path, layer):
    trained = load(tiny_run)
    flags = [] if layer == 2 else ["--layer", layer]
    found = written(main_here, tiny_run, text, tmp_path / "x.npz", *flags)
    words = ["w1", "w2", "<unk>", "<eos>", "<eos>", "w7", "w9", "w9", "<eos>"]
    assert found["word"].tolist() == words
    assert found["line"].tolist() == [1, 1, 1, 1, 2, 3, 3, 3, 3]
    assert found["position"].tolist() == [1, 2, 3, 4, 1, 1, 2, 3, 4]
    np.testing.assert_allclose(found["vector"], plain_states(trained, trained.tokenizer.encode(TEXT), layer), atol=1e-6)


def test_independent_lines_have_the_states_of_each_after_an_eos_and_parquet_holds_the_same(
    main_here, tiny_run, text, tmp_path
):
    import pyarrow.parquet

    trained = load(tiny_run)
    eos = trained.tokenizer.eos_id
    lines = [trained.tokenizer.encode(line + "\n").tolist() for line in TEXT.splitlines()]
    expected = np.concatenate([plain_states(trained, [eos, *line], 2)[1:] for line in lines])
    found = written(main_here, tiny_run, text, tmp_path / "x.npz", "--independent")
    np.testing.assert_allclose(found["vector"], expected, atol=1e-6)
    report = json.loads(
        main_here(lm.generate, tiny_run, "--features", text, "--out", tmp_path / "x.parquet", "--independent", "--json")
    )
    assert (report["tokens"], report["size"]) == (9, 8)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
    for name in ("line", "position", "word", "vector"):
        assert table[name] == found[name].tolist()


@pytest.mark.parametrize("kind", ["word", "char"])
def test_an_exported_embedding_starts_another_model(main_here, cli, tiny_run, corpus_dir, small_dir, tmp_path, kind):
    run = tiny_run
    flags = ["--no-tensorboard", "--max-steps=1", "--no-eval-test", "--eval-train-tokens=50"]
    if kind == "char":
        run = tmp_path / "chars"
        done = cli("train", "--data", corpus_dir, *TINY, *flags, "--tokenizer=char", "--out-dir", run)
        assert done.returncode == 0, done.stderr
    file = tmp_path / "vectors.txt"
    assert main_here(lm.generate, run, "--embeddings", file) == f"{file}\n"
    trained = load(run)
    assert len(file.read_text().splitlines()) == 1 + trained.tokenizer.vocab_size
    flags += ["--data", small_dir, *TINY, f"--tokenizer={kind}", "--init-vectors", file, "--lr=1e-30"]
    done = cli("train", *flags, "--out-dir", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    new = load(tmp_path / "new")
    coverage = json.loads((tmp_path / "new" / "result.json").read_text())["init_vectors"]
    assert coverage == {"types": new.tokenizer.vocab_size, "share_of_types": 1.0, "share_of_tokens": 1.0}
    assert f"{coverage['types']} of {coverage['types']} types, 100.0 %" in done.stderr
    for word, index in new.tokenizer.vocab.items():
        expected = trained.model.encoder.weight[trained.tokenizer.vocab[word]]
        torch.testing.assert_close(new.model.encoder.weight[index], expected)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--features=x"], "--features: name the file to write by --out"),
        (["--features=x", "--out=y.txt"], "--out: the file's name must end in .npz or .parquet"),
        (["--layer=1"], "--layer: is for --features"),
        (["--out=x.npz"], "--out: is for --features"),
        (["--features=x", "--out=x.npz", "--tokens=3"], "--tokens is for generating: leave it out with --features"),
        (["--embeddings=x", "--score=y"], "--score: leave it out with --embeddings"),
        (["--embeddings=x", "--independent"], "--independent"),
    ],
)
def test_flags_that_make_no_sense_together_are_named(main_here, flags, named):
    with pytest.raises(ConfigError, match=named):
        main_here(lm.generate, "nowhere", *flags)


def test_a_layer_that_the_model_lacks_is_refused_and_nothing_is_written(main_here, tiny_run, text, tmp_path):
    with pytest.raises(ConfigError, match="--layer: must be from 0 to 2"):
        main_here(lm.generate, tiny_run, "--features", text, "--layer=3", "--out", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
