"""The study as data: its runs, its tables, and what the papers say. study.py works through it.

    python study.py --list               # every table with its commands

1. A run is a command. `{name}` in it is a setting of `SETTINGS`, or the folder of another run.
   `{tokens:RUN}` is the training tokens of a run that has ended. `{steps:RUN@OTHER}` is the steps
   that take as long as the training of OTHER, at the pace of RUN.
2. A table has rows and columns. A row names a run. A column names a figure of that run, or of the
   run that the column names, with the row's run in the place of `*`.
3. A paper's figure stands beside ours under the same row and column. A `Claim` is what the paper
   says of two rows; study.py holds ours against it.

To add a row: write its command into `RUNS` and its name into the `rows` of a table. docs/lessons.md
(lesson 5) is a worked example.

The papers. A: Empowering Reasoning through Efficient Fine-Tuning, Augmentation, and Multi-Round
Voting. B: 通过高效微调与数据增强提高大语言模型数学推理能力 (better mathematics by efficient tuning
and data augmentation). C: Liu et al. 2023, arXiv 2310.10047. D: a report on MATH-500 in an
evaluation harness. E: Chen et al. 2025, arXiv 2501.14002. A and B tune Qwen2.5-0.5B, C PaLM 2: ours
can only agree in direction.
"""

from dataclasses import dataclass, field

from methods import METHODS


@dataclass(frozen=True)
class Column:
    """A figure of a run. `path` leads through the JSON of `file`, with / between its keys.

    kind: share (an accuracy or another rate), seconds, MiB, count or number. A run that is not in
    `RUNS` leaves the cell empty.
    """

    path: str = "accuracy_after"
    kind: str = "share"
    file: str = "result.json"
    run: str = "*"


@dataclass(frozen=True)
class Claim:
    """The paper says, or lets one expect, that row `above` is above row `below` in a column."""

    above: str
    below: str
    column: str
    other_column: str = ""  # that of `below`, if it is another one


@dataclass(frozen=True)
class Experiment:
    """One table. `paper` holds the paper's figures by row and column, in percent or as they are."""

    name: str
    source: str
    title: str
    rows: dict[str, str]  # what the table calls it -> run
    columns: dict[str, Column]
    paper: dict[str, dict[str, str]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    note: str = ""
    embedded: bool = False  # needs the embedded sets, so that a real model has no such table
    ranked: bool = False  # rows stand in the order of the first column


# ----------------------------------------------------------------------------------------- settings

# What the commands share. The embedded model reads its few problems once or twice: reading them
# more often teaches it nothing new. A real model learns two epochs of a whole published set.
EMBEDDED = {
    "model": "", "larger_model": "--method sft --model tiny-large",
    "train": "{gold}/data.jsonl", "gold_count": "200", "batch": "--batch-size 16",
    "room": "--max-new-tokens 256", "short": "24", "middle": "48", "long": "256",
    "start": "--steps 10 {batch}", "cold_start": "--steps 8 {batch}",
    "length": "--steps 12 --log-every 3 {batch}", "more": "--steps 6 {batch}",
    "few_steps": "--steps 8 {batch}",
}
SETTINGS = {
    "quick": EMBEDDED | {
        "copies": "4", "judged": "--steps 8 {batch}", "rewarded": "--steps 2 --batch-size 8",
        "drawn": "--samples 2", "read": "--tokens 24000 {batch}", "corpus": "{read}",
        "tests": "--eval-limit 60", "problems": "--limit 60", "test_count": "60",
        "sampled": "--limit 60", "many": "4"},
    "full": EMBEDDED | {
        "copies": "8", "judged": "--steps 16 {batch}", "rewarded": "--steps 3",
        "drawn": "--samples 4", "read": "--tokens 40000 {batch}",
        "corpus": "--tokens 150000 {batch}",
        "tests": "--eval-limit 200", "problems": "--limit 200", "test_count": "200",
        "sampled": "--limit 150", "many": "8"},
    "real": {
        "train": "{data}", "copies": "2", "batch": "",
        "room": "--max-new-tokens 1024", "short": "256", "middle": "1024", "long": "8192",
        "start": "--steps 50", "cold_start": "--steps 50",
        "length": "", "more": "--epochs 1", "judged": "", "rewarded": "--steps 100",
        "drawn": "--samples 3", "tests": "", "problems": "", "sampled": "--limit 2000",
        "many": "16"},
}  # fmt: skip
# What this set asks for is new to the embedded model, which needs more problems and steps for it.
NEW_SET = "mini-gsm-plus"
NEW_TO_IT = {"gold_count": "1000", "start": "--steps 50 {batch}",
             "cold_start": "--steps 40 {batch}", "more": "--steps 30 {batch}",
             "length": "--steps 60 --log-every 15 {batch}"}
SEEDS = {"quick": 1, "full": 3, "real": 1}
FOR_ALL = {
    "on_gold": "{model} --dataset {train} --eval-dataset {test} {length} {tests}",
    "on_second": "{model} --dataset {second} --eval-dataset {second_test} {length} {tests}",
    "on_test": "--dataset {test} {problems} {room}",
    "tested": "--eval-dataset {test} {tests}",
}

TAUGHT = {
    "distill": "--objective distill --teacher {larger} --alpha 1",
    "distill-weighted": "--objective distill --teacher {larger} --alpha 0.5 --answer-weight 2",
    "distill-on-policy": "--objective distill --teacher {larger} --on-policy",
}

# --------------------------------------------------------------------------------------------- runs

RUNS = {
    # data
    "gold": "synthetic.py {data} --count {gold_count}",
    "perturbed": "augment.py make perturb --dataset {train} --samples {copies}",
    "answers": "augment.py make responses --dataset {train} --teacher {larger} {room}",
    "rft": "augment.py make rft --dataset {train} --teacher {sft-gold} --samples 4 "
           "--temperature 1 {room}",
    "retro": "augment.py make retro --dataset {train} --samples 2",
    "tutor": "augment.py make tutor --dataset {train} --student {generator} --samples 4 "
             "--temperature 1 {room}",
    # from solutions: each method on the gold problems
    **{f"{name}-gold": f"mathft.py --method {name} {{on_gold}}" for name in METHODS},
    **{f"{name}-gold-second": f"mathft.py --method {name} {{on_second}}" for name in METHODS},
    "larger": "mathft.py {larger_model} --dataset {train} --eval-dataset {test} {length} {tests}",
    "larger-second": "mathft.py {larger_model} --dataset {second} --eval-dataset {second_test} "
                     "{length} {tests}",
    # from made data, beside the gold problems
    **{f"sft-{made}": f"mathft.py --method sft {{model}} --dataset {{train}},{{{made}}}/data.jsonl "
                      "{length} {tested}" for made in ("perturbed", "rft", "retro", "tutor")},
    "sft-answers": "mathft.py --method sft {model} --dataset {answers}/data.jsonl {length} "
                   "{tested}",
    # votes: sample s of a problem is the same however many there are
    **{f"lora-votes-{n}": f"evaluate.py --run {{lora-gold}} {{on_test}} --samples {count} "
                          "--temperature 0.7"
       for n, count in (("2", "2"), ("3", "3"), ("all", "{many}"))},
    # a verifier, the samples that it learns from, and what it chooses
    "generator": "mathft.py --method sft {model} --dataset {train} {start} {tested}",
    "samples": "evaluate.py --run {generator} --dataset {data} --split train {sampled} "
               "--samples 8 --temperature 0.9 {room}",
    "verifier": "mathft.py --objective verifier --method sft {model} --dataset {samples} {judged}",
    "verifier-margin": "mathft.py --objective verifier --method sft {model} --dataset {samples} "
                       "--verifier-loss margin {judged}",
    "verifier-larger": "mathft.py --objective verifier {larger_model} --dataset {samples} {judged}",
    "choices": "evaluate.py --run {generator} {on_test} --samples {many} --temperature 0.9",
    **{f"{judge}-chooses": f"evaluate.py --regrade {{choices}} --verifier {{{judge}}} "
                           "--most-clusters 2"
       for judge in ("verifier", "verifier-margin", "sequence-judge", "verifier-larger")},
    # generator, verifier, generator; and its control without a verifier
    "sequence-judge": "mathft.py --from {generator} --objective verifier --dataset {samples} "
                      "{judged}",
    "sequence": "mathft.py --from {sequence-judge} --dataset {train} {more} {tested}",
    "control-middle": "mathft.py --from {generator} --dataset {train} --eval-limit 0 "
                      "--tokens {tokens:sequence-judge} {batch}",
    "control": "mathft.py --from {control-middle} --dataset {train} {more} {tested}",
    # styles of the solutions, at equal tokens
    **{style: f"synthetic.py mini-gsm --count 1000 --style {style}"
       for style in ("steps", "terse", "fine")},
    **{f"sft-{style}": f"mathft.py --method sft --dataset {{{style}}}/data.jsonl {{read}} "
                       "--eval-dataset mini-gsm {tests}" for style in ("steps", "terse", "fine")},
    "sft-mixed": "mathft.py --method sft --dataset {terse}/data.jsonl,{fine}/data.jsonl {read} "
                 "--eval-dataset mini-gsm {tests}",
    # how an evaluation is done
    "second-untouched": "evaluate.py {model} --dataset {second_test} {problems} {room}",
    **{f"second-{cut}": "evaluate.py --run {sft-gold-second} --dataset {second_test} {problems} "
                        f"--max-new-tokens {{{cut}}}" for cut in ("short", "middle", "long")},
    # changed problems
    "original": "synthetic.py mini-gsm --split test --count {test_count}",
    "simple": "augment.py make perturb --dataset {original}/data.jsonl",
    "hard": "augment.py make perturb --dataset {original}/data.jsonl --hard",
    **{f"{run}-on-{tests}": f"evaluate.py --run {{{run}}} --dataset {{{tests}}}/data.jsonl {{room}}"
       for run in ("sft-gold", "sft-perturbed") for tests in ("original", "simple", "hard")},
    # from rewards, and from a teacher
    "cold": "mathft.py --method sft {model} --dataset {train} {cold_start} {tested}",
    "cold-grpo": "mathft.py --from {cold} --objective grpo --dataset {train} {rewarded} {tested}",
    "cold-sft": "mathft.py --from {cold} --dataset {train} --steps {steps:sft-gold@cold-grpo} "
                "{batch} {tested}",
    "cold-rft": "augment.py make rft --dataset {train} --teacher {cold} {drawn} --temperature 1 "
                "{room}",
    "cold-own": "mathft.py --from {cold} --dataset {cold-rft}/data.jsonl "
                "--steps {steps:sft-gold@cold-grpo} {batch} {tested}",
    **{f"sft-{way}": f"mathft.py {words} --method sft {{model}} --dataset {{train}} "
                     f"--steps {{steps:sft-{way}-pace@sft-gold}} {{batch}} {{tested}}"
       for way, words in TAUGHT.items()},
    # the same weights, with exact results
    **{f"{run}-calculated": f"evaluate.py --run {{{run}}} {{on_test}} --calculator"
       for run in ("sft-gold", "lora-gold", "cold-grpo")},
    # from plain texts
    "read-problems": "mathft.py --objective cpt --method sft --dataset mini-gsm-plus {corpus} "
                     "--eval-limit 0",
    "read-stories": "mathft.py --objective cpt --method sft --dataset mini-stories {corpus} "
                    "--eval-limit 0",
    "few": "synthetic.py mini-gsm-plus --count 40",
    "few-alone": "mathft.py --method sft --dataset {few}/data.jsonl {few_steps} "
                 "--eval-dataset mini-gsm-plus {tests}",
    **{f"few-after-{read}": f"mathft.py --from {{read-{read}}} --dataset {{few}}/data.jsonl "
                            "{few_steps} --eval-dataset mini-gsm-plus {tests}"
       for read in ("problems", "stories")},
    "plus-solutions": "mathft.py --method sft --dataset mini-gsm-plus {corpus} {tests}",
    # equal seconds: a short run of each gives the pace, then the steps fill the same seconds
    **{f"{name}-grpo-pace": f"mathft.py --objective grpo --method {name} {{model}} "
                            "--dataset {train} --batch-size 4 --steps 2 --eval-limit 0"
       for name in METHODS},
    **{f"{name}-{way}-pace": f"mathft.py {words} --method {name} {{model}} --dataset {{train}} "
                             "--steps 3 {batch} --eval-limit 0"
       for name in METHODS for way, words in TAUGHT.items()},
}
BOARD = {
    "gold": "--dataset {train} --steps {steps:NAME-gold@lora-gold} {batch}",
    "perturbed": "--dataset {train},{perturbed}/data.jsonl --steps {steps:NAME-gold@lora-gold} "
                 "{batch}",
    "grpo": "--objective grpo --dataset {train} --batch-size 4 "
            "--steps {steps:NAME-grpo-pace@lora-gold}",
    "distill": TAUGHT["distill"]
               + " --dataset {train} --steps {steps:NAME-distill-pace@lora-gold} {batch}",
}
RUNS |= {f"board-{name}-{learnt}": f"mathft.py --method {name} {{model}} {{tested}} "
         + words.replace("NAME", name) for name in METHODS for learnt, words in BOARD.items()}

# ------------------------------------------------------------------------------------------- tables

ACCURACY = Column()
SECONDS = Column("train_seconds", "seconds")
MEMORY = Column("peak_memory_mib", "MiB")
PARAMETERS = Column("trainable_params", "count")
COSTS = {"accuracy": ACCURACY, "training": SECONDS, "memory": MEMORY, "parameters": PARAMETERS}
LEARNT = {"accuracy": ACCURACY, "training": SECONDS}
BEFORE = Column("accuracy_before")


def evaluated(path: str = "", run: str = "*") -> Column:
    """A rate of an evaluation, by its path in result.json; without one, the accuracy itself."""
    return Column(f"{path}/accuracy".lstrip("/"), run=run)


CHOICES = {name: evaluated(f"verifier/rows/{name}")
           for name in ("pass@1", "Maj1", "RR.All", "RR.MajK", "W.RR", "W.RR.MajK")}
CHOICES["one is right"] = evaluated("verifier/rows/pass@{many}")
READ = {f"{name} reads": Column(f"verifier/rows/{name}/verifier_tokens", "count")
        for name in ("RR.MajK", "RR.All")}
READ["seconds"] = Column("verifier/seconds", "seconds")
AUC = {"AUC": Column("verifier/auc", "number")}
AFTER = "evals/after/result.json"
BY_LEVEL = {"all": ACCURACY, **{f"{level} steps": Column(f"by_level/{level}/accuracy", file=AFTER)
                                for level in "2345"}}

EXPERIMENTS = (
    Experiment(
        "full-lora", "paper A, figures 1 and 2", "Full tuning beside LoRA: accuracy, time, memory",
        {"full tuning": "sft-gold", "LoRA": "lora-gold"},
        {"accuracy": ACCURACY, "untouched": BEFORE, **COSTS},
        {"full tuning": {"accuracy": "27.75", "training": "1054"}, "LoRA": {"accuracy": "28.73"}},
        (Claim("LoRA", "full tuning", "accuracy"),)),
    Experiment(
        "augmented", "paper A, tables 1 and 2", "Augmented beside plain training data",
        {"plain": "sft-gold", "augmented": "sft-perturbed"}, LEARNT,
        {"plain": {"accuracy": "27.75", "training": "1054"},
         "augmented": {"accuracy": "42.99", "training": "2438"}},
        (Claim("augmented", "plain", "accuracy"),),
        "The paper trains longer on more data (on MATH 9.80 and 12.00 % in 839 and 2,099 s). The "
        "embedded model has the same steps on both; its new problems have new numbers."),
    Experiment(
        "teacher-answers", "paper A, table 3", "Solutions by a larger model in place of gold ones",
        {"gold": "sft-gold", "teacher's": "sft-answers"}, LEARNT,
        {"gold": {"accuracy": "27.75"}, "teacher's": {"accuracy": "25.55"}},
        (Claim("gold", "teacher's", "accuracy"),),
        "Only solutions that the grader agrees with are kept."),
    Experiment(
        "larger", "paper A, figures 3 and 4", "A larger model, and its curve",
        {"small": "sft-gold", "larger": "larger"},
        {**COSTS, **{f"loss, {when}": Column(f"{when}/loss", "number", "metrics.jsonl")
                     for when in ("first", "middle", "last")}},
        claims=(Claim("larger", "small", "accuracy"),),
        note="The paper's figures are curves; no numbers of them are at hand."),
    Experiment(
        "votes", "paper A, table 4", "Votes of 1, 2, 3 and all samples",
        {"LoRA": "lora-votes"},
        {"1 sample": evaluated(run="*-all"),
         **{f"{n} votes": evaluated("votes/majority", f"*-{n}") for n in "23"},
         "all votes": evaluated("votes/majority", "*-all"),
         "greedy": evaluated("greedy", "*-all")},
        {"LoRA": {"1 sample": "28.73", "2 votes": "0", "3 votes": "0"}},
        (Claim("LoRA", "LoRA", "1 sample", "3 votes"),),
        "Votes cannot do what the paper's table shows: of two unlike samples a vote elects one, "
        "and three votes are right at least where all three samples are. It is a fault of its "
        "program; tests/test_vote.py holds ours to these laws."),
    Experiment(
        "methods", "paper B, table 1", "Methods, augmented data and an expert model, on two sets",
        {"SFT": "sft-gold", "LoRA": "lora-gold", "prefixes": "prefix-gold",
         "augmented": "sft-perturbed", "expert": "larger"},
        {"first set": ACCURACY, "second set": Column(run="*-second"), "training": SECONDS,
         "memory": MEMORY},
        {"SFT": {"first set": "34.27", "second set": "7.00", "training": "3600"},
         "LoRA": {"first set": "28.54", "second set": "7.60", "training": "1200"},
         "prefixes": {"first set": "57.47", "second set": "11.40", "training": "2400"},
         "augmented": {"first set": "37.07", "second set": "8.00", "training": "10800"},
         "expert": {"first set": "84.38", "second set": "51.80"}},
        (Claim("SFT", "LoRA", "first set"), Claim("LoRA", "SFT", "second set"),
         Claim("prefixes", "SFT", "first set"), Claim("augmented", "SFT", "first set"),
         Claim("expert", "prefixes", "first set"), Claim("expert", "prefixes", "second set"),
         Claim("SFT", "prefixes", "training"), Claim("prefixes", "LoRA", "training")),
        "The paper's times are of an RTX 4090, its expert is Qwen2.5-Math-1.5B. New numbers can "
        "only be made for problems whose solutions mark their arithmetic: the second set has no "
        "augmented row."),
    Experiment(
        "styles", "paper C, solution tuning", "The style of the solutions, at equal tokens",
        {"steps": "sft-steps", "terse": "sft-terse", "fine": "sft-fine", "both": "sft-mixed"},
        {**LEARNT, "tokens of an answer": Column("mean_tokens", "count", AFTER)},
        claims=(Claim("fine", "terse", "accuracy"),),
        note="The paper says it in words: style matters more than number, and fine steps are "
             "best.", embedded=True),
    Experiment(
        "choices", "paper C, re-ranking", "What a verifier chooses among samples, and its cost",
        {"cross-entropy": "verifier-chooses", "margin": "verifier-margin-chooses",
         "from the generator": "sequence-judge-chooses",
         "larger, cross-entropy": "verifier-larger-chooses"},
        {**CHOICES, **AUC, **READ},
        {"larger, cross-entropy": {"pass@1": "35.6", "Maj1": "55.2", "RR.All": "57.0",
                                   "RR.MajK": "58.8", "W.RR.MajK": "61.2", "one is right": "79.4"}},
        (Claim("larger, cross-entropy", "larger, cross-entropy", "RR.All", "Maj1"),
         Claim("larger, cross-entropy", "larger, cross-entropy", "W.RR.MajK", "RR.All"),
         Claim("larger, cross-entropy", "cross-entropy", "AUC")),
        "The paper's figures are those of PaLM 2-L with 64 samples and K = 8; it says that a small "
        "verifier is weak. K is 2 here. `reads` counts the verifier's tokens."),
    Experiment(
        "sequence", "paper C, sequences", "Generator, verifier, generator; and its control",
        {"sequence": "sequence", "control": "control", "generator alone": "generator"}, LEARNT,
        {"sequence": {"accuracy": "control + 2.0"}}, (Claim("sequence", "control", "accuracy"),),
        "The control reads as many tokens of solutions in the verifier's place."),
    Experiment(
        "cut", "paper D, answers that are cut", "The longest answer that an evaluation allows",
        {"short": "second-short", "middle": "second-middle", "long": "second-long"},
        {"accuracy": evaluated(), "cut": Column("truncated_rate"),
         "no answer": Column("no_answer_rate"),
         "tokens allowed": Column("max_new_tokens", "count")},
        claims=(Claim("long", "short", "accuracy"),),
        note="The report cut at 256 tokens, where 8,192 were needed."),
    Experiment(
        "grading", "paper D, unlike forms", "The same answers as strings and as values",
        {"tuned": "second-long", "untouched": "second-untouched"},
        {"by value": evaluated(), "marked, by value": evaluated("strict"),
         "as strings": evaluated("exact")},
        claims=(Claim("tuned", "tuned", "by value", "as strings"),),
        note="The report loses right answers whose LaTeX has another form."),
    Experiment(
        "perturbed", "paper D, and MATH-Perturb", "Problems with changed numbers or another way",
        {"gold alone": "sft-gold", "with changed problems": "sft-perturbed"},
        {tests: evaluated(run=f"*-on-{tests}") for tests in ("original", "simple", "hard")},
        claims=(Claim("gold alone", "gold alone", "original", "hard"),
                Claim("with changed problems", "gold alone", "simple")), embedded=True),
    Experiment(
        "rewards", "paper D, rewards", "A cold start, then rewards or more solutions",
        {"cold start": "cold", "then GRPO": "cold-grpo", "then its own right samples": "cold-own",
         "then solutions": "cold-sft"}, LEARNT,
        claims=(Claim("then GRPO", "cold start", "accuracy"),),
        note="GRPO draws about twice the samples that it learns from: groups with equal rewards "
             "are left out. Its own right samples are chosen from about as many, with --quick from "
             "more. The last two train for as many seconds as GRPO takes, sampling included. The "
             "report names rewards as the way on."),
    Experiment(
        "distillation", "paper D, multi-objective distillation", "A teacher's word on every token",
        {"gold alone": "sft-gold", "the teacher's solutions": "sft-answers",
         "divergence": "sft-distill",
         "divergence, gold and a weighted answer": "sft-distill-weighted",
         "on policy": "sft-distill-on-policy", "teacher": "larger"},
        {**LEARNT, "steps": Column("steps", "count")},
        claims=(Claim("divergence", "gold alone", "accuracy"),),
        note="Solutions by the teacher have the steps of gold alone; the divergences take the "
             "steps that fill its seconds. On policy the student writes, which takes most."),
    Experiment(
        "calculator", "paper B, future work", "Results that a calculator puts in",
        {"full tuning": "sft-gold", "LoRA": "lora-gold", "cold start and GRPO": "cold-grpo"},
        {"without": ACCURACY, "with": evaluated(run="*-calculated")},
        claims=(Claim("LoRA", "LoRA", "with", "without"),),
        note="The same weights, asked twice.", embedded=True),
    Experiment(
        "corpora", "paper E, tables of corpora", "Reading problems or stories; by number of steps",
        {"40 solutions alone": "few-alone", "after stories": "few-after-stories",
         "after problems": "few-after-problems", "as many tokens of solutions": "plus-solutions"},
        BY_LEVEL,
        claims=(Claim("after problems", "after stories", "all"),
                Claim("after problems", "as many tokens of solutions", "all")),
        note="The paper: problems beat a general corpus, and tuning on solutions has about 60 % "
             "of the gain that pre-training on them has.", embedded=True),
    Experiment(
        "synthesis", "paper E, methods of synthesis", "How training problems are made",
        {"gold alone": "sft-gold", "new numbers": "sft-perturbed", "own solutions": "sft-rft",
         "a step taken back": "sft-retro", "a tutor's corrections": "sft-tutor"}, LEARNT,
        {"a tutor's corrections": {"accuracy": "64.4"},
         **{row: {"accuracy": "45 to 53"}
            for row in ("new numbers", "own solutions", "a step taken back")}},
        (Claim("a tutor's corrections", "new numbers", "accuracy"),),
        "The paper's other methods are query expansion, diverse responses and retrospection; the "
        "rows are their nearest kin that need no server. All train for equally many steps."),
    Experiment(
        "leaderboard", "none of the papers", "Every method, objective and data at equal seconds",
        {f"{name}, {learnt}": f"board-{name}-{learnt}" for name in METHODS for learnt in BOARD},
        {**LEARNT, "steps": Column("steps", "count"), "memory": MEMORY}, ranked=True,
        note="A short run of each gives its pace; its steps then fill the seconds that LoRA takes "
             "for the gold problems. GRPO has 4 problems a step, so that several fit in; "
             "`training` is what each has taken."),
)


if __name__ == "__main__":
    print(__doc__)
