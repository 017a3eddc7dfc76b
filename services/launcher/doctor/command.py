"""The command: all checks, a table or JSON, exit code 1 if anything is at fault."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from services.launcher.console import RESULTS, show, show_json, working
from services.launcher.doctor.broker import NO_BROKER, check_nats_server, check_running_broker
from services.launcher.doctor.findings import Finding, Outcome, Patient
from services.launcher.doctor.links import check_links
from services.launcher.doctor.machine import (
    check_data_folder,
    check_disk,
    check_model,
    check_ports,
    check_python,
    check_torch_and_gpu,
)
from services.launcher.options import AsJson
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState

EXIT_FAULTS: Final = 1
_STYLES: Final = {Outcome.OK: "green", Outcome.NOTE: "yellow", Outcome.FAULT: "bold red"}


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub id; the bundled one if not given.")
    ] = None,
    http_port: Annotated[int, typer.Option(help="Port that the HTTP API is to have.")] = 8000,
    nats_url: Annotated[
        str | None, typer.Option("--nats", help="Look at this broker instead of an own one.")
    ] = None,
    data_folder: Annotated[
        Path, typer.Option("--data-dir", help="Where the fleet keeps its data.")
    ] = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Look for what would keep TideServe from working here, and say how to mend it."""
    running = FleetState.read(data_folder)
    patient = Patient(
        nats_url=nats_url or (running.nats_url if running else None),
        # A fleet that runs from here has its port already.
        ports=() if running or http_port == 0 else (http_port,),
        data_folder=data_folder,
        model=model,
    )
    with working("looking around; torch and the transports take some seconds"):
        findings = examine(patient)
    faults = [finding for finding in findings if finding.outcome is Outcome.FAULT]
    if is_json:
        show_json({"is_fit": not faults, "findings": [asdict(finding) for finding in findings]})
    else:
        RESULTS.print(_table(findings))
        show("fit to serve" if not faults else f"{len(faults)} to mend")
    if faults:
        raise typer.Exit(EXIT_FAULTS)


def examine(patient: Patient) -> list[Finding]:
    """Make every check; one that fails keeps none of the others from being made."""
    findings = [check_python(patient), *check_torch_and_gpu(patient)]
    if patient.nats_url is None:
        findings += [check_nats_server(patient), NO_BROKER]
    else:
        findings += asyncio.run(check_running_broker(patient))
    findings += [
        *check_ports(patient),
        check_disk(patient),
        check_data_folder(patient),
        check_model(patient),
        *check_links(patient),
    ]
    return findings


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found, and what mends it")
    for finding in findings:
        style = _STYLES[finding.outcome]
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        table.add_row(
            finding.check,
            f"[{style}]{finding.outcome.value}[/{style}]",
            _plain(finding.what + remedy),
        )
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
