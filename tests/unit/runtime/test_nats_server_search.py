"""The search for a nats-server, with programs that the test makes up."""

from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from libs.runtime.nats_server_search import cache_folder, find_nats_server, parse_version


def a_program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_named_program_comes_first(tmp_path):
    named = a_program(tmp_path / "named", "nats-server: v2.10.27")
    a_program(tmp_path / "bin" / "nats-server", "nats-server: v2.9.10")
    program = find_nats_server(
        environment={"TIDESERVE_NATS_SERVER": str(named), "PATH": str(tmp_path / "bin")}
    )
    assert (program.source, program.binary, program.version) == (
        "environment",
        named,
        (2, 10, 27),
    )


@pytest.mark.parametrize("says", ["nats-server: v2.8.4", "hello"])
def test_a_named_program_that_cannot_be_used_is_an_error_and_not_passed_over(tmp_path, says):
    named = a_program(tmp_path / "named", says)
    with pytest.raises(ConfigError):
        find_nats_server(environment={"TIDESERVE_NATS_SERVER": str(named)})


def test_a_name_that_is_no_program_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="TIDESERVE_NATS_SERVER"):
        find_nats_server(environment={"TIDESERVE_NATS_SERVER": str(tmp_path)})


def test_the_path_comes_before_the_cache(tmp_path):
    environment = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    a_program(cache_folder(environment) / "nats-server", "nats-server: v2.10.1")
    on_path = a_program(tmp_path / "bin" / "nats-server", "nats-server: v2.11.0")
    assert find_nats_server(environment=environment).binary == on_path


def test_a_version_is_read_wherever_it_stands():
    assert parse_version("nats-server: v2.15.1", where="x") == (2, 15, 1)
    assert parse_version("2.9.10", where="x") == (2, 9, 10)
    with pytest.raises(ConfigError, match="x is no nats-server"):
        parse_version("none", where="x")
