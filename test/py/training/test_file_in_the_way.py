"""A parent that is a file: the typed error, not the one of cleaning up after it."""

import pytest

from rcm_sidecar.errors import HostError
from rcm_sidecar.files import write_file


def test_a_file_where_a_folder_should_be_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError) as error:
        write_file(tmp_path / "file" / "below", b"content")
    assert error.value.code == "E_RUN_DIR"
    assert (tmp_path / "file").read_text() == "in the way"
