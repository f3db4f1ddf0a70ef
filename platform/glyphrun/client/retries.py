"""When a refused request is sent again."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

AGAIN = frozenset({429, 503})
JSON = "application/json"


@dataclass(frozen=True)
class Retries:
    """At most so many attempts in all; waits double from first_s up to longest_s, each a random share of that.

    A Retry-After of the server is waited for in any case, and the random share comes on top, so that clients who were
    refused together do not come back together.
    """

    attempts: int = 5
    first_s: float = 0.2
    longest_s: float = 10.0

    def wait_s(self, attempt: int, response: httpx.Response | None, chance: float) -> float | None:
        """Seconds until the next attempt, None if there is none.

        attempt: counted from 0. response: None if the server was not reached. chance: random, 0 to 1.
        """
        if attempt + 1 >= self.attempts or (response is not None and not _may_pass(response)):
            return None
        asked = response.headers.get("retry-after", "") if response is not None else ""
        share = chance * min(self.longest_s, self.first_s * 2**attempt)
        return (float(asked) if asked.isdecimal() else 0.0) + share


def _may_pass(response: httpx.Response) -> bool:
    """Whether the same question may be answered another time. All questions are: reading changes nothing."""
    # The server says in JSON that it failed; what else comes is of a proxy whose server died over the question.
    lost = response.status_code >= 500 and not response.headers.get("content-type", "").startswith(JSON)
    return lost or response.status_code in AGAIN
