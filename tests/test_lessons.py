"""The lessons: each test is red before the work and green after the worked solution, each solution
applies by itself, and the text names files that are there.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import children

ROOT = Path(__file__).resolve().parent.parent
LESSONS = (ROOT / "docs" / "lessons.md").read_text(encoding="utf-8").split("\n## Lesson ")[1:]
NUMBERS = range(1, len(LESSONS) + 1)
MASK = 2  # whose test is green before and red after
LEFT_OUT = shutil.ignore_patterns(".git", "runs", "study", "tiny-large", "__pycache__", ".*_cache",
                                  ".venv")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patches")


def named(number: int, field: str) -> str:
    """What a lesson says behind `- Open`, `- Test` or `- Solution`."""
    return re.search(rf"^- {field}.*$", LESSONS[number - 1], re.MULTILINE).group()


def solution(number: int) -> Path:
    return ROOT / re.search(r"`(docs/solutions/\S+)`", named(number, "Solution")).group(1)


def named_tests(number: int) -> list[str]:
    return re.findall(r"\S+/test_\w+\.py", named(number, "Test"))


def made_tests(number: int) -> list[str]:
    """The tests that a solution brings along."""
    new = r"^--- /dev/null\n\+\+\+ b/(tests/test_\w+\.py)$"
    return re.findall(new, solution(number).read_text(encoding="utf-8"), re.MULTILINE)


def git_apply(folder: Path, *words: str) -> None:
    done = subprocess.run(["git", "apply", *words], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)})
    assert done.returncode == 0, done.stderr


def run_tests(folder: Path, *words: str) -> subprocess.CompletedProcess:
    how = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    return children.run("import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))", *how, *words,
                        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the project, to be changed."""
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=LEFT_OUT)


def test_every_lesson_names_its_files():
    assert [int(text.partition(":")[0]) for text in LESSONS] == list(NUMBERS) and len(NUMBERS) == 10
    for number in NUMBERS:
        assert solution(number).name.startswith(f"{number:02d}-") and solution(number).is_file()
        made = re.findall(r"^\+\+\+ b/(\S+)", solution(number).read_text(), re.MULTILINE)
        opened = re.findall(r"`([\w/]+\.py)`", named(number, "Open"))
        assert opened and all((ROOT / name).exists() or name in made for name in opened)
        assert named_tests(number) and all((ROOT / name).is_file() for name in named_tests(number))
    there = {path.name for path in (ROOT / "docs" / "solutions").iterdir()}
    assert there == {solution(number).name for number in NUMBERS}
    lessons = {path.name for path in (ROOT / "docs" / "lessons").glob("test_*.py")}
    assert lessons == {Path(name).name for number in NUMBERS for name in named_tests(number)
                       if name.startswith("docs/")}


@needs_git
def test_every_solution_applies_by_itself(copy):
    for number in NUMBERS:
        git_apply(copy, "--check", str(solution(number)))


@needs_git
def test_the_tests_are_red_before_and_green_after(copy):
    """All solutions but the broken mask at once; `-m slow` takes them one by one."""
    own = [named_tests(number)[0] for number in NUMBERS if number != MASK]
    red = run_tests(copy, *own).stdout
    for name in own:
        assert re.search(rf"^(FAILED|ERROR) {re.escape(name)}", red, re.MULTILINE), name
    for number in NUMBERS:
        if number != MASK:
            git_apply(copy, str(solution(number)))
    made = [name for number in NUMBERS for name in made_tests(number)]
    assert made == ["tests/test_bitfit.py", "tests/test_dpo.py"]
    green = run_tests(copy, *own, *made)
    assert green.returncode == 0, green.stdout


@needs_git
def test_a_broken_mask_is_seen(copy):
    git_apply(copy, str(solution(MASK)))
    broken = run_tests(copy, *named_tests(MASK))
    assert broken.returncode == 1
    assert "test_documents_in_a_row_do_not_see_each_other" in broken.stdout


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize("number", [number for number in NUMBERS if number != MASK])
def test_a_solution_alone_passes_all_tests_of_its_lesson(number, copy):
    git_apply(copy, str(solution(number)))
    done = run_tests(copy, *named_tests(number), *made_tests(number))
    assert done.returncode == 0, done.stdout
