"""What losses need of several processes: means over all of them, and embeddings that keep their gradient.

Gradients are meant for training that averages them over processes, as DDP and FSDP do: then they equal those of one
process with the whole batch. Every process has to take part in every call.

Shape legend: B rows of this process, N rows of all processes together.
"""

from __future__ import annotations

from typing import Any

import torch

# torch.distributed.nn is only there where torch was built with distributed support.
try:
    from torch.distributed.nn.functional import all_gather as all_gather_with_gradient
except ImportError:  # pragma: no cover
    all_gather_with_gradient: Any = None  # type: ignore[no-redef]


def is_distributed() -> bool:
    """Whether this is one of several processes of a training."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_processes(total: torch.Tensor, count: torch.Tensor, everywhere: bool) -> torch.Tensor:
    """
    `total / count`, both scalars; 0 when there is nothing to count. `everywhere` sums both over all processes first:
    the value is then the same on all, and the gradient, averaged over processes, that of the global mean, however
    unequal the counts are.
    """
    if not everywhere:
        return total / count.to(total.dtype).clamp(min=1.0)
    sums = torch.stack([total.detach(), count.to(total.dtype)])
    torch.distributed.all_reduce(sums)
    mean = sums[0] / sums[1].clamp(min=1.0)
    own = total * torch.distributed.get_world_size() / sums[1].clamp(min=1.0)
    # The value of the mean, the gradient of this process's share.
    return own + (mean - own).detach()


def gather_rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], slice]:
    """
    Rows of all processes, in the order of their ranks.

    Args:
        tensors: of shape (B, ...), the same B here and any other number of rows on other processes. Those of floats
            keep their gradient across processes.

    Returns:
        The tensors of shape (N, ...), and which rows of them are this process's.
    """
    rows = len(tensors[0])
    sizes = [
        torch.zeros(1, dtype=torch.long, device=tensors[0].device) for _ in range(torch.distributed.get_world_size())
    ]
    torch.distributed.all_gather(sizes, torch.full_like(sizes[0], rows))
    counts = torch.cat(sizes).tolist()
    gathered = []
    for tensor in tensors:
        # Collectives want the same shape everywhere; what fills it up is cut off again.
        padded = torch.cat([tensor, tensor.new_zeros(max(counts) - rows, *tensor.shape[1:])])
        if tensor.is_floating_point():
            parts = all_gather_with_gradient(padded)
        else:
            parts = [torch.empty_like(padded) for _ in counts]
            torch.distributed.all_gather(parts, padded.contiguous())
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    start = sum(counts[: torch.distributed.get_rank()])
    return gathered, slice(start, start + rows)


__all__ = ["gather_rows", "is_distributed", "mean_over_processes"]
