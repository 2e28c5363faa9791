"""Lesson 4: Spanish solutions name their answer too, and nothing else changes."""

import pytest

from answers import extract_answer


@pytest.mark.parametrize("text, answer", [
    ("Hay 12 + 6 = 18 huevos. La respuesta es 18.", "18"),
    ("RESPUESTA: 18\nHay 2 cajas.", "18"),
    ("La respuesta es $\\frac{3}{4}$, de 8 partes.", "\\frac{3}{4}"),
    ("La respuesta es 5. No: la respuesta es 6. Son 2 pasos.", "6"),
])
def test_the_words_are_known(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text, answer", [
    ("La respuesta tiene 3 cifras, y suma 18.", "18"),  # names no answer: the last number
    ("The answer is 4. Hay 9.", "4"),
    ("La respuesta es 5. \\boxed{7}", "7"),  # a box comes first
])
def test_other_texts_are_read_as_before(text, answer):
    assert extract_answer(text) == answer


def test_strict_still_wants_a_mark():
    assert extract_answer("La respuesta es 18.", strict=True) is None
