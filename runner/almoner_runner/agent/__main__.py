"""`almoner-agent`: run the agent that the environment describes, write its answer, end with a telling exit code.

Role: the command of a runner pod's agent container. Boundary: everything comes from the environment. Why imports are
late: `--help` and a refusal of the input should not wait for an SDK.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Final

DESCRIPTION: Final = "Run the agent described by the environment of a runner pod, metered."
EPILOG: Final = """\
environment:
  ALMONER_AGENT_SPEC     the Agent's spec as JSON
  ALMONER_INPUT_FILE     what the agent is given, as text or JSON
  ALMONER_OUTPUT_FILE    where its answer goes: text, or JSON where the agent has an output schema
  ALMONER_METER_URL      the meter of this pod (or ALMONER_METER_ADDRESS, host:port)
  OPENAI_BASE_URL, ANTHROPIC_BASE_URL    the meter, in the dialect that the agent speaks

exit codes:
  0   the answer is in the output file
  64  the input or the agent's spec cannot be used
  65  a guardrail tripped
  66  the answer is not of the declared shape, or was refused or filtered
  67  a limit of the run was reached: turns, tokens, tool calls, the length of an answer
  68  a budget has no room for the next call
  69  the model provider failed
  70  a rate has no room for the next call
  1   anything else

The last line on standard error says why.
"""


def say(line: str) -> None:
    """Write one line of the log."""
    print(f"almoner-agent: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run, and give the exit code."""
    parser = argparse.ArgumentParser(
        prog="almoner-agent",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    from almoner_runner.agent.failures import UNEXPECTED_EXIT_CODE, AgentFailure, classify  # noqa: PLC0415 - see above

    began = time.monotonic()
    try:
        summary = _run()
    except AgentFailure as failure:
        if failure.exit_code == UNEXPECTED_EXIT_CODE and failure.__cause__ is not None:
            _print_traceback(failure.__cause__)
        say(failure.line)
        return failure.exit_code
    except Exception as error:  # noqa: BLE001 - whatever it was, the last line has to say it
        _print_traceback(error)
        say(classify(error).line)
        return UNEXPECTED_EXIT_CODE
    say(f"done in {time.monotonic() - began:.1f} s: {summary}")
    return 0


def _print_traceback(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - only where something unexpected happened

    traceback.print_exception(error, limit=20)


def _run() -> str:
    import asyncio  # noqa: PLC0415 - see the module's docstring
    import warnings  # noqa: PLC0415

    from almoner_runner.agent.invocation import from_environment  # noqa: PLC0415
    from almoner_runner.agent.loop import run  # noqa: PLC0415
    from almoner_runner.agent.output import render, write  # noqa: PLC0415

    # The framework warns that it knows no price for a model: prices are the meter's business.
    warnings.simplefilter("ignore")
    invocation = from_environment(os.environ)
    answer = asyncio.run(run(invocation))
    write(invocation.output_file, render(answer.value))
    return (
        f"turns: {answer.turns}, tool calls: {answer.tool_calls}, "
        f"{answer.input_tokens} tokens in, {answer.output_tokens} out"
    )


if __name__ == "__main__":
    sys.exit(main())
