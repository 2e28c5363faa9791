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
5. Full tuning: each rank holds a part of every weight, of its gradient and of its moments (torch's
   `fully_shard`, FSDP2). A layer is gathered when it computes, and let go. Whoever samples,
   measures or saves has the whole model gathered once.

So R processes compute what one computes, except for the order in which numbers are summed. Nothing
in a run's folder depends on R: a run may go on with more processes or with fewer.

If a rank ends, the others notice it at the next exchange. Rank 0 then keeps the state of the last
whole step, and says in one line what has happened. Values are exchanged as JSON. (torch's own
exchange of objects uses pickle.)

If weights are divided, the dead rank's part is lost, and the run goes on from the last checkpoint.

Source: FSDP, Zhao et al. 2023 (arXiv 2304.11277), after ZeRO, Rajbhandari et al. 2020 (arXiv
1910.02054). Differs: adapters are not divided, since what trains of them is small and their frozen
weights take 2 bytes.
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from runtime import Alone, UsageError, UserError, one_line

PATIENCE = timedelta(hours=2)  # longest wait for another rank, as for its part of an evaluation
BUCKET = 1 << 25  # numbers that are copied together to be added up at once: 128 MiB
REASON = 200  # characters of an error of torch that are shown
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
            for p in parameters if not self.divided else ():
                dist.broadcast(p.data, 0)

    def add_gradients(self, parameters: list[nn.Parameter], total: Tensor,
                      count: int) -> tuple[Tensor, int]:
        counts = torch.tensor(count)  # added up by the CPUs: no device is waited for
        with self._exchange():
            dist.all_reduce(counts)
        if self.divided:  # the backward passes have added up the gradients
            with self._exchange():
                dist.all_reduce(total)
            return total, int(counts)
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

    # --- weights that are divided

    def divide(self, model: nn.Module) -> None:
        # Gathered in the dtype of the products; gradients are added up in fp32.
        policy = MixedPrecisionPolicy(model.compute_dtype, torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(model.head_weight.device.type, (self.size,))
        for module in (*model.model.layers, model):  # embedding, last norm and head are one group
            fully_shard(module, mesh=mesh, mp_policy=policy)
            module.set_gradient_divide_factor(1.0)  # a sum: train.py divides by the targets
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
        self.divided = True

    def whole(self, x: Tensor) -> Tensor:
        return x.full_tensor() if isinstance(x, DTensor) else x

    def part(self, x: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return x
        # Every rank has read the same: nothing is sent.
        return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)

    def passes(self, own: int) -> int:
        most = torch.tensor(own)
        if self.divided:
            with self._exchange():
                dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    # --- errors

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Within the block, an error of torch means that another rank cannot be reached."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost() from error

    def lost(self, reason: str = "") -> Lost:
        """What is said of a rank that does not answer; `reason`: what torch says."""
        reason = one_line(f" ({reason[:REASON]})") if reason else ""
        return Lost(self.failure() or f"another of the {self.size} processes has ended, or cannot "
                    f"be reached{reason}; what is done is kept: go on with --resume (evaluate.py: "
                    "with the same --output-dir)")

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
    except BaseException as caught:
        # A layer is gathered in the midst of a pass, where no other error of torch is expected.
        broken = (ranks.divided and isinstance(caught, RuntimeError)
                  and not isinstance(caught, torch.OutOfMemoryError))
        error = ranks.lost(str(caught)) if broken else caught
        line = explain(error)[1]
        if not ranks.first and line is None:  # a fault of the program: its traceback is shown
            os.dup2(errors, sys.stderr.fileno())
        elif not ranks.first and not isinstance(error, Lost | KeyboardInterrupt):
            ranks.tell(line.removeprefix("error: "))
        elif isinstance(error, KeyboardInterrupt) and ranks.failure():
            raise UserError(ranks.failure()) from error
        if broken:
            raise error from caught
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
