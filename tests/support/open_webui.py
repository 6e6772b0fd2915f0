"""A real Open WebUI, in an environment of its own, and what its page asks of its API."""

import os
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from support.e2e_client import wait_until
from support.ports import free_port

VERSION = "0.12.4"
PYTHONS = ((3, 11), (3, 12))
"""That it runs with."""
FOLDER = Path(__file__).parents[2] / "build" / f"open-webui-{VERSION}"
HEADERS = {
    "X-OpenWebUI-User-Id": "{{USER_ID}}",
    "X-OpenWebUI-Chat-Id": "{{CHAT_ID}}",
    "X-OpenWebUI-Message-Id": "{{MESSAGE_ID}}",
    "X-OpenWebUI-Task": "{{TASK}}",
}
"""As in docs/open-webui.md."""


def install() -> Path:
    """Install its slim build, which needs no torch, where that was not done; return its folder."""
    done = FOLDER / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        pip = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", f"open-webui=={VERSION}"], check=True)
        (slim,) = FOLDER.glob("lib/python*/site-packages/requirements-slim.txt")
        subprocess.run([*pip, "-r", slim], check=True)
        done.touch()
    return FOLDER


@dataclass
class WebUser:
    """One who is signed in, with the calls that the page makes."""

    url: str
    id: str
    token: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=120)
        assert answer.is_success, (path, answer.status_code, answer.text[:2000])
        return answer.json()

    def chat(self, content: str) -> dict[str, Any]:
        """Start a chat; return what rates its answer: chat, message and the answer's text."""
        question, message = str(uuid.uuid4()), str(uuid.uuid4())
        body = {
            "model": "tuneloop",
            "messages": [{"role": "user", "content": content}],
            "stream": False,
            "parent_id": None,
            "user_message": {
                "id": question,
                "parentId": None,
                "childrenIds": [message],
                "role": "user",
                "content": content,
                "models": ["tuneloop"],
            },
            "id": message,
        }
        answer = self.call("POST", "/api/chat/completions", body)
        (chat,) = (
            chat["id"]
            for chat in self.call("GET", "/api/v1/chats/")
            if message
            in self.call("GET", f"/api/v1/chats/{chat['id']}")["chat"]["history"]["messages"]
        )
        return {"chat_id": chat, "message_id": message, "answer": answer}

    def rating(self, about: dict[str, Any], **data: Any) -> dict[str, Any]:
        """The body of a rating, as the page makes it."""
        return {
            "type": "rating",
            "data": {"model_id": "tuneloop", **data},
            "meta": {
                "arena": False,
                "model_id": "tuneloop",
                "message_id": about["message_id"],
                "message_index": 2,
                "chat_id": about["chat_id"],
                "base_models": {"tuneloop": None},
            },
            "snapshot": {"chat": self.call("GET", f"/api/v1/chats/{about['chat_id']}")},
        }


@dataclass
class OpenWebUI:
    """The running program."""

    url: str
    log: Path

    def sign_up(self, name: str) -> WebUser:
        """Sign up the first user, who is the administrator; later ones it has to add."""
        answer = httpx.post(f"{self.url}/api/v1/auths/signup", json=account(name), timeout=30)
        assert answer.is_success, answer.text
        return WebUser(self.url, answer.json()["id"], answer.json()["token"])


def account(name: str) -> dict[str, str]:
    return {"name": name, "email": f"{name}@example.org", "password": f"{name}-secret-1"}


def add_user(admin: WebUser, name: str) -> WebUser:
    """Add somebody who may chat."""
    added = admin.call("POST", "/api/v1/auths/add", account(name) | {"role": "user"})
    return WebUser(admin.url, added["id"], added["token"])


@contextmanager
def running(data_dir: Path) -> Iterator[OpenWebUI]:
    """Start it on a free port, with no network to use; it is ready there."""
    folder, port = install(), free_port()
    # Short, as the tiny model reads 512 tokens; and the gateway knows no side task by these words.
    prompts = dict.fromkeys(("TITLE", "TAGS", "FOLLOW_UP"), "About this: {{MESSAGES:END:1}}")
    environment = {
        **{f"{task}_GENERATION_PROMPT_TEMPLATE": prompt for task, prompt in prompts.items()},
        "PATH": os.environ["PATH"],
        "HOME": str(data_dir),
        "DATA_DIR": str(data_dir),
        "WEBUI_SECRET_KEY": secrets.token_hex(16),
        "USE_SLIM_DOCKER": "true",
        # Whoever signs up sees every model.
        "BYPASS_MODEL_ACCESS_CONTROL": "true",
        "OFFLINE_MODE": "true",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "true",
        # The tiny model calls no functions.
        "DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy", "max_tokens": 12}',
        "TASK_MODEL_PARAMS": '{"max_tokens": 12}',
        "ENABLE_VERSION_UPDATE_CHECK": "false",
    }
    log = data_dir / "open-webui.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [folder / "bin" / "open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=data_dir,
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/health", timeout=5).is_success, "Open WebUI answers")
        yield OpenWebUI(url, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def connect(admin: WebUser, gateway: str) -> None:
    """Do what docs/open-webui.md says: the connection, then the function."""
    connection = {
        "ENABLE_OPENAI_API": True,
        "OPENAI_API_BASE_URLS": [f"{gateway}/v1"],
        "OPENAI_API_KEYS": [""],
        "OPENAI_API_CONFIGS": {"0": {"enable": True, "headers": HEADERS}},
    }
    admin.call("POST", "/openai/config/update", connection)
    source = f"{gateway}/open-webui/tuneloop.py"
    loaded = admin.call("POST", "/api/v1/functions/load/url", {"url": source})
    form = {
        "id": loaded["name"],
        "name": loaded["name"],
        "content": loaded["content"],
        "meta": {"description": ""},
    }
    admin.call("POST", "/api/v1/functions/create", form)
    admin.call("POST", f"/api/v1/functions/id/{loaded['name']}/toggle")
    admin.call("GET", "/api/models")
