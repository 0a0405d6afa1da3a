"""`almoner-meter`: runs the meter as the operator's environment variables say."""

from __future__ import annotations

import os
import sys

from almoner_core import log_lines
from almoner_runner.meter.config import ConfigError


def main() -> int:
    """Run until SIGTERM; 0 where everything was settled, 78 (EX_CONFIG) where the configuration cannot be used."""
    # Here, because importing the server is most of the start, and --help needs none of it.
    from almoner_runner.meter.lifecycle import Settings, run  # noqa: PLC0415

    if len(sys.argv) > 1:
        print(
            "usage: almoner-meter\n\nThe metering sidecar. It is configured by the environment: ALMONER_METER_CONFIG, "
            "ALMONER_METER_ADDRESS, ALMONER_SPOOL_DIR, ..."
        )
        return 0 if sys.argv[1] in ("-h", "--help") else 64
    try:
        settings = Settings.from_environment(os.environ)
    except ConfigError as error:
        print(f"almoner-meter: {error}", file=sys.stderr)
        return 78
    config = settings.config
    log_lines.configure(
        os.environ.get("ALMONER_LOG_LEVEL", "info"),
        os.environ.get("ALMONER_LOG_FORMAT", "json"),
        fields={
            "namespace": config.execution_namespace,
            "run": config.execution_name,
            "kind": config.kind,
            "attempt": config.attempt,
            "allotment": config.allotment,
            "trace_id": log_lines.trace_id(config.allotment),
        },
    )
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
