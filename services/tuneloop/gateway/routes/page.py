"""The pages: chat at `/`, `/dashboard`, `/feedback`. Static files in `web/`, no build."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).parents[1] / "web"

router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def chat_page() -> FileResponse:
    """Return the chat page."""
    return page("chat.html")


@router.get("/dashboard", response_model=None)
async def dashboard_page() -> FileResponse:
    """Return the dashboard."""
    return page("dashboard.html")


@router.get("/feedback", response_model=None)
async def feedback_page() -> FileResponse:
    """Return the feedback page."""
    return page("feedback.html")


def page(name: str) -> FileResponse:
    """Return a page; browsers check each time whether it has changed."""
    return FileResponse(WEB / name, headers={"cache-control": "no-cache"})


class Assets(StaticFiles):
    """Files that browsers ask for each time: their names do not change with their content."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return the file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def mount_assets(app: FastAPI) -> None:
    """Serve styles, scripts and icon."""
    app.mount("/web", Assets(directory=WEB), name="web")
