"""The rollout workers of a stage: which of them the next sample goes to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from actors.rollout import RolloutWorkerHandle


class FleetError(RuntimeError):
    """No member is left."""


@dataclass(frozen=True, eq=False)
class Member:
    name: str
    handle: RolloutWorkerHandle


class RolloutFleet:
    """A fixed list of members.

    Args:
        at_once: samples that a member takes at one time.
    """

    def __init__(self, members: list[Member], at_once: int) -> None:
        self.members, self._at_once = members, at_once
        self._load: Counter[str] = Counter()

    def pick(self) -> Member | None:
        """Return the member that the next sample goes to, None where nobody has room."""
        member = min(self.members, key=lambda member: self._load[member.name])
        if self._load[member.name] >= self._at_once:
            return None
        self._load[member.name] += 1
        return member

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        """Take back a sample that `pick` gave to a member."""
        self._load[member.name] -= 1
        if died and member in self.members:
            self.members.remove(member)
        if not self.members:
            raise FleetError(f"no rollout worker is left; the last one was {member.name}")

    def tick(self) -> None:
        """Do what is due; never blocks."""
