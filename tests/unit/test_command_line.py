"""What a person meets who mistypes a command: the option or file by name, what to write, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from almoner_cli.main import PARTS, main
from almoner_ledger import commands

ONE = "--database=sqlite:///one.db"
PERIOD = ("--from=2026-01-01", "--to=2026-01-31")

# Words by what was typed, in a folder with a migrated one.db, an empty tokens.json and nothing else.
MISTYPED = {
    (): "usage: almoner [-h] [--version] PART ...",
    ("ledgr",): "argument PART: invalid choice: 'ledgr' (choose from",
    ("ledger",): "almoner ledger: error: the following arguments are required: COMMAND",
    ("ledger", "cost"): "invalid choice: 'cost' (choose from",
    ("ledger", "costs"): "almoner ledger: --database: give the database's URL, or set ALMONER_LEDGER_DATABASE",
    ("ledger", "costs", "--database=nonsense"): "write a URL such as sqlite:////data/ledger.db",
    ("ledger", "costs", "--database=sqlite:///typo.db"): "typo.db",
    ("ledger", "costs", "--database-file=nowhere"): "almoner ledger: nowhere: No such file or directory",
    ("ledger", "costs", ONE, "--by=shoe"): "--by: 'shoe' is none of hour, day,",
    ("ledger", "costs", ONE, "--from=yesterday"): "--from: write a day such as 2026-01-31",
    ("ledger", "costs", ONE, "--limit=0"): "argument --limit: '0' is no whole number of at least 1",
    ("ledger", "costs", ONE, "--limit=many"): "argument --limit: 'many' is no whole number of at least 1",
    ("ledger", "costs", ONE, "--limit=٣"): "argument --limit: '٣' is no whole number of at least 1",
    ("ledger", "costs", ONE, "--output=yaml"): "argument -o/--output: invalid choice: 'yaml' (choose from",
    ("ledger", "executions", ONE, "--agent=a/b/c"): "--agent: write a name, or namespace/name",
    ("ledger", "correct", ONE, "x", "--cost=much", "--reason=r"): "'much' is not an amount of US dollars: write it as",
    ("ledger", "rerate", ONE, *PERIOD, "--prices=nowhere.yaml"): "almoner ledger: nowhere.yaml: No such file",
    ("ledger", "rerate", ONE, "--from=June", "--to=2026-06-30", "--genai-prices"): "'June' is no day: write it as 2026",
    ("ledger", "export", ONE, "all.txt"): "all.txt: end the name in .csv or .parquet",
    ("ledger", "export", ONE, "nowhere/all.csv"): "nowhere/all.csv: there is no such folder",
    ("ledger", "verify", ONE, "--expect-head=7"): "--expect-head: '7' is no NUMBER:DIGEST",
    ("ledger", "prune", ONE, "--keep-months=0"): "--keep-months: write at least 1",
    ("ledger", "migrate", ONE, "--grant-to=me"): "--grant-to: SQLite has no roles",
    ("ledger", "serve", ONE): "give --kubeconfig, or --static-tokens",
    ("ledger", "serve", ONE, "--listen=here"): "--listen: 'here' is no HOST:PORT",
    ("ledger", "serve", ONE, "--kubeconfig=nowhere"): "almoner ledger: nowhere: No such file or directory",
    ("ledger", "serve", ONE, "--static-tokens=tokens.json"): "--static-tokens: tokens.json is no JSON",
    (
        "operator",
    ): "almoner operator: error: --ledger-url (ALMONER_LEDGER_URL) and --runner-image (ALMONER_RUNNER_IMAGE)",
    ("status", "--kubeconfig=nowhere"): "almoner status: no kubeconfig that can be used: Invalid kube-config file",
    ("check", "--output=yaml"): "argument -o/--output: invalid choice: 'yaml' (choose from",
    ("check", "--kubeconfig=nowhere"): "almoner check: no kubeconfig that can be used: Invalid kube-config file",
    ("operator", "--lease-seconds=x"): "almoner operator: error: argument --lease-seconds: invalid int value: 'x'",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ALMONER_LEDGER_DATABASE", "ALMONER_LEDGER_URL", "ALMONER_RUNNER_IMAGE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tokens.json").touch()
    assert main(["ledger", "migrate", ONE]) == 0
    return tmp_path


def typed(*argv: str) -> int:
    """The exit code of a command."""
    try:
        return main(list(argv))
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.usefixtures("folder")
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in MISTYPED.items():
        assert typed(*argv) == 2, argv
        said = capsys.readouterr()
        assert words in said.err, argv
        assert said.out == "", argv
        assert "Errno" not in said.err, argv


def test_every_command_has_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del folder
    asked = [(), *((part,) for part in PARTS), ("ledger", "serve"), *(("ledger", each) for each in commands.MODULES)]
    for argv in asked:
        assert typed(*argv, "--help") == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: almoner{''.join(f' {word}' for word in argv)} "), argv
