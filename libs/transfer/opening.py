"""Which transport to use."""

from importlib.util import find_spec
from typing import Literal, assert_never

from libs.kernel.errors import ConfigError
from libs.transfer.loopback import LoopbackTransport
from libs.transfer.peer_secret import PeerSecret
from libs.transfer.tcp import TcpTransport
from libs.transfer.transport import Transport

TransportKind = Literal["tcp", "ucx", "loopback", "auto"]


def open_transport(
    kind: TransportKind,
    *,
    host: str,
    port: int = 0,
    has_fast_link: bool = False,
    secret: PeerSecret | None = None,
) -> Transport:
    """Open a transport that listens on this host, at this port or any free one.

    `auto` is UCX where the caller knows of a GPU or of RDMA (`has_fast_link`) and UCX is installed;
    else TCP, which is three to five times faster where there is neither. With a secret it talks to
    nobody who lacks it; loopback, which never leaves the process, needs none.
    Raises: ConfigError if UCX is asked for by name and not installed.
    """
    match kind:
        case "tcp":
            return TcpTransport(host=host, port=port, secret=secret)
        case "ucx":
            return _ucx_transport(host=host, port=port, secret=secret)
        case "loopback":
            return LoopbackTransport(host=host)
        case "auto":
            if has_fast_link and find_spec("ucxx") is not None:
                return _ucx_transport(host=host, port=port, secret=secret)
            return TcpTransport(host=host, port=port, secret=secret)
        case _:
            assert_never(kind)


def _ucx_transport(*, host: str, port: int, secret: PeerSecret | None) -> Transport:
    try:
        # Imported here: it is an extra, and its libraries take half a second to load.
        from libs.transfer.ucx import UcxTransport
    except ImportError as error:
        raise ConfigError(f"transport: ucx needs `pip install tideserve[ucx]` ({error})") from error
    return UcxTransport(host=host, port=port, secret=secret)
