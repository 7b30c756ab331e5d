"""Tiny models to serve."""

from pathlib import Path

import pytest
import served


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    served.write_models(folder)
    return folder


@pytest.fixture(scope="session")
def writer(models: Path):
    """The address and the service of a GPT-2."""
    with served.serving(models / "gpt2") as found:
        yield found


@pytest.fixture(scope="session")
def address(writer) -> str:
    return writer[0]
