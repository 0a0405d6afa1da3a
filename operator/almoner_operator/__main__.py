"""`almoner-operator`: the command line. Every option can be given by an environment variable too."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from almoner_core import log_lines
from almoner_core.compute import ComputePrices
from almoner_core.quantity import millicores, whole
from almoner_operator.context import OperatorSettings
from almoner_operator.credentials import CredentialsError
from almoner_operator.machines import ComputeSettings
from almoner_operator.pods import NO_MESH, RunnerSettings
from almoner_operator.scheduling.model import RequireBudget
from almoner_operator.scheduling.model import Settings as SchedulingSettings

log = logging.getLogger("almoner_operator")

_ANNOTATION = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
EXIT_FAILED = 1
EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
    """Give the command line's parser."""
    made = argparse.ArgumentParser(
        prog="almoner operator",
        usage="%(prog)s [OPTION]...",
        description="Runs Executions and TrainingJobs inside hard limits. Every option can be set by the environment "
        "variable that is named beside it.",
    )

    def option(flag: str, variable: str, help_: str, default: str | None = None, **more: object) -> None:
        value = os.environ.get(variable, default)
        shown = f" (default: {default})" if default else ""
        made.add_argument(flag, default=value, help=f"{help_}{shown} [{variable}]", **more)  # type: ignore[arg-type]

    option("--kubeconfig", "ALMONER_KUBECONFIG", "kubeconfig file; in a cluster, the pod's own service account")
    _ledger_options(option)
    option("--runner-image", "ALMONER_RUNNER_IMAGE", "image that holds the meter and the agent loop")
    option("--runner-service-account", "ALMONER_RUNNER_SERVICE_ACCOUNT", "service account of runner pods", "default")
    option("--image-pull-policy", "ALMONER_IMAGE_PULL_POLICY", "of runner pods", "IfNotPresent")
    option("--image-pull-secrets", "ALMONER_IMAGE_PULL_SECRETS", "of runner pods, separated by commas", "")
    _pod_options(option)
    _compute_options(option)
    option("--namespaces", "ALMONER_NAMESPACES", "namespaces to serve, separated by commas; all where empty", "")
    option(
        "--own-namespace",
        "ALMONER_OWN_NAMESPACE",
        "where the Lease of the election lies, and Secrets with keys of ClusterModelProviders",
        "almoner-system",
    )
    option("--lease-seconds", "ALMONER_LEASE_SECONDS", "life of that Lease, at least 3", "15", type=int)
    option(
        "--require-budget",
        "ALMONER_REQUIRE_BUDGET",
        "what money limit an execution must have: Any, or a Quota's always",
        "Any",
        choices=[each.value for each in RequireBudget],
    )
    option("--start-deadline-seconds", "ALMONER_START_DEADLINE_SECONDS", "for a pod to start", "600", type=int)
    option(
        "--lost-seconds",
        "ALMONER_LOST_SECONDS",
        "after which the ledger is asked to charge a vanished pod's money off, once its meter can spend no more",
        "90",
        type=int,
    )
    option("--health-port", "ALMONER_HEALTH_PORT", "of /healthz and /readyz; 0: none", "8080", type=int)
    option("--metrics-port", "ALMONER_METRICS_PORT", "of /metrics; 0: none", "9090", type=int)
    option("--listen-address", "ALMONER_LISTEN_ADDRESS", "for probes and metrics", "0.0.0.0")  # noqa: S104 - a pod's
    option("--api-rate", "ALMONER_API_RATE", "most requests a second to the API server", "1000", type=float)
    option("--api-concurrent", "ALMONER_API_CONCURRENT", "most requests at once to the API server", "48", type=int)
    option("--log-level", "ALMONER_LOG_LEVEL", "debug, info, warning or error", "info")
    option("--log-format", "ALMONER_LOG_FORMAT", "of log lines", "json", choices=log_lines.STYLES)
    return made


def _ledger_options(option: Callable[..., None]) -> None:
    """Add where the ledger is, and how it is known."""
    option("--ledger-url", "ALMONER_LEDGER_URL", "address of the ledger service")
    option("--ledger-token-file", "ALMONER_OPERATOR_TOKEN_FILE", "file with the token that the ledger knows us by")
    option(
        "--ledger-ca-file",
        "ALMONER_LEDGER_CA_FILE",
        "file with the certificates, in PEM, by which operator and meters know the ledger; read again when it changes; "
        "those of the images where empty",
    )
    option(
        "--ledger-certificate-secret",
        "ALMONER_LEDGER_CERTIFICATE_SECRET",
        "Secret of the own namespace in which the operator makes and renews a self-signed certificate for the ledger, "
        "whose ca.crt is trusted; none where empty",
        "",
    )
    option(
        "--runner-ledger-url", "ALMONER_RUNNER_LEDGER_URL", "address of the ledger as runner pods see it, if another"
    )


def _pod_options(option: Callable[..., None]) -> None:
    """Add how runner pods look."""
    option("--meter-cpu", "ALMONER_METER_CPU", "what a meter reserves", "50m")
    option("--meter-memory", "ALMONER_METER_MEMORY", "what a meter reserves", "96Mi")
    option(
        "--meter-cpu-limit",
        "ALMONER_METER_CPU_LIMIT",
        "most cpu that a meter may use; needed where a core ResourceQuota counts limits.cpu; none where empty",
        "",
    )
    option(
        "--meter-grace-seconds",
        "ALMONER_METER_GRACE_SECONDS",
        "added to an agent's grace period, at least 1: so long its meter tries to reach the ledger at the end",
        "30",
        type=int,
    )
    option(
        "--meter-memory-limit",
        "ALMONER_METER_MEMORY_LIMIT",
        "most memory that a meter may use; by it request bodies are bounded",
        "640Mi",
    )
    option(
        "--runner-annotations",
        "ALMONER_RUNNER_ANNOTATIONS",
        "annotations of runner pods, as name=value separated by commas; these keep a service mesh's sidecar out, which "
        "would start after the meter that needs its network",
        ",".join(f"{name}={value}" for name, value in NO_MESH),
    )


def _compute_options(option: Callable[..., None]) -> None:
    """Add what machine time costs."""
    option("--compute-price-cpu-hour", "ALMONER_COMPUTE_PRICE_CPU_HOUR", "US dollars per core-hour; none: not billed")
    option(
        "--compute-price-memory-gib-hour",
        "ALMONER_COMPUTE_PRICE_MEMORY_GIB_HOUR",
        "US dollars per GiB-hour of memory; none: not billed",
    )
    option("--compute-price-gpu-hour", "ALMONER_COMPUTE_PRICE_GPU_HOUR", "US dollars per GPU-hour; none: not billed")
    option(
        "--compute-interval-seconds",
        "ALMONER_COMPUTE_INTERVAL_SECONDS",
        "how often machine time is charged, and held for so long ahead, at least 1",
        "60",
        type=int,
    )
    option(
        "--compute-outage-seconds",
        "ALMONER_COMPUTE_OUTAGE_SECONDS",
        "machine time is held for so much longer: for that long the ledger may be away before pods are ended that are "
        "not paid for any more",
        "60",
        type=int,
    )
    option(
        "--compute-probe-seconds",
        "ALMONER_COMPUTE_PROBE_SECONDS",
        "how often a node asks the meter whether its pod's machine time is paid, at least 1",
        "5",
        type=int,
    )


def settings_of(arguments: argparse.Namespace) -> OperatorSettings:
    """Read the settings. Raises SystemExit with what is missing."""
    needed = {"--ledger-url": arguments.ledger_url, "--runner-image": arguments.runner_image}
    missing = [f"{flag} (ALMONER_{flag[2:].replace('-', '_').upper()})" for flag, value in needed.items() if not value]
    if missing:
        parser().error(f"{' and '.join(missing)} must be given")
    if arguments.ledger_ca_file and arguments.ledger_certificate_secret:
        parser().error("--ledger-ca-file and --ledger-certificate-secret: give one of them; both say whom to trust")
    try:
        prices = ComputePrices.parse(
            arguments.compute_price_cpu_hour,
            arguments.compute_price_memory_gib_hour,
            arguments.compute_price_gpu_hour,
        )
    except ValueError as error:
        parser().error(f"--compute-price-*: {error}")
    _quantities(arguments)
    return OperatorSettings(
        ledger_url=arguments.ledger_url,
        runner=RunnerSettings(
            image=arguments.runner_image,
            ledger_url=arguments.runner_ledger_url or arguments.ledger_url,
            image_pull_policy=arguments.image_pull_policy,
            image_pull_secrets=_list(arguments.image_pull_secrets),
            service_account=arguments.runner_service_account,
            meter_cpu=arguments.meter_cpu,
            meter_memory=arguments.meter_memory,
            meter_cpu_limit=arguments.meter_cpu_limit,
            meter_memory_limit=arguments.meter_memory_limit,
            annotations=_annotations(arguments.runner_annotations),
            meter_grace_seconds=max(1, arguments.meter_grace_seconds),
        ),
        compute=ComputeSettings(
            prices=prices,
            interval_seconds=max(1, arguments.compute_interval_seconds),
            outage_seconds=max(0, arguments.compute_outage_seconds),
            probe_seconds=max(1, arguments.compute_probe_seconds),
        ),
        scheduling=SchedulingSettings(require_budget=RequireBudget(arguments.require_budget)),
        kubeconfig=Path(arguments.kubeconfig) if arguments.kubeconfig else None,
        ledger_token_file=Path(arguments.ledger_token_file) if arguments.ledger_token_file else None,
        ledger_ca_file=Path(arguments.ledger_ca_file) if arguments.ledger_ca_file else None,
        ledger_certificate_secret=arguments.ledger_certificate_secret,
        namespaces=_list(arguments.namespaces),
        own_namespace=arguments.own_namespace,
        lease_seconds=max(3, arguments.lease_seconds),
        start_deadline_seconds=arguments.start_deadline_seconds,
        lost_seconds=arguments.lost_seconds,
        health_port=arguments.health_port,
        metrics_port=arguments.metrics_port,
        listen_address=arguments.listen_address,
        api_rate=arguments.api_rate,
        api_concurrent=arguments.api_concurrent,
    )


def _annotations(text: str) -> tuple[tuple[str, str], ...]:
    """Read name=value pairs. Raises SystemExit naming what is none."""
    pairs = []
    for part in _list(text):
        name, equals, value = part.partition("=")
        if not equals or _ANNOTATION.fullmatch(name) is None:
            parser().error(f"--runner-annotations: {part!r} is not name=value")
        pairs.append((name, value))
    return tuple(pairs)


def _quantities(arguments: argparse.Namespace) -> None:
    """Refuse a quantity that is none, at the start: no pod could be made of it. Raises SystemExit."""
    for name, read in (
        ("meter_cpu", millicores),
        ("meter_memory", whole),
        ("meter_cpu_limit", millicores),
        ("meter_memory_limit", whole),
    ):
        text = getattr(arguments, name)
        try:
            if text:
                read(text)
        except ValueError as error:
            parser().error(f"--{name.replace('_', '-')}: {error}")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loop where it is installed: it halves what a request costs."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the operator until it is told to stop."""
    arguments = parser().parse_args(argv)
    settings = settings_of(arguments)
    log_lines.configure(arguments.log_level, arguments.log_format)
    # Imported late: --help need not wait for kopf.
    from almoner_operator.app import Operator  # noqa: PLC0415

    async def run() -> None:
        await Operator(settings).run()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
    except (CredentialsError, OSError) as error:
        log.critical("%s", error)
        return EXIT_USAGE
    except Exception:
        log.critical("the operator ends on an unexpected error", exc_info=True)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
