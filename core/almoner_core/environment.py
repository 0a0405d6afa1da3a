"""Constants that operator, meter and agent agree on: labels, environment variables, paths, ports, bounds.

Standard library alone, so that the meter, which must start fast and stay small, can have them without pydantic;
everyone else finds them in `almoner_core.contract`, which hands all of them on. The operator writes these into pods,
the meter and the agent read them. A container finds everything through the environment variables named here; the
literal paths are only what the operator puts into them, so that a node that cannot give every pod its own mounts may
rewrite them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

# --- labels and annotations -------------------------------------------------------------------------------------------
LABEL_COMPONENT: Final = "app.kubernetes.io/component"  # value RUNNER_COMPONENT on runner pods
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"  # value "almoner"
RUNNER_COMPONENT: Final = "runner"
LABEL_EXECUTION_UID: Final = "almoner.dev/execution-uid"  # uid of the Execution or TrainingJob that the pod runs
LABEL_KIND: Final = "almoner.dev/kind"  # Execution or TrainingJob
LABEL_ATTEMPT: Final = "almoner.dev/attempt"
LABEL_AGENT: Final = "almoner.dev/agent"
ANNOTATION_NAME: Final = "almoner.dev/name"  # full name of the Execution or TrainingJob
ANNOTATION_NONCE: Final = "almoner.dev/nonce"  # tells the operator's own pod before its uid is known
ANNOTATION_UID: Final = "almoner.dev/uid"  # on what runs: whose order it is; a copy of the object has another's
LABEL_AGENT_READABLE: Final = "almoner.dev/agent-readable"  # "true" on Secrets that agents may read
LABEL_PROVIDER_KEY: Final = "almoner.dev/provider-key"  # "true" on Secrets whose keys the ledger may hand to meters

# --- containers -------------------------------------------------------------------------------------------------------
METER_CONTAINER: Final = "meter"
AGENT_CONTAINER: Final = "agent"
METER_USER: Final = 10002
SHARED_GROUP: Final = 10000  # fsGroup: both containers may use the shared volumes

# --- environment ------------------------------------------------------------------------------------------------------
# Of both containers. host:port of the meter's loopback listener. Every other variable refers to it as
# $(ALMONER_METER_ADDRESS), so it is the one variable that a node without network namespaces rewrites.
ENV_METER_ADDRESS: Final = "ALMONER_METER_ADDRESS"
# Of the meter.
ENV_METER_CONFIG: Final = "ALMONER_METER_CONFIG"  # MeterConfig as JSON
ENV_POD_IP: Final = "ALMONER_POD_IP"  # downward API; the health listener binds it
ENV_HEALTH_PORT: Final = "ALMONER_HEALTH_PORT"
ENV_SPOOL_DIR: Final = "ALMONER_SPOOL_DIR"
ENV_LEDGER_TOKEN_FILE: Final = "ALMONER_LEDGER_TOKEN_FILE"  # noqa: S105 - a path
ENV_PROVIDERS_DIR: Final = "ALMONER_PROVIDERS_DIR"  # <dir>/<provider>/<key file>
ENV_TERMINATION_LOG: Final = "ALMONER_TERMINATION_LOG"  # where the last word goes; TERMINATION_LOG where absent
# Of both: where input lies and where output goes.
ENV_INPUT_FILE: Final = "ALMONER_INPUT_FILE"
ENV_OUTPUT_FILE: Final = "ALMONER_OUTPUT_FILE"
# Of the agent.
ENV_EXECUTION: Final = "ALMONER_EXECUTION"  # namespace/name
ENV_ATTEMPT: Final = "ALMONER_ATTEMPT"
ENV_AGENT_SPEC: Final = "ALMONER_AGENT_SPEC"  # the pinned AgentSpec as JSON, for our agent loop alone
ENV_METER_URL: Final = "ALMONER_METER_URL"  # http://$(ALMONER_METER_ADDRESS)
ENV_OPENAI_BASE_URL: Final = "OPENAI_BASE_URL"
ENV_OPENAI_API_BASE: Final = "OPENAI_API_BASE"  # the older spelling: LlamaIndex, LiteLLM
ENV_OPENAI_API_KEY: Final = "OPENAI_API_KEY"
ENV_ANTHROPIC_BASE_URL: Final = "ANTHROPIC_BASE_URL"
ENV_ANTHROPIC_API_KEY: Final = "ANTHROPIC_API_KEY"
PLACEHOLDER_KEY: Final = "almoner-metered"
# The model that the Agent names, so that a plain SDK script need not repeat it.
ENV_MODEL: Final = "ALMONER_MODEL"
# ... and under the names that frameworks read, by the dialect that the model's provider speaks.
ENV_OPENAI_DEFAULT_MODEL: Final = "OPENAI_DEFAULT_MODEL"  # OpenAI's agents SDK
ENV_ANTHROPIC_MODEL: Final = "ANTHROPIC_MODEL"  # Claude Code, and the agent SDK on it
LOOPBACK_NAMES: Final = "127.0.0.1,localhost"
# What an image finds unless it says otherwise: calls to the meter go through no proxy, and frameworks send what they
# were asked, and traces of it, to nobody else.
AGENT_DEFAULTS: Final = {
    "NO_PROXY": LOOPBACK_NAMES,
    "no_proxy": LOOPBACK_NAMES,
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "AGNO_TELEMETRY": "false",
    # LiteLLM's tables are read from its package, not over the network.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}

# --- paths and ports --------------------------------------------------------------------------------------------------
METER_ADDRESS: Final = "127.0.0.1:8790"
HEALTH_PORT: Final = 8791
INPUT_DIR: Final = "/almoner/input"  # meter writes, agent reads
OUTPUT_DIR: Final = "/almoner/output"  # agent writes, meter reads
SPOOL_DIR: Final = "/almoner/spool"  # meter alone
TOKEN_DIR: Final = "/almoner/token"  # noqa: S105 - a path; meter alone
PROVIDERS_DIR: Final = "/almoner/providers"  # meter alone
SCRATCH_DIR: Final = "/almoner/scratch"  # agent alone; its HOME and TMPDIR
INPUT_FILE: Final = f"{INPUT_DIR}/input"  # text as it is, JSON as JSON
OUTPUT_FILE: Final = f"{OUTPUT_DIR}/output"
LEDGER_TOKEN_FILE: Final = f"{TOKEN_DIR}/token"
TERMINATION_LOG: Final = "/dev/termination-log"
LEDGER_AUDIENCE: Final = "almoner-ledger"
# The kubelet's hook on the meter's health listener, and the header with the token that tells it from anybody else.
PRESTOP_PATH: Final = "/prestop"
PRESTOP_HEADER: Final = "x-almoner-prestop"
# The probe of the agent container asks there whether its machine time is paid: failing it ends the container.
PAID_PATH: Final = "/paid"
# The meter's answer: the output maximum that was sent, where it is lower than the client's for want of room.
OUTPUT_LIMITED_HEADER: Final = "x-almoner-output-limited"
# Keys of MeterConfig.extra.
EXTRA_GRACE_SECONDS: Final = "grace_period_seconds"
# How long the meter goes on trying to reach the ledger once the agent has ended, within the grace period.
EXTRA_LEDGER_WAIT_SECONDS: Final = "ledger_wait_seconds"
EXTRA_FIRST_NEED: Final = "first_need"  # amounts by dimension: what admission had granted for the first call
EXTRA_END_SECONDS: Final = "end_seconds"  # what it takes to end a pod whose machine time nobody pays for; absent: free
EXTRA_CALL_SECONDS: Final = "call_seconds"  # the longest that a call may take: what is left of timeoutSeconds
# By provider: `listed`, whether it lists its models; `left_out`, whether there was no room for all that it has prices
# for; and `prices` of the models beside those that are told in full, as `almoner_core.price_list` writes them.
EXTRA_PRICE_LISTS: Final = "price_lists"
EXTRA_PRESTOP_TOKEN: Final = "prestop_token"  # noqa: S105 - a key

# --- bounds -----------------------------------------------------------------------------------------------------------
METER_CONFIG_BYTES_MAX: Final = 120_000  # an environment string is at most 128 KiB on Linux
OUTPUT_BYTES_MAX: Final = 1_048_576
STATUS_OUTPUT_CHARS_MAX: Final = 4096
TERMINATION_MESSAGE_BYTES_MAX: Final = 4096
LEASE_SECONDS: Final = 60  # past it without an exchange a meter starts no call
CALL_PAST_LEASE_SECONDS: Final = 600  # past its lease a meter ends its calls after so long
CALL_SECONDS_MAX: Final = 86_400  # the longest that one call to a provider may take, where its run may take longer
LEASE_MARGIN_SECONDS: Final = 30
# So long after its last exchange a meter can surely spend no more: its lease, the end of its calls, a margin.
SILENCE_SECONDS: Final = LEASE_SECONDS + CALL_PAST_LEASE_SECONDS + LEASE_MARGIN_SECONDS
PAID_ALWAYS_SECONDS: Final = 10**9  # told for how long machine time is paid where nothing limits it
PROGRESS_INTERVAL_SECONDS: Final = 1
# The output that admission asks for a first call of an agent that says no maximum: to start well, no limit.
DEFAULT_MAX_OUTPUT_TOKENS: Final = 1024
# For estimates, where neither provider nor price data say, and nothing is limited.
DEFAULT_CONTEXT_WINDOW: Final = 128_000


class OutputProblem(StrEnum):
    """What is wrong with an output: nothing of it, or not all of it, is kept."""

    NOT_REGULAR = "NotRegular"
    """What lies at the output's place is a link, a folder, a pipe or a device, or a file with several names."""
    UNREADABLE = "Unreadable"
    """The output file could not be read."""
    TOO_LARGE = "TooLarge"
    """It is larger than what is kept (1 MiB, less with many control characters): only its beginning is."""
    NOT_UTF8 = "NotUTF8"
    """It is not UTF-8: what could not be read was replaced."""
    NOT_STORED = "NotStored"
    """The ledger could not be reached at the end: at most what fits the pod's termination message is kept."""
