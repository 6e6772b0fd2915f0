"""Real nginx and caddy in front of a gateway without a key: nobody comes in through them.

As a proxy runs on servers: started by root, its workers as a user of their own.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateway_stack import gateway_in_thread
from support.ports import free_port

PLAIN = "proxy_pass {url};"
NGINX = {
    "as it comes": PLAIN,
    "HTTP/1.1 without its own headers": (
        f'{PLAIN} proxy_http_version 1.1; proxy_set_header Connection ""; '
        "proxy_set_header Host $http_host;"
    ),
    "X-Real-IP": f"{PLAIN} proxy_set_header X-Real-IP $remote_addr;",
    "X-Forwarded-For": f"{PLAIN} proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    "Forwarded": f'{PLAIN} proxy_set_header Forwarded "for=$remote_addr";',
}
HIDDEN = "{\n header_up -X-Forwarded-*\n}"
NGINX_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}
}}
"""


def needs(program: str) -> pytest.MarkDecorator:
    missing = shutil.which(program) is None or os.getuid() != 0
    return pytest.mark.skipif(missing, reason=f"needs {program}, and root to start it")


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """Run a proxy until the end of the block; its URL."""
    url = f"http://127.0.0.1:{port}"
    # Caddy keeps its own state there.
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{url}/healthz", timeout=5)
                    break
                assert process.poll() is None, "the proxy ended"
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a proxy's own user may read and write; pytest's are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def assert_nobody_comes_in(proxy: str, gateway: str) -> None:
    assert httpx.get(f"{gateway}/v1/policies").status_code == 200
    assert httpx.get(f"{proxy}/healthz").status_code == 200
    assert httpx.get(f"{proxy}/v1/policies").status_code == 403
    refused = httpx.post(f"{proxy}/v1/learner/pause", headers={"x-forwarded-for": "127.0.0.1"})
    assert refused.status_code == 403
    assert "tuneloop keys create" in refused.json()["error"]["message"]


@needs("nginx")
@pytest.mark.parametrize("location", NGINX.values(), ids=NGINX)
def test_nobody_comes_in_through_nginx(location: str, open_folder: Path) -> None:
    with gateway_in_thread() as stack:
        port = free_port()
        config = open_folder / "nginx.conf"
        config.write_text(
            NGINX_CONFIG.format(
                folder=open_folder, port=port, location=location.format(url=stack.url)
            )
        )
        with running(["nginx", "-c", str(config)], port, open_folder) as url:
            assert_nobody_comes_in(url, stack.url)


@needs("caddy")
@pytest.mark.parametrize(
    "options", ["", "{\n header_up -X-Forwarded-*\n}"], ids=["plain", "hidden"]
)
def test_nobody_comes_in_through_caddy(options: str, open_folder: Path) -> None:
    with gateway_in_thread() as stack:
        port = free_port()
        config = open_folder / "Caddyfile"
        config.write_text(
            "{\n admin off\n auto_https off\n}\n"
            f"http://127.0.0.1:{port} {{\n reverse_proxy {stack.url} {options}\n}}\n"
        )
        command = ["setpriv", "--reuid", "nobody", "--clear-groups", "--"]
        command += ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        with running(command, port, open_folder) as url:
            assert_nobody_comes_in(url, stack.url)
