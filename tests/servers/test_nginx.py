"""nginx in front of ``rota web``, below a path that nginx removes or keeps, and with a header that names the user."""

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from sqlalchemy import NullPool, create_engine, text

from tests.support.eventually import eventually
from tests.support.servers import NGINX
from tests.support.service import free_port

ROTA = Path(sysconfig.get_path("scripts")) / "rota"
TOKEN = "x" * 32
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location /ops/rota/ {{
            proxy_pass http://127.0.0.1:{web}{path};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Prefix /ops/rota;
            proxy_set_header X-Forwarded-User $arg_as;
            proxy_set_header X-Forwarded-Groups $arg_in;
        }}
    }}
}}
"""

Start = Callable[..., httpx2.Client]


@pytest.fixture
def behind(postgres_url: str, redis_url: str) -> Iterator[Start]:
    """Starts ``rota web`` and nginx, which passes requests on with ``path``. Returns a client of nginx."""
    with ExitStack() as stack, TemporaryDirectory(prefix="rota-nginx-") as folder:

        def start(path: str, **environ: str) -> httpx2.Client:
            web, port = free_port(), free_port()
            configuration = Path(folder) / "nginx.conf"
            configuration.write_text(CONFIGURATION.format(folder=folder, port=port, web=web, path=path))
            settings = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "ROTA_WEB_PORT": str(web),
                        "ROTA_WEB_TOKEN": TOKEN, **environ}  # fmt: skip
            for command in ([ROTA, "web"], [NGINX, "-c", configuration]):
                child = stack.enter_context(subprocess.Popen(command, env={**os.environ, **settings}))
                stack.callback(child.terminate)
            client = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}/ops/rota", timeout=20))
            eventually(lambda: client.get("/health/live").status_code == 200, within=60)
            return client

        yield start


PROXIED = {
    "ROTA_WEB_PROXIES": "127.0.0.1",
    "ROTA_WEB_USER_HEADER": "X-Forwarded-User",
    "ROTA_WEB_GROUPS_HEADER": "X-Forwarded-Groups",
    "ROTA_WEB_ROLES": "ops=operator",
}
PREFIX = {"ROTA_WEB_PREFIX": "/ops/rota"}


@pytest.mark.parametrize("path", ["", "/"], ids=["kept", "removed"])
@pytest.mark.parametrize("environ", [PREFIX, PROXIED, {**PREFIX, **PROXIED}], ids=["setting", "header", "both"])
def test_every_address_has_the_prefix_whether_nginx_removes_it_or_not(behind: Start, path: str, environ: dict) -> None:
    client = behind(path, **environ)
    shown = {"Authorization": f"Bearer {TOKEN}"}

    assert 'action="/ops/rota/login"' in client.get("/login").text
    assert client.get("/api/v1/openapi.json", headers=shown).json()["servers"] == [{"url": "/ops/rota"}]
    assert 'href="/ops/rota/api/v1/openapi.json"' in client.get("/api", headers=shown).text
    same_site = {"Origin": str(client.base_url).removesuffix("/ops/rota/")}
    answer = client.post("/login", data={"secret": TOKEN}, headers=same_site)
    assert (
        answer.json()["instance"] == "/ops/rota/login"
    )  # refused because of the token, not as a request from another site
    assert client.get("/runs.ndjson", headers=shown).status_code == 404
    stream = client.get("/api/v1/runs.ndjson", headers=shown)
    assert (stream.status_code, stream.headers.get("X-Accel-Buffering")) == (200, None)  # nginx reads and removes it


def test_nginx_names_the_user_and_a_client_cannot(behind: Start) -> None:
    client = behind("", **PROXIED)

    assert client.get("/api/v1/me", params={"as": "ann", "in": "ops"}).json()["role"] == "operator"
    forged = {"X-Forwarded-User": "root", "X-Forwarded-Groups": "ops"}
    assert client.get("/api/v1/me", headers=forged).status_code == 401
    answer = client.post("/api/v1/reconcile", params={"as": "ann", "in": "ops"}, headers={"Origin": "http://x.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-origin")


def test_an_export_begins_at_once(behind: Start, postgres_url: str) -> None:
    """The head of the table arrives while the runs cannot be read yet."""
    client = behind("", **PREFIX)
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg2://"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("LOCK TABLE rota_runs IN ACCESS EXCLUSIVE MODE"))
        with client.stream("GET", "/api/v1/runs.csv", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            chunks = answer.iter_text()
            first = next(chunks)
            connection.rollback()
            rest = "".join(chunks)

    assert first.startswith("id,job,")
    assert first.endswith("\n")
    assert rest == ""  # and the connection ended well, though the ledger has no runs
