"""Checkpoint files: flushed, renamed into place, with their digest inside, and read without running anything."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from brpo.errors import UserError
from brpo.files import sync_folder, write_atomically

_MARK = b"\nbrpo-sha256:"
_TRAILER = len(_MARK) + 64


class DamagedCheckpoint(UserError):
    """A checkpoint is torn or altered."""


def encode(checkpoint: dict[str, Any]) -> bytes:
    """A torch archive followed by its SHA-256. `torch.load` reads it too: what follows an archive is ignored."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    body = buffer.getvalue()
    return body + _MARK + hashlib.sha256(body).hexdigest().encode()


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint: digest first, then tensors and plain containers only.

    Raises:
        DamagedCheckpoint: the file is torn, altered, or holds anything else.
        UserError: there is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"The checkpoint {path} cannot be read ({error.strerror}).") from error
    body, trailer = data[:-_TRAILER], data[-_TRAILER:]
    if not trailer.startswith(_MARK):
        raise DamagedCheckpoint(f"The checkpoint {path} is torn, or not one of brpo: it does not end with its digest.")
    if hashlib.sha256(body).hexdigest().encode() != trailer[len(_MARK) :]:
        raise DamagedCheckpoint(f"The checkpoint {path} is torn or was altered: its digest does not match.")
    try:
        checkpoint = torch.load(io.BytesIO(body), map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler refuses whatever is no tensor or plain container
        raise DamagedCheckpoint(
            f"The checkpoint {path} holds more than tensors and plain containers and is not loaded."
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "brpo"} <= set(checkpoint):
        raise DamagedCheckpoint(f"The checkpoint {path} is not one of brpo.")
    return checkpoint


def _refuse_unreadable(name: str, state: Any) -> None:
    """Of a user's callback: said while it can be mended, and not when the run is to go on."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:
        raise UserError(
            f"The state of the callback {name} cannot be kept: checkpoints hold tensors, numbers, text and containers of "
            f"these, so that they can be read without running code. Change what its state_dict() gives, as with float(...)."
        ) from error


class DigestCheckpointIO(CheckpointIO):
    """Lightning's way to files, through `encode` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write atomically; `last.ckpt` keeps its predecessor as `previous.ckpt`."""
        for name, state in checkpoint.get("callbacks", {}).items():
            _refuse_unreadable(name, state)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        keep = path.with_name("previous.ckpt") if path.name == "last.ckpt" else None
        write_atomically(path, encode(checkpoint), keep)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read through `read`, whatever `weights_only` says."""
        return read(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
        sync_folder(Path(path).parent)
