"""Checks of the machine itself: interpreter, torch, GPU, ports, disk, folders, model."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import MIB
from services.launcher.doctor.findings import Finding, Patient, fault, note, ok
from services.launcher.model_source import find_model, is_hub_id

PYTHON_MIN: Final = (3, 11)
TORCH_TIMEOUT_S: Final = 120
"""The first import after an installation compiles thousands of files."""
NVIDIA_VENDOR: Final = "0x10de"
DISPLAY_CLASS: Final = "0x03"
"""Head of the PCI class of graphics and compute controllers."""
HOST: Final = "127.0.0.1"
_ASK_TORCH: Final = (
    "import json, torch; "
    "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, "
    "'devices': [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}))"
)


def check_python(patient: Patient) -> Finding:
    """The interpreter that runs this."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON_MIN:
        remedy = "install Python 3.11 or newer and run `make setup PYTHON=python3.11`"
        return fault("python", f"Python {version} is too old", remedy=remedy)
    return ok("python", f"Python {version}")


def check_torch_and_gpu(patient: Patient) -> list[Finding]:
    """torch, in a process of its own: a broken one may crash; then the GPU with its driver."""
    torch, why = _ask_torch(patient)
    if torch is None:
        remedy = "run `make setup`, or `pip install 'tideserve[worker]'`"
        return [fault("torch", f"torch cannot be imported: {why}", remedy=remedy)]
    build = f"for CUDA {torch['cuda']}" if torch["cuda"] else "for CPUs"
    found = ok("torch", f"torch {torch['version']}, built {build}")
    return [found, _gpu_finding(patient, torch)]


def _ask_torch(patient: Patient) -> tuple[dict[str, Any] | None, str]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            env=dict(patient.environment),
        )
        answer: dict[str, Any] = json.loads(result.stdout)
    except subprocess.TimeoutExpired:
        return None, f"it takes longer than {TORCH_TIMEOUT_S} s"
    except ValueError:
        return None, (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return answer, ""


def _gpu_finding(patient: Patient, torch: dict[str, Any]) -> Finding:
    if torch["devices"]:
        return ok("gpu", f"torch uses {', '.join(torch['devices'])}")
    if not _has_nvidia_gpu(patient.pci_folder):
        return note("gpu", "no NVIDIA GPU; models run on the CPU")
    if not patient.driver_file.exists():
        remedy = "install NVIDIA's driver (such as `apt install nvidia-driver`) and reboot"
        return fault("gpu", "there is an NVIDIA GPU, and no driver is loaded for it", remedy=remedy)
    if not torch["cuda"]:
        remedy = "`make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126`"
        return fault("gpu", "there is a GPU, and this torch is built for CPUs", remedy=remedy)
    remedy = "compare `nvidia-smi` with the CUDA version of torch; update the older one"
    return fault("gpu", "there is a GPU with a driver, and torch cannot use it", remedy=remedy)


def _has_nvidia_gpu(pci_folder: Path) -> bool:
    for device in sorted(pci_folder.glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            pci_class = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == NVIDIA_VENDOR and pci_class.startswith(DISPLAY_CLASS):
            return True
    return False


def check_ports(patient: Patient) -> list[Finding]:
    """Whether the fleet could listen where it wants to."""
    return [_port_finding(port) for port in patient.ports]


def _port_finding(port: int) -> Finding:
    try:
        with socket.create_server((HOST, port)):
            return ok("port", f"port {port} is free")
    except OSError as error:
        remedy = f"stop what listens there (`ss -ltnp 'sport = :{port}'`) or give --http-port"
        return fault("port", f"port {port}: {error.strerror}", remedy=remedy)


def check_disk(patient: Patient) -> Finding:
    """Room for journal and logs where the data folder is or will be."""
    folder = _nearest_existing(patient.data_folder)
    free_bytes = shutil.disk_usage(folder).free
    room = f"{free_bytes / MIB:,.0f} MiB free at {folder}"
    if free_bytes < patient.disk_bytes_min:
        wanted = f"{patient.disk_bytes_min / MIB:,.0f} MiB"
        remedy = f"free some until there are {wanted}, or give --data-dir on another disk"
        return fault("disk", room, remedy=remedy)
    return ok("disk", room)


def check_data_folder(patient: Patient) -> Finding:
    """Whether the data folder, or what it would be made in, takes a file."""
    folder = _nearest_existing(patient.data_folder)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tideserve-doctor-"):
            pass
    except OSError as error:
        remedy = "give --data-dir a folder of yours, or `chown` this one to whom the fleet runs as"
        what = f"{folder} cannot be written: {error.strerror}"
        return fault("data folder", what, remedy=remedy)
    return ok("data folder", f"{folder} can be written")


def check_model(patient: Patient) -> Finding:
    """The model folder: there, of a family that is served, with its weights."""
    name = patient.model
    if name is not None and not Path(name).expanduser().exists() and is_hub_id(name):
        return note("model", f"{name} is an id of the hub; the first start downloads it")
    try:
        source = find_model(name)
    except ConfigError as error:
        remedy = "give --model a folder with config.json and *.safetensors, or an id owner/name"
        return fault("model", str(error).removeprefix("--model: "), remedy=remedy)
    weights = list(source.folder.glob("*.safetensors"))
    if not weights:
        remedy = "download the model again; weights in pickle files (*.bin) are never read"
        return fault("model", f"{source.folder} has no *.safetensors", remedy=remedy)
    size = sum(path.stat().st_size for path in weights) / MIB
    return ok("model", f"{source.alias}: {len(weights)} files of weights, {size:,.1f} MiB")


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or the first above it that is there."""
    resolved = Path(os.path.abspath(folder))
    return next(path for path in (resolved, *resolved.parents) if path.exists())
