"""What tests know of the sshd that is started for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sshd:
    """A running server. place: for --remote. options: for --ssh-option. folder: where packages go. relay: switch and log."""

    place: str
    options: list[str]
    folder: Path
    stall: Path
    sent: Path

    def cli_options(self) -> list[str]:
        return ["--remote", self.place, *(part for option in self.options for part in ("--ssh-option", option))]

    def runs(self) -> int:
        """How often a package was started there."""
        return sum(len(file.read_text().splitlines()) for file in self.folder.glob("*/starts"))
