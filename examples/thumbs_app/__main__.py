"""Run the application: `python -m examples.thumbs_app [PORT]`."""

import sys

import uvicorn

from examples.thumbs_app.app import app

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
