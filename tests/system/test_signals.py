"""A signal ends a process at once, or, where it was asked to wait, at the next place that is safe."""

import os
import pickle
import signal
import threading

import pytest

from kd.system import signals


@pytest.fixture(autouse=True)
def heard():
    """Signals as in a shell's foreground, however the tests were started: nohup and & have some of them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_ends_what_is_not_training_at_once(number):
    with signals.listen(), pytest.raises(signals.Interrupted) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_training_hears_it_when_it_asks(number):
    with signals.listen() as stop, stop.later():
        stop.now()
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(signals.Interrupted) as caught:
            stop.now()
    assert caught.value.exit_code == 128 + number


def test_a_second_signal_does_not_wait():
    with signals.listen() as stop, stop.later():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_after_the_training_it_is_at_once_again():
    with signals.listen() as stop:
        with stop.later():
            pass
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_no_other_handler_is_lost():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with signals.listen(), signals.listen():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listen():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_listens_without_harm():
    heard = []

    def run() -> None:
        with signals.listen() as stop:
            heard.append(stop.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [False]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_it_travels_between_processes(number):
    there = pickle.loads(pickle.dumps(signals.Interrupted(number)))
    assert (str(there), there.exit_code) == (str(signals.Interrupted(number)), 128 + number)


def test_nothing_takes_it_for_a_failure():
    assert issubclass(signals.Interrupted, KeyboardInterrupt)
    assert not issubclass(signals.Interrupted, Exception)


def test_a_process_ends_for_a_signal_that_another_has_heard():
    with pytest.raises(signals.Interrupted) as ended:
        signals.Stop().now(lambda own: max(own, signal.SIGTERM))
    assert ended.value.exit_code == 128 + signal.SIGTERM
    signals.Stop().now(lambda own: own)
