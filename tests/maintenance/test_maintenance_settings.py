"""The plugin's settings, as they are read from the environment."""

from pathlib import Path

import pytest

from core import RotaError
from plugins.maintenance.settings import MaintenanceSettings

PREFIX = "ROTA_MAINTENANCE_"


def read(**environ):
    return MaintenanceSettings.read({PREFIX + name: value for name, value in environ.items()})


def test_the_defaults_are_those_of_the_catalogue():
    settings = read()

    assert settings.temp_images_per_run == 1000
    assert settings.time_slot_retention_days == 90
    assert settings.upload_root is None
    assert settings.redis_url is None


def test_every_setting_is_described():
    assert all(sentence.endswith(".") for sentence in MaintenanceSettings.variables().values())
    assert len(MaintenanceSettings.variables()) == 5


def test_what_is_set_is_read():
    settings = read(UPLOAD_ROOT="/srv/uploads/", TEMP_IMAGES_PER_RUN="5", TIME_SLOT_RETENTION_DAYS="0.5")

    assert settings.upload_root == Path("/srv/uploads")
    assert settings.temp_images_per_run == 5
    assert settings.time_slot_retention_days == 0.5


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("UPLOAD_ROOT", "uploads", "must be an absolute path"),
        ("UPLOAD_ROOT", "/srv/../etc", "must be an absolute path without .."),
        ("UPLOAD_ROOT", "/", "must not be the root of the file system"),
        ("UPLOAD_ROOT", "//", "must not be the root of the file system"),
        ("TEMP_IMAGES_PER_RUN", "0", "greater than or equal to 1"),
        ("TEMP_IMAGES_PER_RUN", "many", "valid integer"),
        ("TEMP_ENTRIES_PER_RUN", "0", "greater than or equal to 1"),
        ("TIME_SLOT_RETENTION_DAYS", "-1", "greater than or equal to 0"),
        ("TIME_SLOT_RETENTION_DAYS", "nan", "less than or equal to 36500"),
        ("TIME_SLOT_RETENTION_DAYS", "1e9", "less than or equal to 36500"),
        ("REDIS_URL", "http://user:secret@host", "must start with redis://"),
        ("UPLOAD_ROOTS", "/srv", "is not a setting; did you mean 'ROTA_MAINTENANCE_UPLOAD_ROOT'?"),
    ],
)
def test_what_is_wrong_is_named_with_its_setting_and_no_secret(name, value, problem):
    with pytest.raises(RotaError) as caught:
        read(**{name: value})

    assert PREFIX + name in str(caught.value)
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)
