"""An embedding that starts from word vectors: `--init-vectors`."""

import json

import numpy as np
import pytest
import torch

from lm.base.errors import ConfigError, Interrupted
from lm.config.values import as_plain, config_from_dict, config_id, make_config, with_vectors_digest
from lm.scoring.opening import start_from_vectors
from lm.study.scheduler import Sweep
from lm.study.specification import load_study
from lm.sweep import parse_args, plan
from lm.text.finding import configured_corpus
from lm.text.vectors import read_vectors, write_vectors
from lm.training.run import Run
from tests.conftest import TINY
from tests.rundir import ending, same, weights

FLAGS = ["--no-tensorboard", "--no-eval-test", "--eval-train-tokens=50", "--lr=0.5"]


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    write_vectors(path, ["w1", "w2", "elsewhere"], np.arange(24, dtype=np.float32).reshape(3, 8) / 100)
    return path


def with_vectors(path, **values):
    return with_vectors_digest(make_config(**values, init_vectors=str(path)))


def test_rows_of_the_file_are_taken_and_all_else_is_drawn_as_without_it(vectors, small_dir):
    sizes = {"data": str(small_dir), "emsize": 8, "nhid": 12, "nlayers": 2, "batch_size": 4, "eval_batch_size": 2}
    plain = make_config(**sizes)
    corpus = configured_corpus(plain)
    config = with_vectors(vectors, **sizes)
    before, run = (Run(one, corpus, torch.device("cpu")) for one in (plain, config))
    start_from_vectors(run)
    taken = [corpus.tokenizer.vocab[word] for word in ("w1", "w2")]
    expected = before.model.state_dict()
    matrix = torch.arange(16).float().view(2, 8) / 100
    for name, weight in run.model.state_dict().items():
        if weight.shape[0] == corpus.vocab_size and weight.dim() == 2:
            assert torch.equal(weight[taken], matrix)
            others = [index for index in range(corpus.vocab_size) if index not in taken]
            assert torch.equal(weight[others], expected[name][others])
        else:
            assert torch.equal(weight, expected[name])
    tokens = corpus.splits["train"]
    share = float(np.isin(tokens, taken).mean())
    assert run.progress.from_vectors == {
        "types": 2, "share_of_types": 2 / corpus.vocab_size, "share_of_tokens": pytest.approx(share)
    }  # fmt: skip


def test_the_content_of_the_file_decides_the_identity_of_a_run_and_not_its_place(vectors, tmp_path):
    configs = [with_vectors(vectors)]
    (tmp_path / "moved.txt").write_bytes(vectors.read_bytes())
    configs.append(with_vectors(tmp_path / "moved.txt"))
    (tmp_path / "other.txt").write_bytes(vectors.read_bytes() + b"w3 1 1 1 1 1 1 1 1\n")
    configs.append(with_vectors(tmp_path / "other.txt"))
    first, moved, other = map(config_id, configs)
    assert first == moved != other != config_id(make_config())
    for config in configs:
        assert config_from_dict(as_plain(config)) == config


def test_a_run_continues_bit_for_bit_without_the_file_and_not_with_another(train_here, vectors, small_dir, tmp_path):
    flags = ["--data", small_dir, *TINY, *FLAGS, "--epochs=2", "--init-vectors", vectors]
    train_here(*flags, "--out-dir", tmp_path / "whole")
    digest = with_vectors(vectors).init_vectors_sha256
    with pytest.raises(Interrupted):
        train_here(*flags, "--max-minutes=0.000001", "--out-dir", tmp_path / "parts")
    content = vectors.read_bytes()
    vectors.write_bytes(content + b"w3 1 1 1 1 1 1 1 1\n")
    with pytest.raises(ConfigError, match=f"--init-vectors-sha256 {digest}"):
        train_here(*flags, "--resume=auto", "--out-dir", tmp_path / "parts")
    vectors.unlink()
    for another in (["--resume=auto", "--out-dir", tmp_path / "new"], ["--out-dir", tmp_path / "parts"]):
        with pytest.raises(ConfigError, match="--init-vectors: .*cannot be read"):
            train_here(*flags, *another)
    with pytest.raises(ConfigError, match=r"--init-vectors: .*another\.txt: cannot be read"):
        train_here(*flags[:-1], tmp_path / "another.txt", "--resume=auto", "--out-dir", tmp_path / "parts")
    train_here(*flags, "--resume=auto", "--out-dir", tmp_path / "parts")
    assert same(ending(tmp_path / "whole"), ending(tmp_path / "parts"))
    assert "init_vectors" in json.loads((tmp_path / "parts" / "result.json").read_text())


def test_the_runs_of_a_study_have_the_checksum_of_its_file(vectors, small_dir, tmp_path):
    flags = f'data = "{small_dir}"\nemsize = 8\ninit_vectors = "{vectors}"\n'
    (tmp_path / "study.toml").write_text(f'dataset = "small"\nseeds = [1]\n[flags]\n{flags}')
    sweep = Sweep(load_study(tmp_path), parse_args("", [str(tmp_path)]))
    (job,) = plan(sweep)
    digest = with_vectors(vectors).init_vectors_sha256
    assert job.config.init_vectors_sha256 == digest
    assert f"--init-vectors-sha256={digest}" in job.arguments
    vectors.unlink()
    with pytest.raises(ConfigError, match="--init-vectors: .*cannot be read"):
        plan(sweep)


def test_another_file_than_the_checksum_names_starts_no_run(train_here, vectors, small_dir, tmp_path):
    flags = ["--data", small_dir, *TINY, *FLAGS, "--init-vectors", vectors]
    with pytest.raises(ConfigError, match="has another checksum than --init-vectors-sha256"):
        train_here(*flags, "--init-vectors-sha256", "0" * 64, "--out-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", ["9" * 5000 + " " + "9" * 5000 + "\n", "w1" + 8 * " 1e39" + "\n", "w1" + 8 * " nan" + "\n"]
)
def test_values_too_large_for_a_float_are_refused(tmp_path, content):
    (tmp_path / "vectors.txt").write_text(content)
    with pytest.raises(ConfigError, match="--init-vectors: .*vectors.txt:"):
        read_vectors(tmp_path / "vectors.txt", {"w1": 0}, 8)


def test_fine_tuning_starts_from_the_weights_of_the_run_and_not_from_its_vectors(
    train_here, vectors, small_dir, tmp_path
):
    flags = ["--data", small_dir, *TINY, *FLAGS, "--max-steps=2", "--init-vectors", vectors]
    train_here(*flags, "--out-dir", tmp_path / "run")
    vectors.unlink()
    tune = ["--finetune", tmp_path / "run", *FLAGS[:2], "--lr=1e-30", "--max-steps=1", "--out-dir", tmp_path / "tuned"]
    result = train_here(*tune)
    assert result["config"]["init_vectors"] == result["config"]["init_vectors_sha256"] == ""
    assert torch.equal(
        weights(tmp_path / "tuned", "best")["encoder.weight"], weights(tmp_path / "run", "best")["encoder.weight"]
    )
    for flag in (["--init-vectors=x", "--init-vectors-sha256=y"], ["--init-vectors-sha256=y"]):
        with pytest.raises(ConfigError, match="--init-vectors"):
            train_here(*tune, *flag)
