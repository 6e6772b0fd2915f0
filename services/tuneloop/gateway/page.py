"""The page at `/`: static files beside this module, no build step."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).with_name("web")

router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def page() -> FileResponse:
    """The chat page."""
    return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


class Assets(StaticFiles):
    """Files that browsers ask for each time: their names do not change with their content."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def mount_assets(app: FastAPI) -> None:
    """Serve style, scripts and icon."""
    app.mount("/web", Assets(directory=WEB), name="web")
