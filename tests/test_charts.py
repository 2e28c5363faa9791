"""charts.py: scales are exact, ticks are round, and no name opens an element."""

import re
import xml.etree.ElementTree as ET

import pytest

from show.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    curves,
    rows,
    shown,
    thinned,
    ticks,
    widened,
)


@pytest.mark.parametrize("low, high, expected", [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    (0, 12, [0, 5, 10]), (3, 4.1, [3, 3.5, 4]),
])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0], [5, 5], [1e12, 1e12], [-1e-30, 1e-30], [0, 1e12],
                                    [1e12, 1e12 + 1e-3], [-1e12, 1e12]])
def test_any_range_has_few_ticks(values):
    low, high = widened(values)
    assert low < high and low <= min(values) and high >= max(values)
    assert 1 <= len(ticks(low, high)) <= 12


def test_a_curve_goes_from_corner_to_corner():
    svg = curves("t", "c", {"a": [(0, 10), (5, 10), (10, 20)]})
    middle = f"{(LEFT + RIGHT) / 2:.1f},{BOTTOM}.0"
    assert f'points="{LEFT}.0,{BOTTOM}.0 {middle} {RIGHT}.0,{TOP}.0"' in svg


def test_an_interval_lies_on_its_scale():
    svg = rows("t", "c", [("a", 0.5, (0.25, 0.75), 3)], percent=True)
    width = RIGHT - LEFT - 70
    assert f'x1="{LEFT + width / 4:.1f}" x2="{LEFT + width * 3 / 4:.1f}"' in svg
    assert f'cx="{LEFT + width / 2:.1f}"' in svg and "50 %" in svg and 'class="c3"' in svg


def test_a_bar_begins_at_nothing():
    bars = re.findall(r'<rect .*?x="([0-9.]+)".*?width="([0-9.]+)"',
                      rows("t", "c", [("a", 10.0, None, 0), ("b", 5.0, None, 1)]))
    (x, whole), (other, half) = [tuple(map(float, bar)) for bar in bars]
    assert x == other == LEFT and whole == 2 * half


def test_nothing_to_show_is_no_figure():
    assert curves("t", "c", {}) == curves("t", "c", {"a": []}) == rows("t", "c", []) == ""


def test_a_long_curve_is_thinned_and_keeps_its_end():
    points = [(x, x) for x in range(100_003)]
    assert len(thinned(points)) <= MOST_POINTS and thinned(points)[-1] == points[-1]
    assert thinned(points[:7]) == points[:7]


def test_no_name_opens_an_element():
    name = '</text><script>alert(1)</script>" onload="x\u202e'
    for svg in (curves(name, name, {name: [(0, 0)]}), rows(name, name, [(name, 1.0, None, 0)])):
        names = {element.tag for element in ET.fromstring(svg).iter()}
        assert "script" not in names and "\u202e" not in svg


@pytest.mark.parametrize("value, percent, text", [
    (0.9102, True, "91.02 %"), (61.219, False, "61.22"), (325632, False, "325,632"),
    (0, False, "0"), (1e12, False, "1e+12"), (738.0, False, "738"),
])
def test_numbers_are_short(value, percent, text):
    assert shown(value, percent) == text
