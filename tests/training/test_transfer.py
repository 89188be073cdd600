"""Fine-tuning on another text: the vocabulary and weights that it starts from, and what is done with the run after."""

import json
import re
import shutil
from collections import Counter

import pytest
import torch

import lm.evaluate
import lm.generate
import lm.sweep
from lm.base.errors import CheckpointError, ConfigError, CorpusError, Interrupted
from lm.base.rundir import RunDir
from lm.config.schema import RunOptions
from lm.config.values import config_id
from lm.scoring.loading import load_run
from lm.scoring.opening import open_run
from lm.study.scheduler import Sweep
from lm.study.specification import load_study
from lm.sweep import parse_args
from lm.tables.analysis import analyse
from lm.train import configure, train
from lm.training.checkpoint import load_checkpoint
from tests.conftest import TINY, write_corpus
from tests.rundir import ending, same

CPU = torch.device("cpu")
SHORT = ["--no-tensorboard", "--no-eval-test", "--eval-train-tokens=40"]
# Learns in a few updates.
QUICK = ["--optimizer=adam", "--lr=0.02", *(f"--{name}=0" for name in ("dropout", "dropouth", "dropouti", "wdrop"))]
KINDS = {
    "tied": QUICK,
    "untied": ["--no-tied", "--model=GRU"],
    "adaptive": ["--cutoffs", "10", "25"],
    "char": ["--tokenizer=char"],
    "bpe": ["--tokenizer=bpe", "--bpe-vocab-size=280"],
}


def run_here(*arguments):
    return train(*configure([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two corpora: `old`, and `new`, in whose train the last ten words of `old` have other names."""
    folder = tmp_path_factory.mktemp("texts")
    write_corpus(folder / "old", train=200, held_out=20)
    write_corpus(folder / "new", train=60, held_out=20, seed=1)
    for path in (folder / "new").iterdir():
        path.write_text(re.sub(r"\bw3(\d)", r"Ñ3\1", path.read_text()))
    with (folder / "new" / "valid.txt").open("a") as file:
        file.write("w35 unheard\n")
    return folder


@pytest.fixture(scope="module")
def sources(texts, work_dir):
    """A run of each kind on `old`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work_dir)
        for kind, flags in KINDS.items():
            epochs = "--epochs=2" if kind == "tied" else "--max-steps=5"
            run_here("--data", texts / "old", *TINY, *flags, *SHORT, epochs, "--out-dir", texts / kind)
    return {kind: texts / kind for kind in KINDS}


@pytest.fixture(autouse=True)
def _here(work_dir, monkeypatch):
    monkeypatch.chdir(work_dir)


@pytest.fixture
def tune(sources, texts):
    """Fine-tune the tied model on `new`."""

    def run(*flags):
        return run_here("--finetune", sources["tied"], "--data", texts / "new", *SHORT, *flags)

    return run


def opened(texts, source, *flags):
    """A run on `new` before its first update, and the model that it starts from."""
    config, _ = configure(["--finetune", str(source), "--data", str(texts / "new"), *flags])
    run, _ = open_run(config, RunOptions(device="cpu"), RunDir("nowhere"))
    return run, load_run(RunDir(source), CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_the_run_keep_their_ids_and_weights_and_new_ones_have_the_mean(texts, sources, kind):
    run, (source, _, corpus) = opened(texts, sources[kind])
    known = corpus.vocab_size
    old, new = corpus.tokenizer.types, run.corpus.tokenizer.types
    assert new[:known] == old
    train_text = (texts / "new" / "train.txt").read_text()
    seen = {"char": set(train_text) - {"\n"}, "bpe": set(old)}.get(kind, set(train_text.split()))
    assert set(new[known:]) == seen - set(old)
    assert (len(new) > known) == (kind != "bpe")
    weights = run.model.state_dict()
    for name, before in source.state_dict().items():
        after = weights[name]
        if name in ("encoder.weight", "decoder.weight", "decoder.bias"):
            assert torch.equal(after[:known], before)
            mean = before.double().mean(0)
            torch.testing.assert_close(after[known:].double(), mean.expand_as(after[known:]), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(after, before), name


def test_the_words_of_valid_that_only_the_run_knew_are_known_and_min_count_decides_which_are_added(
    texts, sources, monkeypatch
):
    monkeypatch.setattr("lm.text.corpus._BLOCK", 7)
    run, _ = opened(texts, sources["tied"])
    tokenizer = run.corpus.tokenizer
    assert tokenizer.decode(run.corpus.splits["valid"])[-3:] == ["w35", "<unk>", "<eos>"]
    words = Counter(word for word in (texts / "new" / "train.txt").read_text().split() if word.startswith("Ñ"))
    kept = {word for word, count in words.items() if count >= 8}
    assert 0 < len(kept) < len(words)
    run, _ = opened(texts, sources["tied"], "--min-count=8")
    assert {word for word in run.corpus.tokenizer.types if word.startswith("Ñ")} == kept
    tokens = len(run.corpus.splits["train"])
    assert run.progress.from_run["share_of_tokens"] == pytest.approx(1 - words.total() / tokens)


def nats_by_hand(source, config, h, target, new):
    """Of one target: the softmax that it is in, the last one with `new` more logits from mean embedding and bias."""
    weight, bias = source.decoder.weight.double(), source.decoder.bias.double()
    mean = h @ weight.mean(0) + bias.mean()
    logits = h @ weight.T + bias
    more = [mean] * new
    if not config.cutoffs:
        return torch.cat([logits, torch.stack(more)]).logsumexp(0) - logits[target]
    first, second = config.cutoffs
    clusters = h @ source.decoder.cluster_weight.double().T + source.decoder.cluster_bias.double()
    head = torch.cat([logits[:first], clusters]).logsumexp(0)
    if target < first:
        return head - logits[target]
    tail = logits[first:second] if target < second else torch.cat([logits[second:], torch.stack(more)])
    return head - clusters[int(target >= second)] + tail.logsumexp(0) - logits[target]


@pytest.mark.parametrize("kind", ["tied", "untied", "adaptive"])
@torch.no_grad()
def test_known_words_cost_what_the_source_gives_with_the_logits_of_new_words_beside_its_own(texts, sources, kind):
    run, (source, config, corpus) = opened(texts, sources[kind])
    new = run.corpus.vocab_size - corpus.vocab_size
    ids = torch.from_numpy(run.corpus.splits["train"].astype("int64"))
    ids = ids[ids < corpus.vocab_size][:121]
    assert max(ids) >= 25  # in each cluster
    tokens, targets = ids[:-1, None], ids[1:, None]
    with source.exact():
        output = source(tokens, source.initial_state(1))
    rows = output.after_dropout[-1].flatten(0, 1).double()
    by_hand = [nats_by_hand(source, config, h, target, new) for h, target in zip(rows, targets.flatten(), strict=True)]
    model = run.model.eval()
    with model.exact():
        found = model.token_loss(model(tokens, model.initial_state(1)), targets).flatten()
    torch.testing.assert_close(found.double(), torch.stack(by_hand), rtol=1e-5, atol=1e-5)


def test_it_says_what_it_knew_and_ends_below_training_from_scratch(texts, sources, cli, tmp_path):
    flags = ["--data", texts / "new", "--epochs=2", *SHORT]
    done = cli("train", "--finetune", sources["tied"], *flags, "--out-dir", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    words = (texts / "new" / "train.txt").read_text().replace("\n", " <eos> ").split()
    unknown = [word for word in words if word.startswith("Ñ")]
    known = {"types": len({*words}), "new_types": len({*unknown}), "known_types": len({*words} - {*unknown})}
    share = 1 - len(unknown) / len(words)
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert result["finetune"] == known | {"share_of_tokens": pytest.approx(share)}
    assert (result["dataset"], result["config"]["finetune"]) == ("new", str(sources["tied"]))
    assert (
        f"of the {known['types']} types of train {known['known_types']} are known, {known['new_types']} are new; "
        f"{100 * share:.1f} % of its tokens are known"
    ) in done.stderr
    scratch = run_here(*flags, *TINY, *QUICK, "--out-dir", tmp_path / "scratch")
    assert result["steps"] == scratch["steps"]
    assert result["valid_loss"] < scratch["valid_loss"] - 0.1


def test_optimizer_schedule_and_averaging_are_those_of_the_flags(tune, tmp_path):
    flags = ["--schedule=onecycle", "--nonmono=1", "--epochs=4"]
    result = tune(*flags, "--out-dir", tmp_path / "run")
    last = load_checkpoint(tmp_path / "run" / "ckpt" / "last.pt")
    assert (last["averaging"]["averaged"], last["averaging"]["history"], result["epochs"]) == (None, [], 4)
    rates = [
        record["lr"]
        for record in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if record["kind"] == "epoch"
    ]
    assert max(rates) > rates[-1]
    averaged = tune(*flags, "--average-last=0.5", "--out-dir", tmp_path / "averaged")
    assert averaged["config"]["average_last"] == 0.5
    assert load_checkpoint(tmp_path / "averaged" / "ckpt" / "last.pt")["averaging"]["iterates"] > 0


@pytest.mark.parametrize("kind", ["tied", "bpe"])
def test_stopped_it_goes_on_bit_for_bit_without_its_source(texts, sources, kind, tmp_path):
    shutil.copytree(sources[kind], tmp_path / "source")
    flags = ["--finetune", tmp_path / "source", "--data", texts / "new", *SHORT, "--max-steps=8", "--nonmono=1"]
    run_here(*flags, "--out-dir", tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_here(*flags, "--max-minutes=0.000001", "--out-dir", tmp_path / "parts")
    shutil.rmtree(tmp_path / "source")
    run_here(*flags, "--resume=auto", "--out-dir", tmp_path / "parts")
    assert same(ending(tmp_path / "whole"), ending(tmp_path / "parts"))


@pytest.fixture(scope="module")
def tuned(sources, texts, work_dir):
    """A finished run on `new`, and its export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work_dir)
        flags = ["--data", texts / "new", "--max-steps=6", "--lr=1", "--no-tensorboard"]
        run_here("--finetune", sources["tied"], *flags, "--out-dir", texts / "tuned")
        patch.setattr("sys.argv", ["lm.evaluate", str(texts / "tuned"), "--export", str(texts / "export")])
        lm.evaluate.main()
    return [texts / "tuned", texts / "export"]


@pytest.mark.parametrize("index", [0, 1], ids=["run", "export"])
def test_it_is_evaluated_and_generates_with_the_words_of_both_texts(tuned, texts, index, main_here, tmp_path):
    result = json.loads((tuned[0] / "result.json").read_text())
    rows = json.loads(main_here(lm.evaluate, tuned[index], "--json"))["splits"]
    assert [row["loss"] for row in rows] == pytest.approx([result["valid_loss"], result["test_loss"]], rel=1e-6)
    assert main_here(lm.generate, tuned[index], "--prompt", "w35 Ñ31", "--tokens", 3).startswith("w35 Ñ31")
    trained = lm.load(tuned[index])
    assert trained.tokenizer.unknown("w35 Ñ31 unheard") == {"unheard": 1}
    shutil.copytree(tuned[index], tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(CorpusError, match=r"tokenizer\.json"):
        main_here(lm.evaluate, tmp_path / "copy")


@pytest.mark.parametrize("index", [0, 1], ids=["run", "export"])
def test_tuned_once_more_on_its_own_text_it_averages_as_published_and_on_the_first_it_grows_no_more(
    tuned, texts, index, tmp_path
):
    result = run_here("--finetune", tuned[index], *SHORT, "--max-steps=2", "--out-dir", tmp_path / "again")
    last = load_checkpoint(tmp_path / "again" / "ckpt" / "last.pt")
    assert (last["averaging"]["iterates"], "finetune" in result) == (2, False)
    model, _, corpus = load_run(RunDir(tmp_path / "again"), CPU)
    back = ["--finetune", tmp_path / "again", "--data", texts / "old", *SHORT, "--max-steps=2"]
    result = run_here(*back, "--out-dir", tmp_path / "back")
    assert result["finetune"]["new_types"] == 0
    returned, _, old = load_run(RunDir(tmp_path / "back"), CPU)
    assert old.tokenizer.types == corpus.tokenizer.types
    assert returned.encoder.num_embeddings == model.encoder.num_embeddings


def test_a_study_compares_it_with_training_from_scratch_and_needs_the_source_for_its_runs_only(
    sources, texts, main_here, tmp_path
):
    shutil.copytree(sources["tied"], tmp_path / "source")
    study = tmp_path / "study"
    study.mkdir()
    flags = {"data": str(texts / "new"), "emsize": 8, "nhid": 12, "nlayers": 2, "batch_size": 4, "bptt": 7}
    flags |= {"eval_batch_size": 2, "lr": 1, "max_steps": 4, "eval_train_tokens": 40}
    lines = [f"{name} = {json.dumps(value)}" for name, value in flags.items()]
    head = ['dataset = "new"', "seeds = [1]", "[flags]", *lines, "[[grid]]"]
    (study / "study.toml").write_text("\n".join([*head, f'finetune = ["", "{tmp_path / "source"}"]\n']))
    args = [study, "--runs-dir", tmp_path / "runs", "--no-report"]
    sweep = Sweep(load_study(study), parse_args("", [str(argument) for argument in args]))
    jobs = [sweep.job(configuration, seed) for configuration, seed in sweep.study.runs()]
    for job in jobs:  # as the sweep would start them; it enters what is complete
        run_here(*job.arguments, "--no-tensorboard")
    shutil.rmtree(tmp_path / "source")
    main_here(lm.sweep, *args)
    ledger = {line["id"]: line for line in map(json.loads, (study / "runs.jsonl").read_text().splitlines())}
    assert [job.id for job in jobs] == list(ledger) == [config_id(job.config) for job in jobs]
    assert "finetune" not in ledger[jobs[0].id]
    assert ledger[jobs[1].id]["finetune"]["new_types"] > 0
    assert analyse(load_study(study), list(ledger.values())).configurations[0].label == "finetune none"


def test_a_corpus_named_by_dataset_is_another_one_and_without_either_flag_it_is_that_of_the_run(sources, texts):
    config, _ = configure(["--finetune", str(sources["tied"]), "--dataset=pydocs"])
    assert (config.dataset, config.data) == ("pydocs", "")
    config, _ = configure(["--finetune", str(sources["tied"])])
    assert (config.dataset, config.data) == ("old", str(texts / "old"))


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--nhid=13"], ConfigError, "--finetune: the model there was made with --nhid 12 .now 13"),
        (["--preset=examples-200"], ConfigError, "--finetune: .*--emsize 8 .now 200"),
        (["--tokenizer=char"], ConfigError, "--tokenizer word .now char"),
        (["--cutoffs", "9"], ConfigError, "--cutoffs"),
        (["--data=OLD", "--average-last=0.5", "--nonmono=0"], ConfigError, "--average-last: fine-tuning averages"),
        (["--data=OLD", "--min-count=2"], ConfigError, "--min-count 1 .now 2"),
    ],
)
def test_flags_that_contradict_the_run_are_refused(tune, texts, flags, error, words, tmp_path):
    with pytest.raises(error, match=words):
        tune(*[flag.replace("OLD", str(texts / "old")) for flag in flags], "--out-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_text_is_not_taken_for_the_runs_own_and_another_tokenizer_not_for_its(texts, sources, tmp_path):
    shutil.copytree(texts / "old", tmp_path / "old")
    run_here("--data", tmp_path / "old", *TINY, *SHORT, "--max-steps=2", "--out-dir", tmp_path / "source")
    shutil.copy(texts / "new" / "train.txt", tmp_path / "old")
    flags = ["--finetune", tmp_path / "source", *SHORT, "--max-steps=2", "--out-dir", tmp_path / "run"]
    with pytest.raises(CheckpointError, match=r"another text than .*old is now; put its text back, or give"):
        run_here(*flags)
    (tmp_path / "old").rename(tmp_path / "younger")
    shutil.copy(sources["char"] / "tokenizer.json", tmp_path / "source")
    with pytest.raises(CorpusError, match=r"tokenizer\.json: not a usable tokenizer"):
        run_here(*flags, "--data", tmp_path / "younger")
    shutil.copy(sources["adaptive"] / "tokenizer.json", tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: belongs to another model"):
        run_here(*flags, "--data", tmp_path / "younger")
