"""Specs of every kind that together set every field; the first of a kind is what other kinds' objects meet."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

RUNNER: Json = {
    "command": ["work"],
    "args": ["--fast"],
    "env": [
        {"name": "A", "value": "x"},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ],
    "resources": {
        "requests": {"cpu": "1", "memory": "1Gi", "gpu": 2},
        "limits": {"cpu": "4", "memory": "8Gi", "gpu": 2},
    },
    "gpuResourceName": "example.com/gpu",
    "nodeSelector": {"zone": "a"},
    "runAsUser": 2000,
    "terminationGracePeriodSeconds": 60,
    "tolerations": [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 5},
    ],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 5, "preference": {"matchExpressions": [{"key": "z", "operator": "NotIn", "values": ["a"]}]}}
            ],
        }
    },
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "batch",
    "runtimeClassName": "gvisor",
    "imagePullSecrets": [{"name": "registry"}],
    "annotations": {"example.com/a": "b"},
    "labels": {"example.com/a": "b"},
    "volumes": [
        {"name": "a", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "b", "configMap": {"name": "c"}},
        {"name": "c", "secret": {"secretName": "s"}},
        {"name": "d", "persistentVolumeClaim": {"claimName": "p", "readOnly": True}},
    ],
    "volumeMounts": [{"name": "a", "mountPath": "/a", "readOnly": True}],
}
LIMITS: Json = {"maxTurns": 10, "maxCost": "0.50", "maxTokens": 5000, "maxToolCalls": 20, "timeoutSeconds": 600}
TIGHTER: Json = {"maxTurns": 5, "maxCost": "0.25", "maxTokens": 2000, "maxToolCalls": 10, "timeoutSeconds": 300}
MODEL: Json = {"provider": "models", "name": "m", "settings": {"maxOutputTokens": 64}}
RETRY: Json = {"limit": 3, "backoffSeconds": 400, "backoffMaxSeconds": 600, "reasons": ["AgentFailed", "NodeLost"]}
OBJECT: Json = {"type": "object"}
AGENT: Json = {"type": "Simulation", "model": MODEL, "limits": LIMITS}
EXECUTION: Json = {"agentRef": {"name": "agent"}, "input": {"text": "hello"}}
JOB: Json = {"agentRef": {"name": "agent"}}
PROVIDER: Json = {
    "type": "OpenAICompatible",
    "baseURL": "http://models.example:8000/v1",
    "apis": ["OpenAI", "Anthropic"],
    "credentials": {"name": "key", "key": "api-key"},
    "models": [{"name": "m", "contextWindow": 8192, "maxOutputTokens": 1000}],
    "prices": [
        {
            "model": "m",
            "inputPerMillion": "1",
            "outputPerMillion": "2",
            "cachedInputPerMillion": "0.5",
            "cacheWritePerMillion": "1.5",
            "longCacheWritePerMillion": "3",
            "perRequest": "0.001",
            "tiers": [
                {
                    "inputTokensMin": 1000,
                    "inputPerMillion": "3",
                    "outputPerMillion": "4",
                    "cachedInputPerMillion": "1",
                    "cacheWritePerMillion": "2",
                    "longCacheWritePerMillion": "4",
                }
            ],
            "batch": {"discountPercent": 50},
        }
    ],
    "rateLimits": {"requestsPerMinute": 10, "tokensPerMinute": 10_000},
    "allowFields": ["chat_template_kwargs"],
}
BATCH: Json = {
    "inputPerMillion": "0.5",
    "outputPerMillion": "1",
    "cachedInputPerMillion": "0.25",
    "cacheWritePerMillion": "0.75",
    "longCacheWritePerMillion": "1.5",
}
TOOLS: Json = {
    "type": "Custom",
    "credentials": {"name": "key2", "key": "api-key"},
    "prices": [{"tool": "search", "perCall": "0.001", "perUnit": "0.0001", "unit": "page"}],
}
ALLOW: Json = {"namespaces": ["team"], "owners": ["ann"], "agents": ["agent"], "agentTypes": ["Simulation"]}
CLUSTER_MODEL: Json = {**MODEL, "providerKind": "ClusterModelProvider"}
CLUSTER_TOOL: Json = {"name": "search", "provider": "tools", "providerKind": "ClusterToolProvider"}
QUOTA: Json = {
    "scope": {"owners": ["ann"], "agentSelector": {"team": "a"}, "agentTypes": ["Simulation"], "perOwner": True},
    "hard": {"executions": 5, "trainingJobs": 2, "pending": 9, "cpu": "8", "memory": "16Gi", "gpu": 8},
    "budget": {
        "amount": "10",
        "period": "Daily",
        "timeZone": "Europe/Berlin",
        "maxPerExecution": "2",
        "maxPerRequest": "1",
        "alertThresholdsPercent": [50, 80],
    },
    "rates": {
        "tokensPerMinute": 1000,
        "tokensPerHour": 5000,
        "tokenBurst": 700,
        "toolCallsPerMinute": 5,
        "toolCallsPerHour": 50,
        "requestsPerMinute": 7,
    },
    "enforcement": "Enforce",
    "onLimit": {"action": "Wait", "timeoutSeconds": 60},
    "stopPolicy": "None",
    "queueingStrategy": "StrictFIFO",
}
GUARDS = [
    {"name": "a", "action": "Redact", "pattern": "x"},
    {"name": "b", "maxLength": 5},
    {"name": "c", "jsonSchema": OBJECT},
    {"name": "d", "agent": "judge"},
]

# Specs of each kind that together set every field. The first of a kind is what other kinds' objects meet.
VARIANTS: dict[str, list[Json]] = {
    "Agent": [
        {**AGENT, "description": "words", "runner": RUNNER},
        {**AGENT, "runner": {"image": "example/sdk:1"}, "limits": {}},
        {
            **AGENT,
            "runner": {"image": "example/sdk:1"},
            "limits": {},
            "tools": [{"name": "search", "provider": "tools"}],
        },
        {**AGENT, "type": "RealDeployment", "safety": {"budgetEnforced": True}, "limits": {}},
        {**AGENT, "safety": {"allowedDomains": ["example.com"]}},
        {**AGENT, "safety": {"approvalRequired": ["pay"]}},
        {**AGENT, "handoffs": [{"agent": "other", "description": "words"}]},
        {**AGENT, "model": {**MODEL, "fallbacks": [{"provider": "spare", "name": "m"}]}},
        {
            **AGENT,
            "model": {
                **MODEL,
                "fallbacks": [{"provider": "models", "providerKind": "ClusterModelProvider", "name": "m"}],
            },
        },
        {**AGENT, "model": CLUSTER_MODEL},
        {**AGENT, "runner": {"image": "example/sdk:1"}, "limits": {}, "tools": [CLUSTER_TOOL]},
        {**AGENT, "model": {**MODEL, "api": "Anthropic", "settings": {"temperature": "1", "topP": "1", "seed": 1}}},
        {**AGENT, "instructions": "Be brief.", "output": {"jsonSchema": OBJECT}},
        {**AGENT, "tools": [{"name": "calculator", "config": {}, "callsPerMinute": 5, "timeoutSeconds": 5}]},
        *({**AGENT, "guardrails": {side: [guard]}} for side in ("input", "output") for guard in GUARDS),
    ],
    "Execution": [
        {
            **EXECUTION,
            "owner": "ann",
            "priority": 7,
            "preemptible": True,
            "limits": TIGHTER,
            "retry": RETRY,
            "ttlSecondsAfterFinished": 60,
            "queueTimeoutSeconds": 900,
        },
        {**EXECUTION, "timeoutSeconds": 100, "suspend": True},
        {**EXECUTION, "cancel": True},
        {**EXECUTION, "input": {"json": {"a": 1}}},
        {**EXECUTION, "input": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ],
    "TrainingJob": [
        {
            **JOB,
            "parallelism": 1,
            "steps": 100,
            "hyperparameters": {"rate": "0.1"},
            "retry": RETRY,
            "priority": 7,
            "preemptible": True,
            "owner": "ann",
            "deadlineSeconds": 100,
            "ttlSecondsAfterFinished": 60,
            "queueTimeoutSeconds": 900,
        },
        {**JOB, "episodes": 5, "limits": TIGHTER, "suspend": True},
        {**JOB, "cancel": True},
        {"runner": {**RUNNER, "image": "example/sdk:1"}},
    ],
    "ModelProvider": [
        PROVIDER,
        {**PROVIDER, "prices": [{**PROVIDER["prices"][0], "batch": BATCH}]},
    ],
    "ToolProvider": [TOOLS, {**TOOLS, "baseURL": "http://tools.example"}],
    "ClusterModelProvider": [
        {**PROVIDER, "allow": ALLOW},
        {**PROVIDER, "allow": ALLOW, "prices": [{**PROVIDER["prices"][0], "batch": BATCH}]},
    ],
    "ClusterToolProvider": [
        {**TOOLS, "allow": ALLOW},
        {**TOOLS, "allow": ALLOW, "baseURL": "http://tools.example"},
    ],
    "ResourceQuota": [QUOTA, {**QUOTA, "hard": {"storage": "1Gi"}}],
}
# Who else is there, where the first variant of another kind would hide what a field does.
COMPANIONS: dict[str, dict[str, Json]] = {
    "ToolProvider": {"Agent": VARIANTS["Agent"][2]},
    "ClusterModelProvider": {"Agent": {**AGENT, "model": CLUSTER_MODEL}},
    "ClusterToolProvider": {
        "Agent": {**AGENT, "runner": {"image": "example/sdk:1"}, "limits": {}, "tools": [CLUSTER_TOOL]},
    },
    "Agent": {"Execution": VARIANTS["Execution"][3]},
}
