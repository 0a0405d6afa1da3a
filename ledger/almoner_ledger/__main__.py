"""`python -m almoner_ledger`, `almoner-ledger`."""

from __future__ import annotations

import sys

from almoner_ledger.cli import main

if __name__ == "__main__":
    sys.exit(main())
