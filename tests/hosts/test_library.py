"""The proxy without HTTP: sync and async iteration over the parts of an answer."""

import asyncio
from contextlib import aclosing, closing
from threading import Timer

import pytest
from attrs import evolve

from bedrock_proxy import tokens
from bedrock_proxy.customers import UNLIMITED, Customer, CustomerStatus, Key, Limits
from bedrock_proxy.errors import ClientFault, Code, ConfigurationError, LimitReached, UpstreamFault
from bedrock_proxy.parts import Other, Stop, Text, Thinking, UsageReport
from bedrock_proxy.rules import Rules
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.hosts.library import answers, async_answers
from bedrock_proxy_adapters.proxy import Proxy
from bedrock_proxy_adapters.simulator import Fault, start_in_thread
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.upstream.boto3 import OUR_RETRIES, Boto3Upstream

TOKEN = tokens.mint(bytes(range(32)))
CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
TITAN_EMBED = "amazon.titan-embed-text-v2:0"
QUESTION = {
    "modelId": CLAUDE,
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Say hello."}],
}


@pytest.fixture(scope="module")
def running():
    with start_in_thread() as simulator:
        yield simulator


@pytest.fixture
def simulator(running):
    running.reset()
    return running


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def customer(store):
    def make(limits=UNLIMITED):
        store.create_customer(
            Customer(id="c", name="C", email="c@example.com", limits=limits, created_at=0),
            Key(key_id="k", digest=tokens.digest(TOKEN, None), created_at=0),
        )

    return make


@pytest.fixture
def make_proxy(simulator, store, customer):
    made = []

    def make(*, limits=UNLIMITED, **options):
        customer(limits)
        upstream = Boto3Upstream(simulator.client(), retries=OUR_RETRIES)
        proxy = Proxy(store=store, upstream=upstream, **options)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        assert 0 == proxy.shutdown(10)


def in_order(proxy, request=QUESTION, token=TOKEN, **more):
    return list(answers(proxy)(token, request, **more))


def on_a_loop(proxy, request=QUESTION, token=TOKEN, **more):
    async def collect():
        return [part async for part in async_answers(proxy)(token, request, **more)]

    return asyncio.run(collect())


both = pytest.mark.parametrize("collect", [in_order, on_a_loop])


def rows(store):
    return list(every_row(store))


def text_of(parts):
    return "".join(part.text for part in parts if isinstance(part, Text))


@both
def test_the_parts_of_an_answer_come_with_its_counts_last_and_one_row(
    collect, make_proxy, simulator, store
):
    simulator.script(pieces=("Hel", "lo, ", "wörld"), thinking="Hm.", output_tokens=7)
    parts = collect(make_proxy(), client_request_id="mine-1")
    assert "Hello, wörld" == text_of(parts)
    assert "Hm." == "".join(part.text for part in parts if isinstance(part, Thinking))
    assert [UsageReport] == [type(part) for part in parts if isinstance(part, UsageReport)]
    assert ["end_turn"] == [part.reason for part in parts if isinstance(part, Stop)]
    (row,) = rows(store)
    usage = parts[-1].usage
    assert (7, row.input_tokens) == (row.output_tokens, usage.input_tokens)
    assert 7 == usage.output_tokens
    assert ("c", "simple", True, "mine-1") == (
        row.customer_id,
        row.dialect,
        row.stream,
        row.client_request_id,
    )
    assert (Outcome.OK, Basis.REPORTED) == (row.outcome, row.basis)
    assert "invoke-with-response-stream" == simulator.calls[0].operation


@both
def test_a_whole_answer_gives_the_same_parts(collect, make_proxy, simulator, store):
    simulator.script(text="All at once.")
    parts = collect(make_proxy(), {**QUESTION, "stream": False})
    assert "All at once." == text_of(parts)
    assert ["end_turn"] == [part.reason for part in parts if isinstance(part, Stop)]
    assert isinstance(parts[-1], UsageReport)
    assert parts[-1].usage.output_tokens == rows(store)[0].output_tokens > 0
    assert "invoke" == simulator.calls[0].operation


@both
def test_an_answer_that_is_no_text_comes_as_it_is(collect, make_proxy, store):
    asked = {"modelId": TITAN_EMBED, "inputText": "hello there", "stream": False}
    vector, counts = collect(make_proxy(), asked)
    assert isinstance(vector, Other)
    assert vector.event["embedding"]
    assert counts.usage.input_tokens == rows(store)[0].input_tokens > 0


@both
def test_an_unknown_token_is_refused_and_leaves_no_row(collect, make_proxy, simulator, store):
    proxy = make_proxy()
    with pytest.raises(ClientFault) as refused:
        collect(proxy, token=tokens.mint(bytes(32)))
    assert Code.UNAUTHORIZED == refused.value.code
    assert ([], ()) == (rows(store), tuple(simulator.calls))


@both
def test_a_disabled_customer_is_refused(collect, make_proxy, store):
    proxy = make_proxy()
    store.update_customer("c", lambda it: evolve(it, status=CustomerStatus.DISABLED))
    with pytest.raises(ClientFault, match="disabled"):
        collect(proxy)


@both
def test_the_limits_are_the_customers(collect, make_proxy, store):
    proxy = make_proxy(limits=Limits(requests_per_minute=1))
    collect(proxy)
    with pytest.raises(LimitReached) as refused:
        collect(proxy)
    error = refused.value
    assert (Code.RATE_LIMITED, "requests_per_minute", True) == (
        error.code,
        error.limit,
        error.retryable,
    )
    assert error.retry_after is not None
    assert error.retry_after > 0
    assert 1 == len(rows(store))


@both
def test_a_request_that_is_too_large_is_refused(collect, make_proxy):
    with pytest.raises(ClientFault) as refused:
        collect(make_proxy(rules=Rules(max_body_bytes=64)))
    assert Code.TOO_LARGE == refused.value.code


@both
def test_bedrocks_refusal_is_raised_with_its_words(collect, make_proxy, simulator, store):
    simulator.script(error="ValidationException", error_message="max_tokens is too large")
    with pytest.raises(ClientFault, match="max_tokens is too large"):
        collect(make_proxy())
    assert (0, "invalid_request") == (rows(store)[0].token_count, rows(store)[0].error_code)


@pytest.mark.parametrize("host", ["sync", "async"])
def test_what_came_before_a_fault_is_given_then_the_fault_is_raised(
    host, make_proxy, simulator, store
):
    fault = Fault("exception", after=3, name="modelStreamErrorException")
    simulator.script(pieces=("one ", "two ", "three "), faults=(fault,))
    proxy = make_proxy()
    got = []

    async def on_loop():
        async for part in async_answers(proxy)(TOKEN, QUESTION):
            got.append(part)

    with pytest.raises(UpstreamFault):
        if host == "async":
            asyncio.run(on_loop())
        else:
            for part in answers(proxy)(TOKEN, QUESTION):
                got.append(part)
    assert text_of(got)
    assert "one two three ".startswith(text_of(got))
    assert not any(isinstance(part, UsageReport) for part in got)
    (row,) = rows(store)
    assert (Outcome.ERROR, Basis.PARTIAL) == (row.outcome, row.basis)


def test_nothing_is_asked_before_the_first_part_is(make_proxy, simulator, store):
    proxy = make_proxy()
    answers(proxy)(TOKEN, QUESTION)
    assert (0, []) == (proxy.under_way, list(simulator.calls))


def until_text(parts):
    """The first piece of text; the parts before it are taken."""
    return next(part for part in parts if isinstance(part, Text))


def test_parts_come_as_the_model_says_them(make_proxy, simulator):
    simulator.script(pieces=("first", "second"), gate=True)
    proxy = make_proxy()
    with closing(answers(proxy)(TOKEN, QUESTION)) as parts:

        def let_some_through():
            simulator.wait_calls(1)[0].release(3)

        Timer(0.05, let_some_through).start()
        assert "first" == until_text(parts).text
        (call,) = simulator.calls
        assert not call.finished
        call.release(100)
        assert "second" == text_of(parts)


def test_S01_an_abandoned_iteration_is_drained_to_its_true_usage(make_proxy, simulator, store):
    simulator.script(events=40, output_tokens=400, pace=0.005)
    proxy = make_proxy()
    with closing(answers(proxy)(TOKEN, QUESTION)) as parts:
        until_text(parts)
    assert 0 == proxy.shutdown(10)
    (row,) = rows(store)
    assert (Outcome.CLIENT_GONE, Basis.REPORTED, 400) == (row.outcome, row.basis, row.output_tokens)
    assert () == store.open_leases()


def test_S01_an_abandoned_iteration_closes_the_call_under_the_policy_cancel(
    make_proxy, simulator, store
):
    simulator.script(events=40, stall_after=8)
    proxy = make_proxy(disconnect="cancel")
    for part in answers(proxy)(TOKEN, QUESTION):
        if isinstance(part, Text):
            break  # not closed: the iterator is let go
    assert 0 == proxy.shutdown(10)
    simulator.calls[0].wait_aborted()
    (row,) = rows(store)
    assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)
    assert () == store.open_leases()


@pytest.mark.parametrize("how", ["aclose", "break", "cancel"])
@pytest.mark.parametrize("policy", ["drain", "cancel"])
def test_S01_an_async_iteration_may_be_abandoned_in_every_way(
    how, policy, make_proxy, simulator, store
):
    if policy == "drain":
        simulator.script(events=40, output_tokens=400, pace=0.005)
    else:
        simulator.script(events=40, stall_after=8)
    proxy = make_proxy(disconnect=policy)

    async def first(parts):
        async for part in parts:
            if isinstance(part, Text):
                return

    async def leave():
        answer = async_answers(proxy)
        if how == "aclose":
            async with aclosing(answer(TOKEN, QUESTION)) as parts:
                await first(parts)
        elif how == "break":
            await first(answer(TOKEN, QUESTION))
        else:
            reached = asyncio.Event()

            async def read_slowly():
                async for part in answer(TOKEN, QUESTION):
                    if isinstance(part, Text):
                        reached.set()

            reading = asyncio.create_task(read_slowly())
            await reached.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert 0 == await asyncio.to_thread(proxy.shutdown, 10)

    asyncio.run(leave())
    (row,) = rows(store)
    assert Outcome.CLIENT_GONE == row.outcome
    assert () == store.open_leases()
    if policy == "drain":
        assert (Basis.REPORTED, 400) == (row.basis, row.output_tokens)
    else:
        assert Basis.PARTIAL == row.basis
        simulator.calls[0].wait_aborted()


def test_S21_a_loop_that_ends_in_the_middle_of_an_answer_still_settles_it(
    make_proxy, simulator, store
):
    simulator.script(events=40, stall_after=8)
    proxy = make_proxy()
    kept = []

    async def end_early():
        parts = async_answers(proxy)(TOKEN, QUESTION)
        kept.append(parts)
        async for part in parts:
            if isinstance(part, Text):
                return

    asyncio.run(end_early())
    (row,) = rows(store)
    assert Outcome.SHUTDOWN == row.outcome
    assert () == store.open_leases()


def test_S14_a_slow_iteration_holds_the_model_back(make_proxy, simulator):
    events = 3_000
    simulator.script(pieces=tuple("x" * 2_000 for _ in range(events)))
    proxy = make_proxy()

    async def read_one_and_wait():
        async with aclosing(async_answers(proxy)(TOKEN, QUESTION)) as parts:
            async for part in parts:
                if isinstance(part, Text):
                    break
            (call,) = simulator.calls
            seen = -1
            while call.events_written != seen:  # until it stands still
                seen = call.events_written
                await asyncio.sleep(0.5)
            assert seen < events
            text = "".join([part.text async for part in parts if isinstance(part, Text)])
            assert 2_000 * (events - 1) == len(text)

    asyncio.run(read_one_and_wait())


def test_many_async_iterations_go_on_at_once(make_proxy, simulator, store):
    count = 30
    simulator.script(times=count, events=5, pace=0.01)
    proxy = make_proxy()

    async def all_of_them():
        answer = async_answers(proxy)

        async def one():
            return text_of([part async for part in answer(TOKEN, QUESTION)])

        return await asyncio.gather(*(one() for _ in range(count)))

    texts = asyncio.run(all_of_them())
    assert count == len(texts)
    assert all(texts)
    assert count == len(rows(store))


def test_a_native_port_is_refused_when_the_function_is_made(make_proxy):
    proxy = make_proxy()
    proxy.upstream.kind = "native"
    with pytest.raises(ConfigurationError, match="event loop"):
        answers(proxy)
