"""`tideserve shape PxM`: the operator's choice instead of the planner's."""

import asyncio
import re
from typing import Annotated

import typer

from libs.contracts import subjects
from libs.contracts.placement import PIN_ANSWERS, PinnedShape, PinRefused, PinShape
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError
from libs.runtime.bus import NoResponders
from libs.runtime.nats_bus import NatsBus
from services.launcher.connection import connected
from services.launcher.console import show, show_json
from services.launcher.fleet_view import listen_once
from services.launcher.options import AsJson, DataFolder, NatsUrl
from services.launcher.state_file import DEFAULT_DATA_FOLDER, find_nats_url


def shape(
    wanted: Annotated[
        str, typer.Argument(metavar="PxM|auto", help="Stages x shards of a replica, such as 2x1.")
    ],
    alias: Annotated[
        str | None, typer.Option("--model", help="Which model, if several are served.")
    ] = None,
    nats_url: NatsUrl = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Pin the shape of replicas as long as it fits, or let the planner choose again (auto)."""
    pin = parse_shape(wanted)
    revision = asyncio.run(_pin(find_nats_url(nats_url, data_folder), pin, alias))
    if is_json:
        pinned = None if pin.shape is None else pin.shape.model_dump()
        show_json({"shape": pinned, "plan_revision": revision})
    elif pin.shape is None:
        show("the planner chooses the shape again")
    else:
        stages, shards = pin.shape.stages, pin.shape.shards
        show(f"replicas get {stages} stages of {shards} shards, where that fits")


def parse_shape(wanted: str) -> PinShape:
    """Read `2x1` or `auto`. Raises: ConfigError."""
    if wanted == "auto":
        return PinShape()
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d?)", wanted)
    if match is None:
        raise ConfigError(f"{wanted}: must be stages x shards such as 2x1, or auto")
    try:
        return PinShape(shape=PinnedShape(stages=int(match[1]), shards=int(match[2])))
    except ValueError:
        raise ConfigError(f"{wanted}: too many stages or shards") from None


async def _pin(url: str, pin: PinShape, alias: str | None) -> int:
    async with connected(url, name="tideserve-shape") as bus:
        if alias is None:
            alias = await _only_alias(bus)
        return await pin_shape(bus, pin, alias=alias)


async def pin_shape(bus: NatsBus, pin: PinShape, *, alias: str) -> int:
    """Ask the leading planner; return the revision it stood at.

    Raises: ConfigError with its refusal; Unavailable.
    """
    try:
        reply = await bus.request(subjects.planner_control(alias), encode(pin))
    except NoResponders:
        raise ConfigError(f"no planner plans for {alias}: start the fleet with --nodes") from None
    answer = PIN_ANSWERS.decode(reply.payload)
    if isinstance(answer, PinRefused):
        raise ConfigError(answer.message)
    return answer.plan_revision


async def _only_alias(bus: NatsBus) -> str:
    aliases = sorted({report.alias for report in (await listen_once(bus)).planners()})
    if len(aliases) != 1:
        known = ", ".join(aliases) or "none"
        raise ConfigError(f"--model: say which; planners plan for {known}")
    return aliases[0]
