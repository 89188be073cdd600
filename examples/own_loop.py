"""A training loop of one's own around `AWDLSTM`: `python -m examples.own_loop`.

Trains a character model on the source of Python's argparse, in windows of variable length, with AR and TAR, the hidden
state carried from window to window. Prints after each epoch the perplexity per character of the end of that source,
which is not trained on; it falls.
"""

import argparse
import inspect

import torch

import lm
from lm.nn.model import detach
from lm.nn.regularization import regularization_terms
from lm.scoring.evaluation import evaluate
from lm.text.batching import BPTTWindows, batchify
from lm.text.characters import CharTokenizer

EPOCHS, COLUMNS, BPTT, LEARNING_RATE = 2, 40, 35, 1e-2
HELD_OUT = 10_000


def main() -> None:
    """Train, and print a line an epoch."""
    text = inspect.getsource(argparse)
    tokenizer = CharTokenizer.from_text(text)
    ids_N = tokenizer.encode(text)
    columns_NB = batchify(ids_N[:-HELD_OUT], COLUMNS, torch.device("cpu"))
    windows = BPTTWindows(columns_NB, BPTT, variable=True, max_delta=20)  # variable=False: all of length BPTT

    torch.manual_seed(0)
    config = lm.make_config(emsize=32, nhid=64, nlayers=2, dropouti=0.1, dropouth=0.1, dropout=0.1, wdrop=0.2)
    model = lm.AWDLSTM(tokenizer.vocab_size, config)
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(1, EPOCHS + 1):
        state = model.initial_state(COLUMNS)
        for window in windows:
            output = model(window.tokens_TB, state)
            state = detach(output.state)  # the next window goes on from it; gradients end here
            loss = model.loss(output, window.targets_TB)
            terms = regularization_terms(output.raw, output.after_dropout, alpha=2.0, beta=1.0)
            optimizer.zero_grad()
            sum(terms.values(), start=loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * window.lr_scale
            optimizer.step()
        windows.rewind()
        held_out = evaluate(model, ids_N[-HELD_OUT:], batch_size=10)
        rms, change = held_out.activation["rms"], held_out.activation["temporal_rms"]
        print(f"epoch {epoch}: perplexity {held_out.perplexity:.2f}, rms h {rms:.3f}, rms dh {change:.3f}")


if __name__ == "__main__":
    main()
