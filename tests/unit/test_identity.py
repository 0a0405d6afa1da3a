from __future__ import annotations

import re
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from almoner_core.identity import allotment_id, operation_id, pod_name

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Names as the API server accepts them: DNS subdomains of at most 253 characters.
names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,70}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,70}[a-z0-9])?){0,2}", fullmatch=True)
uids = st.uuids().map(str)
attempts = st.integers(min_value=1, max_value=101)


@given(names, uids, attempts)
@example("a" * 253, "u", 101)
@example("a" * 45 + "-" * 5 + "b", "u", 1)
@example("a" * 45 + "." + "b" * 5, "u", 1)
@example("1.2.3", "u", 1)
def test_pod_names_are_dns_labels_and_repeatable(name: str, uid: str, attempt: int) -> None:
    pod = pod_name(name, uid, attempt)
    assert DNS_LABEL.fullmatch(pod), pod
    assert pod == pod_name(name, uid, attempt)
    assert pod.startswith(name[:20].replace(".", "-").rstrip("-"))


@given(names, st.lists(st.tuples(uids, attempts), min_size=2, max_size=50, unique=True))
def test_pod_names_are_unique(name: str, runs: list[tuple[str, int]]) -> None:
    assert len({pod_name(name, uid, attempt) for uid, attempt in runs}) == len(runs)
    assert len({allotment_id(uid, attempt) for uid, attempt in runs}) == len(runs)


@given(uids, attempts)
def test_names_that_share_a_beginning_do_not_meet(uid: str, attempt: int) -> None:
    other = "0" + uid[1:] if uid[0] != "0" else "1" + uid[1:]
    long = "x" * 60
    assert pod_name(long + "a", uid, attempt) != pod_name(long + "b", other, attempt)


@given(uids, attempts, st.sampled_from(["open", "close", "extend"]))
def test_ids_are_uuids_that_tell_steps_apart(uid: str, attempt: int, verb: str) -> None:
    allotment = allotment_id(uid, attempt)
    operation = operation_id(verb, allotment, attempt)
    assert str(UUID(allotment)) == allotment
    assert str(UUID(operation)) == operation
    assert operation == operation_id(verb, allotment, attempt)
    assert operation != operation_id(verb, allotment, attempt + 1)
    assert operation != operation_id("other", allotment, attempt)
    assert operation != allotment


def test_a_number_and_its_text_are_the_same_discriminator() -> None:
    assert operation_id("extend", "a", 1) == operation_id("extend", "a", "1")
