"""AR and TAR on an `nn.LSTM` of one's own: `python -m examples.ar_tar`.

Trains a character model on the source of Python's argparse, without and with the penalties, and prints the loss of the
last update, the root mean square of the activations h and that of their change from one step to the next: with AR and
TAR both are far smaller.
"""

import argparse
import inspect

import torch
from torch import Tensor, nn

import lm

COLUMNS, WINDOW, UPDATES = 16, 50, 100


class CharacterModel(nn.Module):
    """What somebody else wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.decoder = nn.Linear(64, 256)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Logits of every next byte, (B, T, 256)."""
        h_BTH, _ = self.lstm(self.embedding(bytes_BT))
        return self.decoder(self.dropout(h_BTH))


def train(text_BN: Tensor, alpha: float, beta: float) -> str:
    """Train a model; returns the row of the table."""
    torch.manual_seed(0)
    model = CharacterModel()
    ar = lm.ActivationPenalty(model.dropout, "l2", alpha)  # AR reads the output after its dropout,
    tar = lm.ActivationPenalty(model.lstm, "temporal", beta, time_dim=1)  # TAR the raw one
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for start in range(0, UPDATES * WINDOW, WINDOW):
        inputs, targets = text_BN[:, start : start + WINDOW], text_BN[:, start + 1 : start + WINDOW + 1]
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        (loss + ar.pop() + tar.pop()).backward()
        optimizer.step()

    with torch.no_grad():
        h_BTH, _ = model.lstm(model.embedding(text_BN[:, :500]))
    rms, change = h_BTH.square().mean().sqrt(), h_BTH.diff(dim=1).square().mean().sqrt()
    return f"{alpha:5g} {beta:5g}   {loss:5.3f}   {rms:5.3f}   {change:5.3f}"


def main() -> None:
    """Print the table."""
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    text_BN = text[: len(text) // COLUMNS * COLUMNS].view(COLUMNS, -1)
    print("alpha  beta    loss   rms h  rms dh")
    print(train(text_BN, 0.0, 0.0))
    print(train(text_BN, 2.0, 2.0))


if __name__ == "__main__":
    main()
