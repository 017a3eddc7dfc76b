"""Keeps a load on this machine unless somebody says otherwise: aimed elsewhere it is an attack."""

import ipaddress
from urllib.parse import urlsplit

from libs.kernel.errors import ConfigError

LOCAL_NAMES = frozenset({"localhost"})


def require_allowed(urls: str, *, option: str, is_remote_allowed: bool) -> None:
    """Refuse an address that is not loopback; several of one cluster are separated by commas.

    Raises: ConfigError that names the option and the host, also for what is no URL.
    """
    for url in urls.split(","):
        host = _host_of(url.strip(), option=option)
        if not is_remote_allowed and not is_loopback(host):
            raise ConfigError(
                f"{option}: {host} is not this machine; --allow-remote if the load is meant for it"
            )


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by name or address; other names are not looked up."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(url: str, *, option: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if "://" not in url or not host:
        raise ConfigError(f"{option}: {url!r} is not a URL such as scheme://host:port")
    return host
