from pathlib import Path

import pytest

from server_tools.backup.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment({"BACKUP_DATA": str(tmp_path), "BACKUP_PARTS": "postgres redis"})
