"""How fast requests may start: requests and tokens a minute, and pauses an endpoint asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Lets requests through one by one, no faster than its limits; 0 is no limit.

    Starts are evenly spaced rather than in bursts at each minute's beginning. Tokens are known only
    from replies, so they are booked afterwards and later requests wait until the debt is paid off.
    """

    def __init__(
        self,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self.token_rate = tokens_per_minute / 60
        self.next_start = 0.0
        self.debt_paid = 0.0
        self.paused_until = 0.0

    async def turn(self) -> None:
        """Wait until one more request may start."""
        while True:
            now = self.clock()
            start = max(self.next_start, self.debt_paid, self.paused_until)
            if start <= now:
                self.next_start = now + self.gap
                return
            await asyncio.sleep(start - now)

    def book(self, tokens: int) -> None:
        """Tokens of a reply, which take their share of the minute."""
        if self.token_rate:
            self.debt_paid = max(self.debt_paid, self.clock()) + tokens / self.token_rate

    def pause(self, seconds: float) -> None:
        """Nobody starts before this has passed."""
        self.paused_until = max(self.paused_until, self.clock() + seconds)


def retry_after(headers: object, now: datetime | None = None) -> float | None:
    """Seconds that a reply's headers ask to wait: Retry-After in seconds or as a date, or
    retry-after-ms; None without either or when it cannot be read.
    """
    get = headers.get  # type: ignore[attr-defined]
    try:
        if (milliseconds := get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = get("retry-after")
        if value is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        wanted = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if wanted.tzinfo is None:
        wanted = wanted.replace(tzinfo=UTC)
    return max(0.0, (wanted - (now or datetime.now(UTC))).total_seconds())
