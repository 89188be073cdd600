"""A study whose epochs are raised goes on from its shorter runs."""

import json

from lm.base.rundir import RunDir
from lm.config.values import config_id, make_config
from lm.study.executors import Job, train_arguments
from lm.study.extend import begin_with_shorter
from tests.rundir import records, same, weights

VALUES = {
    "emsize": 8, "nhid": 12, "nlayers": 2, "batch_size": 4, "bptt": 7, "eval_batch_size": 2, "lr": 5.0, "nonmono": 1,
}  # fmt: skip


def job(corpus, folder, epochs, **values):
    """A run of a study in `folder`."""
    config = make_config(dataset=corpus.name, data=str(corpus), epochs=epochs, **VALUES, **values)
    return Job(config_id(config), "a run", config, tuple(train_arguments(config)), RunDir(folder / config_id(config)))


def test_a_run_of_more_epochs_goes_on_from_a_copy_of_the_shorter_and_ends_as_if_always_long(
    train_here, small_dir, tmp_path
):
    def compute(job):
        return train_here(*job.arguments, "--no-tensorboard", "--out-dir", job.run_dir, "--resume=auto")

    short, long = (job(small_dir, tmp_path / "study", epochs) for epochs in (1, 3))
    straight = job(small_dir, tmp_path / "straight", 3)
    compute(short)
    before = {path: path.read_bytes() for path in short.run_dir.path.rglob("*") if path.is_file()}
    long.run_dir.path.mkdir()  # a sweep has its lock there
    begin_with_shorter(long)
    assert json.loads((long.run_dir.path / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 1
    assert compute(long)["test_loss"] == compute(straight)["test_loss"]
    assert records(long.run_dir.path) == records(straight.run_dir.path)
    assert same(weights(long.run_dir.path), weights(straight.run_dir.path))
    assert before == {path: path.read_bytes() for path in short.run_dir.path.rglob("*") if path.is_file()}


def test_where_what_is_computed_depends_on_the_number_of_epochs_a_run_begins_anew_and_says_so(
    train_here, small_dir, tmp_path, caplog
):
    short, long = (job(small_dir, tmp_path / "study", epochs, schedule="linear", max_steps=2) for epochs in (1, 2))
    train_here(*short.arguments, "--no-tensorboard", "--out-dir", short.run_dir)
    long.run_dir.path.mkdir()
    with caplog.at_level("INFO"):
        begin_with_shorter(long)
    assert "a run: begins anew, since what it computes depends on --epochs" in caplog.text
    assert not [*long.run_dir.path.iterdir()]


def test_as_many_epochs_as_there_may_be_are_not_looked_for_one_by_one(train_here, small_dir, tmp_path):
    short = job(small_dir, tmp_path / "study", 1, max_steps=2)
    train_here(*short.arguments, "--no-tensorboard", "--out-dir", short.run_dir)
    long = job(small_dir, tmp_path / "study", 2**31 - 1, max_steps=2)
    for place, text in (("damaged", "{"), ("other", '{"epochs": "many"}')):
        (tmp_path / "study" / place).mkdir()
        (tmp_path / "study" / place / "config.json").write_text(text)
    long.run_dir.path.mkdir()
    begin_with_shorter(long)
    assert long.run_dir.last.read_bytes() == short.run_dir.last.read_bytes()


def test_a_run_that_has_begun_or_stands_alone_is_left_as_it_is(small_dir, tmp_path):
    long = job(small_dir, tmp_path, 3)
    long.run_dir.path.mkdir()
    begin_with_shorter(long)
    assert not [*long.run_dir.path.iterdir()]
