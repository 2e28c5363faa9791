"""quick_help.py: --help says the same without torch, which is then not imported."""

import ast
import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quick_help import StandIn, asks_for_help

ROOT = Path(__file__).resolve().parent.parent
# Every module that is a command with flags, and the words that come before --help.
COMMANDS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts)
                  for folder in (ROOT, *(ROOT / name for name in ("show", "recipes", "tools")))
                  for path in folder.glob("*.py")
                  if "sys.exit(run_command(" in path.read_text(encoding="utf-8"))
PARTS = {"augment": ("make", "filter", "recipe", "export"), "checkpoint": ("export", "base")}


def help_texts() -> dict[str, str]:
    """What each command prints for --help, or what error it gives."""
    texts = {}
    for name in COMMANDS:
        module = importlib.import_module(name)
        main = getattr(module, "main", None) or module._main
        for words in ([], *([part] for part in PARTS.get(name, ()))):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
                try:
                    main([*words, "--help"])
                except Exception as error:
                    print(type(error).__name__, error)
            texts[" ".join([name, *words])] = out.getvalue()
    return texts


def test_the_words_are_the_same_without_torch(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    code = f"""import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
sys.argv = ["command.py", "--help"]
import quick_help, test_quick_help
texts = test_quick_help.help_texts()
print(json.dumps([texts, type(sys.modules["torch"]).__name__, "torch._C" in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts, torch, is_true = json.loads(done.stdout)
    assert torch == "StandIn" and not is_true
    assert texts == help_texts()
    assert {"mathft", "evaluate", "synthetic", "augment make", "checkpoint base"} <= texts.keys()
    without = {name for name, text in texts.items() if "usage:" not in text}
    assert without == {"augment", "checkpoint", "data", "records"}  # their docstring says it


def test_a_command_imports_it_from_any_folder_and_in_isolated_mode(tmp_path):
    """`python -I` and `-P` leave the script's folder out of the places of modules."""
    done = subprocess.run([sys.executable, "-I", "-X", "importtime", ROOT / "mathft.py", "-h"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: mathft.py [-h]")
    assert "quick_help" in done.stderr and "torch._C" not in done.stderr
    for words, said in ((["answers.py", "1/2", "0.5"], "0.5: equal\n"),
                        (["vote.py", "1/2", "0.5", "3"], "2 1/2\n1 3\nmajority: 1/2\n"),
                        (["calculator.py", "<<2+3="], "5>>\n"),
                        (["tokenizer.py"], "")):
        done = subprocess.run([sys.executable, "-I", ROOT / words[0], *words[1:]], cwd=tmp_path,
                              capture_output=True, text=True)
        assert "Traceback" not in done.stderr and done.stdout == said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_looks_for_help_first(name):
    """Before it imports any but the standard library; and a file that is run says first where its
    neighbours are.
    """
    text = (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    head = [node for node in ast.parse(text).body[1:] if not is_standard(node)][:2]
    lines = [ast.unparse(node) for node in head]
    asks = "if {'-h', '--help'} & {*sys.argv}:\n    import quick_help"
    path = "sys.path.insert(0, str(Path(__file__).resolve().parent))"
    assert lines[0] == asks if "." in name else lines == [path, asks]


def is_standard(node: ast.stmt) -> bool:
    """Whether it imports from the standard library alone."""
    names = ([node.module] if isinstance(node, ast.ImportFrom) else
             [alias.name for alias in node.names] if isinstance(node, ast.Import) else [""])
    return all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


@pytest.mark.parametrize("words, wanted", [
    (["--help"], True), (["export", "-h"], True), (["--steps", "3", "--help"], True),
    ([], False), (["help"], False), (["--", "-h"], False), (["--question=-h"], False)])
def test_what_asks_for_help(words, wanted):
    assert asks_for_help(words) == wanted


def test_a_stand_in_serves_at_import_and_computes_nothing():
    torch = StandIn("torch")

    class Layer(torch.nn.Module):
        @torch.inference_mode()
        def forward(self, x: torch.Tensor | None, f: Callable[[torch.Tensor], int]):
            pass

    assert Layer.__mro__ == (Layer, object)
    assert torch.finfo(torch.float32).max is torch and not hasattr(torch, "__version__")
    with pytest.raises(TypeError):
        torch.zeros(3) + 1
