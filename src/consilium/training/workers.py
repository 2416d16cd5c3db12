"""Several processes, on one machine or several, that train one network on their batches together."""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from consilium.errors import ConfigurationError, RunError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells each process."""

PATIENCE = datetime.timedelta(hours=2)
"""How long a worker waits for the others, e.g. while the first one validates."""

Result = TypeVar("Result")


class Group(Protocol):
    """What the training loop needs of the processes that train together, in any framework."""

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and decides."""

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first worker's values, at all of them."""

    def wait(self) -> None:
        """Until every worker is here."""

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something that needs all workers; a `RunError` where one is gone."""


@dataclass(frozen=True)
class Workers:
    """The processes of one training in torch, which ``torchrun`` started.

    Args:
        rank: Which one this is, from 0; the first one validates, writes and decides.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and decides."""
        return self.rank == 0

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first worker's values, at all of them."""
        if self.count == 1:
            return list(values)
        told = torch.tensor(list(values), dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            told = told.cuda()
        self.together(lambda: distributed.broadcast(told, src=0))
        return [float(value) for value in told.tolist()]

    def wait(self) -> None:
        """Until every worker is here."""
        if self.count > 1:
            self.agree([0.0])

    def share_network(self, network: nn.Module, *, some_unused: bool) -> nn.Module:
        """The network as every worker runs it: the backward pass leaves the mean of all gradients.

        Args:
            network: The same at all workers.
            some_unused: Whether the loss may leave parameters out.
        """
        if self.count == 1:
            return network
        shared: nn.Module = DistributedDataParallel(network, find_unused_parameters=some_unused)
        return shared

    def join(self, sums: Tensor) -> Tensor:
        """The rows (B, ...) of all workers below each other, so that a loss over them is that of the joined
        batch; the gradient flows to this worker's rows only.
        """
        if self.count == 1:
            return sums
        joined: Tensor = _Joined.apply(sums, self)  # type: ignore[no-untyped-call]
        return joined

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something that needs all workers.

        Raises:
            RunError: One of them is gone.
        """
        if self.count == 1:
            return work()
        try:
            return work()
        except RuntimeError as error:
            raise lost_worker(self, error) from error


def lost_worker(group: Group, error: BaseException) -> RunError:
    """The error to raise where working together failed."""
    return RunError(
        f"worker {group.rank} of {group.count}: all workers must go on together; one of them is gone "
        f"({(str(error).splitlines() or ['no reason given'])[0][:120]}). The last checkpoint is kept: start "
        "the same command again with --resume."
    )


class _Joined(torch.autograd.Function):
    """Rows of all workers. The gradients of the network are averaged over the workers afterwards, but belong
    to one loss: each counts as often as there are workers.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, workers: Workers) -> Tensor:
        ctx.workers, ctx.rows = workers, len(own)
        parts = [torch.empty_like(own) for _ in range(workers.count)]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        start = ctx.workers.rank * ctx.rows
        return grad[start : start + ctx.rows] * ctx.workers.count, None


def is_launched() -> bool:
    """Whether this process is one of several that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_workers() -> Workers:
    """This process among those that ``torchrun`` started; the only one where it did not.

    Raises:
        ConfigurationError: The environment is half of what ``torchrun`` sets.
    """
    if not is_launched():
        return Workers()
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise ConfigurationError(
            f"workers: torchrun must set {', '.join(LAUNCHED)}; {', '.join(missing)} is missing. Start with: "
            "torchrun --nproc-per-node N -m consilium train DATASET RUN"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return Workers(distributed.get_rank(), distributed.get_world_size())


def leave_workers() -> None:
    """Close the connections to the other workers."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
