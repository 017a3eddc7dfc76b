"""The file with the fleet's secret, and what is made of it."""

from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from libs.transfer.peer_secret import PeerSecret, Role, write_new_secret


def test_a_new_secret_is_random_and_its_owners_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "folder" / "first", tmp_path / "second"
    for file in (first, second):
        write_new_secret(file)
        assert file.stat().st_mode & 0o077 == 0
        PeerSecret.read(file)
    assert first.read_bytes() != second.read_bytes()


def test_a_secret_that_is_short_or_not_there_is_a_mistake_of_the_operator(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b" " * 40 + b"short\n")
    with pytest.raises(ConfigError, match="32 bytes"):
        PeerSecret.read(short)
    with pytest.raises(ConfigError, match="No such file"):
        PeerSecret.read(tmp_path / "nothing")


def test_the_secret_is_not_shown() -> None:
    assert "tide" not in repr(PeerSecret(b"tide" * 8))


def test_a_proof_holds_for_its_role_and_its_greetings_alone() -> None:
    secret = PeerSecret(b"s" * 32)
    proof = secret.proof(Role.CONNECTS, own_greeting=b"mine", peer_greeting=b"yours")
    # As the other side sees it: its own greeting is the one that the proof calls the peer's.
    assert secret.is_proven(proof, Role.CONNECTS, own_greeting=b"yours", peer_greeting=b"mine")
    assert not secret.is_proven(proof, Role.LISTENS, own_greeting=b"yours", peer_greeting=b"mine")
    assert not secret.is_proven(proof, Role.CONNECTS, own_greeting=b"mine", peer_greeting=b"yours")
    other = PeerSecret(b"o" * 32)
    assert not other.is_proven(proof, Role.CONNECTS, own_greeting=b"yours", peer_greeting=b"mine")
