"""The doctor tells what is there; each finding that asks for something says what to do."""

import os
from importlib import metadata
from types import SimpleNamespace

import pytest

from dreamer4_cli import doctor


@pytest.fixture
def told(capsys):
    def tell():
        well = doctor.doctor()
        return well, capsys.readouterr().out

    return tell


def test_every_extra_for_users_is_told_with_the_line_that_installs_it(told, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "av":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    _, out = told()
    extras = set(metadata.metadata(doctor.NAME).get_all("Provides-Extra")) - set(doctor._TESTING)
    assert {line.split()[1] for line in out.splitlines() if line.startswith("  extra")} == extras
    assert "lacks av; pip install 'dreamer4-eqx[video]'" in out


def test_another_package_of_the_same_name_is_found(told, monkeypatch):
    assert doctor.rivals() <= {"dreamer4"}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"dreamer4": ["dreamer4", doctor.NAME]})
    script = SimpleNamespace(dist=SimpleNamespace(name="other"))
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [script])
    well, out = told()
    assert not well and "! name" in out and "pip uninstall dreamer4 other" in out


def test_limits_of_a_container_are_heeded(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor.cpu_share(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.cpu_share(tmp_path) >= 1


def test_what_makes_a_cpu_slow_is_named(told, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_DEBUG_NANS", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    monkeypatch.chdir(tmp_path)
    _, out = told()
    for line in ("! JAX_DEBUG_NANS", "! XLA_FLAGS", "! compiled programs"):
        assert line in out
    assert not os.listdir(tmp_path), "nothing is written"
