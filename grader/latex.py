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

    answers     relation, relation; relation and relation
    relation    union = union < union
    union       part \cup part \setminus part
    part        (a, b)   [a, b)   {a, b}   a : b   words   an expression with its unit

A node of the tree is a tuple that begins with its kind:

    ("list", items) in any order         ("set", items)
    ("tuple", brackets, items)           coordinates, or the ends of an interval
    ("union", parts)                     ("minus", left, right)
    ("relation", signs, sides)           ("all", relations): and   ("any", relations): or
    ("words", text, letters)             the letters of one word, which may be a product: abc
    ("matrix", rows)                     ("based", digits, base)
    ("ratio", parts)                     ("remainder", parts): 5 remainder 2
    ("cases", rows)                      ("dots",) in a list
    ("value", expression, unit or None)

An answer with plus or minus is the list of its values. Any other text raises Unreadable and is
compared as text.
"""

import itertools
import sys

from grader.expressions import MARKS, RELATIONS, SEPARATORS, ExpressionReader
from grader.scanner import CLOSE, END, OPEN, Budget, Token, Unreadable, scan
from grader.tables import (EMPTY_SET, FUNCTIONS, GREEK, LEAD_INS, NO_UNITS, OPTIONS, QUANTIFIED,
                           TEXT, TRAILERS, TYPED_NAMES, WHOLE_LINE)

MATHEMATICAL = {*"0123456789+*/=<>^_|&%[]:"}  # an answer of words has none of them
MEASURE_SIGNS = {"(", "[", "'", "_", "^"}  # behind the letter
CASES = Token("word", "cases")
MOST_SIGNS = 4  # independent plus or minus signs in one value: sixteen values
INFINITY = ("name", "infty")
REALS = ("tuple", "()", [("value", ("negative", INFINITY), None), ("value", INFINITY, None)])
# Letters that name functions and measures: f(x + 1) and P(A) stand for one value.
MEASURES = {*"fghABCDEFGHLMNPQRSTVW", "phi", "psi", "Phi", "Psi"}


def parse(text: str, budget: Budget) -> tuple:
    """The tree of an answer. Raises Unreadable."""
    words = _only_words(text)
    if words:
        plain = "\\" not in text and words.isalpha()
        letters = "".join(filter(str.isalpha, text)) if plain and words not in NO_UNITS else ""
        return _known_set(words) or ("words", words, letters)
    return AnswerReader(_trimmed(scan(text, budget)), budget).answers((END,))


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
    words = " ".join(plain).lower()
    if all(len(word) < 3 for word in plain) and "{" not in text and words != "no":
        return ""  # two letters side by side are a product, unless marked as text
    option = len(plain) == 2 and len(plain[1]) == 1 and words.split()[0] in OPTIONS
    return "" if option else words


def _known_set(words: str) -> tuple | None:
    """The set that words name: all real numbers, the empty set."""
    return REALS if words in WHOLE_LINE else ("set", []) if words in EMPTY_SET else None


def _trimmed(tokens: list[Token]) -> list[Token]:
    """The tokens without words that say nothing about the answer: `the answer is`, `where ...`."""
    if not {token.kind for token in tokens} & {"word", "approx"}:
        return tokens
    begin = 1 if tokens[0].kind == "approx" else 0
    spelled = [token.text.lower() or token.kind for token in tokens[:8]]
    for words in LEAD_INS:
        if spelled[begin : begin + len(words)] == words:
            begin += len(words)
            break
    label = begin
    while tokens[label].kind == "word" and tokens[label].text.lower() not in ("yes", "no"):
        label += 1
    if tokens[label].kind == ":" and label > begin:
        begin = label + 1
    elif label > begin + 1 and spelled[label - 1 : label] == ["is"] and tokens[label].kind != END:
        begin = label  # the area is 12
    elif label == begin + 1 and spelled[begin : label] and spelled[begin] in OPTIONS:
        begin = label
    if tokens[begin].kind == END:
        return tokens
    end = next((at for at in range(begin + 1, len(tokens) - 2) if _is_trailer(tokens, at)),
               len(tokens) - 2)
    while end > begin + 1 and tokens[end - 1].kind == ",":
        end -= 1
    return [*tokens[begin:end], *tokens[-2:]]


def _is_trailer(tokens: list[Token], at: int) -> bool:
    """Whether what stands from here on only explains the answer before it."""
    word = tokens[at].text.lower() if tokens[at].kind == "word" else ""
    if word == "for" and not any(token.kind in RELATIONS.keys() - {"in"} for token in tokens[at:]):
        return tokens[at + 1].text.lower() in QUANTIFIED or any(
            token.kind == "in" for token in tokens[at:])
    return word in TRAILERS or tokens[at].kind == "(" and tokens[at + 1].text.lower() in TRAILERS


class AnswerReader(ExpressionReader):
    """Recursive descent from a list of answers down to the values in them."""

    def __init__(self, tokens: list[Token], budget: Budget):
        super().__init__(tokens, budget)
        self.collections = _collections(tokens)

    # -- several answers

    def answers(self, ends: tuple[str, ...]) -> tuple:
        """One answer, or several with what joins them."""
        found, joins = self.several(ends)
        if not found:
            raise Unreadable("no answer in the text")
        if len(found) == 1:
            return found[0]
        if any(map(_limits, found)):
            # "x > 1 and x < 3" and "x > 1, x < 3" are both at once; "x < 1 or x > 3" is either.
            if "or" in joins and "and" in joins:
                raise Unreadable("and beside or")
            return ("any" if "or" in joins else "all", found)
        if joins == {"or"} and any(map(_is_interval, found)):
            return ("union", found)
        return ("list", found)

    def several(self, ends: tuple[str, ...], spread: bool = True) -> tuple[list[tuple], set[str]]:
        """Answers up to one of the end tokens, and the kinds of separators between them.

        An answer with plus or minus becomes several, unless `spread` is false.
        """
        self.descend()
        found: list[tuple] = []
        joins: set[str] = set()
        while self.next.kind not in ends:
            while self.next.kind in SEPARATORS:
                joins.add(self.take().kind)
            if self.next.kind == "." and self.tokens[self.at + 1].kind == END:
                self.take()
            if self.next.kind not in ends:
                signs = self.signs
                item = self.relation()
                if spread and self.signs > signs:
                    found += self._each_sign(item, signs)
                else:
                    found.append(item)
                kind = self.next.kind
                if kind not in ends and kind not in SEPARATORS and kind != ".":
                    raise Unreadable("neither an end nor a separator")
        self.take()
        self.depth -= 1
        return found, joins

    def item(self) -> tuple:
        return self.relation()

    def _each_sign(self, tree: tuple, first: int) -> list[tuple]:
        r"""The tree with each choice of its plus or minus signs, whose numbers begin at `first`.

        The signs are independent, as in `\pm1\pm i`, unless a `\mp` says that they go together.
        """
        count, self.signs = self.signs - first, first
        if _holds(tree, "neither"):
            return [_with_signs(tree, [sign] * count, first) for sign in (1, -1)]
        if count > MOST_SIGNS:
            raise Unreadable("too many signs")
        return [_with_signs(tree, choice, first)
                for choice in itertools.product((1, -1), repeat=count)]

    # -- relations

    def relation(self) -> tuple:
        r"""`a`, `a = b`, `a < b <= c`. Of `\frac13 \approx 0.333`, only the exact value counts."""
        named = self.tokens[self.at + 1].kind in MEASURE_SIGNS and self._measure()
        sides, signs = [named or self.union()], []
        while self.next.kind in RELATIONS:
            if self.next.kind == "approx" and not is_name(sides[-1]):
                self.take()
                self.union()
                continue
            signs.append(RELATIONS[self.take().kind])
            sides.append(self.union())
        return ("relation", signs, sides) if signs else sides[0]

    def _measure(self) -> tuple | None:
        """A name with arguments before an equals sign, as f(2) and P(X = 2), as one name."""
        at, token = self.at + 1, self.next
        if token.kind not in ("letter", "word") and token.kind not in GREEK:
            return None
        while (kind := self.tokens[at].kind) in ("'", "_", "^"):
            at += 1
            if kind != "'":
                at = _end_of_group(self.tokens, at) + 1
        opened = at
        if self.tokens[at].kind not in ("(", "["):
            return None
        at = _end_of_group(self.tokens, at) + 1
        if self.tokens[at].kind not in ("=", "approx"):
            return None
        inside = self.tokens[opened + 1 : at - 1]
        # n(A), x(2), y(t), and not a(b) nor n(n+1), which are products.
        one = len(inside) == 1 and (inside[0].kind == "number" or inside[0].text in "tnxABCDEX")
        if not one and token.kind != "word" and (token.text or token.kind) not in MEASURES:
            return None
        name = "".join(part.text or part.kind for part in self.tokens[self.at : at])
        self.go_to(at)
        return ("value", ("name", name), None)

    # -- unions and parts

    def union(self) -> tuple:
        parts = [self.ratio()]
        while self.accept("cup") or parts[-1][0] in ("tuple", "set") and self._typed_union():
            parts.append(self.part())
        tree = parts[0] if len(parts) == 1 else ("union", parts)
        if self.next.kind == "cap" and len(parts) == 1:
            while self.accept("cap"):
                parts.append(self.part())
            tree = ("all", parts)
        while self.next.kind == "setminus" or self._typed_minus(tree):
            self.take()
            tree = ("minus", tree, self.part())
        return tree

    def _typed_union(self) -> bool:
        """Take the U of `(1, 2) U (3, 4)`."""
        return self.next.kind == "letter" and self.next.text == "U" and bool(self.take())

    def _typed_minus(self, tree: tuple) -> bool:
        r"""Whether the minus of `\mathbb{R} - \{1\}` is next."""
        return (self.next.kind == "-" and tree[0] in ("tuple", "union", "minus", "set")
                and self.tokens[self.at + 1].kind == r"\{")

    def ratio(self) -> tuple:
        """A part, or parts with colons between them: 3 : 4. A time of day is compared as text."""
        parts = [self.part()]
        while self.next.kind == ":":
            self.take()
            if self.next.text.startswith("0") and self.next.text != "0":
                raise Unreadable("a time of day")
            parts.append(self.part())
        return parts[0] if len(parts) == 1 else ("ratio", parts)

    def part(self) -> tuple:
        """A bracketed collection, words, or a value with its unit."""
        kind = self.next.kind
        if kind == "emptyset":
            self.take()
            return ("set", [])
        if kind == "reals" and self.tokens[self.at + 1].kind not in ("^", "_"):
            self.take()
            return REALS
        if kind == r"\{":
            self.take()
            if self.next.kind == "begin" and self.tokens[self.at + 2].text == "array":
                return self._cases("array")
            return self._set_of_all() or ("set", self.several((r"\}",))[0])
        if self.at in self.collections:
            return self._collection()
        if kind == "word":
            return self._words()
        if kind == "begin" and self.tokens[self.at + 2 :][:1] == [CASES]:
            return self._cases()
        return self._value_with_unit()

    def _value_with_unit(self) -> tuple:
        self.unit = None
        value = self.sum()
        if value[0] == "negative" and value[1][0] == "based":
            value = ("based", "-" + value[1][1], value[1][2])
        if value[0] in ("matrix", "based"):
            return value
        if value == ("name", "..."):
            return ("dots",)
        tree = ("value", value, self.unit)
        if self._is_remainder() or self.next.text.lower() == "remainder":
            self.take()
            return ("remainder", [tree, ("value", self.sum(), None)])
        return tree

    def _collection(self) -> tuple:
        """A tuple or an interval, or a set in plain braces, which TeX does not print."""
        opening = self.take().kind
        ends = ("}",) if opening == "{" else (")", "]", "rangle")
        found = self.several(ends, spread=opening == "{")[0]
        closing = self.tokens[self.at - 1].kind
        if opening == "{":
            return ("set", found)
        if (closing == "rangle") != (opening == "langle"):
            raise Unreadable("the brackets do not match")
        return ("tuple", opening + closing, found)

    def _set_of_all(self) -> tuple | None:
        r"""`\{x \mid x > 2\}`, `\{x \in \mathbb{R} : x > 2\}`: the condition on x."""
        begin = self.at
        if self.next.kind != "letter":
            return None
        domain = None
        if self.tokens[self.at + 1].kind == "in":
            name = ("value", ("name", self.take().text), None)
            self.take()
            self.bars += 1  # the next bar ends the domain
            domain = self.part()
            self.bars -= 1
            domain = None if domain == REALS else ("relation", ["in"], [name, domain])
        else:
            self.take()
        if not self.accept("|", ":"):
            self.go_to(begin)
            return None
        condition = self.answers((r"\}",))
        return ("all", [domain, condition]) if domain else condition

    def _words(self) -> tuple:
        """Words in lower case, with single letters between and behind them."""
        pieces = [self.take()]
        while self.next.kind == "word" or self.next.kind == "letter" and self.next.spaced:
            pieces.append(self.take())
        text = " ".join(piece.text for piece in pieces).lower()
        plain = len(pieces) == 1 and not pieces[0].upright
        return _known_set(text) or ("words", text, pieces[0].text if plain else "")

    def _cases(self, name: str = "cases") -> tuple:
        """Rows of a value and its condition between `\\begin{cases}` and `\\end{cases}`, or in an
        array behind an open brace."""
        self.take()
        self._environment()
        if name == "array":
            self._columns()
        rows: list[list[tuple]] = [[]]
        while True:
            while self.next.text.lower() in ("if", "when", "for"):
                self.take()
            found = self.several(("&", "\\\\", "end"), spread=False)[0]
            rows[-1] += [("list", found)] if len(found) > 1 else found
            end = self.tokens[self.at - 1].kind
            if end == "end":
                break
            if end == "\\\\":
                rows.append([])
        if self._environment() != name:
            raise Unreadable("the end is not that of its begin")
        if name == "array":
            self.accept(".")  # \right.
        if all(len(row) == 1 and row[0][0] == "relation" for row in rows if row):
            return ("list", [row[0] for row in rows if row])  # a system: x = 1, y = 2
        return ("cases", [("row", row) for row in rows if row])


# -------------------------------------------------------------------------------------------- trees


def is_name(side: tuple) -> bool:
    r"""Whether a side of an equation names a value: x, f(2), AB, |AB|, \sin\theta, A : B, words."""
    if side[0] in ("tuple", "ratio"):
        return all(map(is_name, side[-1]))
    if side[0] == "words":
        return True
    return side[0] == "value" and _names(side[1])


def _names(tree: tuple) -> bool:
    """Whether an expression is a name, or a measure of something that has a name."""
    kind = tree[0]
    if kind == "name":
        return tree[1] not in ("i", "e", "pi", "infty", "...")
    if kind == "product":  # AB, a segment, and \vec{a} \cdot \vec{b}; xy is a product
        return all(part[0] == "name" and part[1].isupper() or _is_marked(part) for part in tree[1])
    if kind == "quotient":  # dy/dx, AB/CD
        return all(part[0] == "product" and (_names(part) or len(part[1]) == 2
                   and part[1][0] == ("name", "d") and part[1][1][0] == "name")
                   for part in tree[1:])
    if kind != "call" or len(tree[2]) != 1:
        return False
    inside, function = tree[2][0], tree[1]
    if function == "abs":  # |AB|, |z|, and not |x|, which is an equation
        terms = inside[1] if inside[0] == "sum" else []  # |\vec{a} + \vec{b}|
        marked = terms and all(_is_marked(term[1] if term[0] == "negative" else term)
                               for term in terms)
        return marked or _names(inside) and inside[1] not in [*"abcnpqrstuxy"]
    if function in FUNCTIONS:  # \sin\theta, and not \ln x, which is an equation
        return function not in ("ln", "exp") and _names(inside)
    return function not in ("factorial", "floor", "ceil")  # marks: \vec{v}, \overline{AB}


def _is_marked(tree: tuple) -> bool:
    r"""Whether a tree is a name with a mark: \vec{a}."""
    return tree[0] == "call" and tree[1] in MARKS and len(tree[2]) == 1 and tree[2][0][0] == "name"


def _limits(tree: tuple) -> bool:
    """Whether a tree is an inequality, or several joined by "and" or "or"."""
    return tree[0] in ("all", "any") or tree[0] == "relation" and bool({*tree[1]} - {"=", "in"})


def _is_interval(tree: tuple) -> bool:
    return tree[0] == "tuple" and (tree[1] in ("[)", "(]") or _holds(tree, "infty"))


def _holds(tree, kind: str) -> bool:
    """Whether a word stands anywhere in a tree."""
    return tree == kind or isinstance(tree, (tuple, list)) and any(_holds(part, kind)
                                                                   for part in tree)


def _with_signs(tree, choice: tuple | list, first: int):
    """The tree with a sign, 1 or -1, for each plus or minus."""
    if isinstance(tree, tuple) and tree and tree[0] in ("either", "neither"):
        inner = _with_signs(tree[2], choice, first)
        plus = (tree[0] == "either") == (choice[tree[1] - first] > 0)
        return inner if plus else ("negative", inner)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_with_signs(part, choice, first) for part in tree)
    return tree


# ------------------------------------------------------------------------------------------- tokens


def _end_of_group(tokens: list[Token], at: int) -> int:
    """The place of the bracket that closes the one at `at`; `at` itself if it opens none."""
    depth = 0
    for place in range(at, len(tokens)):
        kind = tokens[place].kind
        depth += (kind in OPEN or kind == "{") - (kind in CLOSE or kind == "}")
        if depth == 0:
            return place
    return at


def _collections(tokens: list[Token]) -> set[int]:
    """The places of the brackets that hold a separator: they open a collection, not a group."""
    opened: list[int] = []
    found: set[int] = set()
    if not SEPARATORS & {token.kind for token in tokens}:
        return found
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
        sys.exit(f"compared as text: {reason}")
