"""The answer: the shape that is asked of the model, and the file that it ends up in.

Role: a JSON Schema to what pydantic-ai asks of a model (natively where the model's API has structured output, by
prompt where it has not), the check of what came back, and the atomic write. Boundary: the one place that writes.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almoner_core.api.agent import Output
from almoner_core.contract import OUTPUT_BYTES_MAX, AgentExitCode
from almoner_core.json_schema import Schema, SchemaError, self_contained
from almoner_runner.agent.failures import AgentFailure, invalid_input

if TYPE_CHECKING:
    from pydantic_ai.models import Model


def output_schema(output: Output | None) -> Schema | None:
    """Compile the agent's output schema; None for free text. Raises AgentFailure (INVALID_INPUT)."""
    if output is None:
        return None
    try:
        return Schema(output.json_schema)
    except SchemaError as error:
        raise invalid_input(f"output.jsonSchema: {error}") from error


def output_type(schema: Schema | None, model: Model) -> Any:
    """Give pydantic-ai's output type: native where the model's profile has it, else prompted; str for free text."""
    if schema is None:
        return str
    from pydantic_ai import NativeOutput, PromptedOutput, StructuredDict  # noqa: PLC0415 - heavy

    name = str(schema.document.get("title") or "answer")
    shape = StructuredDict(self_contained(schema.document), name=name)
    native = model.profile.get("supports_json_schema_output", False)
    return NativeOutput(shape, name="answer") if native else PromptedOutput(shape, name="answer")


def render(value: Any) -> str:
    """Give what goes into the output file: text as it is, a structured answer as JSON on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(path: Path, text: str) -> None:
    """Write the answer so that the file is there whole or not at all.

    Readable by the group: the meter, another user, reads it. Raises AgentFailure: INVALID_OUTPUT where it is longer
    than the meter takes, else for an OSError with exit code 1.
    """
    content = text.encode("utf-8", errors="replace")
    if len(content) > OUTPUT_BYTES_MAX:
        raise AgentFailure(
            AgentExitCode.INVALID_OUTPUT, f"the answer has {len(content)} bytes, at most {OUTPUT_BYTES_MAX} are kept"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise AgentFailure(1, f"the output file cannot be written: {error.strerror}") from error
