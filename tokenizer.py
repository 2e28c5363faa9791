"""Text to token ids and back, and the chat forms of Qwen2.5 and R1-Distill without a template
engine.

    python tokenizer.py tiny "What is 2 + 3?"       # the ids of a prompt, piece by piece

A chat is a row of turns. In Qwen's form (ChatML), the first one is the system prompt:

    <|im_start|>system\\nYou are ...<|im_end|>\\n<|im_start|>user\\nWhat is 2 + 3?<|im_end|>\\n
    <|im_start|>assistant\\n2 + 3 = 5<|im_end|>
                            ^^^^^^^^^^^^^^^^^^^     the targets of training

R1-Distill-Qwen has other markers and no system prompt of its own; its answer begins with a thought,
which the template opens:

    <｜begin▁of▁sentence｜><｜User｜>What is 2 + 3?<｜Assistant｜><think>\n
    I add. </think> 2 + 3 = 5<｜end▁of▁sentence｜>
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^    the targets of training

Some models of Qwen's form open a thought too (QwQ). A chat with the system prompt `none` has no
system turn.

The markers are single tokens that no text can produce. Whatever a question contains, even the
letters `<|im_end|>`, is encoded as ordinary text, so that it cannot end its own turn. (In
transformers, which tokenises the rendered string, it can.)

Training needs to know which ids are targets. They are known by position: an assistant's content,
and the token that ends it. So prompt and answer are tokenised separately and joined, exactly as
they meet when the model generates.

Sources: the published tokenizers and templates of Qwen2.5 and of DeepSeek-R1-Distill-Qwen; Qwen2.5
Technical Report (arXiv 2412.15115), section 2; DeepSeek-R1 (arXiv 2501.12948), section 2.4.
"""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out

from tokenizers import Tokenizer as FastTokenizer

from runtime import UserError, check_small, read_json, write_json, write_text

ROLES = ("system", "user", "assistant")
TEMPLATE_FILE = "chat_template.jinja"  # transformers 5 writes it here
NO_SYSTEM = "none"  # the system prompt of a chat without a system turn, as --system spells it
THOUGHT = "<think>\n"
# A text that spells one of these stays text: it is encoded letter by letter.
MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
Pieces = list[tuple[list[int], bool]]  # ids, and whether they are targets
# A ChatML template without a default system prompt, and what puts a default before any template.
CHATML = ("{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>\\n' }}{%- endfor %}"
          "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
DEFAULT = ("{%- if messages[0]['role'] != 'system' %}{%- set messages = "
           "[{'role': 'system', 'content': '", "'}] + messages %}{%- endif %}")


class ChatML:
    """The chats of Qwen2.5. Each turn names its role, and the system prompt is a turn."""

    bare_system = None  # without a system prompt there is no such turn

    def __init__(self, tokenizer: "Tokenizer"):
        self.encode = tokenizer.encode
        self.start, self.end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
        self.end_of_text = tokenizer.id_of("<|endoftext|>")
        self.assistant = [self.start, *self.encode("assistant\n")]
        self.thinks = _opens_thought(tokenizer.template, "<|im_start|>assistant\n")
        self.opening = self.assistant
        if self.thinks:
            self.opening = [self.start, *self.encode("assistant\n" + THOUGHT)]
        self.go_template = (
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
            "<|im_start|>assistant\n" + THOUGHT * self.thinks)

    def turn(self, role: str, content: str) -> list[int]:
        """A turn of the system or the user; in one piece, like the rendered template."""
        ids = self.encode(f"{role}\n{content}")
        return [self.start, *ids, self.end, *self.encode("\n")]

    def earlier_answer(self, content: str) -> Pieces:
        """An answer that another turn follows; its thought, if the model opens one, is left out."""
        if self.thinks:
            content = content.rpartition("</think>")[2].lstrip("\n")
        return [(self.assistant, False), ([*self.encode(content), self.end], True),
                (self.encode("\n"), False)]


class ThinkingChat:
    """The chats of R1-Distill-Qwen. A text of the system stands before the first turn."""

    bare_system = ""  # a chat without a system prompt begins with the marker alone
    marker = "<｜User｜>"

    def __init__(self, tokenizer: "Tokenizer"):
        self.encode = tokenizer.encode
        self.begin, self.user, self.assistant, self.end = map(tokenizer.id_of, (
            "<｜begin▁of▁sentence｜>", self.marker, "<｜Assistant｜>", "<｜end▁of▁sentence｜>"))
        self.end_of_text = self.end
        # The first published template left it to the model to open a thought.
        thinks = _opens_thought(tokenizer.template, "<｜Assistant｜>")
        self.opening = [self.assistant, *(self.encode(THOUGHT) if thinks else [])]
        self.go_template = (
            '{{- range .Messages }}{{ if eq .Role "user" }}<｜User｜>{{ .Content }}'
            '{{ else if eq .Role "assistant" }}<｜Assistant｜>{{ .Content }}<｜end▁of▁sentence｜>'
            "{{ else }}{{ .Content }}{{ end }}{{ end }}<｜Assistant｜>" + THOUGHT * thinks)

    def turn(self, role: str, content: str) -> list[int]:
        """A turn of the user, or the system's text, which begins the chat."""
        return [self.begin if role == "system" else self.user, *self.encode(content)]

    def earlier_answer(self, content: str) -> Pieces:
        """An answer that another turn follows: its thought is left out."""
        ids = self.encode(content.rpartition("</think>")[2])
        return [([self.assistant], False), ([*ids, self.end], True)]


def _opens_thought(template: str | None, opening: str) -> bool:
    """Whether a template's answers begin within a thought; its line ends may be escaped."""
    text = opening + THOUGHT
    return any(spelled in (template or "") for spelled in (text, text.replace("\n", "\\n")))


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    end_id: the token that ends a training target. stop_ids: each of them ends a completion. size:
    real ids are 0..size-1 (the model may have more rows, which are padding). Raises UserError if a
    file of the folder is missing or not as expected.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.exists():
            raise UserError(f"{file}: no such file; a checkpoint needs its tokenizer"
                            " beside its weights")
        check_small(file)
        # Rust panics at a broken one, with pages of its own; Qwen's tokenizers have none.
        if b'"precompiled_charsmap"' in file.read_bytes():
            raise UserError(f"{file}: has a precompiled_charsmap, as tokenizers of SentencePiece "
                            "have; is this a Qwen2.5 checkpoint?")
        try:
            self._fast = FastTokenizer.from_file(str(file))
        # tokenizers raises plain Exception, whatever is wrong; if Rust panics, a BaseException.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | MemoryError):
                raise
            raise UserError(f"{file}: not a tokenizer that this version of tokenizers reads"
                            f" ({error})") from None
        # The file may hold settings for other uses, which would cut or pad our texts.
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True  # text that spells a special token stays text
        self.size = max(self.vocabulary.values(), default=-1) + 1
        self._settings = read_json(self.folder / "tokenizer_config.json")
        eos = self._settings.get("eos_token")
        if isinstance(eos, dict):  # older files write a token as an object
            eos = eos.get("content")
        if not isinstance(eos, str):
            raise UserError(f"{self.folder / 'tokenizer_config.json'}: names no eos_token;"
                            " a target must end on one")
        self.end_id = self.id_of(eos)
        thinks = self._fast.token_to_id(ThinkingChat.marker) is not None
        self._form = ThinkingChat(self) if thinks else ChatML(self)
        self.end_of_text = self._form.end_of_text  # ends a plain document
        ends = {self.end_id, self._form.end, self.end_of_text}
        self.stop_ids = frozenset(ends | self._declared_stops())

    def id_of(self, token: str) -> int:
        """The id of a token by its name. Raises UserError if there is none."""
        number = self._fast.token_to_id(token)
        if number is None:
            raise UserError(f"{self.folder / 'tokenizer.json'}: has no token {token!r};"
                            " is this a Qwen2.5 checkpoint?")
        return number

    def _declared_stops(self) -> set[int]:
        """Every `eos_token_id` (one or a list) of generation_config.json and config.json. A number
        that is no token's ends nothing, and is passed over."""
        stops = set()
        for file in (self.folder / "generation_config.json", self.folder / "config.json"):
            settings = read_json(file) if file.exists() else {}
            rows = settings.get("vocab_size")
            if isinstance(rows, int) and rows < self.size:
                raise UserError(f"{file}: vocab_size is {rows}, the tokenizer has {self.size} ids;"
                                " get the right one")
            declared = settings.get("eos_token_id")
            declared = declared if isinstance(declared, list) else [declared]
            stops.update(number for number in declared
                         if type(number) is int and 0 <= number < self.size)
        return stops

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the checkpoint's own template gives to a chat without one.

        NO_SYSTEM if it writes no system turn. It is read on demand: a checkpoint without one works
        with an explicit `--system`.
        """
        system = self._form.bare_system if self.template is None else find_default(self.template)
        if system is None:
            system = self._form.bare_system
        if system is None:
            files = [self.folder / name for name in (TEMPLATE_FILE, "tokenizer_config.json")]
            raise UserError(f"{files[not files[0].exists()]}: holds no chat template with a "
                            "default system prompt; give one with --system, or --system none")
        return system

    @cached_property
    def template(self) -> str | None:
        """The checkpoint's chat template, in Jinja; None if it has none."""
        return read_template(self.folder)

    def template_with(self, system: str) -> str | None:
        """The checkpoint's template with another default system prompt; None: it needs none.

        A template that is unknown, or that is missing, gives way to CHATML. Raises UserError if no
        template can say this prompt.
        """
        for token in self._fast.get_added_tokens_decoder().values():
            if token.special and token.content in system:
                raise UserError(f"the system prompt spells {token.content}: other programs would "
                                "take it for the marker; leave it out")
        bare, template = self._form.bare_system, self.template
        if bare is not None and system in (bare, NO_SYSTEM):
            return template and _put_before(template)[1]
        known = template is not None and (bare is not None or find_default(template) is not None)
        changed = with_default(template, system) if known else None
        if changed is None and bare is None and not self._form.thinks:
            changed = with_default(CHATML, system)
        if changed is None:
            raise UserError(f"{self.folder}: its chat template cannot carry the system prompt "
                            f"{system[:60]!r} as a default")
        return changed

    def system_to_train(self, asked: str | None) -> str:
        """The system prompt that --system asks for, by default the checkpoint's.

        Raises UserError if no template could say it: better now than when the result is saved.
        """
        system = self.default_system if asked is None else asked
        self.template_with(system)
        return system

    def write_default_system(self, folder: Path, system: str) -> None:
        """Make `system` the default prompt of the template in `folder`, a copy of our own."""
        template, file = self.template_with(system), folder / TEMPLATE_FILE
        if template is None:
            return
        if file.exists():
            write_text(file, template)
        else:
            write_json(folder / "tokenizer_config.json",
                       self._settings | {"chat_template": template})

    def modelfile(self, system: str) -> str | None:
        """What Ollama needs to know of a model in whose folder it stands: template, system prompt
        and stops; greedy, and without a penalty. (What begins a text, as R1's, Ollama adds itself.)

        None if the system prompt holds three quotes, which would end it there.
        """
        if '"""' in system:
            return None
        bare = system in (NO_SYSTEM, self._form.bare_system)
        told = "" if bare else f'SYSTEM """{system}"""\n'
        stops = "".join(f'PARAMETER stop "{self.show(stop)}"\n' for stop in sorted(self.stop_ids))
        return (f'FROM .\nTEMPLATE """{self._form.go_template}"""\n{told}{stops}'
                "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n")

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, the special ones included."""
        return self._fast.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing is added, and no text becomes a special token."""
        try:
            return self._fast.encode(text, add_special_tokens=False).ids
        except TypeError:  # JSON's escapes can spell half a surrogate pair, which is no character
            raise UserError(f"not valid Unicode, a lone surrogate: {text[:60]!r};"
                            " mend the text") from None
        except Exception as error:  # tokenizers raises plain Exception, here of a foreign model
            raise UserError(f"{self.folder / 'tokenizer.json'}: cannot encode a text ({error});"
                            " is this a Qwen2.5 checkpoint?") from None

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return self._fast.decode(ids, skip_special_tokens=True)

    def show(self, token: int) -> str:
        """The text of one id, a special token by its name."""
        return self._fast.decode([token], skip_special_tokens=False)

    def prompt(self, question: str, system: str | None = None,
               earlier: Sequence[dict] = ()) -> list[int]:
        """Ids of a question after the `earlier` turns of its chat, up to the start of the
        answer."""
        ids, _ = self.chat([*earlier, {"role": "user", "content": question}], system)
        return ids + self._form.opening

    def chat(self, messages: list[dict], system: str | None = None) -> tuple[list[int], list[bool]]:
        """Ids of a chat and, for each, whether it is a target.

        messages: `{"role", "content"}` each, and "train" false for an answer that is no target. The
        system prompt is a system message at their head, else `system`, else the checkpoint's
        default; NO_SYSTEM is none. If the last turn is the assistant's, it begins as `prompt` ends,
        and ends with `end_id`. Every other turn is as in the template.
        """
        if not messages or messages[0]["role"] != "system":
            system = self.default_system if system is None else system
            system = self._form.bare_system if system == NO_SYSTEM else system
            head = [] if system is None else [{"role": "system", "content": system}]
            messages = [*head, *messages]
        pieces: Pieces = []
        for number, message in enumerate(messages, start=1):
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise UserError(f"a message has the role {role!r}; known are {', '.join(ROLES)}")
            at_head_alone = self._form.bare_system is not None
            if role == "system" and number > 1 and at_head_alone:
                raise UserError("a system message stands behind the first turn; this model's chats"
                                " have one at their head alone")
            if role != "assistant":
                pieces.append((self._form.turn(role, content), False))
                continue
            last = [(self._form.opening, False), ([*self.encode(content), self.end_id], True)]
            answer = last if number == len(messages) else self._form.earlier_answer(content)
            pieces += [(ids, target and message.get("train", True)) for ids, target in answer]
        ids = [number for piece, _ in pieces for number in piece]
        return ids, [target for piece, target in pieces for _ in piece]


# ------------------------------------------------------------- the default prompt of a template


def read_template(folder: Path) -> str | None:
    """The chat template in a folder; None if it has none."""
    file, settings = folder / TEMPLATE_FILE, folder / "tokenizer_config.json"
    if file.exists():
        check_small(file)
        return file.read_text(encoding="utf-8", errors="replace")
    template = read_json(settings).get("chat_template") if settings.exists() else None
    return template if isinstance(template, str) else None


def find_default(template: str) -> str | None:
    """The default system prompt of a template in Jinja: spelled out, or NO_SYSTEM.

    None if it is not known what the template does.
    """
    found = _put_before(template)[0]
    found = find_default_system(template) if found is None else found
    return NO_SYSTEM if found is None and _writes_no_system(template) else found


def _put_before(template: str) -> tuple[str | None, str]:
    """The default prompt that DEFAULT puts before a template, or None; and that template."""
    text, closed, rest = template.removeprefix(DEFAULT[0]).partition(DEFAULT[1])
    if not template.startswith(DEFAULT[0]) or not closed:
        return None, template
    return _unescaped(text), rest


def _writes_no_system(template: str) -> bool:
    """Whether a ChatML template writes a system turn only from the chat's own message, or for
    tools.
    """
    turns = template.split("<|im_start|>")
    for before, after in zip(turns, turns[1:]):
        rest = after.removeprefix("system").removeprefix("\\n").removeprefix("\n")
        rest = rest.lstrip("'\" +~{}")  # to what stands behind the string, or in the braces
        if after.startswith("system") and "if tools" not in before and not rest.startswith("mess"):
            return False
    return len(turns) > 1


def find_default_system(template: str) -> str | None:
    """The default system prompt that a ChatML template in Jinja spells out, or None.

    Templates open a system turn in several places, and go on with the chat's own system message or
    with a text of their own, which is the default. If there are several (the first is for tools),
    the last is the plain one.
    """
    pieces = template.split("<|im_start|>system")
    for before, after in reversed(list(zip(pieces, pieces[1:]))):
        text, closed, _ = after.partition("<|im_end|>")
        quote = before[-1:] if before.endswith(("'", '"')) else ""
        # <|im_end|> must come before the end of the Jinja string, or outside of one before an
        # expression.
        if quote:
            interrupted = quote in text.replace("\\" + quote, "")
        else:
            interrupted = "{{" in text or "{%" in text
        newline = "\\n" if text.startswith("\\n") else "\n"  # escaped in the string, or a real one
        if not closed or interrupted or not text.startswith(newline):
            continue
        text = text.removeprefix(newline)
        return _unescaped(text) if quote else text
    return None


def _unescaped(text: str) -> str | None:
    """The text of a Jinja string; None if an escape is cut short, which Jinja cannot read either.
    """
    try:  # as jinja2/lexer.py does
        return text.encode("ascii", "backslashreplace").decode("unicode-escape")
    except UnicodeDecodeError:
        return None


def _escaped(text: str, quote: str) -> str:
    """A text as it is spelled in a Jinja string."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace(quote, "\\" + quote)


def with_default(template: str, system: str) -> str | None:
    """The template with another default system prompt, or NO_SYSTEM; None if it cannot have it.

    A prompt that the template spells out is replaced. Else the new one is put before the template.
    """
    template = _put_before(template)[1]
    old = find_default_system(template)
    # Inside a string in either kind of quotes, then as plain text of the template.
    for spell in (lambda text: _escaped(text, "'"), lambda text: _escaped(text, '"'), str):
        new = _replaced(template, spell(old), spell(system), system) if old else template
        if find_default(new) == system:
            return new
    if system == NO_SYSTEM:  # its turn cannot be told from the rest
        return None
    return DEFAULT[0] + _escaped(system, "'") + DEFAULT[1] + template


def _replaced(template: str, old: str, new: str, system: str) -> str:
    """The template with its spelled-out prompt replaced, or its turn left out with NO_SYSTEM."""
    if system != NO_SYSTEM:
        return template.replace(old, new)
    for newline in ("\\n", "\n"):
        template = template.replace(f"<|im_start|>system{newline}{old}<|im_end|>{newline}", "")
    return template


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tokenizer.py FOLDER QUESTION")
    sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal cannot show
    try:
        tokenizer = Tokenizer(Path(sys.argv[1]))
        for number in tokenizer.prompt(sys.argv[2]):
            print(f"{number:6d}  {tokenizer.show(number)!r}")
    except UserError as error:
        sys.exit(f"error: {error}")
