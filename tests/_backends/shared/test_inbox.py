"""The way from callers to a dispatcher: what is sent is received once, in its order, and one call wakes for many."""

import asyncio
import threading

import pytest

from penstock._backends.shared.inbox import MOST_AT_ONCE, Inbox
from penstock._concurrency.parking import ThreadParker, here


def send(inbox, number, parker):
    """As the dispatcher sends a request of this parker's; whether something had to be called."""
    inbox.add(number)
    calls = not inbox.called and inbox.promised is not parker.home
    if calls:
        inbox.call_for(parker)
    return calls


def test_requests_of_threads_that_come_together_are_one_call():
    inbox = Inbox()
    assert [send(inbox, number, ThreadParker()) for number in range(50)] == [True, *[False] * 49]
    assert inbox.receive(0.0) == ([*range(50)], [])
    assert inbox.receive(0.0) == ([], [])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_tasks_of_one_round_are_one_call_at_its_end():
    """Called at once, the dispatcher would wake up while the round has the interpreter."""
    inbox = Inbox()

    async def one(number):
        send(inbox, number, here())
        assert not inbox.called

    await asyncio.gather(*[one(number) for number in range(50)])
    await asyncio.sleep(0)
    assert inbox.called
    assert inbox.receive(0.0) == ([*range(50)], [])
    send(inbox, 50, here())
    await asyncio.sleep(0)
    assert inbox.called, "the next round has a call of its own"


@pytest.mark.anyio
async def test_a_round_that_goes_on_and_on_holds_up_no_thread_and_no_other_loop():
    """Its loop has promised to call, and does not come to it."""
    inbox = Inbox()
    send(inbox, 0, here())
    send(inbox, 1, ThreadParker())
    assert inbox.called
    inbox.receive(0.0)

    async def ask():
        send(inbox, 2, here())
        await asyncio.sleep(0)
        assert inbox.called

    thread = threading.Thread(target=asyncio.run, args=(ask(),))
    thread.start()
    thread.join()
    assert inbox.receive(0.0) == ([2], [])
    await asyncio.sleep(0)
    assert inbox.called, "its own call comes late, and not never"


def test_a_loop_that_ends_before_its_call_holds_up_no_later_one():
    inbox = Inbox()
    loop = asyncio.new_event_loop()
    loop.call_soon(lambda: (send(inbox, 0, here()), loop.stop()))
    loop.run_forever()
    loop.close()
    assert not inbox.called

    async def ask():
        send(inbox, 1, here())

    asyncio.run(ask())
    assert inbox.called
    assert inbox.receive(0.0) == ([0, 1], [])


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
