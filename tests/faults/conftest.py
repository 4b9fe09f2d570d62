import os
import sys
from pathlib import Path

import pytest

STORE_TESTS = Path(__file__).parents[1] / "store"
sys.path.append(str(STORE_TESTS))  # for the toy packets

SHORT, LONG = 12, 250


@pytest.fixture(scope="session")
def kills() -> int:
    """How many processes are killed: a few among the other tests, many with KVRAG_FAULTS=long (`make faults`)."""
    return LONG if os.environ.get("KVRAG_FAULTS") == "long" else SHORT


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
