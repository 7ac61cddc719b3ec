"""Detect secrets in addresses, hide them, and fill in variables from the environment."""

import re
from collections.abc import Mapping

# User and password in front of the host. A password may contain characters that would end a host; a port or an IPv6
# address is not a password.
_PASSWORD = r"[^\s'\"?#/@:\[]*:(?!\d*(?:[/?#]|$))"
_USER = rf"(?:[^\s'\"?#/]*@|{_PASSWORD}[^\s'\"?#]*@|{_PASSWORD}[^\s'\"]*@)"
_VARIABLE = re.compile(r"\$\{(\w+)\}")

# Query keys with public values; the value of any other key must be a variable.
PUBLIC_KEYS = {
    "raw", "format", "gid", "dl", "download", "export", "output", "version", "versionid", "ref", "sheet",
    "limit", "offset", "page", "sslmode", "uri",
}  # fmt: skip


def without_secret(text: str) -> str:
    """Remove user, password, query and fragment from every URL in a text."""
    return re.sub(rf"://{_USER}?([^\s'\"?#]*)(?:[?#][^\s'\"]*)?", r"://\1", text)


def with_variables(url: str, environment: Mapping[str, str]) -> str:
    """Replace each `${NAME}` in a URL by that variable; raises `KeyError` for one that is not set."""
    return _VARIABLE.sub(lambda found: environment[found[1]], url)


def secret_in(address: str) -> str | None:
    """Name the part of an address that may be a secret and is not written as `${NAME}`; None if there is none.

    Such a part is a password, the user of an http address, or the value of a query key that is not in `PUBLIC_KEYS`.
    """
    text = re.sub(r"[\s'\"]", "_", address)  # these characters end a URL in a text, but not in a value
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
