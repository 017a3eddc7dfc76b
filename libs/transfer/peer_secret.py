"""Proof that a peer holds the fleet's secret, without telling it.

Each side greets with a nonce of its own and then proves itself by HMAC-SHA256 over its role and
both greetings: a proof overheard fits no other connection, and one sent back not the other role.
It says who opened the connection, and neither encrypts nor protects what follows. Where strangers
can write into a network's packets, workers belong behind an encrypting overlay.
"""

import hmac
import secrets
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError

SECRET_BYTES_MIN: Final = 32
PROOF_BYTES: Final = sha256().digest_size


class Role(Enum):
    """A side of a connection."""

    CONNECTS = b"connects"
    LISTENS = b"listens"

    @property
    def other(self) -> "Role":
        """The side that this one talks to."""
        return Role.LISTENS if self is Role.CONNECTS else Role.CONNECTS


class PeerSecret:
    """What all workers of a fleet know and nobody else. Never shown, not by repr either."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ConfigError(f"the peers' secret: at least {SECRET_BYTES_MIN} bytes are needed")
        self._secret = secret

    @classmethod
    def read(cls, file: Path) -> "PeerSecret":
        """Read it from a file; blanks around it do not count. Raises: ConfigError."""
        try:
            return cls(file.read_bytes().strip())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None

    def proof(self, role: Role, *, own_greeting: bytes, peer_greeting: bytes) -> bytes:
        """Return what the side of this role sends, of PROOF_BYTES."""
        return hmac.digest(self._secret, role.value + own_greeting + peer_greeting, "sha256")

    def is_proven(
        self, proof: bytes, role: Role, *, own_greeting: bytes, peer_greeting: bytes
    ) -> bool:
        """Whether the peer, of this role, holds the secret; the greetings as this side saw them."""
        expected = self.proof(role, own_greeting=peer_greeting, peer_greeting=own_greeting)
        return hmac.compare_digest(proof, expected)


def write_new_secret(file: Path) -> None:
    """Write a random secret that its owner alone may read. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600, exist_ok=True)
    file.write_text(secrets.token_hex(SECRET_BYTES_MIN), encoding="ascii")
