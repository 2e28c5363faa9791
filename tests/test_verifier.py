"""The verifier: pairs, scores and losses on cases that are counted by hand; its choices; the whole
way from samples to a table.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
import lora
import mathft
import measure
import verifier
from checkpoint import load_model
from conftest import small_model, some_examples
from data import Example
from flags import run_command
from methods import Run
from runtime import UserError
from tokenizer import Tokenizer
from train import accumulate_gradient, predict
from verifier import (Candidate, Flags, Pair, auc, calibration, candidate_pairs,
                      choices, cross_entropy, judged, log_scores, margin_loss, pair_examples,
                      scores_of)
from vote import summarise_votes

WORDS = (5, 9)


def pairs(count: int = 3) -> list[Pair]:
    """Pairs of documents whose last token, 5 or 9, is the only target."""
    made = []
    for number, e in enumerate(some_examples(2 * count)):
        ids = [*e.ids, WORDS[number % 2]]
        made.append(Example(ids, [False] * len(e.ids) + [True], f"{number // 2}"))
    return [Pair([*a.ids, *b.ids], [*a.is_target, *b.is_target], a.name, right=a, wrong=b)
            for a, b in zip(made[::2], made[1::2])]


# ----------------------------------------------------------------------------------------- examples


def test_pairs_are_of_one_problem_and_repeat_no_solution():
    made = [Candidate("a", "A?", text, right) for text, right in
            (("x", True), ("x", True), ("y", True), ("z", False), ("u", False), ("v", False))]
    made += [Candidate("b", "B?", "only right", True), Candidate("c", "C?", "only wrong", False)]
    found = candidate_pairs(made, 9)
    assert len(found) == 2 and {p.solution for pair in found for p in pair} >= {"x", "y"}
    assert all(right.correct and not wrong.correct for right, wrong in found)
    assert len(candidate_pairs(made, 1)) == 1


def test_the_verdict_alone_is_a_target(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    right, wrong = (judged(tokenizer, Candidate("p", "1 + 1?", "#### 2", verdict))
                    for verdict in (True, False))
    assert right.ids[:-1] == wrong.ids[:-1] and right.ids[-1] != wrong.ids[-1]
    assert right.is_target == [False] * (len(right.ids) - 1) + [True]
    text = tokenizer.decode(right.ids)
    assert text.startswith("Here is a math problem: 1 + 1?\nHere is a candidate solution: #### 2\n")


def test_pairs_that_are_too_long_are_counted(tiny_folder):
    tokenizer, args = Tokenizer(tiny_folder), SimpleNamespace(max_length=150)
    made = [Candidate("a", "A?", "1", True), Candidate("a", "A?", "2", False),
            Candidate("b", "B?", "1", True), Candidate("b", "B?", "2" * 150, False)]
    examples, dropped = pair_examples(tokenizer, made, args, Flags())
    assert [e.name for e in examples] == ["a"] and dropped == 1
    (pair,) = examples
    assert len(pair.ids) == len(pair.right.ids) + len(pair.wrong.ids) == len(pair.is_target)


def test_a_solution_begins_with_each_of_its_lines():
    assert verifier.beginnings("a\n\nb \nc") == ["a", "a\n\nb ", "a\n\nb \nc"]
    assert verifier.beginnings("\na\n") == ["\na\n"] and verifier.beginnings("") == [""]
    many = verifier.beginnings("x\n" * 1000)
    assert len(many) == verifier.MOST_STEPS and many[-1] == "x\n" * 1000


@pytest.mark.parametrize("wrong, cut", [
    ("<<1+1=2>>2\n<<2+2=5>>5\n<<5+1=6>>6", "<<1+1=2>>2\n<<2+2=5>>5"),  # at the first wrong mark
    ("<<1+1=3>>3\n<<2+2=5>>5", "<<1+1=3>>3"),
    ("<<1+2=3>>3\n#### 3", "<<1+2=3>>3\n#### 3"),  # the arithmetic is right: at the end
])
def test_a_wrong_solution_is_judged_at_its_first_wrong_line(wrong, cut):
    """And the right one is cut behind as many lines, so that length says nothing."""
    good = "<<1+1=2>>2\n<<2+2=4>>4\n#### 4"
    pair = verifier.up_to_first_error(Candidate("a", "A?", good, True),
                                      Candidate("a", "A?", wrong, False))
    assert pair[1].solution == cut and not pair[1].correct and pair[0].correct
    assert pair[0].solution == "\n".join(good.split("\n")[: cut.count("\n") + 1])


def test_the_weakest_line_is_the_score(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    tokenizer = Tokenizer(tiny_folder)
    texts = ["1 + 1 = 2", "1 + 1 = 2\n2 + 2 = 4"]
    records = [{"question": "1 + 1?", "text": text} for text in texts]
    whole, read = scores_of(Run(model, tokenizer, None, None, {}), records)
    scores, tokens = scores_of(Run(model, tokenizer, None, None, {"verifier_steps": True}), records)
    assert scores == pytest.approx([whole[0], min(whole)], rel=1e-5)
    assert tokens == [read[0], sum(read)]


def test_a_folder_of_samples_may_have_a_comma_in_its_name(samples, tmp_path):
    _, folder = samples
    (tmp_path / "a,b").symlink_to(folder)
    assert len(verifier.read_candidates(str(tmp_path / "a,b"))) == 24
    assert len(verifier.read_candidates(f"{folder}, {folder}")) == 48


# -------------------------------------------------------------------------------- scores and losses


def test_scores_are_shares_of_the_two_verdicts():
    model = small_model()
    for pair in pairs():
        for document in (pair.right, pair.wrong):
            (found,) = log_scores(model, [document], WORDS).exp().tolist()
            logits = _last_logits(model, document)
            odds = math.exp(logits[WORDS[0]]), math.exp(logits[WORDS[1]])
            assert found == pytest.approx([odds[0] / sum(odds), odds[1] / sum(odds)], rel=1e-4)


def test_scores_are_not_rounded_to_bf16():
    """Logits near 16 would lie 0.125 apart: unlike solutions would have one score."""
    model = small_model(torch.bfloat16)
    for document in (part for pair in pairs() for part in (pair.right, pair.wrong)):
        _, hidden = predict(model, [document])
        wanted = (hidden[:1].float() @ model.head_weight[list(WORDS)].float().T).log_softmax(-1)
        torch.testing.assert_close(log_scores(model, [document], WORDS), wanted, rtol=0, atol=1e-6)


def _last_logits(model, document) -> list[float]:
    _, hidden = predict(model, [document])
    return model.logits(hidden[:1])[0].tolist()


def test_the_losses_beside_plain_numbers():
    model, made = small_model(), pairs()
    total, count = cross_entropy(model, made)
    each = [-math.log(_softmax(_last_logits(model, d))[d.ids[-1]])
            for pair in made for d in (pair.right, pair.wrong)]
    assert total.item() == pytest.approx(sum(each), rel=1e-4) and count == 6
    for margin in (0.0, 0.5, 3.0):
        total, count = margin_loss(model, made, None, WORDS, margin)
        wanted = 0.0
        for pair in made:
            right, wrong = (log_scores(model, [d], WORDS)[0, 0].item()
                            for d in (pair.right, pair.wrong))
            wanted += max(0.0, wrong - right + margin)
        assert total.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6) and count == 3


def _softmax(logits: list[float]) -> list[float]:
    sums = sum(map(math.exp, logits))
    return [math.exp(logit) / sums for logit in logits]


@pytest.mark.parametrize("name", verifier.LOSSES)
def test_the_gradient_does_not_depend_on_the_micro_batches(name, tiny_folder):
    model, found = small_model(), []
    loss = cross_entropy if name == "cross-entropy" else (
        lambda model, part, prefix=None: margin_loss(model, part, prefix, WORDS, 1.0))
    trainable = dict(model.named_parameters())
    for most in (10_000, 30):
        for p in trainable.values():
            p.grad = None
        accumulate_gradient(model, trainable, pairs(), most, loss=loss)
        found.append([p.grad.clone() for p in trainable.values()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_text_without_room_has_no_score_and_costs_nothing(tiny_folder):
    model, tokenizer = load_model(tiny_folder, "cpu", torch.float32, torch.float32), None
    tokenizer = Tokenizer(tiny_folder)
    room = model.config.max_position_embeddings
    records = [{"question": "1 + 1?", "text": "#### 2"},
               {"question": "1 + 1?", "text": "7" * room}]
    scores, tokens = scores_of(Run(model, tokenizer, None, None, {}), records)
    assert 0 < scores[0] < 1 and scores[1] == 0.0
    assert 0 < tokens[0] <= room and tokens[1] == 0
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="the verifier gives no finite scores"):
        scores_of(Run(model, tokenizer, None, None, {}), records[:1])


# ---------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("scores, right, wanted", [
    ([0.9, 0.8, 0.2, 0.1], [True, True, False, False], 1.0),
    ([0.1, 0.2, 0.8, 0.9], [True, True, False, False], 0.0),
    ([0.5] * 4, [True, False, True, False], 0.5),
    ([0.9, 0.5, 0.5, 0.1], [True, True, False, False], 0.875),  # one of four pairs is a tie
    ([0.9, 0.5], [True, True], None),
    ([], [], None),
])
def test_auc(scores, right, wanted):
    assert auc(scores, right) == wanted


def test_calibration_counts_every_score_once():
    found = calibration([0.0, 0.05, 0.55, 0.999, 1.0], [False, True, True, True, True])
    assert [(part["from"], part["n"], part["right"]) for part in found] == [
        (0.0, 2, 0.5), (0.5, 1, 1.0), (0.9, 2, 1.0)]


def test_each_way_to_choose():
    """Three samples say 7, two say 8, one says 9, one has no answer."""
    answers = ["7", "8", "7", "9", "8.0", "7", None]
    scores = [0.1, 0.6, 0.1, 0.9, 0.5, 0.2, 1.0]
    found = {name: index for name, (index, _) in choices(answers, scores, 2).items()}
    assert found == {"Maj1": 0, "RR.All": 3, "RR.MajK": 1, "W.RR": 1, "W.RR.MajK": 1}
    needed = {name: len(read) for name, (_, read) in choices(answers, scores, 2).items()}
    assert needed == {"Maj1": 0, "RR.All": 6, "RR.MajK": 5, "W.RR": 6, "W.RR.MajK": 5}
    assert choices([None, None], [0.5, 0.5], 2)["W.RR"] == (None, [])


def test_one_rule_decides_the_majority_of_an_evaluation_and_maj1_beside_a_verifier():
    """Of tied answers the shortest, then the first by alphabet, however sure the model is."""
    def row(name: str, answers: str, log_probs: list[float]) -> float:
        records = [{"problem": 0, "sample": i, "answer": a, "correct": a == "7", "finish": "stop",
                    "mean_log_prob": p} for i, (a, p) in enumerate(zip(answers.split(), log_probs))]
        scores = [{"score": 0.5, "tokens": 1} for _ in records]
        found = verifier.summarise_scores(records, scores, 8, 1.0)["rows"]["Maj1"]["accuracy"]
        assert summarise_votes([records])["votes"]["majority"]["accuracy"] == found, name
        return found

    assert row("the shorter", "7 12", [-2.0, -0.1]) == 1
    assert row("the first by alphabet", "8 7 9", [-0.1, -2.0, -0.2]) == 1
    assert row("the first by alphabet", "7 5", [-0.1, -2.0]) == 0
    assert row("more votes", "7 5 7", [-2.0, -0.1, -2.0]) == 1


# ------------------------------------------------------------------------------------ the whole way


@pytest.fixture
def samples(tiny_folder, tmp_path, monkeypatch) -> tuple[list[str], str]:
    """An evaluation whose texts a small random model has written, half of them called right."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} + {n}?", "answer": "#### 1"})
                            + "\n" for n in range(6)))
    graded = measure.record_of

    def half(problem, number, sample, *rest):
        return graded(problem, number, sample, f"It is {sample}.\n#### {sample % 2}\n",
                      *rest[1:])

    monkeypatch.setattr(measure, "record_of", half)
    common = ["--model", str(tiny_folder), "--dataset", str(data), "--samples", "4",
              "--temperature", "1", "--max-new-tokens", "4", "--dtype", "fp32", "--device", "cpu"]
    assert run_command(evaluate.main, [*common, "--output-dir", str(tmp_path / "samples")]) == 0
    return common, str(tmp_path / "samples")


@pytest.mark.parametrize("more", [("--eval-limit", "5"), ("--eval-dataset", "mini-gsm")])
def test_samples_have_no_test_problems(more, capsys):
    words = ["--objective", "verifier", "--method", "lora", "--dataset", "samples", *more]
    assert run_command(mathft.main, words) == 2
    assert "has no test problems: leave --eval-limit and --eval-dataset" in capsys.readouterr().err


@pytest.mark.parametrize("loss", verifier.LOSSES)
def test_from_samples_to_a_verifier_to_a_table(loss, samples, tiny_folder, tmp_path, capsys):
    common, folder = samples
    words = ["--objective", "verifier", "--method", "sft", "--model", str(tiny_folder), "--dataset",
             folder, "--steps", "60", "--batch-size", "6", "--lr", "0.01", "--dtype", "fp32",
             "--verifier-loss", loss, "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert run_command(mathft.main, words) == 0
    out = capsys.readouterr().out
    assert "12 training examples, 0 test problems" in out
    assert f"next       python evaluate.py --run RUN --verifier {tmp_path / 'run'} --samp" in out
    again = [*common, "--verifier", str(tmp_path / "run"), "--output-dir", str(tmp_path / "table")]
    assert run_command(evaluate.main, again) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "table" / "result.json").read_text())["verifier"]
    assert set(found["rows"]) == {"pass@1", "pass@4", "Maj1", "RR.All", "RR.MajK", "W.RR",
                                  "W.RR.MajK"}
    # The texts tell right from wrong, and even this model learns to see it.
    assert found["auc"] > 0.95 and found["rows"]["W.RR"]["accuracy"] == 1.0
    read = {name: row["verifier_tokens"] for name, row in found["rows"].items()}
    assert read["Maj1"] == 0 < read["RR.All"] == read["W.RR"]
    assert "W.RR.MajK" in out and "AUC" in out
    assert "warning    6 of the 6 problems were trained on by this verifier" in out
    scores = [json.loads(line) for line in (tmp_path / "table" / "scores.jsonl").open()]
    assert len(scores) == 24 and all(0 <= row["score"] <= 1 for row in scores)
    assert sum(row["tokens"] for row in scores) == found["tokens"]
    if loss == verifier.LOSSES[0]:
        check_read_and_graded_again(tmp_path / "table", out, capsys)
        check_chosen_again(tmp_path / "table", tmp_path / "run", capsys)


def figures_of(out: str) -> list[str]:
    """The printed rows of votes, of the greedy evaluation, and of the verifier's table."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("choice  "))
    end = next(i for i, line in enumerate(lines) if line.startswith("files  "))
    return [line for line in lines if line.startswith(("flexible", "greedy", "majority"))
            ] + lines[start:end]


def check_read_and_graded_again(folder: Path, out: str, capsys) -> None:
    """--read and --regrade print the table of the measuring run, from the files alone."""
    before = (folder / "result.json").read_bytes()
    assert run_command(evaluate.main, ["--read", str(folder)]) == 0
    assert figures_of(capsys.readouterr().out) == figures_of(out)
    assert (folder / "result.json").read_bytes() == before, "--read writes nothing"
    assert run_command(evaluate.main, ["--regrade", str(folder)]) == 0
    assert figures_of(capsys.readouterr().out) == figures_of(out)
    again = folder.parent / f"{folder.name}-regraded-1"
    assert (again / "scores.jsonl").read_bytes() == (folder / "scores.jsonl").read_bytes()
    found, stored = (json.loads((place / "result.json").read_text()) for place in (again, folder))
    assert found["verifier"] == stored["verifier"] and found["greedy"] == stored["greedy"]


def check_chosen_again(folder: Path, run: Path, capsys) -> None:
    """--regrade with --verifier scores the samples that are there."""
    new = folder.parent / "chosen"
    words = ["--regrade", str(folder), "--verifier", str(run), "--output-dir", str(new)]
    assert run_command(evaluate.main, [*words, "--samples", "4"]) == 2 and not new.exists()
    assert "--regrade generates nothing: --samples would have no" in capsys.readouterr().err
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert run_command(evaluate.main, [*words, "--dtype", "fp32", "--device", "cpu", "--threads",
                                       str(threads)]) == 0
    assert torch.get_num_threads() == threads
    for name in ("scores.jsonl", "generations.jsonl"):
        assert (new / name).read_bytes() == (folder / name).read_bytes()
    once = ["--regrade", str(folder / "greedy"), "--verifier", str(run), "--output-dir", "once"]
    assert run_command(evaluate.main, once) == 2 and not Path("once").exists()
    assert "--verifier chooses among several samples" in capsys.readouterr().err


@pytest.fixture
def scored(tmp_path) -> tuple[Path, list[dict]]:
    """The files of a verifier's figures: two samples of one problem, 1 wrong and 2 right."""
    records = [{"problem": 0, "sample": i, "answer": str(i + 1), "correct": i == 1}
               for i in range(2)]
    rows = [{"problem": 0, "sample": i, "score": (0.25, 0.75)[i], "tokens": 10} for i in range(2)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = {"run": "runs/v", "largest_clusters": 8, "seconds": 2.0}
    (tmp_path / "result.json").write_text(json.dumps({"verifier": stored}))
    return tmp_path, records


def test_figures_are_counted_again_from_the_files_with_the_verdicts_of_today(scored):
    folder, records = scored
    figures, rows = verifier.count_again(folder, records)
    assert figures["run"] == "runs/v" and figures["auc"] == 1.0 and len(rows) == 2
    assert figures["rows"]["RR.All"]["accuracy"] == 1.0
    assert figures["rows"]["RR.All"]["verifier_seconds"] == figures["seconds"] == 2.0
    turned = [record | {"correct": not record["correct"]} for record in records]
    assert verifier.count_again(folder, turned)[0]["rows"]["RR.All"]["accuracy"] == 0.0


@pytest.mark.parametrize("name, old, new", [
    ("scores.jsonl", '"tokens": 10', '"tokens": -1'),
    ("scores.jsonl", '"tokens": 10', '"tokens": 1' + "0" * 400),
    ("scores.jsonl", '"tokens": 10', '"n": 10'),
    ("scores.jsonl", "0.75", "1.75"),
    ("scores.jsonl", "0.75", "true"),
    ("scores.jsonl", '"sample": 1', '"sample": 2'),
    ("scores.jsonl", '{"problem": 0, "sample": 1, "score": 0.75, "tokens": 10}\n', ""),
    ("scores.jsonl", '{"problem": 0, "sample": 1, "score": 0.75, "tokens": 10}\n', "[]\n"),
    ("result.json", '"largest_clusters": 8', '"largest_clusters": 0'),
    ("result.json", "2.0", '"2"'),
    ("result.json", '"verifier"', '"other"'),
])
def test_files_that_hold_no_figures(scored, name, old, new):
    folder, records = scored
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{name}.*remove .*the report has no verifier"):
        verifier.count_again(folder, records)


def test_a_verifier_needs_several_samples_and_a_whole_run(samples, tmp_path, capsys):
    common, _ = samples
    one = [word if word != "4" else "1" for word in common]
    assert run_command(evaluate.main, [*one, "--verifier", "x"]) == 2
    assert run_command(evaluate.main, [*common, "--verifier", str(tmp_path / "none")]) == 1
    assert "no run directory" in capsys.readouterr().err
    moved = tmp_path / "moved"
    (moved / "adapter").mkdir(parents=True)
    (moved / "args.json").write_text(json.dumps(
        {"method": "lora", "model": str(tmp_path / "gone"), "system": None} | asdict(lora.Flags())))
    assert run_command(evaluate.main, [*common, "--verifier", str(moved), "--output-dir",
                                       str(tmp_path / "new")]) == 1
    told = capsys.readouterr().err
    assert "gone" in told and "python checkpoint.py base" in told
    assert not (tmp_path / "new").exists()
