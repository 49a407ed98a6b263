"""The console script, and `python -m vitprune`. It answers Ctrl-C from its first line on."""

from __future__ import annotations

from vitprune.support import interrupts, processes


def main() -> None:
    """Run the command line; nothing is imported from the current folder."""
    interrupts.install()
    from vitprune.cli import main as command_line

    command_line()


if __name__ == "__main__":
    processes.without_current_folder()
    main()
