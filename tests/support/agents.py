"""Agents' specs, as short as tests want them."""

from __future__ import annotations

from typing import Any

from almoner_core.api.agent import AgentSpec


def spec(**fields: Any) -> AgentSpec:
    return AgentSpec.model_validate(
        {"type": "Research", "model": {"provider": "local", "name": "some-model"}, "instructions": "Be brief."} | fields
    )
