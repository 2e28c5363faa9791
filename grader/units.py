r"""Read what stands behind a number: a unit, a plain noun, or a word that multiplies it.

    python -m grader.units '\text{ m/s}^2'        # m second^-2

    quantity = scale word ... [unit]            million dollars, tenths of a mile
    unit     = term [*] term / term per term    km/h, m s^{-2}, dollars per hour, red apples
             | term / (term term)               J/(mol K)
    term     = [square | cubic] name [^ whole number | squared | cubed]

A name is a unit of tables.UNITS or a plain noun. A word of tables.NO_UNITS changes what the number
says (`5 squared`, `2 if even`), so the text is unreadable and is compared as text.
"""

import sys
from fractions import Fraction

from grader.scanner import CLOSE, END, Budget, Cursor, Token, Unreadable, scan
from grader.tables import (COMPOSED, CURRENCIES, IDLE_WORDS, LETTER_UNITS, NO_UNITS, POWER_WORDS,
                           POWERED_WORDS, SCALES, UNIT_COMMANDS, UNITS, UPRIGHT_UNITS)

# What may stand behind a value with its unit.
UNIT_ENDS = {END, *CLOSE, *".,;:=<>}|&", "and", "or", "<=", ">=", "!=", "le", "ge", "ne", "approx",
             "in", "\\\\", "end", "dots"}


class UnitReader(Cursor):
    """Reads units. `unit` holds the unit that stands beside the value, in one spelling."""

    def __init__(self, tokens: list[Token], budget: Budget):
        super().__init__(tokens)
        self.budget = budget
        self.unit: str | None = None

    def unit_begins(self, value: tuple) -> bool:
        """Whether a unit is next, behind the tree of a value."""
        token, after = self.next, self.tokens[self.at + 1]
        if token.kind == "word":
            return token.text.lower() != "remainder"
        if token.kind == "letter":
            spaced = token.spaced and token.text in LETTER_UNITS and after.kind != "("
            upright = token.upright and token.text in UPRIGHT_UNITS
            return (spaced or upright) and not has_names(value)
        if token.kind == "/":
            unit_of_one = after.kind == "letter" and after.text in UPRIGHT_UNITS
            return after.kind == "word" or unit_of_one and self.unit is not None
        if token.kind == "(":
            return token.spaced and after.kind == "word"
        if token.kind in UNIT_COMMANDS:
            return after.kind in UNIT_ENDS and not has_names(value)
        if token.kind == "mu":  # a millionth of the unit behind it
            return after.upright and not has_names(value)
        return token.kind in CURRENCIES

    def read_unit(self) -> int | Fraction:
        """Take a unit. Returns the factor of its scale words: 5 million, 7 eighths."""
        begin, factor = self.at, self._scale()
        if factor != 1 and self._is_word("of"):
            self.take()
            if self._is_word("a", "an", "the"):
                self.take()
        bracket = self.accept("(")
        powers: dict[str, int] = dict.fromkeys([self.unit] if self.unit else [], 1)
        self._terms(powers)
        if bracket:
            self.expect(")")
        if self.at == begin or self.next.kind not in UNIT_ENDS:
            raise Unreadable("a unit inside a value")
        self.unit = unit_text(powers)
        return factor

    def _scale(self) -> int | Fraction:
        factor = 1
        while self.next.kind == "word" and singular(self.next.text.lower()) in SCALES:
            factor *= SCALES[singular(self.take().text.lower())]
        return factor

    def _is_word(self, *words: str) -> bool:
        return self.next.kind in ("word", "letter") and self.next.text.lower() in words

    def _terms(self, powers: dict[str, int]) -> None:
        """Take names with their powers, and add these to `powers`."""
        while True:
            self.budget.take()
            sign = 1
            if self.accept("/") or self._is_word("per", "an") and self.take() or (
                    self._is_word("a") and powers and self.take()):
                sign = -1
            elif self.next.kind == "*" and self.tokens[self.at + 1].kind in ("word", "letter"):
                self.take()
            if self._is_word("of") and powers:
                self._skip_nouns()
            elif sign < 0 and self.accept("("):
                below: dict[str, int] = {}
                self._below(below)
                for name, power in below.items():
                    powers[name] = powers.get(name, 0) - power
            elif self.next.kind == "word" or self._is_unit_letter() or (
                    self.next.kind in (*CURRENCIES, *UNIT_COMMANDS, "mu")):
                self._term(sign, powers)
            elif sign < 0:
                raise Unreadable("a unit that ends too early")
            else:
                return

    def _below(self, powers: dict[str, int]) -> None:
        """Take the terms of a denominator up to its closing bracket; no bracket stands in it."""
        while not self.accept(")"):
            self.budget.take()
            self.accept("*")
            if not (self.next.kind == "word" or self._is_unit_letter()):
                raise Unreadable("a denominator that is no product of units")
            self._term(1, powers)

    def _is_unit_letter(self) -> bool:
        return self.next.kind == "letter" and self.next.text in UPRIGHT_UNITS

    def _skip_nouns(self) -> None:
        """Take `of flour` of `3 cups of flour`: the first noun is the unit."""
        self.take()
        while self.next.kind == "word" or self._is_word("a"):
            _checked(self.take().text)

    def _term(self, sign: int, powers: dict[str, int]) -> None:
        token = self.take()
        if token.kind == "mu" or token.text in ("k", "M") and self.next.kind in UNIT_COMMANDS:
            unit = self.take()
            name = (token.text or token.kind) + (UNIT_COMMANDS.get(unit.kind)
                                                 or unit_name(unit.text))
        else:
            name = (CURRENCIES.get(token.kind) or UNIT_COMMANDS.get(token.kind)
                    or unit_name(_checked(token.text)))
        if name in IDLE_WORDS:
            return
        power = POWER_WORDS.get(name, 1)
        if power > 1 and (self.next.kind == "word" or self._is_unit_letter()):
            name = unit_name(_checked(self.take().text))
        if self.accept("^"):
            power *= self._exponent()
        elif self.next.kind == "word" and self.next.text.lower() in POWERED_WORDS:
            power *= POWERED_WORDS[self.take().text.lower()]
        for part, times in COMPOSED.get(name, {name: 1}).items():
            powers[part] = powers.get(part, 0) + sign * power * times

    def _exponent(self) -> int:
        """The 2 of `cm^2` or `cm^{-2}`, behind the `^`."""
        braced = self.accept("{")
        sign = -1 if self.accept("-") else 1
        token = self.take()
        if not token.text.isdigit() or len(token.text) > 2:
            raise Unreadable("the exponent of a unit is no whole number")
        if braced:
            self.expect("}")
        return sign * int(token.text)


def has_names(tree) -> bool:
    """Whether a tree holds a variable: a name that is no constant."""
    if isinstance(tree, tuple) and tree and tree[0] == "name":
        return tree[1] not in ("pi", "e", "i", "infty")
    return isinstance(tree, (tuple, list)) and any(map(has_names, tree))


def names_in(tree) -> set[str]:
    """The variables in a tree."""
    if isinstance(tree, tuple) and tree and tree[0] == "name":
        return {tree[1]} - {"pi", "e", "i", "infty"}
    inner = tree if isinstance(tree, (tuple, list)) else ()
    return {name for part in inner for name in names_in(part)}


def _checked(word: str) -> str:
    """The word. Raises Unreadable if it changes what a number says."""
    if word in NO_UNITS or word.lower() in NO_UNITS or singular(word.lower()) in SCALES:
        raise Unreadable(f"{word} changes the value")
    return word


def singular(word: str) -> str:
    """The word without its plural s."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def unit_name(word: str) -> str:
    """One name for each unit or noun: `inches` is `inch`, `Apples` is `apple`."""
    word = word.rstrip(".")
    lower = word.lower()
    return UNITS.get(word) or UNITS.get(lower) or UNITS.get(singular(lower)) or singular(lower)


def unit_text(powers: dict[str, int]) -> str | None:
    """`m second^-2`, sorted by name; None without a name."""
    named = [name if power == 1 else f"{name}^{power}" for name, power in powers.items() if power]
    return " ".join(sorted(named)) or None


def same_units(a: str | None, b: str | None) -> bool:
    """Whether two units agree. A missing one agrees with all, and degrees with any kind of them."""
    if not a or not b or a == b:
        return True
    return "degree" in (a, b) and a.endswith("degree") and b.endswith("degree")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.units UNIT")
    try:
        steps = Budget(10_000)
        reader = UnitReader(scan(f"1 {sys.argv[1]}", steps), steps)
        reader.take()
        print(reader.read_unit(), reader.unit)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
