"""Who gets a slot of the KV pool, and who loses one."""

from __future__ import annotations

from collections.abc import Callable

from edgespec_runtime.server.answer import Answer
from edgespec_runtime.server.failure import BUSY_MS, ran_out
from edgespec_runtime.server.pictures import Pictures
from edgespec_runtime.server.scheduler import Scheduler
from edgespec_runtime.server.slots import Slot, Slots
from edgespec_runtime.server.table import Session, Table
from edgespec_runtime.wire.refusal import Reason, Refusal


class Admission:
    """Decides before anything is computed: a session that is open holds a slot."""

    def __init__(
        self,
        slots: Slots,
        pictures: Pictures,
        scheduler: Scheduler,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.table = Table(lease_s, clock, self._dropped)
        self.evictions = 0
        """Sessions that were dropped so far: their lease was over, or another needed the room."""
        self._slots, self._pictures, self._scheduler = slots, pictures, scheduler

    def admit(self, tenant: str, session: Session) -> Slot:
        """A slot for a new epoch of a session of ``tenant``: its own, a free one, or that of an
        idle session (see ``Table.evict``). Raises Refusal BUSY where none may be had."""
        if session.answer is not None:
            slot, session.answer = session.answer.slot, None
            return slot
        self.table.sweep()
        while (found := self._slots.take()) is None:
            if not self.table.evict(tenant):
                raise Refusal(
                    Reason.BUSY,
                    f"there is room for {len(self._slots.all)} sessions, and none may be dropped",
                    BUSY_MS,
                )
        return found

    def end(self, session: Session, error: Exception | None = None) -> None:
        """Ends the session's answer, which was closed or failed with ``error``."""
        answer, session.answer = session.opened, None
        self._slots.give_back(answer.slot)
        if error is not None and ran_out(error):
            self._shrink()

    def _shrink(self) -> None:
        """Gives up pictures, rows of closed sessions, and an idle session."""
        self._pictures.clear()
        self.table.evict()
        self._scheduler.steps(self._slots.shrink())

    def _dropped(self, answer: Answer) -> None:
        self.evictions += 1
        self._slots.give_back(answer.slot)
