"""Ctrl-C in the middle of something."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vitprune.support import interrupts


def test_an_interrupt_waits_for_the_body() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("end of the body")
    assert reached == ["end of the body"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_of_the_body_pass() -> None:
    with pytest.raises(ValueError, match="own"):
        with interrupts.deferred():
            raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with interrupts.deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
