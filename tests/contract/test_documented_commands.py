"""Every command that a document tells to type is one that this version takes."""

import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import re
import shlex
import typing
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperCommand, TyperGroup

from services.gpu_worker.config import WorkerConfig
from services.http_gateway.config import GatewayConfig
from services.launcher.main import app
from services.migrator.config import MigratorConfig
from services.offline_queue.config import QueueConfig
from services.online_router.config import RouterConfig
from services.planner.config import PlannerConfig
from services.preemption_watcher.config import WatcherConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "GPU_WORKER": WorkerConfig,
    "HTTP_GATEWAY": GatewayConfig,
    "MIGRATOR": MigratorConfig,
    "OFFLINE_QUEUE": QueueConfig,
    "ONLINE_ROUTER": RouterConfig,
    "PLANNER": PlannerConfig,
    "PREEMPTION_WATCHER": WatcherConfig,
}
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/operators/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SETTING = re.compile(rf"\b(?:{'|'.join(CONFIGS)})(?:__[A-Z][A-Z_]*?)+(?=\b|__)")
DEFAULT_ROW = re.compile(rf"^\|.*`({SETTING.pattern})` .*\| ([0-9.]+) \|$", re.MULTILINE)
MENTION = re.compile(r"`(?:\.venv/bin/)?tideserve ([^`]*)`")
VARIABLE = re.compile(r"\bTIDESERVE_[A-Z_]+\b")
ASSIGNMENT = re.compile(r"^\w+=")
FOLDERS = ("deploy/", "docs/", "examples/", "tests/", "services/", "loadgen/")


@dataclass(frozen=True)
class Typed:
    """A command as it is typed, and where that is written."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def typed() -> Iterator[Typed]:
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for block in SHELL_BLOCK.findall(document.read_text()):
            for words in commands_of(block):
                yield Typed(name, (words[0].removeprefix(".venv/bin/"), *words[1:]))


def commands_of(block: str) -> Iterator[list[str]]:
    """Split a block where a shell would, without what is assigned before a command."""
    uncommented = re.sub(r"(^|\s)#\s.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    words = shlex.shlex(uncommented, posix=True, punctuation_chars="|&;\n")
    words.whitespace, words.commenters, words.whitespace_split = " \t", "", True
    for is_end, part in itertools.groupby(words, key=lambda word: set(word) <= set("|&;\n")):
        command = list(itertools.dropwhile(ASSIGNMENT.match, part))
        if command and not is_end:
            yield command


def typed_with(program: str) -> list[Typed]:
    return [command for command in typed() if command.words[0] == program]


@pytest.mark.parametrize("command", typed_with("tideserve"), ids=str)
def test_tideserve_takes_the_command_with_its_options(command: Typed) -> None:
    parsing, words = typer.main.get_command(app), list(command.words)
    context = None
    while isinstance(parsing, TyperGroup):
        context = parsing.make_context(words[0], words[1:], parent=context)
        _, parsing, words = parsing.resolve_command(context, words[1:])
        assert parsing is not None
        words = [parsing.name or "", *words]
    # Raises where an option or argument is not one, or its value is not of its type.
    parsing.make_context(words[0], words[1:], parent=context)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for wrong in ("up --nodez 4", "upp", "preempt", "up --nodes four", "bench sock"):
        with pytest.raises(Exception, match=r"No such|Missing|valid integer"):
            test_tideserve_takes_the_command_with_its_options(
                Typed("none", ("tideserve", *wrong.split()))
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_prose_names_have_the_options_that_it_names(document: Path) -> None:
    for named in MENTION.findall(document.read_text()):
        words = named.replace("\\|", "|").split()
        commands = [typer.main.get_command(app)]
        while words and isinstance(commands[0], TyperGroup) and words[0][0].islower():
            group, names = commands[0], words.pop(0).split("|")
            assert set(names) <= set(group.commands), named
            commands = [group.commands[name] for name in names]
        takes = {option for command in commands for option in options_of(command)}
        assert set(re.findall(r"--[a-z-]+", named)) <= takes | {"--help"}, named


def options_of(command: TyperCommand) -> Set[str]:
    """Return what a command takes; one that passes all on is asked by the module it passes to."""
    if not command.context_settings.get("ignore_unknown_options"):
        return {option for parameter in command.params for option in parameter.opts}
    return options_of_module(f"benchmarks.{(command.name or '').replace('-', '_')}")


@functools.cache
def options_of_module(name: str) -> frozenset[str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    assert "--help" in shown.getvalue(), name
    return frozenset(re.findall(r"--[a-z-]+", shown.getvalue()))


def compose_services() -> dict[str, dict[str, typing.Any]]:
    services: dict[str, dict[str, typing.Any]] = yaml.safe_load(
        (ROOT / "docker-compose.yml").read_text()
    )["services"]
    return services


@pytest.mark.parametrize("command", typed_with("docker"), ids=str)
def test_compose_has_the_services_and_profiles_that_are_typed(command: Typed) -> None:
    if command.words[1] != "compose":
        return
    services = compose_services()
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    words = command.words
    given = list(itertools.pairwise(words))
    assert {value for option, value in given if option == "--profile"} <= profiles
    scaled = {value.partition("=")[0] for option, value in given if option == "--scale"}
    assert scaled <= set(services)
    if words[2] == "logs":
        assert words[-1] in services


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_targets_of_make_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z0-9]+)", document.read_text(), re.MULTILINE)
    assert set(named) <= targets


def test_paths_in_commands_exist() -> None:
    paths = [(word, command) for command in typed() for word in command.words]
    missing = [
        f"{command}: {path}"
        for path, command in paths
        if path.startswith(FOLDERS) and not (ROOT / path).exists()
    ]
    assert not missing


def default_of(setting: str) -> object:
    """Return the default of a service's setting. Raises: KeyError where there is no such field."""
    service, *path = setting.split("__")
    shape: typing.Any = CONFIGS[service]
    default: object = None
    for name in path:
        field = {field.name: field for field in dataclasses.fields(shape)}[name.lower()]
        default, shape = field.default, field.default_factory
    return default


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_of_services_exist(document: Path) -> None:
    for setting in SETTING.findall(document.read_text()):
        default_of(setting)


def test_a_setting_that_does_not_exist_would_be_noticed() -> None:
    for wrong in ("PLANNER__NO_SUCH_FIELD", "PREEMPTION_WATCHER__GCP__NO_SUCH_FIELD"):
        with pytest.raises(KeyError):
            default_of(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_numbers_in_tables_of_settings_are_the_defaults(document: Path) -> None:
    for setting, number in DEFAULT_ROW.findall(document.read_text()):
        assert default_of(setting) == float(number), setting


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_variables_of_the_environment_are_read_by_something(document: Path) -> None:
    readers = [ROOT / "docker-compose.yml", *(ROOT / "deploy/slurm").glob("*.sbatch")]
    readers += [*(ROOT / "services/launcher").glob("*.py"), *(ROOT / "libs/runtime").glob("*.py")]
    read = {name for reader in readers for name in VARIABLE.findall(reader.read_text())}
    assert set(VARIABLE.findall(document.read_text())) <= read
