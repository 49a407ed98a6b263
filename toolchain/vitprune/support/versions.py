"""Version numbers of runtimes and systems: "10.3.0.30", "7.2.2"."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Version:
    """Numbers of a version, compared from the left; trailing zeros do not count, so 10.3 equals 10.3.0."""

    numbers: tuple[int, ...]

    @classmethod
    def find(cls, text: str) -> Version | None:
        """The version a text starts with, None when it starts with none."""
        match = re.match(r"\d+(?:\.\d+)*", text.strip())
        if match is None:
            return None
        numbers = [int(part) for part in match[0].split(".")]
        while len(numbers) > 1 and not numbers[-1]:
            numbers.pop()
        return cls(tuple(numbers))

    @classmethod
    def parse(cls, text: str) -> Version:
        """Like `find`; raises ValueError where there is no version."""
        version = cls.find(text)
        if version is None:
            raise ValueError(f"'{text}' is not a version")
        return version

    def minor(self) -> Version:
        """Major and minor alone: 10.3 of 10.3.0.30."""
        return Version.parse(".".join(map(str, (*self.numbers, 0)[:2])))

    def starts_with_minor_of(self, other: Version) -> bool:
        """Whether major and minor are those of `other`."""
        return self.minor() == other.minor()

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers if len(self.numbers) > 1 else (*self.numbers, 0)))
