"""Secrets in addresses: found, hidden, and filled in from the environment."""

import re
from collections.abc import Mapping

# Who logs in where, before the host. A password may hold what ends a host elsewhere; a port is none, nor is an IPv6 address.
_PASSWORD = r"[^\s'\"?#/@:\[]*:(?!\d*(?:[/?#]|$))"
_USER = rf"(?:[^\s'\"?#/]*@|{_PASSWORD}[^\s'\"?#]*@|{_PASSWORD}[^\s'\"]*@)"
_VARIABLE = re.compile(r"\$\{(\w+)\}")

# Keys of a query whose values are no secret. Any other value has to be a variable.
PUBLIC_KEYS = {
    "raw",
    "format",
    "gid",
    "dl",
    "download",
    "export",
    "output",
    "version",
    "versionid",
    "ref",
    "sheet",
    "limit",
    "offset",
    "page",
    "sslmode",
    "uri",
}


def without_secret(text: str) -> str:
    """Text as it may be shown: every URL in it without user, password, query and fragment."""
    return re.sub(rf"://{_USER}?([^\s'\"?#]*)(?:[?#][^\s'\"]*)?", r"://\1", text)


def with_variables(url: str, environment: Mapping[str, str]) -> str:
    """A URL with `${NAME}` replaced by that variable; raises `KeyError` for one that is not set."""
    return _VARIABLE.sub(lambda found: environment[found[1]], url)


def secret_in(address: str) -> str | None:
    """The part of an address that may be a secret and is not written as `${NAME}`; None if there is none.

    That is a password, a user in front of an http host, or a value in the query whose key is not in `PUBLIC_KEYS`.
    """
    text = re.sub(r"[\s'\"]", "_", address)  # which end a URL in a text, but not in a value
    for url in re.split(r"::(?=[\w+.-]+://)", text):  # fsspec chains, such as simplecache::https://…
        scheme, found, rest = url.partition("://")
        if not found:
            continue
        user_info = re.match(_USER, _VARIABLE.sub("", rest))
        user, _, password = user_info[0].removesuffix("@").partition(":") if user_info else ("", "", "")
        if password or (user and scheme.lower() in ("http", "https")):
            return "its user or password"
        for field in re.split("[?#&;]", rest)[1:]:
            key, _, value = field.partition("=")
            if field and key.lower() not in PUBLIC_KEYS and not _VARIABLE.fullmatch(value or key):
                return "a value in its query"
    return None
