"""Who goes next among tenants: the one who was served least, counted in tokens.

A tenant that was idle comes back at the level of the least served one that is not, so that nobody
saves up service while asking for nothing.
Source: the virtual token counter of "Fairness in Serving Large Language Models" (OSDI 2024),
section 4; departs from it in charging a prediction when work starts and the difference at its end.
"""

from collections.abc import Collection
from typing import Final

TOKENS_PROMPT_WEIGHT: Final = 1
TOKENS_ANSWER_WEIGHT: Final = 2
"""A token of an answer takes a step, one of a prompt a part of a step. The paper's weights."""


def cost(*, prompt_tokens: int, answer_tokens: int) -> int:
    """Return what a request is charged with."""
    return TOKENS_PROMPT_WEIGHT * prompt_tokens + TOKENS_ANSWER_WEIGHT * answer_tokens


class ServiceCounters:
    """What each tenant has been served."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}

    def served(self, tenant: str) -> int:
        """Return the tenant's counter; 0 before it was ever active."""
        return self._served.get(tenant, 0)

    def set_active(self, tenants: Collection[str]) -> None:
        """Say who asks for service now: newcomers start level, the others are forgotten."""
        staying = [self._served[tenant] for tenant in tenants if tenant in self._served]
        level = min(staying, default=0)
        self._served = {tenant: self._served.get(tenant, level) for tenant in sorted(tenants)}

    def charge(self, tenant: str, tokens: int) -> None:
        """Count service; a negative correction takes back what was predicted too high."""
        if tenant in self._served:
            self._served[tenant] += tokens
