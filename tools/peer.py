"""The same work by the standard stack: transformers with peft, as users set them up. bench.py runs
it beside mathft.

    python -m tools.bench --case lora --peer       # this module's work in processes of its own

The one module that needs transformers and peft; it is imported in the peer's process alone, so that
neither costs the others time or memory. Its functions are given token ids, never text: both sides
do exactly the same problems.

Settings are the libraries' defaults: weights of one dtype, fused attention (sdpa), a batch padded
to its longest row, computed at once, AdamW as torch has it, gradients clipped as the Trainer clips
them, no cache in training.

Shapes: B rows, S longest row.
"""

from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn

from data import Example
from runtime import clock
from tokenizer import Tokenizer

VERSIONS = {"transformers": transformers.__version__, "peft": peft.__version__}
IGNORED = -100  # the label of a token that is no target, in transformers
CLIP = 1.0  # largest norm of the gradient, the Trainer's default


def load(folder: Path | str, device: torch.device,
         dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The checkpoint in `folder`, all of its weights in `dtype`."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)


def pad(rows: list[list[int]], filler: int, device: torch.device, left: bool = False) -> Tensor:
    """Rows of ids side by side, [B, S], the short ones filled up on the right or on the left."""
    longest = max(map(len, rows))
    fills = [[filler] * (longest - len(row)) for row in rows]
    return torch.tensor([fill + row if left else row + fill for fill, row in zip(fills, rows)],
                        device=device)


# ----------------------------------------------------------------------------------------- training


def training_step(task, device: torch.device,
                  dtype: torch.dtype) -> Callable[[list[Example]], float]:
    """A function that does one optimiser step; it returns the mean loss before it, in nats a
    target.

    `task` is a bench.Task. The adapter that training starts from is in its work folder, under the
    name of its case; without one, the whole model trains.
    """
    model = load(task.model, device, dtype)
    model.config.use_cache = False  # as the Trainer sets it
    if task.flags.grad_checkpoint:
        model.gradient_checkpointing_enable()
    adapter = Path(task.work) / task.case
    if adapter.exists():  # not PeftModel.from_pretrained: it refuses to train a prefix
        settings = peft.PeftConfig.from_pretrained(adapter)
        settings.inference_mode = False
        model = peft.get_peft_model(model, settings)
        peft.set_peft_model_state_dict(model, peft.load_peft_weights(adapter, str(device)))
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=task.learning_rate)

    def step(examples: list[Example]) -> float:
        loss = model(**training_batch(examples, device)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def training_batch(examples: list[Example], device: torch.device) -> dict[str, Tensor]:
    """Ids, mask and labels, [B, S] each, padded on the right; transformers itself shifts the labels
    by one.
    """
    labels = [[i if target else IGNORED for i, target in zip(e.ids, e.is_target, strict=True)]
              for e in examples]
    return {
        "input_ids": pad([e.ids for e in examples], 0, device),  # any id will do: the mask hides it
        "attention_mask": pad([[1] * len(e.ids) for e in examples], 0, device),
        "labels": pad(labels, IGNORED, device),
    }


# --------------------------------------------------------------------------------------- generation


def generator(task, device: torch.device, dtype: torch.dtype, rows: int = 64) -> Callable:
    """A function (prompts, new tokens of each, samples, temperature) -> (first token of each
    prompt, decoded, start).

    Prompts are taken in their order, `rows` completions at a time, and every batch goes on to the
    longest of its rows: a static batch cannot let go of one. `decoded` tokens came after `start`,
    the clock at the second forward pass (of the last batch): all but the first of each row, which
    the pass over the prompts has given.
    """
    model, stops = load(task.model, device, dtype).eval(), sorted(
        Tokenizer(Path(task.model)).stop_ids)
    # Instead of the checkpoint's own, which may hold a repetition penalty.
    model.generation_config = transformers.GenerationConfig(eos_token_id=stops,
                                                            pad_token_id=stops[0])
    passes: list[float] = []  # when the first two forward passes of a batch began

    def note(module: nn.Module, args: tuple) -> None:
        if len(passes) < 2:
            passes.append(clock(device))

    model.register_forward_pre_hook(note)

    @torch.inference_mode()
    def run(prompts: list[list[int]], lengths: list[int], samples: int, temperature: float):
        torch.manual_seed(task.flags.seed)
        how = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
        at_once, first = rows // samples, []
        for start in range(0, len(prompts), at_once):
            batch, longest = prompts[start : start + at_once], max(lengths[start : start + at_once])
            ids = pad(batch, stops[0], device, left=True)  # [B, S]
            mask = pad([[1] * len(prompt) for prompt in batch], 0, device, left=True)
            passes.clear()
            found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=longest,
                                   min_new_tokens=longest, num_return_sequences=samples,
                                   use_cache=True, do_sample=bool(how), **how)
            # [B · samples, S + longest]
            if found.shape[1] != ids.shape[1] + longest:
                raise ValueError(
                    f"{found.shape[1] - ids.shape[1]} new tokens came, {longest} were asked for")
            first += found[::samples, ids.shape[1]].tolist()
        return first, samples * (sum(lengths) - len(lengths)), passes[-1]

    return run


if __name__ == "__main__":
    print(__doc__)
