"""A sparse autoencoder on scikit-learn's digits: `python -m examples.sparse_autoencoder`.

Trains it without a penalty and with an L1 penalty on its code, and prints for each the mean squared error of the
reconstruction (the pixels' variance is 0.073) and the share of zeros in the code. With the penalty most of the code is
zero; the error grows and stays small against the variance. Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lm

UPDATES, BATCH = 300, 200


def train(images: Tensor, coefficient: float) -> str:
    """Train an autoencoder on images (N, 64); returns the row of the table."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    model = nn.Sequential(encoder, nn.Linear(128, 64))
    sparsity = lm.ActivationPenalty(encoder, "l1", coefficient)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(UPDATES):
        batch = images[torch.randint(len(images), (BATCH,))]
        loss = nn.functional.mse_loss(model(batch), batch) + sparsity.pop()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.eval()  # silences the penalty, too
    with torch.no_grad():
        error = nn.functional.mse_loss(model(images), images)
        zeros = (encoder(images) == 0).float().mean()
    return f"{coefficient:9g}   {error:6.4f}   {zeros:5.3f}"


def main() -> None:
    """Print the table."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    print("L1 penalty    error   zeros")
    print(train(images, 0.0))
    print(train(images, 0.1))


if __name__ == "__main__":
    main()
