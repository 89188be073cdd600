"""The adaptive softmax against PyTorch's, against its definition, and through the real command line."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lm
import lm.evaluate
import lm.generate
from lm.base.errors import ConfigError
from lm.base.rundir import RunDir
from lm.nn.adaptive import AdaptiveDecoder, _AdaptiveCrossEntropy
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import adapted_nats
from lm.scoring.dynamic import Dynamic
from lm.scoring.evaluation import evaluate
from lm.scoring.export import export_run
from lm.scoring.sampling import Sampling, beam_search, sample
from lm.text.tokenization import Tokenization
from lm.text.tokenizer import EOS
from tests.conftest import TINY
from tests.nn.test_model import tiny
from tests.scoring.test_export import plain_perplexity

V, E, CUTOFFS = 40, 8, [5, 12, 30]


def decoder(dtype=torch.float64) -> AdaptiveDecoder:
    made = AdaptiveDecoder(E, V, CUTOFFS).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def problem(rows=60, dtype=torch.float64):
    return torch.randn(rows, E, dtype=dtype, requires_grad=True), torch.randint(V, (rows,))


def test_log_probabilities_are_those_of_pytorchs_adaptive_softmax():
    ours = decoder()
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(E, V, CUTOFFS, div_value=1.0, head_bias=True).double()
    bounds = [*CUTOFFS, V]
    with torch.no_grad():
        ours.bias[CUTOFFS[0] :] = 0  # theirs has no bias in the tails
        theirs.head.weight.copy_(torch.cat([ours.weight[: CUTOFFS[0]], ours.cluster_weight]))
        theirs.head.bias.copy_(torch.cat([ours.bias[: CUTOFFS[0]], ours.cluster_bias]))
        for k, (project, words) in enumerate(theirs.tail):
            project.weight.copy_(torch.eye(E))
            words.weight.copy_(ours.weight[bounds[k] : bounds[k + 1]])
    h, target = problem()
    torch.testing.assert_close(ours(h), theirs.log_prob(h))
    torch.testing.assert_close(ours.loss(h, target, "fp32"), theirs(h, target).loss)


def test_probabilities_sum_to_one_also_in_fp32_over_many_words():
    made = AdaptiveDecoder(16, 100_000, [1000, 10_000])
    torch.nn.init.normal_(made.cluster_weight)
    total = made(3 * torch.randn(4, 16)).double().exp().sum(-1)
    assert total.tolist() == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize("tails", [slice(0, V), slice(0, 5), slice(12, 30)], ids=["all", "head alone", "one tail"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_equal_those_of_the_definition(dtype, tolerance, tails):
    made = decoder(dtype)
    h, target = problem(dtype=dtype)
    target = target % (tails.stop - tails.start) + tails.start
    inputs = [h, *made.parameters()]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    x, weight, bias, vectors, biases = exact
    first = torch.cat([x @ weight[:5].t() + bias[:5], x @ vectors.t() + biases], 1)
    first = first - first.exp().sum(1, keepdim=True).log()
    of_word = []
    for row, word in enumerate(target.tolist()):
        tail = sum(word >= cutoff for cutoff in CUTOFFS)
        if tail == 0:
            of_word.append(first[row, word])
            continue
        start, end = [*CUTOFFS, V][tail - 1 : tail + 1]
        z = weight[start:end] @ x[row] + bias[start:end]
        of_word.append(first[row, 5 + tail - 1] + z[word - start] - z.exp().sum().log())
    nats = -torch.stack(of_word)
    loss = made.loss(h, target, "fp32")
    assert loss.item() == pytest.approx(nats.mean().item(), rel=tolerance)
    torch.testing.assert_close(made.nats(h, target, "fp32").double(), nats.detach(), rtol=tolerance, atol=tolerance)
    expected = torch.autograd.grad(nats.mean(), exact, materialize_grads=True)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())


def test_float64_passes_gradcheck():
    made = AdaptiveDecoder(3, 9, [2, 5]).double()
    h, target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 8, 3, 1, 4, 5])
    inputs = (h, made.weight, made.bias, made.cluster_weight, made.cluster_bias)

    def loss(*tensors):
        return 3 * _AdaptiveCrossEntropy.apply(*tensors, target, made.cutoffs, torch.float64) ** 2

    assert torch.autograd.gradcheck(loss, inputs)


def test_bf16_rounds_and_evaluation_builds_no_graph():
    made = decoder(torch.float32)
    h, target = problem(400, torch.float32)
    exact, rounded = made.loss(h, target, "fp32"), made.loss(h, target, "bf16")
    assert 0 < abs(rounded - exact) < 2e-2 * exact
    assert not made.nats(h, target, "fp32").requires_grad
    with torch.no_grad():
        torch.testing.assert_close(made.loss(h, target, "fp32"), exact.detach())


@pytest.fixture
def model() -> AWDLSTM:
    made = AWDLSTM(V, tiny(cutoffs=CUTOFFS)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
        torch.nn.init.normal_(made.decoder.cluster_weight)
    return made


def test_head_and_tails_are_the_rows_of_the_embedding_and_old_models_draw_the_same_weights(model):
    assert model.decoder.weight is model.encoder.weight
    torch.manual_seed(0)
    plain = AWDLSTM(V, tiny())
    torch.manual_seed(0)
    adaptive = AWDLSTM(V, tiny(cutoffs=CUTOFFS))
    assert all(torch.equal(value, adaptive.state_dict()[name]) for name, value in plain.state_dict().items())
    assert not adaptive.decoder.cluster_weight.any()


def test_generation_reports_the_probabilities_that_evaluation_scores(model):
    greedy, drawn = beam_search(model, [1, 2], 20, 1)[0], sample(model, [1, 2], 20, Sampling(top_k=1), [0])[0]
    assert greedy.ids == drawn.ids
    for one in (greedy, drawn, *sample(model, [1, 2], 20, Sampling(), [7])):
        text = torch.tensor([1, 2, *one.ids]).unsqueeze(1)
        nats = model.token_loss(model(text[:-1], model.initial_state(1)), text[1:])[1:]
        assert one.logprob == pytest.approx(-nats.double().sum().item(), rel=1e-5)


def test_dynamic_evaluation_learns_by_the_gradient_of_the_distribution(model):
    ids = np.random.default_rng(0).integers(0, V, 40).astype(np.int32)
    model.double()
    (nats,), _ = adapted_nats(model, ids, 1, dynamic=Dynamic("sgd", lr=0.1, decay=0.0, segment=13))
    copy = model.without_dropout()
    text = torch.from_numpy(ids.astype(np.int64)).unsqueeze(1)
    state, expected = copy.initial_state(1), 0.0
    for start in range(0, 39, 13):
        output = copy(text[start : start + 13], state)
        state = [tuple(part.detach() for part in layer) for layer in output.state]
        log_p = copy.decoder(output.after_dropout[-1].flatten(0, 1))
        loss = F.nll_loss(log_p, text[start + 1 : start + 14, 0])
        expected += 13 * loss.item()
        gradients = torch.autograd.grad(loss, list(copy.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(copy.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert nats == pytest.approx(expected, rel=1e-9)
    assert nats != pytest.approx(evaluate(model, ids, 1).nats, rel=1e-4)


def test_words_are_numbered_by_frequency_and_only_where_it_is_asked_for():
    text = "c a b a\na b d\n"
    assert Tokenization(by_frequency=True).learn([text]).types == ["a", "b", EOS, "c", "d", "<unk>"]
    assert Tokenization().learn([text]).types == ["c", "a", "b", EOS, "d", "<unk>"]
    assert Tokenization(by_frequency=True).definition != Tokenization().definition


def test_unk_is_numbered_by_all_the_words_that_it_stands_for():
    text = "a b c d e <unk>\na a b f g\n"
    assert Tokenization(by_frequency=True, vocab_size=4).learn([text]).types == ["<unk>", "a", "b", EOS]
    assert Tokenization(by_frequency=True, min_count=2).learn([text]).types == ["<unk>", "a", "b", EOS]
    assert Tokenization(by_frequency=True, vocab_size=9).learn([text]).types[-1] == "g"
    assert Tokenization(vocab_size=4).learn([text]).types == ["a", "b", "<unk>", EOS]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"cutoffs": [12, 5]}, "--cutoffs: must increase; got 12 5"),
        ({"cutoffs": [5, 5]}, "--cutoffs: must increase"),
        ({"cutoffs": [0, 5]}, "--cutoffs: must be integers, each at least 1"),
        ({"cutoffs": [5], "tokenizer": "char"}, "--cutoffs: works with --tokenizer word only"),
        ({"cutoffs": [5, V]}, "--cutoffs: must be below the 40 types of the vocabulary; got 40"),
    ],
)
def test_cutoffs_that_make_no_sense_are_refused(flags, says):
    with pytest.raises(ConfigError, match=says):
        AWDLSTM(V, tiny(**flags))


def test_a_run_trains_resumes_is_scored_generates_and_is_exported(
    train_here, main_here, small_dir, tmp_path, monkeypatch
):
    run, flags = tmp_path / "run", ["--data", small_dir, *TINY, "--cutoffs", "10", "25", "--lr=1", "--no-tensorboard"]
    cut = train_here(*flags, "--epochs=1", "--out-dir", run)
    result = train_here(*flags, "--epochs=2", "--out-dir", run, "--resume=auto")
    whole = train_here(*flags, "--epochs=2", "--out-dir", tmp_path / "whole")
    assert result["valid_loss"] == whole["valid_loss"] < cut["valid_loss"]
    rows = json.loads(main_here(lm.evaluate, run, "--adapt", "none", "cache", "dynamic", "--json"))["splits"]
    plain = json.loads(main_here(lm.evaluate, run, "--json"))["splits"]
    assert [row["loss"] for row in plain] == [result["valid_loss"], result["test_loss"]]
    assert {row["adapt"] for row in rows} == {"none", "cache", "dynamic"}
    assert "w1" in main_here(lm.generate, run, "--prompt", "w1", "--tokens", 3)
    trained = lm.load(run)
    counts = [(small_dir / "train.txt").read_text().split().count(word) for word in trained.tokenizer.types[1:-1]]
    assert counts == sorted(counts, reverse=True)
    export_run(RunDir(run), RunDir(tmp_path / "export"))
    text = (small_dir / "test.txt").read_text()
    assert plain_perplexity(tmp_path / "export", text, 1, monkeypatch) == pytest.approx(result["test_ppl"], rel=1e-4)
    assert lm.load(tmp_path / "export").perplexity(text) == pytest.approx(trained.perplexity(text))
    with pytest.raises(ConfigError, match="--finetune: the model there was made with --cutoffs"):
        train_here("--finetune", run, "--cutoffs", "10", "--epochs=1", "--out-dir", tmp_path / "tuned")
