"""Life of an allotment: offered -> bound -> active -> closed, or void."""

from __future__ import annotations

from almoner_core.wire import (
    Activate,
    Activated,
    AllotmentState,
    BindAllotment,
    CloseAllotment,
    Dimension,
    ErrorCode,
    Extend,
    Extended,
    ItemAnswer,
    OpenAllotment,
    OpenAnswer,
    Purpose,
    Return,
    Returned,
)
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store import charging, compute, finishing, last_words, leases, rates, recall
from almoner_ledger.store.accounts import execution_limits, smallest
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command
from almoner_ledger.store.granting import (
    accounts_in,
    apply_grant,
    decide_or_refuse,
    limited_dimensions,
    release,
    remaining,
    rooms,
    window_ends_in,
)
from almoner_ledger.store.state import (
    Account,
    AccountKind,
    Allotment,
    WindowKey,
    execution_account_id,
    quota_account_id,
)

SUPERSEDED = "superseded by a higher attempt"


def wrong_state(allotment: Allotment, doing: str) -> LedgerError:
    """An error about an allotment that is past what was asked."""
    reason = f" ({allotment.close_reason})" if allotment.close_reason else ""
    return LedgerError(
        ErrorCode.WRONG_STATE, f"allotment: it is {allotment.state.value}{reason} and cannot {doing}", field="allotment"
    )


def open_allotment(books: Books, command: Command) -> OpenAnswer:
    """Offer an allotment: every account grants the need, or none does."""
    body: OpenAllotment = command.body
    _check_open(books, body)
    compute.check_open(books, body)
    own = _execution_account(books, body)
    quotas = [books.accounts[quota_account_id(key)] for key in body.accounts]
    caps = execution_limits(own, quotas)
    tracked = {quota.id: _in_order(quota.limits) for quota in quotas}
    tracked[own.id] = _in_order(caps)
    if own.id not in books.accounts:
        books.accounts[own.id] = own
    superseded = [
        each
        for each in books.of_execution(body.execution.uid)
        if each.purpose is Purpose.RUN
        and each.state is AllotmentState.OFFERED
        and each.execution.attempt < body.execution.attempt
    ]
    asked = compute.asked(body)
    freed: dict[WindowKey, int] = {}
    for each in (*superseded, *compute.superseded_siblings(books, superseded)):
        for key, hold in each.holds.items():
            freed[key] = freed.get(key, 0) + hold.remainder
    try:
        granted = decide_or_refuse(rooms(books, tracked, None, freed, 1), asked.need, asked.want)
    except LedgerError as error:
        recall.mark(books, tracked, error)
        books.forget(own)
        raise
    # From here on nothing refuses.
    for each in superseded:
        _void(books, each, SUPERSEDED)
        compute.end_beside(books, each, SUPERSEDED)
    _enter_execution(books, body, own)
    allotment = Allotment(
        id=body.allotment,
        execution=body.execution,
        pod=body.pod,
        state=AllotmentState.OFFERED,
        tracked=tracked,
        opened_ms=books.now_ms,
        exchanged_ms=books.now_ms,
        keys=tuple(body.keys or ()),
        new=True,
    )
    books.allotments[allotment.id] = allotment
    granted = compute.open_beside(books, allotment, body, granted)
    apply_grant(books, allotment, granted)
    for account in tracked:
        books.accounts[account].holders += 1
        books.accounts[account].dirty = True
    return OpenAnswer(allotment=allotment.id, granted=granted, now_unix_ms=books.now_ms)


def _in_order(amounts: dict[Dimension, int]) -> tuple[Dimension, ...]:
    return tuple(dimension for dimension in Dimension if dimension in amounts)


def _check_open(books: Books, body: OpenAllotment) -> None:
    known = books.allotments.get(body.allotment)
    if known is not None:
        raise LedgerError(
            ErrorCode.WRONG_STATE,
            f"allotment: it was opened already by another operation and is {known.state.value}",
            field="allotment",
        )
    ref = body.execution
    newest = max((each.execution.attempt for each in books.of_execution(ref.uid)), default=0)
    if newest >= ref.attempt:
        raise LedgerError(
            ErrorCode.WRONG_STATE,
            f"execution.attempt: attempt {newest} of this execution was opened already",
            field="execution.attempt",
        )
    leases.check_no_other_active(books, ref.uid, ref.attempt)
    stored = books.executions.get(ref.uid)
    if stored is not None and stored != (ref.kind, ref.namespace, ref.name):
        raise invalid("execution.uid", "that uid belongs to an execution of another kind, namespace or name")
    ids = [quota_account_id(key) for key in body.accounts]
    if len(set(ids)) != len(ids):
        raise invalid("accounts", "the same account is named twice")
    for index, (key, account) in enumerate(zip(body.accounts, ids, strict=True)):
        if account not in books.accounts:
            raise LedgerError(
                ErrorCode.NOT_FOUND,
                f"accounts.{index}: no limits are known for {key.namespace}/{key.quota}; update accounts first",
                field=f"accounts.{index}",
            )


def _execution_account(books: Books, body: OpenAllotment) -> Account:
    """The execution's account with the limits asked; a copy, so that a refusal changes nothing."""
    key = execution_account_id(body.execution)
    known = books.accounts.get(key)
    if known is None:
        return Account(
            id=key,
            kind=AccountKind.EXECUTION,
            namespace=body.execution.namespace,
            name=body.execution.uid,
            limits=dict(body.limits),
            new=True,
        )
    if known.limits != body.limits:
        # Kept even where the grant is refused: the limits are the execution's, whatever comes of this attempt.
        known.limits = dict(body.limits)
    return known


def _enter_execution(books: Books, body: OpenAllotment, own: Account) -> None:
    own.dirty = True
    ref = body.execution
    if ref.uid not in books.executions:
        books.executions[ref.uid] = (ref.kind, ref.namespace, ref.name)
        books.new_executions.append(
            {
                "uid": ref.uid,
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "created_ms": books.now_ms,
            }
        )


def bind(books: Books, command: Command) -> ItemAnswer:
    """Bind the pod that was made for an allotment: only it may activate."""
    body: BindAllotment = command.body
    allotment = books.allotment(command)
    if not allotment.open:
        raise wrong_state(allotment, "be bound")
    if allotment.pod_uid not in (None, body.pod_uid):
        raise LedgerError(
            ErrorCode.WRONG_STATE, "pod_uid: the allotment is bound to another pod already", field="pod_uid"
        )
    allotment.pod_uid = body.pod_uid
    compute.bind_beside(books, allotment)
    books.touch(allotment)
    return ItemAnswer(allotment=allotment.id, state=allotment.state.value)


def void(books: Books, command: Command) -> ItemAnswer:
    """Void an allotment that was never activated."""
    body: CloseAllotment = command.body
    allotment = books.allotment(command)
    if allotment.state not in (AllotmentState.OFFERED, AllotmentState.VOID):
        raise wrong_state(allotment, "be voided")
    if allotment.state is AllotmentState.OFFERED:
        _void(books, allotment, body.reason)
    compute.end_beside(books, allotment, body.reason)
    return ItemAnswer(allotment=allotment.id, state=allotment.state.value)


def _void(books: Books, allotment: Allotment, reason: str) -> None:
    release(books, allotment, None)
    charging.end(books, allotment, AllotmentState.VOID, reason)


def close(books: Books, command: Command) -> ItemAnswer:
    """Close an allotment whose pod is gone: what it could still have spent is charged off."""
    body: CloseAllotment = command.body
    allotment = books.allotment(command)
    entered = charged = None
    if body.last_word is not None:
        _check_word(allotment, body)
    if allotment.purpose is Purpose.COMPUTE:
        compute.end_open(books, allotment, body.reason)
    elif allotment.state is AllotmentState.OFFERED:
        # Never activated: nothing can have been spent.
        _void(books, allotment, body.reason)
    elif allotment.state is AllotmentState.ACTIVE:
        if not body.terminated:
            leases.check_silent(books, allotment)
        entered = _heed(books, allotment, body)
        if allotment.open:
            charged = leases.give_up(books, allotment, body.reason)
    else:
        entered = _heed(books, allotment, body)
    compute.end_beside(books, allotment, body.reason)
    return ItemAnswer(allotment=allotment.id, state=allotment.state.value, last_word=entered, charged=charged)


def _check_word(allotment: Allotment, body: CloseAllotment) -> None:
    if not body.terminated or allotment.purpose is Purpose.COMPUTE:
        raise invalid(
            "last_word", "a word is the last one of a run's meter whose containers have ended: say terminated"
        )


def _heed(books: Books, allotment: Allotment, body: CloseAllotment) -> dict[Dimension, int] | None:
    """Settle by the meter's last word, where there is one that can be used; gives what was entered."""
    word = body.last_word
    if word is None or allotment.state is AllotmentState.VOID:
        return None
    if word.output is not None:
        books.last_outputs[allotment.id] = {
            "allotment_id": allotment.id,
            "content": word.output.content,
            "bytes": word.output.bytes,
            "truncated": word.output.truncated,
        }
        books.touch(allotment)
    return last_words.take(books, allotment, word, body.reason)


def speaking_for(books: Books, command: Command) -> Allotment:
    """The allotment that a meter speaks for. Raises LedgerError unless the operator bound it to the caller's pod."""
    allotment = books.allotment(command)
    compute.refuse_meter(allotment)
    if allotment.pod_uid is None:
        if not allotment.open:
            raise wrong_state(allotment, "be used")
        raise LedgerError(
            ErrorCode.NOT_BOUND, "allotment: it is not bound to a pod yet; try again soon", field="allotment"
        )
    if command.pod_uid != allotment.pod_uid:
        raise LedgerError(ErrorCode.FORBIDDEN, "allotment: it belongs to another pod", field="allotment")
    return allotment


def activate(books: Books, command: Command) -> Activated:
    """Give the bound pod's meter its allotment; a restarted meter learns what is left."""
    body: Activate = command.body
    allotment = speaking_for(books, command)
    if not allotment.open:
        raise wrong_state(allotment, "be activated")
    if allotment.state is AllotmentState.OFFERED:
        allotment.state = AllotmentState.ACTIVE
    # Each one has a number of its own, which says of which life of the meter a return is.
    allotment.activated_ms = max(books.now_ms, (allotment.activated_ms or 0) + 1)
    allotment.limited = limited_dimensions(books, allotment)
    allotment.exchanged_ms = books.now_ms
    books.touch(allotment)
    _, quotas = accounts_in(books, allotment.tracked)
    beside = compute.sibling(books, allotment)
    if beside is not None:
        # It may have waited long for its image.
        compute.cover_if_late(books, beside)
    return Activated(
        limited=list(allotment.limited),
        held=allotment.held(),
        remaining=remaining(books, allotment),
        max_per_request=smallest(quota.max_per_request for quota in quotas if quota.enforced),
        lease_seconds=books.lease.lease_seconds,
        window_ends_in_seconds=window_ends_in(books, allotment),
        next_sequence=allotment.sequences.highest + 1,
        settled=allotment.settled(),
        rates=rates.in_force(books, allotment),
        activation=allotment.activated_ms,
        known=[each for each in body.unsettled if _is_here(books, allotment, each)],
        paid_seconds=compute.paid_seconds(books, beside) if beside is not None else None,
        paid_span=compute.paid_span(beside) if beside is not None else None,
    )


def _is_here(books: Books, allotment: Allotment, record_id: str) -> bool:
    known = books.records.get(record_id)
    return known is not None and known.allotment_id == allotment.id


def extend(books: Books, command: Command) -> Extended:
    """Grant more to an active allotment."""
    body: Extend = command.body
    allotment = speaking_for(books, command)
    if allotment.state is not AllotmentState.ACTIVE:
        raise wrong_state(allotment, "be extended")
    if allotment.frozen or allotment.final_sequence is not None:
        why = "more was billed than was held" if allotment.frozen else "its meter has returned it"
        raise LedgerError(
            ErrorCode.WRONG_STATE, f"allotment: it is frozen and cannot be extended: {why}", field="allotment"
        )
    try:
        granted = decide_or_refuse(rooms(books, allotment.tracked, allotment, {}, 0), body.need, body.want)
    except LedgerError as error:
        recall.mark(books, allotment.tracked, error)
        raise
    rates.check(books, allotment, body)
    allotment.exchanged_ms = books.now_ms
    apply_grant(books, allotment, granted)
    debited, slice_ms = rates.debit(books, allotment, body)
    return Extended(
        granted=granted,
        held=allotment.held(),
        window_ends_in_seconds=window_ends_in(books, allotment),
        debited=debited,
        slice_ms=slice_ms,
        rates=rates.told(books, allotment, debiting=bool(body.debit)),
    )


def give_back(books: Books, command: Command) -> Returned:
    """Take back what a meter does not need; a final return closes once all its records are there."""
    body: Return = command.body
    allotment = speaking_for(books, command)
    if allotment.state in (AllotmentState.OFFERED, AllotmentState.VOID):
        raise wrong_state(allotment, "return anything")
    over = allotment.state is AllotmentState.CLOSED or allotment.final_sequence is not None
    if (over and not body.final) or body.activation not in (0, allotment.activated_ms):
        # Come late: of a meter that has given its last word, or was started again and counts on what it was told.
        return Returned(state=allotment.state, held=allotment.held())
    _check_return(allotment, body)
    allotment.exchanged_ms = books.now_ms
    if body.final:
        allotment.final_sequence = body.last_sequence
        allotment.final_settled = dict(body.settled)
        finishing.finish(books, allotment)
    else:
        release(books, allotment, body.amounts)
    books.touch(allotment)
    return Returned(state=allotment.state, held=allotment.held())


def _check_return(allotment: Allotment, body: Return) -> None:
    if body.final:
        finishing.check_settled(allotment, body.last_sequence, body.settled)
        return
    posted = allotment.settled()
    held = allotment.held()
    for dimension, amount in body.amounts.items():
        # Records that are under way still need what they settle from.
        under_way = max(0, body.settled.get(dimension, 0) - posted[dimension])
        if amount > max(0, held.get(dimension, amount) - under_way):
            raise invalid(
                f"amounts.{dimension.value}", f"{amount} is more than the {held.get(dimension)} held and not yet used"
            )
