"""Labels as text: a learned table with a few rows a class and an empty class (rcm-method section 11)."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rcm_sidecar.errors import WeightsError

CONDITIONER_FILE = "conditioner.safetensors"
ROWS_PER_LABEL = 4


class LabelConditioner(nn.Module):
    """Rows of text for each label; the last entry is the empty condition.

    Trained together with the teacher by `pretrain` and frozen afterwards.

    Args:
        num_classes: Number of labels; label `num_classes` is the empty one.
        rows: Text rows a label.
        dim: Width of a row, the network's text_dim.
        generator: Source of the initial values (standard normal); None means torch's global one.
    """

    def __init__(self, num_classes: int, rows: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Parameter(torch.randn(num_classes + 1, rows, dim, generator=generator))

    def forward(self, labels: Tensor) -> Tensor:
        """Text [B, rows, dim] of labels [B] (int64)."""
        text: Tensor = self.table[labels]
        return text

    def empty(self, batch: int) -> Tensor:
        """The empty condition, [batch, rows, dim]."""
        return self.table[-1].expand(batch, -1, -1)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as safetensors to `path`. Not atomic: callers write into a folder they rename."""
        save_file({"table": self.table.detach().cpu().contiguous()}, str(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LabelConditioner:
        """Read a table written by `save`, frozen.

        Args:
            path: The file, or a folder that holds conditioner.safetensors.

        Raises:
            WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_UNREADABLE, E_WEIGHTS_KEYS or E_WEIGHTS_SHAPE.
        """
        file = Path(path)
        if file.is_dir():
            file = file / CONDITIONER_FILE
        return cls.of(_read_table(file).float())

    @classmethod
    def of(cls, table: Tensor) -> LabelConditioner:
        """A frozen table of these values [classes + 1, rows, width], the same memory."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.num_classes = table.shape[0] - 1
        module.table = nn.Parameter(table.detach(), requires_grad=False)
        return module


def _read_table(file: Path) -> Tensor:
    if not file.is_file():
        hint = f"Copy {CONDITIONER_FILE} from beside the weights it was trained with."
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There is no label table {file}.", hint)
    try:
        with safe_open(str(file), framework="pt") as content:
            if set(content.keys()) != {"table"}:
                raise WeightsError("E_WEIGHTS_KEYS", f"{file} is no label table: it holds {sorted(content.keys())}.")
            table: Tensor = content.get_tensor("table")
    except (SafetensorError, OSError) as error:
        raise WeightsError("E_WEIGHTS_UNREADABLE", f"{file} cannot be read as safetensors: {error}") from error
    if table.dim() != 3 or table.shape[0] < 2:
        shape = tuple(table.shape)
        raise WeightsError("E_WEIGHTS_SHAPE", f"{file}: a label table is [classes + 1, rows, width], not {shape}.")
    return table
