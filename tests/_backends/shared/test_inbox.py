"""The way from callers to a dispatcher: what is sent is received once, in its order, and one call wakes for many."""

import threading

import pytest

from penstock._backends.shared.inbox import MOST_AT_ONCE, Inbox


def test_requests_that_come_together_are_one_call():
    """Fifty tasks of one loop turn wake the dispatcher once."""
    inbox = Inbox()
    calls = 0
    for number in range(50):
        inbox.add(number)
        if not inbox.called:
            inbox.call()
            calls += 1
    assert calls == 1
    assert inbox.receive(0.0) == ([*range(50)], [])
    assert inbox.receive(0.0) == ([], [])


def test_after_a_look_the_next_request_calls_again():
    inbox = Inbox()
    inbox.call()
    inbox.receive(0.0)
    assert not inbox.called


def test_more_than_is_taken_at_once_is_received_next_in_its_order():
    inbox = Inbox()
    for number in range(MOST_AT_ONCE + 3):
        inbox.add(number)
    inbox.call()
    first, _ = inbox.receive(0.0)
    assert inbox.called
    second, _ = inbox.receive(None)  # it does not wait, as there are some
    assert first + second == [*range(MOST_AT_ONCE + 3)]


def test_what_a_thread_leaves_the_next_one_receives_before_all_else():
    inbox = Inbox()
    inbox.put_back([1, 2], ["a"])
    inbox.add(3)
    inbox.put("b")
    assert inbox.receive(0.0) == ([1, 2, 3], ["a", "b"])


def test_nothing_comes_within_the_timeout():
    assert Inbox().receive(0.001) == ([], [])


@pytest.mark.parametrize("senders", [1, 4])
def test_nothing_is_lost_and_a_request_never_overtakes_a_message_of_its_own_thread(senders):
    """Each thread sends a message and then a request with its number, again and again."""
    inbox, many = Inbox(), 2_000
    seen = [0] * senders
    received = 0

    def send(thread):
        for number in range(1, many + 1):
            inbox.put((thread, number))
            inbox.add((thread, number))
            if not inbox.called:
                inbox.call()

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(senders)]
    for thread in threads:
        thread.start()
    last = [0] * senders
    while received < senders * many:
        requests, messages = inbox.receive(20.0)
        assert requests or messages, "a call was lost"
        for thread, number in messages:
            seen[thread] = number
        for thread, number in requests:
            assert number <= seen[thread]
            assert number == last[thread] + 1
            last[thread] = number
            received += 1
    for thread in threads:
        thread.join()
