"""An export for transformers, read by the library itself."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lm.evaluate
from lm.base.errors import CheckpointError, ConfigError
from lm.scoring.evaluation import evaluate
from lm.scoring.sampling import Limits, beam_search
from lm.scoring.tokens import read_independent
from lm.scoring.trained import load
from lm.scoring.transformers_format import _tokenizer
from lm.text.tokenizer import EOS, UNK
from lm.text.words import WordTokenizer
from tests.conftest import TINY

transformers = pytest.importorskip("transformers", "5.24")
MODELING = Path(lm.evaluate.__file__).parent / "scoring" / "modeling_awd_lstm.py"
RUNS = {
    "word": [],
    "char": ["--tokenizer=char", "--model=GRU", "--no-tied"],
    "bpe": ["--tokenizer=bpe", "--bpe-vocab-size=300", "--model=RNN_TANH"],
}
LINES = ["w1 w2 w3", "w7", "w4 w5 w9 w9 w0"]


@pytest.fixture(scope="module")
def exports(cli, tiny_run, corpus_dir, tmp_path_factory):
    """Run and export of each tokenizer, each with another cell, and with their loaded models."""
    place = tmp_path_factory.mktemp("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place / "modules"))
        patch.syspath_prepend(place / "modules")
        found = {}
        for kind, flags in RUNS.items():
            run = tiny_run if kind == "word" else place / f"{kind}-run"
            if kind != "word":
                flags = [*TINY, "--no-tensorboard", "--max-steps=3", "--eval-train-tokens=99", *flags]
                done = cli("train", "--data", corpus_dir, *flags, "--out-dir", run)
                assert done.returncode == 0, done.stderr
            done = cli("evaluate", run, "--export", place / kind, "--format=transformers")
            assert done.returncode == 0, done.stderr
            theirs = transformers.AutoModelForCausalLM.from_pretrained(place / kind, trust_remote_code=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(place / kind, trust_remote_code=True)
            found[kind] = (sharpened(load(run)), sharpened(theirs), tokenizer, place / kind)
        yield found


@pytest.fixture(params=list(RUNS))
def exported(request, exports):
    return exports[request.param]


def sharpened(model):
    """With random weights, the same in both models, that make texts of more than one word."""
    generator = torch.Generator().manual_seed(0)
    weights = dict(getattr(model, "model", model).named_parameters())
    with torch.no_grad():
        for name in sorted(weights):
            weights[name].normal_(0, 1, generator=generator)
    return model


def log_probabilities(logits, ids):
    """Of each token of one text after its first."""
    return torch.log_softmax(logits[:-1].double(), 1).gather(1, ids[1:].unsqueeze(1)).squeeze(1)


def test_the_loss_is_that_of_evaluation_whole_and_in_windows_that_pass_the_cache_on(exported, corpus_dir):
    ours, theirs, tokenizer, _ = exported
    text = (corpus_dir / "test.txt").read_text()
    own = ours.tokenizer.encode(text)
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == [ours.tokenizer.eos_id, *own.tolist()]
    ids = ids[:, 1:]
    expected = evaluate(ours.model, own, 1).loss
    with torch.no_grad():
        assert theirs(ids, labels=ids).loss.item() == pytest.approx(expected, abs=1e-5)
        cache, logits = None, []
        for part in ids.split(50, dim=1):
            output = theirs(part, cache=cache, use_cache=True)
            logits.append(output.logits)
            cache = output.cache
    found = log_probabilities(torch.cat(logits, 1)[0], ids[0])
    assert -found.mean().item() == pytest.approx(expected, abs=1e-5)


def test_generated_texts_are_those_of_this_project(exported):
    ours, theirs, tokenizer, _ = exported
    eos, unk = ours.tokenizer.eos_id, ours.tokenizer.unk_id
    inputs = tokenizer(LINES, return_tensors="pt", padding=True)
    greedy = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)
    limits = Limits([] if unk is None else [unk])
    for row, line in zip(greedy, LINES, strict=True):
        context = [eos, *ours.tokenizer.encode(line, final_eos=False).tolist()]
        assert row[-12:].tolist() == beam_search(ours.model, context, 12, 1, limits)[0].ids
        assert [token for token in row[:-12].tolist() if token != eos] == context[1:]
    assert len(set(greedy[:, -12:].flatten().tolist())) > 3
    beams = theirs.generate(**inputs, max_new_tokens=6, num_beams=3, num_return_sequences=3, do_sample=False)
    context = [eos, *ours.tokenizer.encode(LINES[0], final_eos=False).tolist()]
    assert beams[:3, -6:].tolist() == [one.ids for one in beam_search(ours.model, context, 6, 3, limits)]


def test_sampling_repeats_with_its_seed_and_draws_no_unknown_word(exports):
    _, theirs, tokenizer, _ = exports["word"]
    texts = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        texts.append(theirs.generate(max_new_tokens=60, do_sample=True, temperature=9.0, top_k=0)[0].tolist())
    assert texts[0] == texts[1] != texts[2]
    assert tokenizer.unk_token_id not in texts[0] and len(set(texts[0])) > 20


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_log_probability_and_no_state(exported, side):
    ours, theirs, tokenizer, _ = exported
    batch = tokenizer(LINES, return_tensors="pt", padding=True, padding_side=side)
    lines = [ours.tokenizer.encode(line, final_eos=False) for line in LINES]
    (nats,) = read_independent(ours.model, lines, ours.tokenizer.eos_id)
    expected = np.split(nats, np.cumsum([len(line) for line in lines])[:-1])
    with torch.no_grad():
        output = theirs(**batch, use_cache=True)
        for row, nats in enumerate(expected):
            ids = tokenizer(LINES[row], return_tensors="pt").input_ids
            kept = batch.attention_mask[row].bool()
            found = log_probabilities(output.logits[row][kept], batch.input_ids[row][kept])
            assert (-found).tolist() == pytest.approx(nats.tolist(), abs=1e-5)
            for layer, alone in zip(output.cache.state, theirs(ids, use_cache=True).cache.state, strict=True):
                for together, single in zip(layer, alone, strict=True):
                    torch.testing.assert_close(together[row], single[0], rtol=1e-3, atol=1e-5)


def test_a_row_of_padding_alone_keeps_its_state_and_a_given_cache_is_not_changed(exports):
    _, theirs, _, _ = exports["word"]
    with torch.no_grad():
        before = theirs(torch.tensor([[1, 2], [3, 4]]), use_cache=True).cache
        copies = [[tensor.clone() for tensor in layer] for layer in before.state]
        mask = torch.tensor([[0, 0, 0], [0, 1, 1]])
        after = theirs(torch.tensor([[7, 7, 7], [7, 5, 6]]), attention_mask=mask, cache=before, use_cache=True).cache
        expected = theirs(torch.tensor([[5, 6]]), cache=theirs(torch.tensor([[3, 4]]), use_cache=True).cache).cache
    for layer, kept, own, new in zip(before.state, copies, after.state, expected.state, strict=True):
        for tensor, copy, mine, other in zip(layer, kept, own, new, strict=True):
            assert torch.equal(tensor, copy)
            assert torch.equal(mine[0], copy[0])
            torch.testing.assert_close(mine[1], other[0])
    assert after.get_seq_length() == 5


def test_the_tokenizer_reads_any_text_as_this_project_does(exported):
    ours, _, tokenizer, _ = exported
    texts = ["", "\n", "w1 w2\n\nw3\n", "\tw1  zork\n", " w2 \u00e9\u4e2d\U0001f600 w3", "w1\x1cw2\x85w3"]
    for text in texts:
        expected = ours.tokenizer.encode(text, final_eos=False).tolist()
        assert tokenizer(text).input_ids == [ours.tokenizer.eos_id, *expected], repr(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
    assert tokenizer.decode(tokenizer("w1 w2").input_ids, skip_special_tokens=True) == "w1 w2"
    assert (len(tokenizer), tokenizer.eos_token_id) == (ours.tokenizer.vocab_size, ours.tokenizer.eos_id)


def test_it_can_be_trained_and_stored_by_the_library(exported, tmp_path):
    _, theirs, tokenizer, _ = exported
    ids = tokenizer(LINES[0], return_tensors="pt").input_ids
    theirs.zero_grad()
    output = theirs.train()(ids, labels=ids, output_hidden_states=True)
    assert output.cache is None and len(output.hidden_states) == 3
    output.loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in theirs.parameters())
    theirs.eval().save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    last = theirs(ids, logits_to_keep=1).logits
    torch.testing.assert_close(last, theirs(ids, return_dict=False)[0][:, -1:])


def test_the_code_that_is_exported_is_the_file_of_the_repository_and_imports_nothing_of_it(exports):
    assert (exports["word"][3] / MODELING.name).read_text() == MODELING.read_text()
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(MODELING.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert modules == {"__future__", "inspect", "dataclasses", "typing", "torch", "transformers"}


def test_the_code_of_the_card_runs(exports, monkeypatch, capsys):
    folder = exports["word"][3]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    exec(code, {})
    assert "<eos>" in capsys.readouterr().out


def test_it_is_written_again_but_not_over_an_export_of_another_format_nor_read_by_this_program(
    main_here, tiny_run, exports, tmp_path
):
    command = [lm.evaluate, tiny_run, "--export", tmp_path / "export"]
    for _ in range(2):
        assert main_here(*command, "--format=transformers") == f"{tmp_path / 'export'}\n"
    with pytest.raises(ConfigError, match="no export of this program for pytorch"):
        main_here(*command)
    with pytest.raises(ConfigError, match="--format: is for --export DIR"):
        main_here(lm.evaluate, tiny_run, "--format=transformers")
    with pytest.raises(CheckpointError, match="an export for transformers; give the run"):
        main_here(lm.evaluate, tmp_path / "export")


def test_a_tokenizer_that_lowers_case_reads_line_ends_too():
    library = _tokenizer(WordTokenizer([EOS, UNK, "the", "cat"], lowercase=True))
    assert library.encode("the Cat\nThe cat\n").tokens == [EOS, "the", "cat", EOS, "the", "cat", EOS]
