"""A fleet of members that tests hold themselves."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from pipelines.stage.fleet import Member


class Members:
    """Gives each sample to the member with the fewest.

    Args:
        start: starts the actor of a member by its name; again when it has died.
        at_once: samples that a member takes at one time.
    """

    def __init__(self, start: Callable[[str], Any], count: int, at_once: int) -> None:
        self._start, self._at_once = start, at_once
        self.members = {name: Member(name, start(name)) for name in (f"rollout worker {i}" for i in range(count))}
        self._load: Counter[Member] = Counter()
        self.outcomes: Counter[str] = Counter()

    def pick(self) -> Member | None:
        member = min(self.members.values(), key=lambda member: self._load[member])
        if self._load[member] >= self._at_once:
            return None
        self._load[member] += 1
        return member

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        self._load[member] -= 1
        assert self._load[member] >= 0
        self.outcomes["died" if died else "failed" if failed else "played"] += 1
        if died and self.members[member.name] is member:
            self.members[member.name] = Member(member.name, self._start(member.name))

    def tick(self) -> None:
        pass
