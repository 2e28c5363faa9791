"""Makes new problems from worked ones by rule: other numbers in the same story, or the story turned
around.

    python -m recipes.perturb            # an embedded problem, with new numbers and turned around

Both run the program of the solution (program.py), exactly and without a teacher. If a problem has
no program, `Unfit` says why.

    simple    draw new numbers for the question, recompute every mark, write the new numbers
              wherever the old ones stand
    hard      one number becomes x, the answer is given, and the solution undoes the steps from the
              last to the first

After MATH-Perturb (Huang et al. 2025, arXiv 2502.06453): its authors rewrote MATH by hand. Its
hard problems need another way of solving, and so do backward questions: Jiang et al. 2023 (FOBAR,
arXiv 2308.07758), Yu et al. 2023 (MetaMath, arXiv 2309.12284, section 3). There a model writes the
new solutions; here each is computed.
"""

import random
import sys
from dataclasses import replace
from fractions import Fraction

import synthetic
from answers import extract_answer
from data import Problem, parse_record
from recipes.arithmetic import (Numeral, Tree, apply, contains, expression, places_of, tree_value,
                                write)
from recipes.program import Program, Unfit, article, is_percent, program, singular_words, value_of
from runtime import hash_of

MOST_DRAWS = 2000  # of new numbers; most fail at once, at a division that leaves a rest
GROWTH = 10  # a new value is at most so many times the old one


# ----------------------------------------------------------------------------- new numbers (simple)


def perturb(problem: Problem, rng: random.Random, hard: bool = False) -> Problem:
    """The problem with new numbers, or with `hard` turned around. Raises Unfit with the reason."""
    made = program(problem)
    return turned_around(made, rng) if hard else renumbered(made, rng)


def renumbered(made: Program, rng: random.Random) -> Problem:
    """The same story with other numbers: each of its free numbers changes, and so does the
    answer."""
    numbers = draw_fitting(made, rng)
    results, _ = made.run(numbers)
    texts = []
    for text, places in zip((made.problem.question, made.problem.solution), made.places,
                            strict=True):
        texts.append(replaced(text, [(n, write(value_of(source, numbers, results), n.text))
                                     for n, source in places]))
    return child(made.problem, "perturb", *texts)


def draw_fitting(made: Program, rng: random.Random) -> dict[Fraction, Fraction]:
    """New values for the numbers of the question (by their old ones) with which the same program
    holds."""
    bound = bound_numbers(made)
    free = [number for number in made.numbers if number not in bound]
    if not free:
        raise Unfit("no number is free to change")
    question = made.problem.question
    percents = {n.value for n, _ in made.places[0] if is_percent(question, n)}
    after_a = {n.value for n, _ in made.places[0] if article(question, n) == "a"}
    old, old_trail = made.run({})
    for _ in range(MOST_DRAWS):
        numbers = {number: draw(rng, number, number in percents) for number in free}
        try:
            for number, step in bound.items():
                numbers[number] = made.run(numbers)[0][step]
            results, trail = made.run(numbers)
        except ValueError:  # divides by zero
            continue
        if (
            all(map(_keeps_its_kind, [*old_trail, *numbers], [*trail, *numbers.values()]))
            and _keeps_roles(made, numbers, old, results)
            and all(numbers[p] < 100 for p in percents & numbers.keys() if p < 100)
            and not any(_is_vowel(numbers[n]) for n in after_a & numbers.keys())
        ):
            return numbers
    raise Unfit("no numbers fit")


def bound_numbers(made: Program) -> dict[Fraction, int]:
    """Numbers of the question that follow from a step: they are tied to its result, and not needed
    before it.

    number -> step
    """
    bound = {}
    for tie in made.ties:
        numbers = [source[1] for source in tie
                   if source[0] == "number" and source[1] in made.numbers]
        first = min((source[1] for source in tie if source[0] == "result"), default=-1)
        needed = {source[1] for step in made.steps[: first + 1] for source in step.operands
                  if source[0] != "result"}
        bound |= {number: first for number in numbers if first >= 0 and number not in needed}
    return dict(sorted(bound.items(), key=lambda item: item[1]))


def draw(rng: random.Random, number: Fraction, percent: bool) -> Fraction:
    """Another number of the same kind: half to twice its size, as many decimal places, as round;
    one digit gives 2..9."""
    places = places_of(number)
    units = int(number * 10**places)
    low, high = (2, 9) if units < 10 else (-(-units // 2), 2 * units)
    if percent and number < 100:
        high = min(high, 95 * 10**places)
    tens = max((10**z for z in range(20) if units % 10**z == 0 and units >= 10**(z + 1)), default=1)
    step = 5 if tens == 1 and units >= 15 and units % 5 == 0 else tens
    return Fraction(rng.randrange(-(-low // step) * step, high + 1, step), 10**places)


def _keeps_its_kind(before: Fraction, after: Fraction) -> bool:
    """A whole value stays whole (a decimal as short), a positive one positive, and none grows
    beyond GROWTH times."""
    same_sign = (before > 0) == (after > 0) and (before < 0) == (after < 0)
    if not same_sign or abs(after) > GROWTH * abs(before):
        return False
    if before.denominator == 1 or after.denominator == 1:
        return after.denominator == 1
    try:
        places = places_of(before)
    except ValueError:  # 1/3 of an expression: any other value will do
        return True
    return (after * 10**places).denominator == 1


def _keeps_roles(made: Program, numbers: dict[Fraction, Fraction], old: list[Fraction],
                 new: list[Fraction]) -> bool:
    """Whether each number plays its part in the new problem, and no other.

    Every number and the answer change, and whole numbers stay whole. Tied sources are still equal.
    No two values that differed have become equal.
    """
    changed = old[-1] != new[-1] and all(
        before != after and (before.denominator == 1) == (after.denominator == 1)
        for before, after in numbers.items())
    if not changed or any(len({value_of(source, numbers, new) for source in tie}) > 1
                          for tie in made.ties):
        return False
    values = {(constant, constant) for constant in made.constants}
    values |= {*numbers.items(), *zip(old, new, strict=True)}  # (before, after)
    return len({after for _, after in values}) == len(values)


def _is_vowel(number: Fraction) -> bool:
    """Whether a number is spoken with a vowel first: an 8, an 11, an 80; a 5."""
    return str(int(number)).startswith("8") or int(number) in (11, 18)


def replaced(text: str, changes: list[tuple[Numeral, str]]) -> str:
    """The text with other words in the places of some numbers."""
    for numeral, new in sorted(changes, key=lambda change: -change[0].start):
        text = text[: numeral.start] + new + text[numeral.end :]
    return text


def child(parent: Problem, recipe: str, question: str, solution: str) -> Problem:
    """A problem made of another. Its id has the parent's id, the recipe and a hash of the texts."""
    name = f"{parent.id}/{recipe}-{hash_of(question + solution) % 16**6:06x}"
    return replace(parent, id=name, question=question, solution=solution,
                   answer=extract_answer(solution) or "",
                   origin={"recipe": recipe, "parent": parent.id})


# ----------------------------------------------------------------------------- turned around (hard)

ASKED = ("If the answer to this is {}, what is x?", "The answer to this is {}. Find x.")
# How to get back the left (1) and the right (2) operand of an operation: the words, and the
# calculation from the result `r` and the other operand `o`.
UNDO = {
    ("+", 1): ("Undo adding {}", "r-o"), ("+", 2): ("Undo adding to {}", "r-o"),
    ("-", 1): ("Undo taking away {}", "r+o"), ("-", 2): ("It was taken from {}", "o-r"),
    ("*", 1): ("Undo multiplying by {}", "r/o"), ("*", 2): ("Undo multiplying by {}", "r/o"),
    ("/", 1): ("Undo dividing by {}", "r*o"), ("/", 2): ("It divided {}", "o/r"),
}  # fmt: skip


def turned_around(made: Program, rng: random.Random) -> Problem:
    """One number of the question becomes x, the answer is given, and the solution works back from
    it."""
    problem = made.problem
    if "x" in singular_words(problem.question) or not problem.question.rstrip().endswith("?"):
        raise Unfit("the question cannot be asked backwards")
    chains = {number: chain for number in made.numbers if (chain := chain_from(made, number))}
    if not chains:
        raise Unfit("no number can be reached by undoing steps")
    number = rng.choice(sorted(chains))
    answer = problem.solution[problem.solution.rfind("####") + 4 :].strip()
    place = next(n for n, source in made.places[0] if source == ("number", number))
    asked = rng.choice(ASKED).format(answer)
    question = f"{replaced(problem.question, [(place, 'x')]).rstrip()} {asked}"
    results, _ = made.run({})
    try:
        lines = first_lines(made, chains[number], results)
        lines.append(f"Now work back from the answer, {answer}.")
        value = results[-1]
        for step, operand in reversed(chains[number]):
            operands = [value_of(source, {}, results) for source in made.steps[step].operands]
            value = undo(made.steps[step].shape, operands, operand, value, lines)
    except ValueError:
        raise Unfit("a step back has no short value") from None
    return child(problem, "backward", question, "\n".join([*lines, f"#### {write(value, '')}"]))


def chain_from(made: Program, number: Fraction) -> list[tuple[int, int]]:
    """The steps from a number of the question to the answer, as (step, operand); [] if they are no
    chain.

    In a chain the number stands once in the question. It and each result on the way are used once,
    and no tie makes it unclear which is meant.
    """
    source, chain = ("number", number), []
    if sum(s == source for _, s in made.places[0]) != 1:
        return []
    while source != ("result", len(made.steps) - 1):
        uses = [(k, i) for k, step in enumerate(made.steps) for i, s in enumerate(step.operands)
                if s == source]
        percent = any(s[:2] == ("percent", number) for step in made.steps for s in step.operands)
        if len(uses) != 1 or percent or any(source in tie for tie in made.ties):
            return []
        chain += uses
        source = ("result", uses[0][0])
    return chain


def first_lines(made: Program, chain: list[tuple[int, int]], results: list[Fraction]) -> list[str]:
    """The needed steps that can be computed without x, each in a line of its own."""
    on_chain = {step for step, _ in chain}
    needed: set[int] = set()
    for k in reversed(range(len(made.steps))):
        if k in on_chain | needed:
            needed |= {source[1] for source in made.steps[k].operands if source[0] == "result"}
    lines = []
    for k in sorted(needed - on_chain):
        operands = [value_of(source, {}, results) for source in made.steps[k].operands]
        left = expression(made.steps[k].shape, operands)
        lines.append(f"Without x, {marked(left, results[k])}.")
    return lines


def undo(shape: Tree, operands: list[Fraction], unknown: int, value: Fraction,
         lines: list[str]) -> Fraction:
    """The operand `unknown` of an expression, from its value. Undoes the outermost operation first;
    appends a line for each to `lines`."""
    while isinstance(shape, tuple):
        side = 1 if contains(shape[1], unknown) else 2
        rest = shape[3 - side]
        other, other_text = tree_value(rest, operands, []), expression(rest, operands)
        if isinstance(rest, tuple):
            other_text = f"({other_text})"
        if other <= 0 or value <= 0:
            raise ValueError("x would have several values, or a number would need a sign")
        words, (first, sign, second) = UNDO[shape[0], side]
        given = {"r": (value, write(value, "")), "o": (other, other_text)}
        value = apply(sign, given[first][0], given[second][0])
        left = given[first][1] + sign + given[second][1]
        lines.append(f"{words.format(other_text)}: {marked(left, value)}.")
        shape = shape[side]
    return value


def marked(left: str, value: Fraction) -> str:
    """`48/2 = <<48/2=24>>24`."""
    return f"{left} = <<{left}={(shown := write(value, ''))}>>{shown}"


def main(number: str = "1") -> None:
    """Print an embedded problem, with new numbers, and turned around."""
    record = synthetic.problem("mini-gsm", "train", int(number))
    problem = parse_record(record, record["id"])
    print(f"{problem.question}\n{problem.solution}")
    for hard in (False, True):
        try:
            made = perturb(problem, random.Random(problem.id), hard)
            print(f"\n{made.origin['recipe']}: {made.question}\n{made.solution}")
        except Unfit as error:
            print(f"\n{'backward' if hard else 'perturb'}: {error}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or not all(argument.isdecimal() for argument in sys.argv[1:]):
        sys.exit("usage: python -m recipes.perturb [NUMBER OF AN EMBEDDED PROBLEM]")
    main(*sys.argv[1:])
