"""Which proxy leads to an address, as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """The proxy to go through, as a URL; empty: none.

    This machine itself is never asked for through a proxy. NO_PROXY takes names with their subdomains, `name:port`,
    addresses, networks (`10.0.0.0/8`, as clusters write them) and `*`.

    Args:
        url: Where to go, `http` or `https`.
        environ: The environment; what is in lower case goes first.
    """
    parts = urlsplit(url)
    proxy = _value(environ, f"{parts.scheme}_proxy") or _value(environ, "all_proxy")
    if not proxy or _is_direct(parts.hostname or "", parts.port, _value(environ, "no_proxy")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _value(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _is_direct(host: str, port: int | None, exceptions: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for item in exceptions.replace(",", " ").split():
        if item == "*":
            return True
        if address is not None:
            try:
                if address in ip_network(item.strip("[]"), strict=False):
                    return True
            except ValueError:
                pass
        name, _, only = item.rpartition(":")
        if not name or not only.isdigit():
            name, only = item, ""
        name = name.strip("[]").lstrip("*").lstrip(".").lower()
        if name and (not only or int(only) == port) and (host.lower() == name or host.lower().endswith(f".{name}")):
            return True
    return False
