"""Which addresses are tried, kept, forgotten and used: only what proved itself counts, and there is an end to it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import API, PROXY
from sikkerguard.core.sikkerapi.endpoint import (
    FRESH_SECONDS,
    KEPT_SECONDS,
    MAX_ADDRESSES,
    Endpoint,
    EndpointMemory,
    Known,
    Proof,
    candidates,
    is_due,
    memory_from_json,
    settled,
    usable,
)

NOW = 1_700_000_000.0
HERE = Endpoint(API, "https", "api.example.net", 443)

addresses = st.integers(0, 40).map(lambda number: f"192.0.2.{number}") | st.integers(0, 40).map(
    lambda number: f"2001:db8::{number:x}"
)
ages = st.floats(-2 * KEPT_SECONDS, 2 * KEPT_SECONDS)
resolutions = st.lists(addresses, max_size=60)


@st.composite
def knowledge(draw: st.DrawFn) -> Known:
    found = draw(st.dictionaries(addresses, ages, max_size=MAX_ADDRESSES))
    proofs = sorted((Proof(address, NOW - age) for address, age in found.items()), key=lambda proof: -proof.at)
    refused = {address: NOW - age for address, age in draw(st.dictionaries(addresses, ages, max_size=30)).items()}
    return Known(tuple(proofs), refused, NOW - draw(ages))


@given(knowledge(), resolutions)
def test_few_are_tried_and_both_old_and_new_have_their_places(known: Known, resolved: list[str]) -> None:
    tried = candidates(known, resolved)
    old = {proof.address for proof in known.proofs}
    new = set(resolved) - old
    assert len(tried) == len(set(tried)) == min(MAX_ADDRESSES, len(old | new))
    assert set(tried) <= old | new
    assert len(set(tried) & old) >= min(len(old), MAX_ADDRESSES // 2)
    assert len(set(tried) & new) >= min(len(new), MAX_ADDRESSES // 2)


@given(knowledge(), resolutions, st.data())
def test_only_what_proved_itself_is_known_and_never_more_than_a_few(
    known: Known, resolved: list[str], data: st.DataObject
) -> None:
    tried = {address: data.draw(st.booleans()) for address in candidates(known, resolved)}
    proved = {address for address, good in tried.items() if good}
    after = settled(known, tried, NOW)
    found = {proof.address: proof.at for proof in after.proofs}
    before = {proof.address: proof.at for proof in known.proofs}
    assert len(after.proofs) == len(found) <= MAX_ADDRESSES
    assert found.keys() <= before.keys() | proved
    assert proved <= found.keys()
    assert all(found[address] == NOW for address in proved)
    for address in found.keys() - proved:
        # The line may be down: what failed is kept only where nothing else proved itself, and for a day.
        assert not proved or address not in tried
        assert NOW - before[address] < KEPT_SECONDS
        assert found[address] == min(before[address], NOW)
    if not proved:
        assert found.keys() == {address for address, at in before.items() if NOW - at < KEPT_SECONDS}
    # What nobody confirmed has to prove itself before the next request, however lately it did before.
    assert proved or is_due(after, resolved, NOW)
    assert list(after.proofs) == sorted(after.proofs, key=lambda proof: -proof.at)
    # What is used is all of that, and first what the name stands for.
    used = usable(after, resolved)
    assert set(used) == found.keys()
    named = [address in resolved for address in used]
    assert named == sorted(named, reverse=True)


@given(st.integers(1, 400), st.integers(0, 3))
def test_a_name_with_many_addresses_is_walked_through(number: int, families: int) -> None:
    four = [f"192.0.{each >> 8}.{each & 255}" for each in range(number)]
    six = [f"2001:db8::{each:x}" for each in range(number)]
    resolved = [six[each] if each & families else four[each] for each in range(number)]
    known, seen = Known(), set()
    for turn in range(math.ceil(number / MAX_ADDRESSES)):
        tried = candidates(known, resolved)
        assert len(tried) <= MAX_ADDRESSES
        seen |= set(tried)
        known = settled(known, dict.fromkeys(tried, False), NOW + turn)
    assert len(seen) == number


def test_both_families_have_their_turn() -> None:
    resolved = [f"2001:db8::{each:x}" for each in range(100)] + ["192.0.2.1", "192.0.2.2"]
    assert candidates(Known(), resolved)[:4] == ("2001:db8::0", "192.0.2.1", "2001:db8::1", "192.0.2.2")


def fresh(*found: str, age: float = 0.0, tried: float = 0.0) -> Known:
    return Known(tuple(Proof(address, NOW - age) for address in found), {}, NOW - tried)


A, B, C = "192.0.2.1", "192.0.2.2", "2001:db8::3"


@pytest.mark.parametrize(
    ("known", "resolved", "due"),
    [
        pytest.param(Known(), [A], True, id="nothing is known"),
        pytest.param(Known(), [], True, id="nothing is known, nothing found"),
        pytest.param(fresh(A), [A], False, id="it proved itself"),
        pytest.param(fresh(A, B), [B], False, id="one of several"),
        pytest.param(fresh(A), [], False, id="DNS is down"),
        pytest.param(fresh(A), [B], True, id="it moved"),
        pytest.param(fresh(A), [A, B], False, id="another one beside it, tried lately"),
        pytest.param(fresh(A, tried=FRESH_SECONDS), [A, B], True, id="another one beside it, tried an hour ago"),
        pytest.param(fresh(A, age=FRESH_SECONDS), [A], True, id="it proved itself an hour ago"),
        pytest.param(fresh(A, age=FRESH_SECONDS), [], True, id="so, and DNS is down"),
        pytest.param(fresh(A, age=-1), [A], True, id="the clock was put back"),
        pytest.param(Known((Proof(A, NOW),), {}, NOW, doubted=True), [A], True, id="that was in an earlier run"),
    ],
)
def test_proof_is_asked_for_at_once_where_the_way_moved_and_else_once_an_hour(
    known: Known, resolved: list[str], due: bool
) -> None:
    assert is_due(known, resolved, NOW) is due


@given(knowledge())
def test_what_outlives_a_restart_is_what_is_young_enough(known: Known) -> None:
    memory = EndpointMemory(str(HERE), known.proofs)
    assert memory_from_json(json.loads(json.dumps(memory.as_json()))) == memory
    found = memory.recall(HERE, NOW)
    expected = {proof.address: min(proof.at, NOW) for proof in known.proofs if NOW - proof.at < KEPT_SECONDS}
    assert dict(found.proofs) == expected
    assert found.doubted
    assert list(found.proofs) == sorted(found.proofs, key=lambda proof: -proof.at)
    assert memory.recall(Endpoint(API, "https", "other.example.net", 443), NOW) == Known()
    assert memory.recall(Endpoint(PROXY, "https", "api.example.net", 443), NOW) == Known()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(A),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_a_damaged_record_is_as_if_it_was_not_there(value: Any) -> None:
    for proofs in (value, [value], [[A, value]], [[value, NOW]]):
        found = memory_from_json({"way": str(HERE), "proofs": proofs}).recall(HERE, NOW)
        assert all(proof.at <= NOW for proof in found.proofs)
        assert len(found.proofs) <= MAX_ADDRESSES
    assert memory_from_json({"way": value}).recall(HERE, NOW).proofs == ()
    assert memory_from_json({}) == EndpointMemory()


@pytest.mark.parametrize(
    ("host", "literal"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("api.example.net", ""),
        ("192.0.2", ""),
        ("192.0.2.0/24", ""),
    ],
)
def test_an_address_that_was_written_needs_no_proof(host: str, literal: str) -> None:
    assert Endpoint(API, "http", host, 80).literal == literal
