"""The command `nst`, in this process where that is enough, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

NST = str(Path(sys.executable).parent / "nst")


def nst(*arguments: str, **environment: str) -> Result:
    """Run the command in this process, with further environment variables; a traceback is never an answer."""
    from flows.cli import app

    result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def nst_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, with further environment variables."""
    ended = subprocess.run([NST, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    return ended
