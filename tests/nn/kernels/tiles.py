"""The tiles that a sitting at a GPU tries."""

from __future__ import annotations

import dataclasses

import torch

from lm.nn.kernels.triton_lstm import Tile, choose_tiles, padded_size

# What a program may take on an H100.
SHARED_MEMORY = 227 * 1024


def tiles_to_try(hidden: int, batch: int) -> tuple[list[Tile], list[Tile]]:
    """Forward and backward tiles: the default, and what changes one thing or two of it.

    Left out is what was much slower on an H200 (results/speed/gpu-lstm.json): fewer or more units, other warps forward.
    """
    forward, backward = choose_tiles(hidden, batch, torch.bfloat16)
    change = dataclasses.replace
    forwards = [
        forward, change(forward, stages=6), change(forward, block=128, stages=3), change(forward, rows=16),
        change(forward, overlap=True), change(forward, block=128, stages=3, overlap=True),
    ]  # fmt: skip
    backwards = [
        backward, change(backward, warps=4), change(backward, stages=6), change(backward, overlap=True),
        *(change(backward, split=split) for split in (1, 2, 3, 4, 6, 8)),
    ]  # fmt: skip
    if batch > 32:
        forwards += [change(forward, rows=64)]
        backwards += [change(backward, rows=rows, split=split) for rows in (16, 64) for split in (2, 3, 6)]
    return _that_fit(hidden, forwards, backward, 4), _that_fit(hidden, backwards, forward, 1)


def _that_fit(hidden: int, tiles: list[Tile], other: Tile, gates: int) -> list[Tile]:
    """Each tile once, if its blocks fit into shared memory and its programs get equal parts of the sum."""
    fitting = []
    for tile in dict.fromkeys(tiles):
        bytes_ahead = 2 * tile.stages * tile.block * (gates * tile.units + tile.rows)
        blocks = 4 * padded_size(hidden, tile, other) // tile.block
        if bytes_ahead <= SHARED_MEMORY and blocks % tile.split == 0:
            fitting.append(tile)
    return fitting
