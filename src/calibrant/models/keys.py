"""Which environment variable holds the key for an address: one variable for one host and port.

    https://api.example.com/v1       CALIBRANT_API_KEY_API_EXAMPLE_COM
    https://api-example.com/v1       CALIBRANT_API_KEY_API__EXAMPLE_COM
    http://127.0.0.1:8000/v1         CALIBRANT_API_KEY_127_0_0_1_8000

Dots become ``_``, dashes ``__``, and a port other than the scheme's own is appended, so that no two addresses
share a name, and a key that was given for one host never goes to another that looks like it.
"""

from __future__ import annotations

import ipaddress
import re

import httpx

from calibrant.core.secrets import API_KEY
from calibrant.models.endpoint import endpoint_url

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def key_variable(url: str) -> str:
    """Name of the variable with the key for the host and port of ``url``; "" for a host that can have none.

    A host outside ASCII goes by its Punycode. None have those whose names could be read in two ways: with an
    empty label, an underscore, a dash at the end of a label, or a number last that make no IPv4 address.

    Raises:
        InputError: not an http(s) URL, or one that carries a password, query or fragment.
    """
    parsed = httpx.URL(endpoint_url(url))
    name = _host(parsed.raw_host.decode("ascii").lower())
    port = "" if parsed.port is None else f"_{parsed.port}"
    return f"{API_KEY}_{name}{port}".upper() if name else ""


def _host(host: str) -> str:
    """The host's part of the name, from which the host can be read back; "" where it could not."""
    if "%" in host:
        return ""
    if ":" in host:
        try:
            return f"ip6___{int(ipaddress.IPv6Address(host)):032x}"
        except ValueError:
            return ""
    labels = host.split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        return ""
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return ""
    return "_".join(label.replace("-", "__") for label in labels)
