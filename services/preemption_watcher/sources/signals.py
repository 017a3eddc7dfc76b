"""Signals as notices: for Slurm, and for whatever else ends a job by SIGTERM.

Slurm sends SIGTERM when it preempts a job and SIGKILL when the partition's GraceTime has passed;
with `--signal=USR1@50` it sends SIGUSR1 50 s or more before the time limit. It does not say why it
ends a job. A process only knows what it was sent, so what each signal leaves is configured.
Source: slurm.schedmd.com, preempt.html and sbatch.html.
"""

from collections.abc import Mapping
from typing import Final

from libs.contracts.preemption import NoticeKind
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from libs.runtime.inbox import Inbox
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading, notice_id_of

NAME: Final = "slurm"
SIGNALS_MAX: Final = 16
"""Signals not yet polled; one more is dropped: the notice of its kind is there already."""


class SignalSource:
    """Waits for the signals that mean something here."""

    def __init__(self, graces_ns: Mapping[str, int], *, node_id: str, clock: Clock) -> None:
        self._graces_ns = graces_ns
        self._node_id = node_id
        self._clock = clock
        self._signals: Inbox[str] = Inbox(items_max=SIGNALS_MAX)
        self.options = SourceOptions(name=NAME, poll_interval_ns=0, tells_once=True)

    def hear(self, signal_name: str) -> None:
        """The process has got this signal, such as SIGTERM; others than configured are nothing."""
        if signal_name in self._graces_ns:
            self._signals.offer(signal_name)

    async def poll(self) -> Observation:
        """Wait for a signal; see NoticeSource.poll."""
        signal_name = await anext(self._signals)
        second = str(self._clock.now_unix_ns() // NS_PER_S)
        reading = Reading(
            notice_id=notice_id_of(NAME, self._node_id, signal_name, second),
            kind=NoticeKind.PREEMPTION,
            grace_ns=self._graces_ns[signal_name],
            detail=f"the job got {signal_name}",
        )
        return Observation(readings=(reading,), is_whole=False)

    async def confirm(self, notice_id: str) -> None:
        """Slurm does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""
        self._signals.close()
