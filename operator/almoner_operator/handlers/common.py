"""What every handler needs: the cache that the operator put into kopf's memo."""

from __future__ import annotations

import kopf

from almoner_operator.cache import Cache


def cache_of(memo: kopf.Memo) -> Cache:
    """Give the cache."""
    cache = memo.cache
    assert isinstance(cache, Cache)
    return cache
