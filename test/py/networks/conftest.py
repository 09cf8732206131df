from __future__ import annotations

import pytest
from networks.families import FAMILIES


@pytest.fixture(params=FAMILIES, scope="session")
def family(request):
    return FAMILIES[request.param]
