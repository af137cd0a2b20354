"""Which clips stay in memory: the ones used last, up to a budget in bytes. Holds any value; reads and frees nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ClipCache(Generic[Value]):
    """`held_bytes` is never above the budget."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, video_id: str) -> Value | None:
        """Return the value, now the last to be evicted; None if it is not held."""
        if video_id not in self._entries:
            return None
        self._entries.move_to_end(video_id)
        return self._entries[video_id][0]

    def make_room(self, video_id: str, size: int) -> None:
        """Evict what was used longest ago until `size` bytes fit.

        Raises:
            ValueError: the clip alone is larger than the budget; nothing is evicted then.
        """
        if size > self.budget_bytes:
            raise ValueError(
                f"clip {video_id!r} takes {size} bytes, more than the clip store's whole budget of "
                f"{self.budget_bytes}; raise the budget or lower data.max_frames or data.max_pixels"
            )
        while self.held_bytes + size > self.budget_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.held_bytes -= freed
            self.evictions += 1

    def put(self, video_id: str, value: Value, size: int) -> None:
        """Hold a value of `size` bytes; call `make_room` first.

        Raises:
            ValueError: it is held already, or there is no room.
        """
        if video_id in self._entries or self.held_bytes + size > self.budget_bytes:
            raise ValueError(f"clip {video_id!r} is held already or does not fit; get it or make room first")
        self._entries[video_id] = (value, size)
        self.held_bytes += size

    def drop(self, video_id: str) -> None:
        """Hold it no more, if it is held."""
        if video_id in self._entries:
            self.held_bytes -= self._entries.pop(video_id)[1]
