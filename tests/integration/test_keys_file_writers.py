"""Processes that write the file of keys at once."""

import os
import subprocess
import sys
from pathlib import Path

from tuneloop.gateway.keys.store import KeyFile


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code = (
        "import sys; from pathlib import Path\n"
        "from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key\n"
        "for i in range(8):\n"
        "    key = new_key(f'{sys.argv[2]}-{i}', [Scope.INFER], Limits())[1]\n"
        "    KeyFile(Path(sys.argv[1])).add(key)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], env=dict(os.environ))
        for n in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(KeyFile(path).read()) == 24
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["keys.json"]
