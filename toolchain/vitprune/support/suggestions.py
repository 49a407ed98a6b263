"""Did-you-mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

READABLE = 40


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence naming the closest known word, else the list of all where that is short enough to read."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if len(names) <= READABLE else f"no similar name among {len(names)}"
