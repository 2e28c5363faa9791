r"""What the grader knows by name: characters, commands, functions, units and connecting words.

    python -m grader.tables feet        # foot

All of it is literal data. The modules that read answers hold the rules, and no word of their own.
"""

import sys
from fractions import Fraction
from string import digits

# --------------------------------------------------------------------------------------- characters

# Characters with a plain or a LaTeX spelling.
SPELLINGS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "′": "'", "″": "''", "\u00a0": " ",
    "\u2009": " ", "\u202f": " ", "\u3000": " ", "×": r" \times ", "✕": r" \times ",
    "·": r" \cdot ", "⋅": r" \cdot ", "•": r" \cdot ", "∗": "*", "÷": r" \div ", "⁄": "/",
    "∕": "/", "∶": ":", "±": r" \pm ", "∓": r" \mp ", "√": r" \surd ", "∛": r" \sqrt[3]",
    "∜": r" \sqrt[4]", "∞": r" \infty ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ",
    "℃": r"^\circ C", "℉": r"^\circ F", "‰": r" \text{permille}", "∪": r" \cup ",
    "∩": r" \cap ", "∈": r" \in ", "∉": r" \notin ", "∖": r" \setminus ", "≤": r" \le ",
    "≥": r" \ge ", "⩽": r" \le ", "⩾": r" \ge ", "≦": r" \le ", "≧": r" \ge ",
    "≈": r" \approx ", "≃": r" \approx ", "≅": r" \approx ", "≠": r" \ne ",
    "∅": r" \emptyset ", "ℝ": r" \mathbb{R} ", "ℤ": r" \mathbb{Z} ", "ℕ": r" \mathbb{N} ",
    "ℚ": r" \mathbb{Q} ", "ℂ": r" \mathbb{C} ", "⟨": r" \langle ", "⟩": r" \rangle ",
    "〈": r" \langle ", "〉": r" \rangle ", "⌊": r" \lfloor ",
    "⌋": r" \rfloor ", "⌈": r" \lceil ", "⌉": r" \rceil ", "∠": r" \angle ", "△": r" \triangle ",
    "…": r" \ldots ", "⋯": r" \ldots ", "。": ".", "、": ",", "【": "[", "】": "]", "“": "",
    "”": "",
    "€": r" \euro ", "£": r" \pound ", "¥": r" \yen ", "￥": r" \yen ", "¢": r" \cent ",
    "₹": r" \rupee ", "₩": r" \won ",
    "α": r" \alpha ", "β": r" \beta ", "γ": r" \gamma ", "δ": r" \delta ", "ε": r" \epsilon ",
    "ζ": r" \zeta ", "η": r" \eta ", "θ": r" \theta ", "κ": r" \kappa ", "λ": r" \lambda ",
    "μ": r" \mu ", "ν": r" \nu ", "ξ": r" \xi ", "π": r" \pi ", "ρ": r" \rho ",
    "σ": r" \sigma ", "τ": r" \tau ", "φ": r" \phi ", "ϕ": r" \phi ", "χ": r" \chi ",
    "ψ": r" \psi ", "ω": r" \omega ", "Γ": r" \Gamma ", "Δ": r" \Delta ", "Θ": r" \Theta ",
    "Λ": r" \Lambda ", "Σ": r" \Sigma ", "Φ": r" \Phi ", "Ψ": r" \Psi ", "Ω": r" \Omega ",
}  # fmt: skip
FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑",
                     "12 13 23 14 34 15 25 35 45 16 56 17 18 38 58 78 19".split()))
# Direction marks, zero-width spaces and invisible operators vanish.
VANISHING = (0x200B, 0x200E, 0x200F, 0x202A, 0x202C, 0x2060, 0x2061, 0x2062, 0xFEFF)
FULL_WIDTH = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}  # full-width ASCII
UNICODE = FULL_WIDTH | {ord(character): spelling for character, spelling in SPELLINGS.items()}
UNICODE |= {ord(one): rf" \frac{two}" for one, two in FRACTIONS.items()} | dict.fromkeys(VANISHING)
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", digits + "-+n"))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉ₙₖᵢⱼₘ", digits + "nkijm"))

# ---------------------------------------------------------------------- commands, without backslash

# Commands that show nothing, or only how their content looks.
INVISIBLE = set(
    "left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits boldsymbol bm bf rm it sf tt underline mathsf mathtt "
    "mathcal mathscr mathbf boxed fbox framebox triangle "
    "tiny small normalsize large Large ensuremath ( ) [ ]".split())
ARGUMENT_DROPPED = {"color", "textcolor", "hspace", "vspace", "phantom", "hphantom", "label", "tag"}
SPACE = {*", ! ; : > / quad qquad thinspace enspace".split(), " ", "\n"}
TEXT = set("text textbf textit textrm texttt textsf textnormal emph mathrm mathit mbox hbox "
           "operatorname operatorname*".split())
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "dbinom": "binom", "tbinom": "binom", "leq": "le", "simeq": "approx", "cong": "approx",
    "thickapprox": "approx", "geq": "ge", "leqslant": "le", "geqslant": "ge", "leqq": "le",
    "geqq": "ge", "neq": "ne", "lt": "<", "gt": ">", "ast": "*", "times": "*", "cdot": "*",
    "div": "/", "colon": ":", "backslash": "setminus", "smallsetminus": "setminus",
    "varnothing": "emptyset", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "degree": "degree", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lg": "log", "land": "and", "wedge": "and", "lor": "or", "vee": "or", "ldots": "dots",
    "cdots": "dots", "dotsc": "dots", "dotsb": "dots", "arcsinh": "arsinh", "arccosh": "arcosh",
    "arctanh": "artanh", "arctg": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc", "prime": "'",
    "textdollar": r"\$", "varepsilon": "epsilon", "varphi": "phi",
}  # fmt: skip
# A function and its inverse, which `^{-1}` on its name says.
INVERSES = {
    "sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec",
    "csc": "arccsc", "sinh": "arsinh", "cosh": "arcosh", "tanh": "artanh", "coth": "arcoth",
    "sech": "arsech", "csch": "arcsch", "ln": "exp", "exp": "ln",
}  # fmt: skip
ANGLES = {"sin", "cos", "tan", "cot", "sec", "csc"}  # functions of an angle
AGGREGATES = {"gcd", "lcm", "min", "max"}  # functions of several arguments
FUNCTIONS = {*INVERSES, *INVERSES.values(), *AGGREGATES, "log"}
GREEK = set("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi "
            "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell pi infty".split())
CURRENCIES = {r"\$": "dollar", "euro": "euro", "pound": "pound", "yen": "yen", "cent": "cent",
              "rupee": "rupee", "won": "won"}
TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}  # behind degrees
# Names that models also type without a backslash. `sqrt12` is the root of 12, so it is a `surd`:
# TeX reads `\sqrt12` as the root of 1, followed by a 2.
TYPED_NAMES = {name: name for name in [*FUNCTIONS, "pi", "infty", "theta", "alpha", "beta", "and",
                                       "or"]}
TYPED_NAMES |= {"sqrt": "surd", "infinity": "infty", "And": "and", "Or": "or",
                "arcsinh": "arsinh", "arccosh": "arcosh", "arctanh": "artanh",
                "asin": "arcsin", "acos": "arccos", "atan": "arctan"}

# -------------------------------------------------------------------------------------------- words

# One name for each unit, and its other spellings. The plural's s is no part of a name.
UNIT_NAMES = {
    "km": "kilometer kilometre", "m": "meter metre", "cm": "centimeter centimetre",
    "mm": "millimeter millimetre", "inch": "in inches", "foot": "feet ft", "yard": "yd",
    "mile": "mi", "kg": "kilogram kilo", "g": "gram gramme", "mg": "milligram", "pound": "lb lbs",
    "ounce": "oz", "ton": "tonne", "l": "liter litre L", "ml": "milliliter millilitre mL",
    "gallon": "gal", "hour": "hr hrs h", "minute": "min mins", "second": "sec secs s",
    "day": "", "week": "", "month": "", "year": "yr yrs", "mph": "", "radian": "rad",
    "degree": "deg", "celsius": "", "fahrenheit": "", "kelvin": "K", "dollar": "buck USD usd",
    "cent": "", "euro": "EUR eur", "yen": "JPY", "rupee": "", "%": "percent", "permille": "",
    "newton": "N", "joule": "J", "watt": "W", "volt": "V", "pascal": "Pa", "hertz": "Hz",
    "kw": "kW", "ohm": "Ω", "unit": "", "square": "sq", "cubic": "cu", "acre": "", "kmh": "kph",
    "people": "person",
}  # fmt: skip
UNITS = {spelling: name for name, others in UNIT_NAMES.items()
         for spelling in [name, *others.split()]}
AMBIGUOUS_UNITS = {"mi", "hr"}  # which are also products: 2mi, \\pi hr
COMPOSED = {"mph": {"mile": 1, "hour": -1}, "kmh": {"km": 1, "hour": -1}}
LETTER_UNITS = {"m", "g", "s", "h", "l", "L"}  # also behind a number and a space: 24 m^2
UPRIGHT_UNITS = LETTER_UNITS | {"N", "J", "W", "V", "K"}  # upright letters behind a number
UNIT_COMMANDS = {"Omega": "ohm"}  # behind a number: 6\\,\\Omega
POWER_WORDS = {"square": 2, "cubic": 3}
POWERED_WORDS = {"squared": 2, "cubed": 3}  # behind a unit: meters squared
# Words behind a number that multiply it.
SCALES: dict[str, int | Fraction] = {
    "ten": 10, "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "half": Fraction(1, 2), "halve": Fraction(1, 2),
}
SCALES |= {word: Fraction(1, part) for part, word in enumerate(
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), 3)}
SCALES |= {"quarter": Fraction(1, 4), "twentieth": Fraction(1, 20), "hundredth": Fraction(1, 100),
           "thousandth": Fraction(1, 1000), "millionth": Fraction(1, 10**6)}
# Words that are no unit: they change what the number before them says.
NO_UNITS = set(
    "if when unless where while until than below above under over between beyond within squared "
    "cubed doubled tripled quadrupled halved factorial remainder modulo mod negative positive plus "
    "minus divided multiplied increased decreased raised to from by not no never none except "
    "without of out at about approximately nearly almost is are was were be equals equal either "
    "neither both but then else otherwise on as for with percentage power root modulus true false "
    "yes most least how what which that but solution solutions R r "
    "million billion off".split())
# Words behind a value that say nothing about it.
IDLE_WORDS = {"each", "altogether", "apiece", "left", "remaining", "total", "only", "exactly"}
# Words before an answer that say nothing about it, longest first. An answer must follow.
LEAD_INS = [words.split() for words in (
    "the final answer is :", "the final answer is", "the answer is :", "the answer is",
    "final answer :", "answer :", "answer is", "ans :", "approximately", "approx", "about",
    "roughly", "around")]
OPTIONS = {"option", "choice"}  # before one letter
# Words that begin what only explains the answer before them.
TRAILERS = {"where", "approximately", "approx"}
QUANTIFIED = {"any", "all", "some", "every", "each", "constant", "arbitrary"}  # behind "for"
WHOLE_LINE = {"all real numbers", "all reals", "the set of all real numbers", "real numbers",
              "all real x", "any real number", "the real numbers", "every real number"}
EMPTY_SET = {"empty set", "the empty set", "null set"}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.tables UNIT")
    print(UNITS.get(sys.argv[1], "no unit of the table"))
