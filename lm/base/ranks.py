"""The processes that train one run together: which of them this one is, and what they tell each other.

torchrun starts them and names each by environment variables: RANK of WORLD_SIZE, LOCAL_RANK on its machine. Alone,
nothing is sent, and nothing here needs `torch.distributed`.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lm.base.errors import LMError

if typing.TYPE_CHECKING:
    from torch import Tensor


class RankLost(LMError):
    """Another process of the run has ended, or cannot be reached: what it knew is lost, and the run cannot go on."""


@dataclass(frozen=True)
class Columns:
    """The columns of a batch that one process computes: `count` from number `first` on, of `total`.

    Without any it reads along in the last one, with weight 0, so that no loop needs another case.
    """

    first: int
    count: int
    total: int

    @property
    def place(self) -> slice:
        """Where they lie in the batch."""
        start = min(self.first, self.total - 1)
        return slice(start, start + max(self.count, 1))

    @property
    def weight(self) -> float:
        """Their part of the batch: a mean over the batch is the sum of the processes' means times this."""
        return self.count / self.total


@dataclass(frozen=True)
class Ranks:
    """Number `rank` of `size` processes, `local` among those of its machine. All of them make the same calls."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def columns(self, total: int) -> Columns:
        """This process's share of a batch; the first processes have one column more where they do not divide evenly."""
        each, more = divmod(total, self.size)
        return Columns(self.rank * each + min(self.rank, more), each + (self.rank < more), total)

    def add(self, tensor: Tensor) -> None:
        """Put the sum over the processes in its place. Raises RankLost."""
        if self.size > 1:
            import torch.distributed as dist

            with reachable():
                dist.all_reduce(tensor)

    def tell(self, tensors: Iterable[Tensor]) -> None:
        """Put what the first process has there in the place of each. Raises RankLost."""
        if self.size > 1:
            import torch.distributed as dist

            with reachable():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def mean(self, values: Iterable[Tensor], columns: Columns) -> list[Tensor]:
        """Means over this process's columns (0-dim) -> means over the batch. Raises RankLost.

        Those of several processes are in float64, without a graph; alone, the values themselves are returned.
        """
        if self.size == 1:
            return list(values)
        import torch

        mean = torch.stack([value.detach().double() for value in values]) * columns.weight
        self.add(mean)
        return list(mean)

    def highest(self, *values: int) -> list[int]:
        """The highest of the processes' values, one by one, without a wait for a GPU. Raises RankLost."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values)
        with reachable():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def any(self, value: bool) -> bool:
        """Whether it is true in any of the processes. Raises RankLost."""
        return bool(self.highest(value)[0])

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Do without the other processes what all of them do; an error that one meets is raised in all."""
        error: LMError | OSError | None = None
        try:
            yield
        except (LMError, OSError) as caught:
            if self.size == 1:
                raise
            error = caught
        if self.size == 1:
            return
        import torch.distributed as dist

        told: list[tuple[type[LMError], str] | None] = [None] * self.size
        mine = error and (type(error) if isinstance(error, LMError) else LMError, str(error))
        with reachable():
            dist.all_gather_object(told, mine)
        for rank, found in enumerate(told):
            if found:
                kind, text = found
                raise kind(f"process {rank}: {text}" if rank else text)


ALONE = Ranks()


def this_rank(variables: os._Environ[str] | dict[str, str] = os.environ) -> Ranks:
    """Which process this is, by the variables that torchrun sets."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= variables.keys() or int(variables["WORLD_SIZE"]) == 1:
        return ALONE
    return Ranks(int(variables["RANK"]), int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_RANK", 0)))


@contextmanager
def reachable() -> Iterator[None]:
    """Report a process that cannot be reached any more as RankLost."""
    try:
        yield
    except RuntimeError as error:  # gloo's is nothing but that; NCCL's has a class
        import torch.distributed as dist

        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RankLost("another process of this run has ended, or cannot be reached") from error
        raise
