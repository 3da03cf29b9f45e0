"""The processes that train one model together: the rank of this process, and collective operations.

Training in a single process uses the same code with a count of 1. Nothing is then communicated, and the results are
bitwise the same as without this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        rank: Index of this process, counted from 0.
        count: Number of processes.
        sharded: Whether each process holds a part of every weight (FSDP). If not, each process holds all weights.
        device: Device of this process; None means the device of the model.
    """

    rank: int = 0
    count: int = 1
    sharded: bool = False
    device: str | None = None

    @property
    def main(self) -> bool:
        """Return whether this is the process that evaluates and writes."""
        return self.rank == 0

    @property
    def kind(self) -> str | None:
        """Return the kind of parallelism, or None for a single process."""
        if self.count == 1:
            return None
        return "fsdp" if self.sharded else "data parallel"

    def total(self, values: Tensor) -> Tensor:
        """Return the elementwise sum of `values` over all processes."""
        if self.count == 1:
            return values
        import torch.distributed as dist

        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def agree(self, value: T) -> T:
        """Return the first process's `value` in all processes."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        agreed: T = box[0]
        return agreed

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = Processes()
_here = ALONE


def here() -> Processes:
    """Return the processes of the training in which this process takes part."""
    return _here


def join(processes: Processes) -> None:
    """Set the processes of the training in which this process takes part. Their process group must already exist."""
    global _here
    _here = processes


def divisor(count: Tensor) -> Tensor:
    """Return by what to divide a sum over this process's `count` entries to get the mean over all processes' entries.

    Loss and gradient are averaged over the W processes, so the divisor is the total number of entries / W. In a single
    process it is `count`. It is at least 1 / W, to avoid a division by zero if there are no entries.
    """
    return here().total(count).clamp(min=1) / here().count
