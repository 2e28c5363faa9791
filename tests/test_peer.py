"""The standard stack's side of the benchmark: it does the same work as ours and begins at the same
loss.
"""

from pathlib import Path

import pytest
import torch

from data import Example
from tools import bench, peer
from tools.bench import Flags, Task

CPU = torch.device("cpu")


def make_task(model: Path, work: Path, case: str, **flags) -> Task:
    """A task on the CPU in fp32; its side is whose function it is given to."""
    flags = Flags(device="cpu", dtype="fp32", **flags)
    return Task(case, "", str(model), str(work), steps=1, learning_rate=1e-3, micro_batch_tokens=40,
                flags=flags)


def some_examples() -> list[Example]:
    """Three documents of unlike length; the second half of each is what is learnt."""
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randint(260, (length,), generator=rng).tolist() for length in (30, 11, 18)]
    return [Example(ids, [i >= len(ids) // 2 for i in range(len(ids))]) for ids in drawn]


@pytest.mark.parametrize("case", bench.TRAINING)
def test_both_sides_begin_at_the_same_loss_and_lower_it(tiny_folder, tmp_path, case):
    bench.write_start(case, tiny_folder, tmp_path, Flags(device="cpu", dtype="fp32"))
    task = make_task(tiny_folder, tmp_path, case)
    steps = [side.training_step(task, CPU, torch.float32) for side in (bench, peer)]
    ours, theirs = ([step(some_examples()) for _ in range(3)] for step in steps)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    for losses in (ours, theirs):
        assert losses[2] < losses[1] < losses[0]
    assert ours[2] == pytest.approx(theirs[2],
                                    rel=0.05)  # AdamW's betas and LoRA's start are not the same


@pytest.mark.parametrize(("samples", "temperature"), [(1, 0.0), (4, 0.7)])
def test_both_sides_write_as_many_tokens_as_they_are_asked_for(tiny_folder, tmp_path, samples,
                                                               temperature):
    prompts, lengths = [example.ids for example in some_examples()], [5, 12, 2]
    task = make_task(tiny_folder, tmp_path, "ending")
    first, decoded, _ = bench.generator(task, CPU, torch.float32)(prompts, lengths, samples,
                                                                  temperature)
    assert decoded == samples * sum(lengths)
    for rows in (64, 2 * samples):  # in one batch, and in two
        theirs, decoded, _ = peer.generator(task, CPU, torch.float32, rows)(prompts, lengths,
                                                                            samples, temperature)
        assert decoded == samples * (sum(lengths) - len(lengths)
                                     )  # the prompts' pass gave the first of each row
        assert theirs == first or temperature


def test_the_peers_batch_is_padded_and_marks_targets():
    batch = peer.training_batch(
        [Example([5, 6, 7], [False, True, True]),
         Example([8, 9], [False, True])], CPU)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert peer.pad([[1, 2], [3]], 0, CPU, left=True).tolist() == [[1, 2], [0, 3]]
