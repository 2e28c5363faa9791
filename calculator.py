"""A calculator for the model: behind `<<48/2=` it writes `24>>`, in the marks of GSM8K.

    python calculator.py "She sold 48/2 = <<48/2="       # prints 24>>
    python evaluate.py --run runs/NAME --calculator

1. The model has just produced a token that ends in `=`.
2. What stands between the last `<<` and this `=` is computed exactly, in fractions, by the parser
   of recipes/arithmetic.py: it runs nothing, and reads no long or deep expression.
3. The digits of the result and `>>` become the next tokens of the row, instead of sampled ones.

Nothing is written, and the model goes on by itself, if the expression cannot be read, divides by
zero, or has a result of more than four decimal places (10/3) or of more than 20 characters.

A token may join `=` with its neighbours. Tokens like `)=` and `%=` end in `=` and are caught. After
a token like `=-` or `=$` the model has begun the result itself, and nothing is written. The result
is tokenised on its own: digit by digit, as the tokenizer of Qwen2.5 cuts it in a solution, except
that a negative one begins with `=` and `-` instead of `=-`.

Source: Cobbe et al. 2021 (GSM8K, arXiv 2110.14168), section 2 and appendix C; theirs runs Python.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out

from recipes.arithmetic import LONGEST_EXPRESSION, LONGEST_NUMBER, compute, write
from tokenizer import Tokenizer

MOST_TOKENS = LONGEST_EXPRESSION + 3  # of `<<`, an expression and `=`, a character each


def completed(text: str) -> str | None:
    """What the calculator writes behind a text, such as `24>>`; None if it writes nothing."""
    before, opened, expression = text.rpartition("<<")
    if not opened or not expression.endswith("="):
        return None
    try:
        result = write(compute(expression.removesuffix("=")), like="")
    except ValueError:  # no expression, or no short decimal
        return None
    return f"{result}>>" if len(result) <= LONGEST_NUMBER else None


class Calculator:
    """The tokens that the calculator writes behind the new tokens of a row."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        # In a byte-pair vocabulary `=` is written as itself.
        self.ends = {number for token, number in tokenizer.vocabulary.items()
                     if token.endswith("=")}

    def __call__(self, ids: list[int]) -> list[int]:
        """Mostly none: ids [n] -> ids [m]."""
        if ids[-1] not in self.ends:
            return []
        text = completed(self.tokenizer.decode(ids[-MOST_TOKENS:]))
        return [] if text is None else self.tokenizer.encode(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python calculator.py TEXT")
    print(completed(sys.argv[1]) or "(nothing)")
