r"""Finds texts that repeat each other or a test set: exactly, in the same words, nearly, or in a
run of words.

    python -m recipes.dedup problems.jsonl     # how many of its questions repeat an earlier one

Near duplicates, in three steps (MinHash and its bands: Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, ch. 3):

    1. shingles    the set of a text's runs of 3 words
    2. signature   80 hash functions; of each, the least value over the shingles. Two texts agree in
                   a number with probability J = |A & B| / |A | B|, the Jaccard index of their sets
    3. bands       16 bands of 5 numbers. Texts that agree in a whole band are compared by true J

So hashing can overlook a duplicate, but only duplicates are dropped. Two problems that differ
in one number are two problems, however alike their words are, and augmented data is made of these.
So near duplicates must also agree in numbers and symbols.

Overlap: a common run of 13 words, as in Brown et al. 2020 (GPT-3, arXiv 2005.14165, appendix C).
They cut the run and 200 characters around it out of long documents, and ignore runs that are
common. Here the caller decides what to do. A run that stands in more than ten test texts, and in
more than 1 % of them, does not count: it is how the set's texts begin or end.
"""

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from tqdm import tqdm

OPERATORS = "+-*/^=<>%"
BRACKETS = "()[]{}|"
SYMBOLS = OPERATORS + BRACKETS
# LaTeX that only changes the look, or says what another form also says; longer ones first.
LATEX = {
    "\\\\": " ", r"\left": "", r"\right": "", r"\displaystyle": " ", r"\textbf": " ", r"\text": " ",
    r"\mathrm": " ", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\qquad": " ", r"\quad": " ",
    r"\,": " ", r"\!": "", r"\;": " ", r"\:": " ", r"\ ": " ", r"\$": " ", r"\%": "%", r"\{": "{",
    r"\}": "}", r"\(": " ", r"\)": " ", r"\[": " ", r"\]": " ", r"\times": "*", r"\cdot": "*",
    r"\div": "/",
}  # fmt: skip
CHARACTER_FORMS = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "'": "", "’": ""}
# Words that are numbers, or change a problem as a number does.
NUMBER_WORDS = set("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion dozen half halves third thirds quarter quarters fourth fourths
    fifth fifths sixth seventh eighth ninth tenth tenths
    once twice thrice double doubles triple triples quadruple first second last
    more less fewer greater smaller larger bigger most least largest smallest greatest maximum
    minimum odd even positive negative sum difference product quotient increase decrease increases
    decreases increased decreased not no without
""".split())

# Words of a shingle. In a question of sixty words, one changed word leaves J = 0.9, two leave 0.82.
SHINGLE = 3
# Of a signature. A pair with J = 0.8 shares a band with probability 0.998, one with 0.5 with 0.4.
BANDS, ROWS = 16, 5
# Of polynomial hashes; 3 modulo 8, so that few of its powers come near 1 modulo 2**64.
BASE = np.uint64(0x9E3779B97F4A7C13)
SHORTEST = 8  # words; a test text of fewer may stand anywhere, so only its exact copy counts
MOST_WORDS = 1_000_000  # words whose hashes are remembered, about 200 MB
MOST_KEPT, MOST_COMPARED = 16, 16  # texts that a bucket shows, and that a text is compared with


# -------------------------------------------------------------------------------------------- words


def normalised_words(text: str, symbols: str = "") -> list[str]:
    r"""Lower-case words and numbers of a text, in order. Each character of `symbols` is a word of
    its own.

    Dropped are punctuation, dollar signs and LaTeX that only changes the look. `1,234` is 1234,
    `.5` is 0.5, `Tom's` is toms. Without symbols a command is a plain word (`\frac{1}{2}`: frac 1
    2). With them it keeps its backslash, and a hyphen is a minus unless two letters follow.
    Characters without spaces (as in Chinese) are one word.
    """
    text = text.lower()
    if "\\" in text:
        for command, plain in LATEX.items():
            text = text.replace(command, plain)
        text = text.replace("\\", " \\")
    if "!" in text or "'" in text or "°" in text:  # 5! is not 5, f'(x) not f(x), and 30° not 30
        for before in "0123456789)":
            text = text.replace(before + "!", before + " factorial ")
        text = text.replace("'(", " prime (").replace("''", " prime prime ")
        text = text.replace("°", " degrees ")
    text = text.replace("--", " ").replace(". ", " ").replace(", ", " ")
    for symbol in symbols:
        if symbol != "-":  # it may be a hyphen: _pieces decides
            text = text.replace(symbol, f" {symbol} ")
    found: list[str] = []
    for token in text.translate(_character_table(symbols)).split():
        if token.isalnum() or token in symbols and token != "-":
            found.append(token)
        else:
            found += _pieces(token)
    return found


class _CharacterTable(dict):
    """For str.translate: what becomes of each character, worked out when it is first met."""

    def __init__(self, symbols: str):
        self.symbols = symbols

    def __missing__(self, code: int) -> str:
        char = CHARACTER_FORMS.get(chr(code), chr(code))
        kept = char.isalnum() or char in ",." + self.symbols or char == "\\" and self.symbols
        if self.symbols and not char.isascii() and unicodedata.category(char) == "Sm":
            self[code] = f" {char} "  # a mathematical symbol, such as a sign of inequality
        else:
            self[code] = char if kept else " "
        return self[code]


_character_table = lru_cache(_CharacterTable)


def _pieces(token: str) -> list[str]:
    """`x-3,` -> x - 3; `ten-year-old` -> ten year old; `1,234.50` -> 1234.50; `3,4` -> 3 4; `p.m.`
    -> p m."""
    found: list[str] = []
    for number, part in enumerate(token.split("-")):
        if number and not (len(part) > 1 and part[:2].isalpha()):
            found.append("-")
        for piece in _thousands_joined(part.rstrip(",.")).split(","):
            whole, _, decimals = piece.partition(".")
            if decimals[:1].isdigit() and (whole or "0").isdigit() and "." not in decimals:
                found.append(f"{whole or 0}.{decimals}")
            else:
                found += (char for char in piece.replace(".", " ").split() if char != "\\")
    return found


def _thousands_joined(text: str) -> str:
    """`1,234` -> `1234`, if the digits stand in groups of three."""
    first, *others = text.split(",")
    groups = all(group[:3].isdigit() and len(group[:3]) == 3 and not group[3:4].isdigit()
                 for group in others)
    return "".join((first, *others)) if groups and first.isdigit() and len(first) <= 3 else text


# ------------------------------------------------------------------------------------------- hashes


class _Hashes(dict):
    """A 64-bit hash of each word, the same in every process. The lowest bit says whether near
    duplicates must agree in the word: numbers, symbols, variables and NUMBER_WORDS."""

    def __missing__(self, word: str) -> int:
        data = word.encode("utf-8", "surrogatepass")
        value = int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
        decides = not word.isalpha() or word in NUMBER_WORDS or len(word) == 1 and word != "a"
        value = value & ~1 | decides
        if len(word) < 64:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = value
        return value

    def of(self, found: list[str]) -> np.ndarray:
        """uint64 [words]"""
        return np.fromiter(map(self.__getitem__, found), np.uint64, len(found))


def _grams(values: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hashes of all runs of n word hashes, uint64 [len(values) - n + 1]; empty if there
    are fewer.

    Two runs that differ in one word never collide. Two runs of other words do with probability
    2**-63, two orders of the same few words with 2**-46 at worst. For 10**8 runs of training texts
    and 10**6 of tests: once in 90,000 tries.
    """
    count = max(len(values) - n + 1, 0)
    hashed = np.zeros(count, np.uint64)
    for k in range(n):
        hashed *= BASE
        hashed += values[k : k + count]
    return hashed


def _digest(found: list[str], key: str = "") -> bytes | None:
    """16 bytes that stand for a list of words (and a key); None if it is empty. Of 10**6 texts two
    collide once in 10**26."""
    joined = "\0".join((key, *found)).encode("utf-8", "surrogatepass")
    return blake2b(joined, digest_size=16).digest() if found else None


# ------------------------------------------------------------------------------------------ overlap


class Overlap:
    """Says which texts repeat one of a test set's, wholly or in a run of n words (of a shorter test
    text: all words)."""

    def __init__(self, texts: Iterable[str], n: int = 13):
        self.n, self._hashes = n, _Hashes()
        self._whole: set[bytes | None] = set()
        standing: dict[int, Counter[int]] = {}  # by length: in how many texts a run stands
        count = 0
        for count, text in enumerate(texts, 1):
            self._whole.add(_digest(normalised_words(text, OPERATORS)))
            found = normalised_words(text)
            length = min(n, max(len(found), SHORTEST))
            runs = set(_grams(self._hashes.of(found), length).tolist())
            standing.setdefault(length, Counter()).update(runs)
        self._whole.discard(None)  # a text without words repeats nothing
        most = max(10, count // 100)  # a run in more texts is how the set's texts begin or end
        self._runs = {length: {run for run, texts in runs.items() if texts <= most}
                      for length, runs in standing.items()}

    def kind(self, text: str) -> str | None:
        """How a text repeats one of the set's: `exact`, `13-gram` (after n, or the length of a
        shorter test text), None.

        `exact`: the same words, numbers and operators. `13-gram`: so many words in a row are the
        same, whatever punctuation and operators stand between. A test text of fewer than SHORTEST
        words is only repeated exactly.
        """
        if _digest(normalised_words(text, OPERATORS)) in self._whole:
            return "exact"
        values = self._hashes.of(normalised_words(text))
        for length in sorted(self._runs, reverse=True):
            if not self._runs[length].isdisjoint(_grams(values, length).tolist()):
                return f"{length}-gram"
        return None


# --------------------------------------------------------------------------------------- duplicates


def exact_duplicates(texts: Iterable[str]) -> list[int]:
    """For each text the index of the first one that is the same but for white space at its ends, or
    -1."""
    return _first_of(text.strip() for text in texts)


def normalised_duplicates(texts: Iterable[str]) -> list[int]:
    """For each text the index of the first one with the same words, numbers and symbols, or -1
    (also without any)."""
    return _first_of(_digest(normalised_words(text, SYMBOLS)) for text in texts)


def _first_of(keys: Iterable[str | bytes | None]) -> list[int]:
    """For each key the index of the first equal one; -1 if it is that one itself, or None."""
    first: dict[str | bytes, int] = {}
    found = (index if key is None else first.setdefault(key, index)
             for index, key in enumerate(keys))
    return [-1 if earlier == index else earlier for index, earlier in enumerate(found)]


def near_duplicates(texts: Sequence[str], threshold: float = 0.8,
                    keys: Sequence[str] | None = None) -> list[int]:
    """For each text the index of the first kept one it repeats, or -1 if it is kept itself.

    It repeats one if three things hold: the Jaccard index of their shingles is `threshold` or more;
    their numbers, symbols, variables and NUMBER_WORDS are the same in the same order; their `keys`,
    if given, are equal (the answers, say, since no list of words is complete). Every dropped text
    is like a kept one: there are no chains. Texts with the same words are always found. Texts
    without words are kept.

    Time is linear: a bucket shows its first MOST_KEPT kept texts, and a text is compared with the
    MOST_COMPARED of them with which it shares the most buckets. So of pairs with an index near 0.8,
    one in 500 is overlooked; and more if over 16 texts of the same numbers and symbols, none a
    duplicate of another, fall into one bucket.
    """
    keys = keys if keys is not None else [""] * len(texts)
    digests, band_keys = _digests_and_bands(texts, keys)
    first = _first_of(digests)
    rest = [index for index, earlier in enumerate(first) if earlier < 0]
    buckets = _buckets(band_keys[rest])
    kept, hashes = _KeptTexts(), _Hashes()
    for row in np.flatnonzero((buckets >= 0).any(1)):
        index = rest[row]
        own = np.unique(_shingles(hashes.of(normalised_words(texts[index], SYMBOLS))))
        places = [bucket for bucket in buckets[row].tolist() if bucket >= 0]
        like = [other for other in kept.candidates(places)
                if jaccard(own, kept.shingles[other]) >= threshold]
        if like:
            first[index] = min(like)
        else:
            kept.add(index, own, places)
    # A text with the same words as one that itself repeats another: it repeats that other one too.
    return [first[earlier] if earlier >= 0 and first[earlier] >= 0 else earlier
            for earlier in first]


class _KeptTexts:
    """The texts kept so far: the first MOST_KEPT of each bucket, and the shingles of each of
    these."""

    def __init__(self):
        self.shown: dict[int, list[int]] = {}
        self.shingles: dict[int, np.ndarray] = {}

    def candidates(self, places: list[int]) -> list[int]:
        """The MOST_COMPARED texts that share the most of these buckets."""
        counts = Counter(other for bucket in places for other in self.shown.get(bucket, ()))
        return [other for other, _ in counts.most_common(MOST_COMPARED)]

    def add(self, index: int, shingles: np.ndarray, places: list[int]) -> None:
        for bucket in places:
            others = self.shown.setdefault(bucket, [])
            if len(others) < MOST_KEPT:
                others.append(index)
                self.shingles[index] = shingles


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over size of the union, of two arrays without repetitions."""
    both = np.concatenate((a, b))
    both.sort()
    shared = np.count_nonzero(both[1:] == both[:-1])
    return shared / max(len(both) - shared, 1)


def _digests_and_bands(texts: Sequence[str],
                       keys: Sequence[str]) -> tuple[list[bytes | None], np.ndarray]:
    """For each text (with its key) the digest of its words, and its band keys, uint64 [texts,
    BANDS].

    Texts with the same numbers and symbols, and with index J, agree in a column with probability J
    ** ROWS. A text without words has zeros.
    """
    odd = np.random.default_rng(1997).integers(0, 2**31, BANDS * ROWS, np.uint32)
    factors = odd * np.uint32(2) + np.uint32(1)  # [BANDS * ROWS]: of each a hash function
    powers = BASE ** np.arange(ROWS, dtype=np.uint64)
    hashes, digests, band_keys = _Hashes(), [], np.zeros((len(texts), BANDS), np.uint64)
    bar = tqdm(texts, "near duplicates", unit="texts", disable=not sys.stderr.isatty())
    for row, (text, key) in enumerate(zip(bar, keys, strict=True)):
        found = normalised_words(text, SYMBOLS)
        digests.append(_digest(found, key))
        if found:
            values = hashes.of(found)
            signature = _signature(_shingles(values), factors)
            decisive = np.uint64(_decisive(values, key))
            band_keys[row] = signature.reshape(BANDS, ROWS) @ powers + decisive
    return digests, _mixed(band_keys)


def _shingles(values: np.ndarray) -> np.ndarray:
    """Hashes of a text's runs of SHINGLE words: one begins at every word, and the last ones are
    shorter."""
    return _grams(np.append(values, np.zeros(SHINGLE - 1, np.uint64)), SHINGLE)


def _signature(shingles: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """uint64 [factors]: the least value of each hash function over the shingles."""
    # The high half of a mixed hash: its bits depend on all bits. Blocks bound the memory.
    high = (_mixed(shingles) >> np.uint64(32)).astype(np.uint32)
    least = [np.multiply.outer(factors, high[begin : begin + 4096]).min(1)
             for begin in range(0, len(high), 4096)]
    return np.min(least, 0).astype(np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Bits stirred, so that the high ones depend on all (the end of MurmurHash3)."""
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    return values ^ values >> np.uint64(33)


def _decisive(values: np.ndarray, key: str) -> int:
    """One 64-bit hash of all the words in which duplicates must agree, in their order, and of the
    key."""
    hashed = blake2b(values[(values & np.uint64(1)).astype(bool)].tobytes(), digest_size=8)
    hashed.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(hashed.digest(), "little")


def _buckets(band_keys: np.ndarray) -> np.ndarray:
    """int32 [texts, BANDS]: numbers of buckets with more than one text, -1 elsewhere; no bucket is
    in two bands."""
    buckets, begin = np.full(band_keys.shape, -1, np.int32), 0
    for band in range(band_keys.shape[1]):
        _, place, counts = np.unique(band_keys[:, band], return_inverse=True, return_counts=True)
        together = (counts[place] > 1) & (band_keys[:, band] != 0)
        buckets[together, band] = begin + place[together]
        begin += len(counts)
    return buckets


# ------------------------------------------------------------------------------------------ command


def _question(line: str) -> str:
    """The `question`, `problem` or `query` of a line of JSON. Raises ValueError if there is
    none."""
    record = json.loads(line)
    if isinstance(record, dict):
        for key in ("question", "problem", "query"):
            if isinstance(record.get(key), str):
                return record[key]
    raise ValueError("expected an object with a text as question, problem or query")


def main(path: str) -> None:
    """Print how many questions of a JSONL file repeat an earlier one, by kind. Exits naming a line
    that is broken."""
    questions, number = [], 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                questions += [_question(line)] if line.strip() else []
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {path}: cannot be read as UTF-8 text ({error})")
    except (ValueError, RecursionError) as error:
        sys.exit(f"error: {path}:{number}: {error}; mend or remove that line")
    print(f"{len(questions)} questions; that repeat an earlier one:")
    kinds = {"exactly": exact_duplicates, "in the same words": normalised_duplicates,
             "nearly": near_duplicates}
    for kind, find in kinds.items():
        print(f"  {kind:18s} {sum(earlier >= 0 for earlier in find(questions))}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m recipes.dedup FILE.jsonl")
    main(sys.argv[1])
