"""`GET /v1/usage`: what answers cost, by day, key, policy and version."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request

from tuneloop.api.learner import UsageReport
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.edge.costs import DAYS
from tuneloop.gateway.edge.quotas import DAY_SECONDS

router = APIRouter(tags=["operations"])


@router.get("/v1/usage")
async def get_usage(
    request: Request, days: Annotated[int, Query(ge=1, le=DAYS)] = DAYS
) -> UsageReport:
    """Return tokens and costs of the last days (UTC), today included, of all gateways.

    Without `TUNELOOP_GATEWAY_PRICES` nothing is counted.
    """
    gateway = gateway_of(request)
    found = await gateway.costs.read(gateway.bus, days)
    return {
        "object": "list",
        "prices": {
            policy: {"input": price.input, "output": price.output}
            for policy, price in gateway.settings.prices.items()
        },
        "data": [
            {
                "day": datetime.fromtimestamp(day * DAY_SECONDS, UTC).date().isoformat(),
                "key": spender.key,
                "policy": spender.policy,
                "policy_version": spender.policy_version,
                "input_tokens": used.input_tokens,
                "output_tokens": used.output_tokens,
                "cost": used.cost,
            }
            for day, spender, used in found
        ],
    }
