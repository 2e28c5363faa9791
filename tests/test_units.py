"""units.py as tables: what stands behind a number, and what is no unit."""

import pytest

from grader.latex import parse
from grader.scanner import Budget, Unreadable
from grader.units import same_units, unit_text


def unit_of(text: str) -> str | None:
    return parse(text, Budget(10_000))[2]


@pytest.mark.parametrize("texts, unit", [
    (("5 cm", r"5\text{ cm}", "5 centimeters", r"5~\mathrm{cm}"), "cm"),
    (("5 sq. inches", "5 in^2", r"5\text{ (square inches)}", "5 inches squared"), "inch^2"),
    (("5 km/h", "5 km per hour", r"5\,\mathrm{km\,h^{-1}}", "5 kph"), "hour^-1 km"),
    (("5 m/s^2", r"5\text{ m/s}^2", r"5\,\mathrm{m\cdot s^{-2}}"), "m second^-2"),
    (("5 °C", r"5^\circ\text{C}", "5 degrees Celsius", "5℃"), "celsius degree"),
    (("5°", r"5^{o}", "5º", "5 deg", r"5\degree"), "degree"),
    (("$5 per day", r"\$5/day", "5 dollars a day"), "day^-1 dollar"),
    ((r"5\Omega", r"5\,\Omega", "5 ohms"), "ohm"), ((r"5\,\mu\mathrm{m}",), "mum"),
    (("5¢", "5 cents"), "cent"), (("€5", "5 EUR"), "euro"),
    (("5 red apples", "5 Red apples left"), "apple red"), (("3 cups of flour",), "cup"),
    (("5 times",), "time"), (("5 m", r"5\mathrm{m}"), "m"), (("5m", "5x", r"2\text{x}"), None),
])  # fmt: skip
def test_one_unit_has_one_name(texts, unit):
    assert {text: unit_of(text) for text in texts} == dict.fromkeys(texts, unit)


@pytest.mark.parametrize("text", [
    "5 or more", "5 squared", "2 if even", "5 below zero", "3 more than x", "5 doubled", "5 per",
    r"5 \text{ percentage of } x", "5 cm + 3", "5 out of 8", "5 not",
])  # fmt: skip
def test_what_is_no_unit(text):
    with pytest.raises(Unreadable):
        tree = parse(text, Budget(10_000))
        if tree[0] == "list":
            raise Unreadable("two answers")


def test_a_missing_unit_agrees_with_all():
    assert same_units(None, "cm") and same_units("cm", "cm") and not same_units("cm", "inch")
    assert same_units("degree", "celsius degree")
    assert not same_units("fahrenheit degree", "celsius degree")


def test_powers_of_zero_vanish():
    assert unit_text({"m": 1, "second": -2, "kg": 0}) == "m second^-2" and unit_text({}) is None
