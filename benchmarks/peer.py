"""vLLM as an engine of the benchmark: a process in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

SCRIPT: Final = Path(__file__).parent / "vllm_process.py"


class VllmPeer:
    """Starts the process on entry and ends it on exit. One batch at a time."""

    def __init__(self, python: str, folder: Path, *, dtype: str, threads: int) -> None:
        self._command = [python, str(SCRIPT), str(folder), dtype]
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Return once the model is loaded. Raises: RuntimeError if it cannot be."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(),
        )
        if self._read() != "ready":
            raise RuntimeError("vLLM did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def generate(self, prompts: list[tuple[int, ...]]) -> list[list[int]]:
        """Return the answers, as long as the benchmark wants them. Raises: RuntimeError."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(prompts) + "\n")
        self._process.stdin.flush()
        answers: list[list[int]] = self._read()
        return answers

    def _read(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM ended; its last words are above")
        return json.loads(line)

    def _environment(self) -> dict[str, str]:
        """Same threads as ours, the engine in one process, nothing asked of the network."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return {
            **kept,
            "OMP_NUM_THREADS": str(self._threads),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{self._threads - 1}" if self._threads > 1 else "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
