"""The training text of the bundled tiny model: CPython's own documentation, as text and as chat.

Every document is derived from the docstrings of the running interpreter's standard library, from
the small hand-written set in tiny_small_talk.py, or from counting. Nothing is downloaded and
nothing is stored: the same Python version and seed give the same documents in every process.
"""

import importlib
import inspect
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

from libs.kernel.rng import Rng
from tools.tiny_small_talk import SMALL_TALK, SYSTEM_MESSAGES

ANSWER_CHARACTERS_MAX = 420
"""A docstring is cut at the last paragraph that ends within this length."""

PARAGRAPH_CHARACTERS_MAX = 700
"""A first paragraph longer than this drops its entry: it would not be memorised."""

COUNT_MAX = 120
"""Counting never goes past this number."""

# One name a line would fill two screens.
# fmt: off
MODULE_NAMES = (
    "abc", "argparse", "array", "base64", "bisect", "calendar", "cmath", "collections",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib",
    "enum", "fnmatch", "fractions", "functools", "getpass", "glob", "gzip", "hashlib", "heapq",
    "hmac", "html", "io", "itertools", "json", "keyword", "logging", "math", "mimetypes", "numbers",
    "operator", "os.path", "pathlib", "pprint", "queue", "random", "re", "reprlib", "sched",
    "secrets", "select", "shlex", "shutil", "statistics", "string", "struct", "subprocess",
    "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types", "unicodedata",
    "urllib.parse", "uuid", "warnings", "weakref", "zipfile", "zlib",
)

CLASSES_WITH_METHODS = (
    "builtins.str", "builtins.list", "builtins.dict", "builtins.set", "builtins.tuple",
    "builtins.int", "builtins.float", "collections.deque", "collections.Counter",
    "collections.OrderedDict", "datetime.date", "datetime.datetime", "datetime.timedelta",
    "pathlib.Path", "fractions.Fraction", "queue.Queue", "threading.Thread", "threading.Event",
)

# fmt: on
QUESTIONS = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "Tell me about {name}.",
    "How does {name} work?",
    "How do I use {name}?",
    "Describe {name}.",
    "What is {name} in Python?",
    "Can you explain {name} to me?",
    "What does {name} do in Python?",
    "Please explain {name}.",
    "What is {name} for?",
    "help({name})",
    "{name}",
)

METHOD_QUESTIONS = (
    "What does the {short} method of {owner} do?",
    "How does the method {short} of {owner} work?",
)

FUNCTION_QUESTIONS = (
    "What does the function {short} of the {owner} module do?",
    "Tell me about {short} in the {owner} module.",
)

MODULE_QUESTIONS = (
    "Tell me about the {name} module.",
    "What is the {name} module for?",
    "What does the {name} module do?",
    "What is in the {name} module?",
    "Explain the Python module {name}.",
    "Tell me about module {name}.",
    "Describe the {name} module.",
    "What can I do with the {name} module?",
    "List the functions of the {name} module.",
    "import {name}",
)


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One documented name of the standard library and the two texts that are made of it."""

    name: str
    """Dotted, as a user would write it: `str.split`, `json.dumps`, `math`."""
    questions: tuple[str, ...]
    """Every phrasing that asks for it."""
    answer: str
    """What the assistant says, whatever the phrasing."""
    text: str
    """The same as a plain document, in the form of pydoc's help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation: an optional system message and at least one turn."""

    system: str | None
    turns: tuple[Turn, ...]


Document = Chat | str


def collect_entries() -> list[Entry]:
    """Read the documented names of the standard library, sorted by name; each name once."""
    entries: dict[str, Entry] = {}
    for path in CLASSES_WITH_METHODS:
        for entry in _entries_of_class(path):
            entries.setdefault(entry.name, entry)
    for entry in _entries_of_members(importlib.import_module("builtins"), owner="builtins"):
        entries.setdefault(entry.name, entry)
    for name in MODULE_NAMES:
        module = importlib.import_module(name)
        members = _entries_of_members(module, owner=name)
        for entry in members:
            entries.setdefault(entry.name, entry)
        whole = _entry_of_module(module, name=name, members=[entry.name for entry in members])
        if whole is not None:
            entries.setdefault(name, whole)
    return [entries[name] for name in sorted(entries)]


def documents(entries: Sequence[Entry], *, seed: int) -> Iterator[Document]:
    """Yield training documents for ever; every entry comes once per pass, in shuffled order.

    About three quarters of the documents are chats. The rest are plain help texts, counting and
    small talk, so that completion works too and a demo has something longer to say.
    """
    rng = Rng(seed).child("documents")
    chat_passes = _endless_passes(entries, rng=rng.child("chat"))
    text_passes = _endless_passes(entries, rng=rng.child("text"))
    talk_passes = _endless_passes(SMALL_TALK, rng=rng.child("talk"))

    def turn() -> Turn:
        draw = rng.random()
        if draw < 0.05:
            return _counting(rng)
        if draw < 0.13:
            questions, answer = next(talk_passes)
            return Turn(question=rng.choice(questions), answer=answer)
        entry = next(chat_passes)
        return Turn(question=rng.choice(entry.questions), answer=entry.answer)

    while True:
        if rng.random() < 0.2:
            yield next(text_passes).text
            continue
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.3 else None
        turns_count = 1 if rng.random() < 0.7 else rng.randint(2, 4)
        yield Chat(system=system, turns=tuple(turn() for _ in range(turns_count)))


def _endless_passes(items: Sequence[Item], *, rng: random.Random) -> Iterator[Item]:
    while True:
        yield from rng.sample(items, len(items))


def _counting(rng: random.Random) -> Turn:
    last = rng.choice((10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, rng.randint(5, COUNT_MAX)))
    first = 1 if rng.random() < 0.7 else rng.randint(1, last - 2)
    phrase = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}."))
    if first == 1 and rng.random() < 0.5:
        phrase = rng.choice(("Count to {b}.", "Count to {b}, please.", "Can you count to {b}?"))
    numbers = ", ".join(str(number) for number in range(first, last + 1))
    return Turn(question=phrase.format(a=first, b=last), answer=f"{numbers}.")


def _entries_of_members(module: ModuleType, *, owner: str) -> list[Entry]:
    prefix = "" if owner == "builtins" else f"{owner}."
    public = sorted(getattr(module, "__all__", None) or dir(module))
    found: list[Entry] = []
    for short in public:
        member = getattr(module, short, None)
        if short.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        if owner != "builtins" and not _is_at_home(member, owner=owner):
            continue
        kind = "class" if inspect.isclass(member) else "function"
        place = "built into Python" if owner == "builtins" else f"of the module {owner}"
        asked = () if owner == "builtins" or kind == "class" else FUNCTION_QUESTIONS
        entry = _entry(
            member,
            name=f"{prefix}{short}",
            standing=f"is a {kind} {place}",
            questions=(*QUESTIONS, *asked),
            owner=owner,
        )
        if entry is not None:
            found.append(entry)
    return found


def _is_at_home(member: object, *, owner: str) -> bool:
    """Tell whether the member was defined in this module or in its C or pure-Python half."""
    home = getattr(member, "__module__", None) or owner
    return home.split(".")[0].lstrip("_") in (owner.split(".")[0], "posixpath", "genericpath")


def _entries_of_class(path: str) -> list[Entry]:
    module_name, class_name = path.split(".")
    owner = class_name if module_name == "builtins" else path
    class_ = getattr(importlib.import_module(module_name), class_name)
    found = [
        _entry(
            member,
            name=f"{owner}.{short}",
            standing=f"is a method of {owner}",
            questions=(*QUESTIONS, *METHOD_QUESTIONS),
            owner=owner,
        )
        for short, member in sorted(vars(class_).items())
        if not short.startswith("_") and callable(member)
    ]
    return [entry for entry in found if entry is not None]


def _entry(
    member: object, *, name: str, standing: str, questions: tuple[str, ...], owner: str
) -> Entry | None:
    documentation = _shortened(getattr(member, "__doc__", None))
    if documentation is None:
        return None
    call = name + _signature(member)
    short = name.rpartition(".")[2]
    indented = documentation.replace("\n", "\n    ").replace("    \n", "\n")
    return Entry(
        name=name,
        questions=tuple(q.format(name=name, short=short, owner=owner) for q in questions),
        answer=f"{call} {standing}.\n\n{documentation}",
        text=f"Help on {name}:\n\n{call}\n    {indented}\n",
    )


def _entry_of_module(module: ModuleType, *, name: str, members: Sequence[str]) -> Entry | None:
    documentation = _shortened(module.__doc__)
    if documentation is None:
        return None
    listed = ", ".join(member.removeprefix(f"{name}.") for member in members[:24])
    contents = f"\n\nIt contains {listed}." if listed else ""
    return Entry(
        name=name,
        questions=tuple(question.format(name=name) for question in MODULE_QUESTIONS),
        answer=f"{name} is a module of the standard library.\n\n{documentation}{contents}",
        text=f"Help on module {name}:\n\nNAME\n    {name}\n\nDESCRIPTION\n    "
        + documentation.replace("\n", "\n    ").replace("    \n", "\n")
        + "\n",
    )


def _signature(member: object) -> str:
    """Give the call's arguments, or "" where Python does not know them or shows an address."""
    try:
        shown = str(inspect.signature(member))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    shown = shown.replace("self, /, ", "").replace("(self, /)", "()")
    shown = shown.replace("(self, ", "(").replace("(self)", "()")
    plain = len(shown) <= 80 and shown.isascii() and not re.search(r"0x|<| at |\{", shown)
    return shown if plain else ""


def _shortened(documentation: object) -> str | None:
    """Cut a docstring to its first paragraphs; None if it is missing, odd or far too long."""
    if not isinstance(documentation, str):
        return None
    cleaned = inspect.cleandoc(documentation).expandtabs()
    paragraphs = [part.rstrip() for part in re.split(r"\n\s*\n", cleaned) if part.strip()]
    if not paragraphs:
        return None
    kept = [paragraphs[0]]
    for paragraph in paragraphs[1:]:
        if sum(map(len, kept)) + len(paragraph) > ANSWER_CHARACTERS_MAX:
            break
        kept.append(paragraph)
    while len(kept) > 1 and kept[-1].endswith(":"):
        kept.pop()  # it would introduce what was cut off
    text = "\n\n".join(kept).replace(".  ", ". ")
    odd = not text.isascii() or "0x" in text or len(text) > PARAGRAPH_CHARACTERS_MAX
    return None if odd or len(text) < 12 else text
