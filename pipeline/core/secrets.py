"""Secrets in addresses: found, hidden, and filled in from the environment."""

import re
from collections.abc import Mapping

# Who logs in where, before the host. A password may hold what ends a host elsewhere; a port is none, nor is an IPv6 address.
_PASSWORD = r"[^\s'\"?#/@:\[]*:(?!\d*(?:[/?#]|$))"
_USER = rf"(?:[^\s'\"?#/]*@|{_PASSWORD}[^\s'\"?#]*@|{_PASSWORD}[^\s'\"]*@)"
_VARIABLE = re.compile(r"\$\{(\w+)\}")

# What in a query opens a door; a public one, such as ?raw=true or ?format=csv&gid=0, passes. Short words stand alone in the
# name: ?passenger=1 is public.
_OPENS_A_DOOR = re.compile(
    r"token|key|secret|passw|passphrase|pwd|sig|credential|auth|session|^(code|sas)$"
    r"|(?<![a-z])(pass|pw|jwt|bearer|access|hmac|t?otp)(?![a-z])",
    re.IGNORECASE,
)


def without_secret(text: str) -> str:
    """Text as it may be shown: every URL in it without user, password, query and fragment."""
    return re.sub(rf"://{_USER}?([^\s'\"?#]*)(?:[?#][^\s'\"]*)?", r"://\1", text)


def with_variables(url: str, environment: Mapping[str, str]) -> str:
    """A URL with `${NAME}` replaced by that variable; raises `KeyError` for one that is not set."""
    return _VARIABLE.sub(lambda found: environment[found[1]], url)


def holds_secret(text: str) -> bool:
    text = re.sub(r"[\s'\"]", "_", text)  # which end a URL in a text, but not in a value
    for url in re.split(r"::(?=[\w+.-]+://)", text):  # fsspec chains, such as simplecache::https://…
        scheme, found, rest = url.partition("://")
        if not found:
            continue
        user_info = re.match(_USER, _VARIABLE.sub("", rest))
        user, _, password = user_info[0].removesuffix("@").partition(":") if user_info else ("", "", "")
        if password or (user and scheme.lower() in ("http", "https")):
            return True
        for field in re.split("[?#&;]", rest)[1:]:
            name, _, value = field.partition("=")
            if value and _OPENS_A_DOOR.search(name) and not _VARIABLE.fullmatch(value):
                return True
    return False
