"""The `tideserve` command.

Exit codes: 0 success; 1 the command ran and its answer is no (a demo that lost something, a request
or a line that failed); 64 a mistake in the arguments or settings, told in one line; 69 the fleet or
broker cannot be reached; 70 a bug of ours; 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import Final

import typer

from libs.client.errors import RequestFailedError, RequestRefused
from libs.kernel.errors import (
    EXIT_CONFIG_ERROR,
    EXIT_INVARIANT_VIOLATION,
    ConfigError,
    InvariantViolation,
    Unavailable,
)
from libs.runtime.logs import set_up_logs
from services.launcher import (
    ask,
    batch,
    bench,
    cloud,
    demo,
    profile,
    service,
    shape,
    simulate,
    status,
    story,
    top,
    up,
)
from services.launcher.batch_api import GatewayRefused
from services.launcher.console import show_error
from services.launcher.doctor.command import doctor

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 69
EXIT_INTERRUPTED: Final = 130
CLICK_USAGE_ERROR: Final = 2

app = typer.Typer(
    name="tideserve",
    help="Serve language models on capacity that comes and goes; lose no request and no token.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("status")(status.status)
app.command("chat")(ask.chat)
app.command("complete")(ask.complete)
app.command("top")(top.top)
app.command("story")(story.story)
app.command("preempt")(cloud.preempt)
app.command("kill")(cloud.kill)
app.command("add-node")(cloud.add_node)
app.command("profile")(profile.profile)
app.command("shape")(shape.shape)
app.command("doctor")(doctor)
app.command("service")(service.service)
app.add_typer(simulate.app, name="simulate")
app.add_typer(batch.app, name="batch")
app.add_typer(bench.app, name="bench")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; an expected failure is one line on stderr."""
    # What a person should know is said by the commands; services log to files of their own.
    set_up_logs(service="tideserve", format_name="console", level="warning")
    try:
        app(args=list(arguments))
    except SystemExit as exit_request:
        return _exit_code(exit_request.code)
    except ConfigError as error:
        show_error(str(error))
        return EXIT_CONFIG_ERROR
    except Unavailable as error:
        show_error(f"{error} (`tideserve doctor` looks for the reason)")
        return EXIT_UNAVAILABLE
    except (RequestRefused, RequestFailedError) as error:
        show_error(f"{error.reason}: {error}")
        return EXIT_FAILED
    except GatewayRefused as error:
        show_error(str(error))
        return EXIT_FAILED
    except OSError as error:
        if error.filename is None:
            raise
        show_error(f"{error.filename}: {error.strerror}")
        return EXIT_CONFIG_ERROR
    except InvariantViolation as error:
        show_error(f"a bug in TideServe, please report it: {error}")
        return EXIT_INVARIANT_VIOLATION
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _exit_code(code: str | int | None) -> int:
    if code == CLICK_USAGE_ERROR:
        return EXIT_CONFIG_ERROR
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
