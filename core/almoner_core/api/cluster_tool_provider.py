"""ClusterToolProvider: a ToolProvider of the whole cluster."""

from __future__ import annotations

from pydantic import Field

from almoner_core.api.allow import Allow
from almoner_core.api.base import SystemSecretKeyReference
from almoner_core.api.meta import AGE, NAME_IS_LABEL, Column, Kind, condition_reason, condition_status
from almoner_core.api.tool_provider import ToolProviderSpec, ToolProviderStatus


class ClusterToolProviderSpec(ToolProviderSpec):
    """Desired state of a ClusterToolProvider."""

    credentials: SystemSecretKeyReference | None = Field(
        default=None,
        description="The key of the service, in a Secret of Almoner's own namespace, which no agent may read. It is "
        "handed to nobody, since no tool of this version calls a service. Needed for Serper, SerpAPI, Pinecone.",
    )
    allow: Allow = Field(description="Who may use it. A change binds what is admitted after it.")


KIND = Kind(
    kind="ClusterToolProvider",
    plural="clustertoolproviders",
    short_names=("ctp",),
    spec=ClusterToolProviderSpec,
    status=ToolProviderStatus,
    description="A ClusterToolProvider says what calls of paid tools cost, for those that spec.allow names, in any "
    "namespace. Its key lies in Almoner's own namespace.",
    columns=(
        Column("Type", ".spec.type", description="Kind of the provider."),
        Column("URL", ".spec.baseURL", description="Its address, where it is not the public one."),
        Column("Ready", condition_status("Ready"), description="Whether it can be used."),
        Column("Reason", condition_reason("Ready"), description="Why it can or cannot be used."),
        Column("Namespaces", ".spec.allow.namespaces", description="Namespaces that may use it.", priority=1),
        AGE,
    ),
    selectable_fields=(".spec.type", ".spec.credentials.name"),
    rules=(NAME_IS_LABEL,),
    name_length_max=63,
    scope="Cluster",
)
