"""The container image: a first mail through it, while only its volumes can be written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import smtplib
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import container
import pytest
import yaml
from container import NUMBER, Container, Image
from machine import DEADLINE, Machine
from source import ROOT

from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import TlsFiles

FILES: Final = ROOT / "etc" / "container"
STATE: Final = "/var/lib/minismtp"
MAIL: Final = f"{STATE}/mail"


@dataclass(frozen=True)
class Running:
    """A container, its machine, and the directory with its volumes."""

    container: Container
    machine: Machine
    directory: Path

    def send(self, port: int) -> None:
        """Send a message to alice, as alice where that is asked for."""

        def send() -> None:
            context = self.machine.client
            smtp: smtplib.SMTP = (
                smtplib.SMTP_SSL("127.0.0.1", port, timeout=DEADLINE, context=context)
                if port == 2465
                else smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE)
            )
            with smtp:
                if port != 2465:
                    smtp.starttls(context=context)
                if port != 2525:
                    smtp.login("alice", "secret")
                smtp.sendmail("alice@example.org", ["alice@example.org"], "Subject: x\r\n\r\nx\r\n")

        self.machine.inside(send)

    def inside(self, *command: str) -> str:
        """Run a command as the container's user, as `podman exec` does."""
        user = (f"--reuid={NUMBER}", f"--regid={NUMBER}", "--clear-groups")
        settings = ("env", "MINISMTP_CONFIG=/etc/minismtp/minismtp.toml")
        return self.machine.run("setpriv", *user, *settings, *command)


@pytest.fixture(scope="module")
def image(require_program: Callable[[str], str]) -> Image:
    """Return the image. It is built first if need be."""
    for program in ("buildah", "mmdebstrap", "dpkg-deb"):
        require_program(program)
    if os.geteuid() != 0:
        refuse = pytest.fail if os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1" else pytest.skip
        refuse("building an image needs root here")
    return container.built()


@pytest.fixture(scope="module")
def run(
    image: Image,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
    tls_files: TlsFiles,
) -> Callable[[], AbstractContextManager[Running]]:
    """Return a function that runs a container while a block runs."""
    nspawn = require_program("systemd-nspawn")

    def run() -> AbstractContextManager[Running]:
        return container_in(tmp_path_factory.mktemp("container"), image, nspawn, tls_files)

    return run


@pytest.fixture(scope="module")
def running(run: Callable[[], AbstractContextManager[Running]]) -> Iterator[Running]:
    """Yield a container for the tests that leave it as it is."""
    with run() as found:
        yield found


@contextlib.contextmanager
def container_in(
    directory: Path, image: Image, nspawn: str, tls_files: TlsFiles
) -> Iterator[Running]:
    """Run a container that is ready when the block begins, with the example configuration."""
    directory.chmod(0o755)
    files = directory / "config" / "..2026"
    (files / "tls").mkdir(parents=True)
    shutil.copy(FILES / "minismtp.toml", files)
    shutil.copy(tls_files.certificate, files / "tls/fullchain.pem")
    shutil.copy(tls_files.key, files / "tls/key.pem")
    (files / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    for path in (files / "passwords", files / "tls/key.pem"):
        os.chown(path, 0, NUMBER)
        path.chmod(0o440)
    # As Kubernetes mounts it: a change exchanges one link.
    (files.parent / "..data").symlink_to("..2026")
    for name in ("minismtp.toml", "passwords", "tls"):
        (files.parent / name).symlink_to(f"..data/{name}")
    with container.running(nspawn, image, directory) as inner:
        machine = Machine(inner.leader, tls_files.client())
        found = Running(inner, machine, directory)
        machine.wait_until(lambda: _is_healthy(found, image) or None)
        yield found


def _is_healthy(running: Running, image: Image) -> bool:
    try:
        running.inside(*image.health)
    except AssertionError:
        assert running.container.process.poll() is None, running.container.log.read_text()
        return False
    return True


def test_first_mail_is_in_the_volume(running: Running) -> None:
    new = running.directory / "mail/example.org/alice/new"
    before = len([*new.iterdir()]) if new.exists() else 0
    for port in (2525, 2587, 2465):
        running.send(port)
    running.machine.wait_until(lambda: len([*new.iterdir()]) == before + 3 or None)
    assert {path.stat().st_uid for path in new.iterdir()} == {NUMBER}


def test_server_is_the_first_process_without_capabilities(running: Running) -> None:
    status = Path(f"/proc/{running.container.leader}/status").read_text()
    assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
    assert re.search(rf"^Uid:\t{NUMBER}\t", status, re.MULTILINE)
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert re.search(rf"^{kind}:\t0+$", status, re.MULTILINE)


def test_only_volumes_can_be_written(running: Running) -> None:
    for directory in ("/", "/etc/minismtp", "/usr/lib/minismtp", "/var/lib", "/var/log"):
        said = running.machine.run("touch", f"{directory}/new", check=False)
        assert "Read-only file system" in said
    running.inside("touch", f"{STATE}/new", f"{MAIL}/new", "/run/minismtp/new")


def test_commands_find_the_configuration_and_the_server(running: Running) -> None:
    assert "queue is empty" in running.inside("minismtp", "queue", "list").lower()
    assert running.inside("minismtp", "sessions") is not None
    running.inside("minismtp", "check")


def test_orphans_are_collected(running: Running) -> None:
    """The first process inherits the children of programs that plugins start."""
    running.inside("sh", "-c", "(sleep 0.2 &)")
    zombies = "cat /proc/[0-9]*/stat | grep -c ') Z ' || true"
    running.machine.wait_until(lambda: running.machine.shell(zombies) == "0" or None)
    running.send(2525)


def test_server_reloads_and_drains_by_signals_of_the_container(
    run: Callable[[], AbstractContextManager[Running]], image: Image
) -> None:
    assert image.settings["StopSignal"] == "SIGTERM"
    with run() as running:
        log, machine = running.container.log, running.machine
        os.kill(running.container.leader, signal.SIGHUP)
        machine.wait_until(lambda: "info reloaded" in log.read_text() or None)
        client = machine.inside(lambda: smtplib.SMTP("127.0.0.1", 2525, timeout=DEADLINE))
        assert running.container.stop() == 0
        assert client.getreply()[0] == 421
        client.close()
        assert "info stopped" in log.read_text()


def test_image_has_neither_systemd_nor_what_builds(image: Image) -> None:
    for path in ("usr/lib/systemd/systemd", "usr/bin/gcc", "usr/bin/pip", "usr/bin/pip3"):
        assert not (image.root / path).exists()


# The files beside it


def mounts(volumes: list[str]) -> set[str]:
    return {each.split(":")[1] for each in volumes}


def test_compose_fits_the_image_and_the_configuration() -> None:
    services: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]
    server = services["minismtp"]
    assert server["read_only"] is True
    assert mounts(server["volumes"]) == {"/etc/minismtp", STATE, MAIL}
    assert {*ports_of_the_configuration()} == {int(each.split(":")[1]) for each in server["ports"]}
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            exists = source == "./config" or not source.startswith(".") or (FILES / source).exists()
            assert exists, source


def test_kubernetes_probes_and_mounts_fit() -> None:
    found = [*yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())]
    kinds = {each["kind"]: each["spec"] for each in found}
    pod = kinds["StatefulSet"]["template"]["spec"]
    [server] = pod["containers"]
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}
    assert kinds["StatefulSet"]["replicas"] == 1
    assert {*ports.values()} == {*ports_of_the_configuration(), 9925}
    assert {each["targetPort"] for each in kinds["Service"]["ports"]} == {*ports} - {"metrics"}
    assert {each["mountPath"] for each in server["volumeMounts"]} == {
        *("/etc/minismtp", STATE, MAIL, "/run/minismtp", "/tmp")  # noqa: S108
    }
    assert {
        name: server[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    } == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert pod["securityContext"]["runAsUser"] == NUMBER
    assert server["securityContext"]["readOnlyRootFilesystem"] is True


def ports_of_the_configuration() -> list[int]:
    settings = tomllib.loads((FILES / "minismtp.toml").read_text())
    return [int(each["address"].rpartition(":")[2]) for each in settings["listeners"]]


def test_dovecot_takes_its_configuration(require_program: Callable[[str], str]) -> None:
    doveconf = require_program("doveconf")
    file = FILES / "dovecot" / "dovecot.conf"
    done = subprocess.run([doveconf, "-n", "-c", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "driver = passwd-file" in done.stdout


def test_prometheus_takes_its_configuration(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    promtool = require_program("promtool")
    for file in (FILES / "prometheus.yml", *(ROOT / "etc/prometheus").glob("minismtp-*.yml")):
        shutil.copy(file, tmp_path)
    (tmp_path / "minismtp-alerts.test.yml").unlink()
    subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], check=True)


def test_image_says_what_it_needs(image: Image) -> None:
    settings = image.settings
    assert settings["User"] == f"{NUMBER}:{NUMBER}"
    assert {*settings["Volumes"]} == {STATE, MAIL}
    assert {*settings["ExposedPorts"]} == {
        f"{port}/tcp" for port in (*ports_of_the_configuration(), 9925)
    }
    assert json.dumps(settings["Entrypoint"]) == '["/usr/bin/minismtp"]'
