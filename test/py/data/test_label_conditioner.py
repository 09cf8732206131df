import pytest
import torch
from safetensors.torch import save_file

from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.errors import WeightsError


def test_labels_pick_rows_and_the_last_entry_is_empty():
    conditioner = LabelConditioner(10, 4, 8, generator=torch.Generator().manual_seed(0))
    assert conditioner(torch.tensor([3, 9])).shape == (2, 4, 8)
    assert torch.equal(conditioner(torch.tensor([10])), conditioner.empty(1))
    assert not torch.equal(conditioner(torch.tensor([0])), conditioner(torch.tensor([1])))
    assert conditioner.empty(3).shape == (3, 4, 8)


def test_gradients_reach_only_the_labels_used():
    conditioner = LabelConditioner(2, 1, 3)
    conditioner(torch.tensor([1])).sum().backward()
    assert conditioner.table.grad[:, 0, 0].tolist() == [0, 1, 0]


def test_a_saved_table_comes_back_frozen(tmp_path):
    conditioner = LabelConditioner(10, 4, 8)
    conditioner.save(tmp_path / "conditioner.safetensors")
    for path in (tmp_path, tmp_path / "conditioner.safetensors"):
        again = LabelConditioner.load(path)
        assert torch.equal(again.table, conditioner.table)
        assert not again.table.requires_grad and again.num_classes == 10


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    save_file({"other": torch.zeros(1)}, tmp_path / "keys")
    save_file({"table": torch.zeros(3)}, tmp_path / "shape")
    codes = {"missing": "NOT_FOUND", "empty": "UNREADABLE", "keys": "KEYS", "shape": "SHAPE"}
    for name, code in codes.items():
        with pytest.raises(WeightsError) as caught:
            LabelConditioner.load(tmp_path / name)
        assert caught.value.code == f"E_WEIGHTS_{code}"
        assert code != "NOT_FOUND" or "conditioner.safetensors" in caught.value.hint
