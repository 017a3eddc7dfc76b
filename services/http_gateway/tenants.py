"""On whose behalf a request is made: the header `x-tenant`.

It says who shares the fleet with whom, and whose files and batches are seen. By itself it proves
nothing: an API key may name its tenant (api_keys.py), or a proxy in front sets the header.
"""

import re
from typing import Final

from starlette.requests import Request

from libs.openai_api.errors import invalid

TENANT_HEADER: Final = "x-tenant"
TENANT_PATTERN: Final = "[A-Za-z0-9_-]{0,64}"


def tenant_of(request: Request) -> str:
    """Return the tenant, of the key or else of the header; empty for none. Raises: ApiError."""
    proven: str | None = getattr(request.state, "tenant", None)
    if proven is not None:
        return proven
    tenant = request.headers.get(TENANT_HEADER, "")
    if not re.fullmatch(TENANT_PATTERN, tenant):
        message = f"{TENANT_HEADER}: at most 64 letters, digits, '_' and '-'"
        raise invalid(message, parameter=TENANT_HEADER)
    return tenant
