"""What the clients are asked to do. Runs the scenarios that the command line names, and prints a line of JSON each.

python with_NAME.py API SCENARIO ...
"""

import asyncio
import inspect
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

API = sys.argv[1]
MODEL = os.environ["ALMONER_MODEL"]

HELLO = "Say hello."
WEATHER = "What is the weather in Paris? Use the tool."
CITY = "Describe the city of Paris."
PICTURE = "What is in this picture?"
PAUSE = "Say hello after a pause."
TOGETHER = "Say hello together."
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElFTkSuQmCC"
PNG_URL = f"data:image/png;base64,{PNG}"
AT_ONCE = 16


def get_weather(city: str) -> str:
    """Tell the weather in a city.

    Args:
        city: the name of the city
    """
    return f"It is sunny, 21 degrees in {city}."


def run(ask, *, streamed=None, tools=None, structured=None, image=None, parallel=None):
    """Run what argv names. `ask(prompt)` gives a text, `streamed(prompt)` a list of pieces, `structured` an object."""
    known = {
        "plain": lambda: ask(HELLO),
        "streamed": lambda: streamed(HELLO),
        "tools": lambda: tools(WEATHER),
        "structured": lambda: structured(CITY),
        "image": lambda: image(PICTURE),
        "limited": lambda: ask(PAUSE),
        "spent": lambda: ask(HELLO),
    }
    if inspect.iscoroutinefunction(ask):
        known["parallel"] = parallel or (lambda: _gathered(ask))
        asyncio.run(_run_all(known))
        return
    known["parallel"] = parallel or (lambda: _threaded(ask))
    for name in sys.argv[2:]:
        began = time.monotonic()
        try:
            _print(name, began, result=known[name]())
        except Exception as error:
            _print(name, began, error=f"{type(error).__name__}: {error}")
            if name == "spent":
                raise


async def _run_all(known):
    for name in sys.argv[2:]:
        began = time.monotonic()
        try:
            _print(name, began, result=await known[name]())
        except Exception as error:
            _print(name, began, error=f"{type(error).__name__}: {error}")
            if name == "spent":
                raise


async def _gathered(ask):
    return list(await asyncio.gather(*(ask(TOGETHER) for _ in range(AT_ONCE))))


def _threaded(ask):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, [TOGETHER] * AT_ONCE))


def _print(name, began, **line):
    print("\n" + json.dumps({"scenario": name, "seconds": round(time.monotonic() - began, 1), **line}), flush=True)
