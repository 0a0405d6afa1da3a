"""A framework's client as the command of a pod on the process node, which sees the cache of frameworks."""

from __future__ import annotations

import shutil
from pathlib import Path

from almoner_dev.cache import cache_root
from almoner_dev.frameworks.install import installed
from almoner_dev.frameworks.table import Api, Framework, Language
from tests.frameworks.trial import CLIENTS


def folders() -> list[Path]:
    """What pods of clients must see beside the usual."""
    root = cache_root(what="frameworks")
    root.mkdir(parents=True, exist_ok=True)
    return [root, CLIENTS]


def command(framework: Framework, api: Api, scenarios: list[str]) -> list[str]:
    """The command of a container. Raises FrameworkMissingError where it cannot be installed."""
    home = installed(framework)
    name = f"client/with_{framework.name.replace('-', '_')}"
    if framework.language is Language.PYTHON:
        program = f"{home}/bin/python {name}.py"
    else:
        program = f"PATH={home}/node_modules/.bin:$PATH {shutil.which('node')} {name}.mjs"
    ready = f'cd "$HOME" && cp -r {CLIENTS} client && ln -s {home}/node_modules node_modules'
    return ["sh", "-c", f"{ready} && exec env {program} {api} {' '.join(scenarios)}"]
