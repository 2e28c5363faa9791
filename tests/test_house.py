"""The order of the house: who imports whom, what is never used, and that the README begins with its
two commands.
"""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import children
from methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
# A module imports only from those before it. The methods stand where methods.py's table says.
ROOMS = """grader.tables grader.scanner grader.units grader.expressions grader.latex grader.exact
    grader.identity grader.line grader.solve grader.compare grader.cleaned grader.verdict
    answers quick_help runtime parallel flags synthetic recipes.arithmetic recipes.dedup
    tools.download tokenizer stats vote score
     sources records data forms attention model fast checkpoint adapters METHODS methods
     recipes.curate recipes.program recipes.perturb recipes.tutor calculator generate recipes.client
     recipes.teacher train
    measure verifier evaluate grpo distill mathft runs show.charts report harness recipes.recipes
    augment
    show.programs show.jobs show.experiments study
    tools.make_tiny tools.peer tools.bench tools.gpu_check"""
ROOMS = ROOMS.replace("METHODS", " ".join(method.__name__ for method in METHODS.values())).split()
# `python checkpoint.py export` needs what stands behind it; foreign records become problems.
LATER = {"checkpoint": {"methods"}, "data": {"forms"}}
FOLDERS = ("grader", "recipes", "show", "tools")  # each behind a door that stands at the top
PACKAGES = {"torch", "safetensors", "tokenizers", "huggingface_hub", "tqdm", "numpy"}
TEST_PACKAGES = PACKAGES | {"pytest", "transformers", "peft"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def path_of(room: str) -> Path:
    return ROOT / f"{room.replace('.', '/')}.py"


def imports(path: Path) -> set[str]:
    """All that a file imports, wherever in it the import stands: our rooms, else first names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: there are no relative imports"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(modules) if node.module in FOLDERS else {node.module}
    return {name if name in ROOMS else name.partition(".")[0] for name in found}


def test_every_module_has_its_place():
    there = [
        *ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
    ]
    assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in there} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_module_imports_only_from_those_above_it(room):
    allowed = {*ROOMS[: ROOMS.index(room)], *PACKAGES, *sys.stdlib_module_names}
    allowed |= LATER.get(room, set())
    if room == "tools.peer":  # what mathft is measured beside
        allowed |= {"transformers", "peft"}
    if room == "records":  # parquet is read if it is there
        allowed |= {"pyarrow"}
    assert imports(path_of(room)) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_a_test_needs_no_more_than_the_test_packages(path):
    assert imports(path) <= {
        *ROOMS, *TEST_PACKAGES, "conftest", "children", "answer_pairs", "reported_pairs",
        "stand_in", "browser", *sys.stdlib_module_names
    }


def test_every_module_has_its_tests():
    missing = [
        room
        for room in ROOMS
        if not (ROOT / "tests" / f"test_{room.rpartition('.')[2]}.py").exists()
    ]
    assert missing == []


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_read_is_ever_run(room):
    """No pickle, no eval, no shell: a file or a completion is data, whatever it holds."""
    banned = {
        "pickle", "cPickle", "dill", "shelve", "marshal", "subprocess", "importlib", "runpy", "code"
    }
    # these measure and compute in processes of their own
    if room in ("tools.bench", "tools.gpu_check"):
        banned -= {"subprocess"}
    if room == "show.programs":  # it runs our own programs
        banned -= {"runpy"}
    assert not imports(path_of(room)) & banned
    for node in ast.walk(tree(path_of(room))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), node.lineno
        if isinstance(node, ast.Attribute):
            whose = node.value.id if isinstance(node.value, ast.Name) else ""
            assert f"{whose}.{node.attr}" not in ("torch.load", "torch.save", "os.system",
                                                  "os.popen", "np.load"), (node.lineno)


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_says_what_it_is_and_how_to_run_it(room):
    described = ast.get_docstring(tree(path_of(room))) or ""
    assert "\n    python " in described


NO_PROGRAMS = [room for room in ROOMS if "." not in room
               and "    raise SystemExit\n" in path_of(room).read_text(encoding="utf-8")]


@pytest.mark.parametrize("room", NO_PROGRAMS)
def test_a_module_that_is_no_program_says_what_it_is(room, tmp_path):
    """At once, from any folder, also isolated (-I), where it finds no module beside it."""
    done = subprocess.run([sys.executable, "-I", path_of(room)], cwd=tmp_path, text=True,
                          encoding="utf-8", capture_output=True)
    assert (done.stdout, done.stderr) == (f"{ast.get_docstring(tree(path_of(room)), False)}\n", "")


def test_a_run_imports_no_more_than_it_must(tmp_path):
    """Of our modules 18 and the methods, no HTTP client, and neither the parser of answers nor
    votes.
    """
    code = """import sys, mathft; mathft.main(sys.argv[1:]); print(*sys.modules)"""
    words = ["--method", "lora", "--steps", "1", "--batch-size", "4", "--eval-limit", "4",
             "--output-dir", str(tmp_path / "run")]
    done = children.run(code, *words)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.splitlines()[-1].split())
    ours = {name for name in modules if name in ROOMS}
    assert len(ours) <= 18 + len(METHODS), sorted(ours)
    assert not modules & {"httpx", "huggingface_hub", "recipes.client", "tools.download", "sources"}


def test_no_other_module_spells_a_methods_name():
    quoted = {f'"{name}"' for name in METHODS} | {f"'{name}'" for name in METHODS}
    own = {"methods", *(method.__name__ for method in METHODS.values())}
    found = [(room, name) for room in ROOMS if room not in own
             for name in quoted if name in path_of(room).read_text(encoding="utf-8")]
    assert found == []


PYTHON = sorted({*map(path_of, ROOMS), *ROOT.glob("tests/*.py"), *ROOT.glob("docs/**/*.py")})


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_are_narrow(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 100] == []


# Functions of more than 40 lines, each read in one go: a loop, a table, the peer's code.
LONG = {("checkpoint", "read_config"), ("train", "train"), ("tools.peer", "generator")}


@pytest.mark.parametrize("room", ROOMS)
def test_functions_are_short(room):
    long = {(room, node.name) for node in ast.walk(tree(path_of(room)))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40}
    assert long <= LONG


@pytest.mark.parametrize("room", ROOMS)
def test_a_module_that_is_run_alone_says_something(room):
    """A command does its work; another module prints what it is, and how to see it at work."""
    assert 'if __name__ == "__main__":' in path_of(room).read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ROOMS)
def test_an_older_python_gets_as_far_as_the_line_that_refuses_it(room):
    ast.parse(path_of(room).read_text(encoding="utf-8"), feature_version=(3, 10))


def requirements(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def within(pin: str, bounds: str) -> bool:
    """Whether `torch==2.13.0` lies in `torch>=2.13,<3`."""
    name, least, most = bounds.replace(",<", ">=").split(">=")
    version, low, high = (tuple(map(int, text.split(".")))
                          for text in (pin.removeprefix(f"{name}=="), least, most))
    return pin.startswith(f"{name}==") and low <= version < high


def test_the_requirements_are_those_of_pyproject():
    """requirements.txt pins the five packages exactly, within the ranges of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ranges = project["project"]["dependencies"]
    assert len(ranges) == len(requirements("requirements.txt"))
    assert all(map(within, requirements("requirements.txt"), ranges))
    assert not within("torch==3.0.0", "torch>=2.13,<3")
    assert not within("torch==2.9", "torch>=2.13,<3")
    assert {line.partition("==")[0].replace("-", "_")
            for line in requirements("requirements.txt")} == PACKAGES - {"tqdm"}
    developers = requirements("requirements-dev.txt")
    assert developers[0] == "-r requirements.txt"
    assert all(map(within, developers[1:], project["dependency-groups"]["dev"]))
    assert len(developers) - 1 == len(project["dependency-groups"]["dev"])
    runner = {"pytest-xdist"}  # pytest -n 2: no test imports it
    assert {line.partition("==")[0] for line in developers[1:]} == TEST_PACKAGES - PACKAGES | runner


def test_the_worked_example_of_a_method_is_short():
    """README sends a reader to `ia3.py`: a whole method on one page."""
    assert len((ROOT / "ia3.py").read_text(encoding="utf-8").splitlines()) < 60


def test_the_readme_begins_with_the_two_commands():
    """One line installs and runs the main job, one installs and tests; what is checked is what a
    newcomer types.
    """
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```bash\n")[1:3]
    assert [block.partition("```")[0] for block in blocks] == [
        "pip install -r requirements.txt && python mathft.py --method prefix\n",
        "pip install -r requirements-dev.txt && python -m pytest -n 2\n",
    ]


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 122 and max(map(len, lines)) <= 120
    places = [part.partition(")")[0].partition("#")[0] for part in text.split("](")[1:]]
    assert places and all((ROOT / place).is_file() for place in places)


def test_every_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    from runtime import VERSION

    assert project["project"]["version"] == VERSION
