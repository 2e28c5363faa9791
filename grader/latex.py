r"""Read the text of an answer into a tree: LaTeX, plain typing and the habits of models.

    python -m grader.latex '\left[\frac12, 3\sqrt2\right)'

    \left[\frac12, 3\sqrt2\right)
          │ scanner.py
          ▼
    [   frac   1   2   ,   3   sqrt   2   )
          │ this module, and expressions.py for each value
          ▼
    ("tuple", "[)", [("value", 1/2, None), ("value", 3 sqrt 2, None)])

Recursive descent, one method per level:

    items       relation, relation; relation and relation
    relation    union = union < union
    union       part \cup part \setminus part
    part        (a, b)   [a, b)   {a, b}   words   an expression with its unit

A node of the tree is a tuple that begins with its kind:

    ("list", items) in any order         ("set", items)
    ("tuple", brackets, items)           coordinates, or the ends of an interval
    ("union", parts)                     ("minus", left, right)
    ("relation", signs, sides)           ("words", text)
    ("matrix", rows)                     ("based", digits, base)
    ("value", expression, unit or None)  ("values", expression, unit or None) if the expression
                                         has a plus or minus

Any other text raises Unreadable and is compared as text.
"""

import sys
from string import digits

from grader.expressions import RELATIONS, SEPARATORS, ExpressionReader
from grader.scanner import CLOSE, END, OPEN, TEXT, TYPED_NAMES, Budget, Token, Unreadable, scan

MATHEMATICAL = {*"0123456789+*/=<>^_|&%[]"}  # an answer of words has none of them


def parse(text: str, budget: Budget) -> tuple:
    """The tree of an answer. Raises Unreadable."""
    words = _only_words(text)
    if words:
        return ("words", words)
    tree = AnswerReader(scan(text, budget), budget).items((END,))
    if len(tree) == 0:
        raise Unreadable("no answer in the text")
    return tree[0] if len(tree) == 1 else ("list", tree)


def _only_words(text: str) -> str:
    """The words, in lower case, of an answer without mathematics; else an empty text."""
    if MATHEMATICAL & {*text} or text.count("{") != text.count("}"):
        return ""
    for command in TEXT:
        text = text.replace(f"\\{command}{{", "{")
    plain = "".join(" " if c in "{}()$~.!?'\"" or c.isspace() else c for c in text).split()
    joined = "".join(plain)
    if all(len(part) > 2 for part in joined.split("-")):
        joined = joined.replace("-", "")  # twenty-one, and not p-q
    # One letter is a variable and not a word.
    if len(joined) < 2 or not joined.isascii() or not joined.isalpha():
        return ""
    if TYPED_NAMES.keys() & set(plain):
        return ""
    if all(len(word) < 3 for word in plain) and "{" not in text:
        return ""  # two letters side by side are a product, unless marked as text
    return " ".join(plain).lower()


class AnswerReader(ExpressionReader):
    """Recursive descent from a list of answers down to the values in them."""

    def __init__(self, tokens: list[Token], budget: Budget):
        super().__init__(tokens, budget)
        self.collections = _collections(tokens)

    def item(self) -> tuple:
        return self.relation()

    def relation(self) -> tuple:
        r"""`a`, `a = b`, `a < b <= c`. Of `\frac13 \approx 0.333`, only the exact value counts."""
        sides, signs = [self.union()], []
        while self.next.kind in RELATIONS:
            named = sides[-1][0] == "value" and sides[-1][1][0] == "name"
            if self.next.kind == "approx" and not named:
                self.take()
                self.union()
                continue
            signs.append(RELATIONS[self.take().kind])
            sides.append(self.union())
        return ("relation", signs, sides) if signs else sides[0]

    def union(self) -> tuple:
        parts = [self.part()]
        while self.accept("cup") or parts[-1][0] in ("tuple", "set") and self._typed_union():
            parts.append(self.part())
        tree = parts[0] if len(parts) == 1 else ("union", parts)
        while self.accept("setminus"):
            tree = ("minus", tree, self.part())
        return tree

    def _typed_union(self) -> bool:
        """Take the U of `(1, 2) U (3, 4)`."""
        return self.next.kind == "letter" and self.next.text == "U" and bool(self.take())

    def part(self) -> tuple:
        """A bracketed collection, words, or a value with its unit."""
        kind = self.next.kind
        if kind == "emptyset":
            self.take()
            return ("set", [])
        if kind == r"\{":
            self.take()
            if self.next.kind == "letter" and self.tokens[self.at + 1].kind in ("|", ":"):
                return self._set_of_all()
            return ("set", self.items((r"\}",)))
        if self.at in self.collections:
            return self._collection()
        if kind == "text" or kind == "word":
            return self._words()
        return self._value_with_unit()

    def _value_with_unit(self) -> tuple:
        self.unit, self.two_values = None, False
        value = self.sum()
        if value[0] == "negative" and value[1][0] == "based":
            value = ("based", "-" + value[1][1], value[1][2])
        if value[0] in ("matrix", "based"):
            return value
        if self.next.kind == "text" and not self._is_separator_text():
            self.take_unit(self.take().text)
            if self.accept("^"):
                self.take_unit((self.unit or "") + "^" + self.exponent_of_unit())
        return ("values" if self.two_values else "value", value, self.unit)

    def _is_separator_text(self) -> bool:
        return self.next.text.strip(" ,.").lower() in ("and", "or", "")

    def _collection(self) -> tuple:
        """A tuple or an interval, or a set in plain braces, which TeX does not print."""
        opening = self.take().kind
        found = self.items(("}",) if opening == "{" else (")", "]", "rangle"))
        closing = self.tokens[self.at - 1].kind
        if opening == "{":
            return ("set", found)
        if (closing == "rangle") != (opening == "langle"):
            raise Unreadable("the brackets do not match")
        return ("tuple", opening + closing, found)

    def _set_of_all(self) -> tuple:
        r"""`\{x \mid x > 2\}`: the condition on x."""
        self.take()
        self.take()
        condition = self.relation()
        self.expect(r"\}")
        return condition

    def _words(self) -> tuple:
        r"""`\text{(C)}` is the letter in it; any other text is its words in lower case."""
        pieces = []
        while self.next.kind in ("text", "word") and not (pieces and self._is_separator_text()):
            pieces.append(self.take().text)
        text = " ".join("".join(" " if c in "(){}.~$" else c for c in " ".join(pieces)).split())
        if not text:
            raise Unreadable("an empty text")
        if len(text) == 1 and text.isalpha():
            return ("value", ("name", text), None)
        if any(c in digits for c in text) or "\\" in text:
            raise Unreadable("digits in a text")
        return ("words", text.lower())


def _collections(tokens: list[Token]) -> set[int]:
    """The places of the brackets that hold a separator: they open a collection, not a group."""
    opened: list[int] = []
    found = set()
    for at, token in enumerate(tokens):
        if token.kind in OPEN or token.kind == "{":
            opened.append(at)
        elif (token.kind in CLOSE or token.kind == "}") and opened:
            opened.pop()
        elif token.kind in SEPARATORS and opened:
            found.add(opened[-1])
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.latex ANSWER")
    try:
        print(parse(sys.argv[1], Budget(10_000)))
    except Unreadable as reason:
        print(f"compared as text: {reason}")
