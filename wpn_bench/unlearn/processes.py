"""The processes that train one model together: who this one is, and what they compute in common.

A training in a single process is the same with one of them: nothing is then sent, and no bit of it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process is `rank` (from 0) of `count`. `sharded`: each holds a part of every weight (FSDP); else all of them.
    `device` is where this one computes; None: where the model lies."""

    rank: int = 0
    count: int = 1
    sharded: bool = False
    device: str | None = None

    @property
    def main(self) -> bool:
        """Whether this is the one that measures and writes."""
        return self.rank == 0

    @property
    def kind(self) -> str | None:
        """How the work is divided; None for a single process."""
        if self.count == 1:
            return None
        return "fsdp" if self.sharded else "data parallel"

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, element by element."""
        if self.count == 1:
            return values
        import torch.distributed as dist

        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def agree(self, value: T) -> T:
        """What `value` is in the first process; the others' is not looked at."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        agreed: T = box[0]
        return agreed

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = Processes()
_here = ALONE


def here() -> Processes:
    """Those that this process trains with."""
    return _here


def join(processes: Processes) -> None:
    """From now on this process is one of `processes`, whose process group exists already."""
    global _here
    _here = processes


def divisor(count: Tensor) -> Tensor:
    """What a sum over this process's `count` entries is divided by for a mean over all entries of all processes.

    The processes' quotients are averaged, in the loss as in its gradient: with W of them that makes W times the quotient of
    each sum and the number of all entries. In a single process it is `count`, and 1 where there are none.
    """
    return here().total(count).clamp(min=1) / here().count
