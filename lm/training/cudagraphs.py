"""CUDA graphs: the kernels of a training step are recorded once for each window length and then launched as one.

A step is some hundred kernels of a few microseconds each, since an LSTM launches one or more a time step. Launched one
by one from Python they take longer to launch than to run, and the GPU waits (rates with and without: results/speed).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Recorded = tuple[torch.cuda.CUDAGraph, list[Tensor]]


class CUDAGraphs:
    """Calls a function of tensors: on CUDA through a graph for each shape of them, on other devices as it is.

    The function, the same in every call, returns nothing and may work in place on what else it reads: parameters,
    optimizer, hidden state, sums. Those tensors must stay where they are between calls, and all other values what they
    were: a graph repeats the kernels, not the Python, that was recorded. Random numbers go on as without graphs.
    """

    def __init__(self, device: torch.device, *, off: bool = False) -> None:
        """`off`: call the function as it is on CUDA too."""
        self._off = off or device.type != "cuda"
        # Shape -> a graph and the tensors that it reads its inputs from; None once the function has run as it is.
        self._graphs: dict[torch.Size, Recorded | None] = {}
        if not self._off:
            # Graphs share memory, as no two run at a time; what is recorded may not be on the default stream.
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[..., None], *inputs: Tensor) -> None:
        """Call the function with tensors of one shape."""
        shape = inputs[0].shape
        if self._off:
            function(*inputs)
        elif shape not in self._graphs:  # the libraries set themselves up in a first call, which cannot be recorded
            self._graphs[shape] = None
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function(*inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            recorded = self._graphs[shape]
            if recorded is None:
                recorded = self._graphs[shape] = self._record(function, inputs)
            graph, held = recorded
            for place, value in zip(held, inputs, strict=True):
                place.copy_(value)
            graph.replay()

    def _record(self, function: Callable[..., None], inputs: tuple[Tensor, ...]) -> Recorded:
        held = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream):  # runs nothing
            function(*held)
        return graph, held
