"""Call a function in a fresh Python process: no earlier allocation, cache or import is in what it measures.

The process is `python -c` with the request on its standard input, not `multiprocessing`'s spawn. Spawn imports the
parent's `__main__` again: it runs a script that has no `__main__` guard a second time, fails for a program read from
standard input, brings pytest or the command line into the process that is to be measured, and is refused to daemonic
workers. The price: what is sent must be importable from a module, and defined elsewhere than in `__main__`; the error
says so.

The answer is JSON on a private copy of standard output; whatever libraries print goes to standard error.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from segbench.profiling.failure import in_words

# -P: the working directory must not shadow a module before the parent's sys.path is in place.
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from segbench.profiling.fresh import answer; answer()"


class Answer(NamedTuple):
    """What the function gave, or in `error` one line that says why it gave nothing."""

    value: Any
    error: str | None


def call_fresh(function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Answer:
    """`function(*arguments)` in a fresh process: picklable by name, its value JSON. What fails is told, not raised.

    A process that has not answered after `timeout_s` is ended, and that is told too.
    """
    try:
        request = pickle.dumps((function, arguments))
    except Exception as error:  # what is sent may be somebody's, and says in its own way that it will not travel
        return Answer(
            None, f"cannot be sent to a fresh process: {in_words(error)}; give a function of a module, not a lambda"
        )
    command = [sys.executable, "-P", "-c", BOOT, json.dumps([path or str(Path.cwd()) for path in sys.path])]
    try:
        done = subprocess.run(command, input=request, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Answer(None, f"the measuring process gave no answer in {timeout_s:g} s and was ended")
    except OSError as error:  # no memory for another process, or a list of paths that is too long
        return Answer(None, f"no fresh process: {in_words(error)}")
    if done.returncode or not done.stdout:  # a model may also leave by sys.exit(0)
        return Answer(None, ending(done.returncode, done.stderr.decode(errors="replace")))
    return Answer(**json.loads(done.stdout))


def ending(code: int, stderr: str) -> str:
    """Why a process ended without an answer: its signal in words, or the last line that it printed."""
    if code == -signal.SIGKILL:
        return "killed by the operating system (SIGKILL), most often because the machine ran out of memory"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = f": {lines[-1]}" if lines else ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}{said}"
    return f"the measuring process ended with exit code {code}{said}"


def answer() -> None:
    """The fresh process: read the request, call, write the answer."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # for C libraries, and for Python, whose sys.stdout writes to the same descriptor
        json.dump(attempt(sys.stdin.buffer.read())._asdict(), out)


def attempt(request: bytes) -> Answer:
    try:
        function, arguments = pickle.loads(request)
    except (AttributeError, ImportError) as error:
        hint = "; define it in an importable module" if "__main__" in str(error) else ""
        return Answer(None, f"cannot be loaded in a fresh process: {in_words(error)}{hint}")
    try:
        return Answer(function(*arguments), None)
    except Exception as error:  # a model is somebody's code: whatever it raises is told, not lost
        return Answer(None, in_words(error))
