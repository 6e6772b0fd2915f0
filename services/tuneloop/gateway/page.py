"""The page at `/`: static files beside this module, no build step."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).with_name("web")

router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def page() -> FileResponse:
    """The chat page; its files carry no version, so that browsers must ask each time."""
    return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


def mount_assets(app: FastAPI) -> None:
    """Serve style, scripts and icon."""
    app.mount("/web", StaticFiles(directory=WEB), name="web")
