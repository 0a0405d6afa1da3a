"""ClusterModelProvider: a ModelProvider of the whole cluster, whose key lies out of every namespace's reach."""

from __future__ import annotations

from pydantic import Field

from almoner_core.api.allow import Allow
from almoner_core.api.base import SystemSecretKeyReference
from almoner_core.api.meta import AGE, NAME_IS_LABEL, Column, Kind, condition_reason, condition_status
from almoner_core.api.model_provider import ModelProviderSpec, ModelProviderStatus, ProviderRateLimits


class ClusterModelProviderSpec(ModelProviderSpec):
    """Desired state of a ClusterModelProvider."""

    credentials: SystemSecretKeyReference | None = Field(
        default=None,
        description="The key, in a Secret of Almoner's own namespace. The ledger hands it over TLS to the meters of "
        "runs that may use it; it is in no pod's volume or environment. Needed for OpenAI and Anthropic, unless "
        "baseURL is set.",
    )
    rate_limits: ProviderRateLimits | None = Field(
        default=None, description="How fast the provider may be called, over all runs of the cluster."
    )
    allow: Allow = Field(
        description="Who may use it. A change binds what is admitted after it; a run under way keeps its key."
    )


KIND = Kind(
    kind="ClusterModelProvider",
    plural="clustermodelproviders",
    short_names=("cmp",),
    spec=ClusterModelProviderSpec,
    status=ModelProviderStatus,
    description="A ClusterModelProvider says where models come from, for those that spec.allow names, in any "
    "namespace. Its key lies in Almoner's own namespace, and no role of another namespace can read it.",
    columns=(
        Column("Type", ".spec.type", description="Kind of the provider."),
        Column("URL", ".spec.baseURL", description="Base URL, where it is not the public one."),
        Column("Ready", condition_status("Ready"), description="Whether it can be used."),
        Column("Reason", condition_reason("Ready"), description="Why it can or cannot be used."),
        Column("Bypassable", condition_status("Bypassable"), description="Whether agents can walk past the meter."),
        Column("Namespaces", ".spec.allow.namespaces", description="Namespaces that may use it.", priority=1),
        AGE,
    ),
    selectable_fields=(".spec.type", ".spec.credentials.name"),
    rules=(NAME_IS_LABEL,),
    name_length_max=63,
    scope="Cluster",
)
