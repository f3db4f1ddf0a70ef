"""A polite kill ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal

import pytest

from glyphrun.cluster import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_end_is_an_interrupt_in_the_scope_and_what_it_was_before_after_it(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
