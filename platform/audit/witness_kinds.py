"""Kinds of witnesses that a layer above opens: it registers the dotted name of a function when it starts."""

_openers: dict[str, str] = {}


def witness_kind_add(scheme: str, opener: str) -> None:
    """Have witnesses named `scheme:…` opened by this function; it gets what stands behind the colon.

    A name and not the function, since apps register at every start and few commands need a witness.
    """
    _openers[scheme] = opener


def witness_opener(scheme: str) -> str:
    """The function's dotted name; empty for a kind that nobody opens."""
    return _openers.get(scheme, "")
