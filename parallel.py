"""Several processes that train or measure one model together, on one machine or on several.

    torchrun --nproc-per-node 2 mathft.py --method lora
    torchrun --nproc-per-node 2 evaluate.py --run runs/NAME --dataset math500
    python -m pytest tests/test_parallel.py -v      # two processes find what one finds

1. torchrun starts the same command R times; the processes are numbered, and a number is a rank.
   Each has the whole model and all that trains.
2. In a step each rank takes its part of the examples and sums its gradients. An all-reduce adds up
   the gradients, the losses and the counts of targets of all ranks. Each rank divides by the count
   of all, and takes the same step of AdamW.
3. Rollouts and test problems are shared out in the same way, and what comes of them is gathered.
4. Rank 0 alone writes files and prints.

So R processes compute what one computes, except for the order in which numbers are summed. Nothing
in a run's folder depends on R: a run may go on with more processes or with fewer.

If a rank ends, the others notice it at the next exchange. Rank 0 then keeps the state of the last
whole step, and says in one line what has happened. Values are exchanged as JSON. (torch's own
exchange of objects uses pickle.)

Differs from ZeRO (arXiv 1910.02054) and FSDP (arXiv 2304.11277): weights and moments are not
divided, so that R devices train faster, but no larger models.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime import Alone, UsageError, UserError

PATIENCE = timedelta(hours=2)  # longest wait for another rank, as for its part of an evaluation
BUCKET = 1 << 25  # numbers that are copied together to be added up at once: 128 MiB
FAILURE = "mathft failure"  # where a rank leaves its error for rank 0


class Lost(UserError):
    """Another process has ended, or cannot be reached."""


class Ranks(Alone):
    """This process among those that torchrun has started; see runtime.Alone for what each does."""

    def __init__(self):
        """Join the others. Raises UsageError without the environment that torchrun makes."""
        try:
            self.store, self.rank, self.size = next(dist.rendezvous("env://", timeout=PATIENCE))
        except (ValueError, KeyError) as error:
            raise UsageError(f"WORLD_SIZE is set, but not all that torchrun sets ({error}); start "
                             "with torchrun, or unset WORLD_SIZE") from None
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size,
                                timeout=PATIENCE)

    def share(self, items: list) -> list:
        return items[self.rank :: self.size]

    def gather(self, items: list) -> list:
        own = torch.frombuffer(bytearray(json.dumps(items).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(own)
        with self._exchange():
            dist.all_reduce(lengths)
        rows = [own.new_zeros(int(lengths.max())) for _ in range(self.size)]
        padded = own.new_zeros(len(rows[0]))
        padded[: len(own)] = own
        with self._exchange():
            dist.all_gather(rows, padded)
        texts = (bytes(row[:n].tolist()) for row, n in zip(rows, lengths.tolist()))
        return [item for text in texts for item in json.loads(text)]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        if not self.first:
            self.gather([])
        yield  # an error of rank 0 leaves from here, and ends the others
        if self.first:
            self.gather([])

    def align(self, parameters: list[nn.Parameter]) -> None:
        with self._exchange():
            for p in parameters:
                dist.broadcast(p.data, 0)

    def add_gradients(self, parameters: list[nn.Parameter], total: Tensor,
                      count: int) -> tuple[Tensor, int]:
        counts = torch.tensor(count)  # added up by the CPUs: no device is waited for
        with self._exchange():
            dist.all_reduce(counts)
        if not counts:  # of no example at all: as one process leaves it
            for p in parameters:
                p.grad = None
            return total, 0
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
        total = total.float()
        for tensors in buckets([total, *(p.grad for p in parameters)]):
            flat = torch.cat([x.view(-1) for x in tensors]) if tensors[1:] else tensors[0]
            with self._exchange():
                dist.all_reduce(flat)
            if tensors[1:]:
                parts = flat.split([x.numel() for x in tensors])
                torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors)])
        return total, int(counts)

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Within the block, an error of torch means that another rank cannot be reached."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(self.failure() or f"another of the {self.size} processes has ended, or "
                       "cannot be reached; what is done is kept: go on with --resume (evaluate.py: "
                       "with the same --output-dir)") from error

    # --- errors

    def failure(self) -> str | None:
        """What another rank has left about its end."""
        with contextlib.suppress(RuntimeError):  # the store may have gone too
            if self.store.check([FAILURE]):
                return self.store.get(FAILURE).decode()
        return None

    def tell(self, line: str) -> None:
        """Leave for rank 0 why this rank ends."""
        with contextlib.suppress(RuntimeError):
            self.store.set(FAILURE, f"process {self.rank} of 0 to {self.size - 1}: {line}")


def buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of neighbours, of at most BUCKET numbers or of one tensor."""
    groups: list[list[Tensor]] = []
    numbers = 0
    for x in tensors:
        if not groups or numbers + x.numel() > BUCKET:
            groups.append([])
            numbers = 0
        groups[-1].append(x)
        numbers += x.numel()
    return groups


@contextlib.contextmanager
def joined(explain: Callable[[BaseException], tuple[int, str | None]]) -> Iterator[Ranks]:
    """The ranks, while they work together. All but rank 0 are silent within the block.

    `explain` gives exit code and line of an error. Rank 0 raises UserError with the line of another
    rank if that one's error has ended it.
    """
    ranks = Ranks()
    errors = None if ranks.first else _silence()
    try:
        yield ranks
    except BaseException as error:
        line = explain(error)[1]
        if not ranks.first and line is None:  # a fault of the program: its traceback is shown
            os.dup2(errors, sys.stderr.fileno())
        elif not ranks.first and not isinstance(error, Lost | KeyboardInterrupt):
            ranks.tell(line.removeprefix("error: "))
        elif isinstance(error, KeyboardInterrupt) and ranks.failure():
            raise UserError(ranks.failure()) from error
        raise
    dist.destroy_process_group()


def _silence() -> int:
    """Send stdout and stderr to nowhere; returns a descriptor of what stderr was."""
    errors = os.dup(sys.stderr.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(nowhere, stream.fileno())
    return errors
