"""The subcommands of `python -m almoner_dev`, one module each.

A module here is a subcommand of its name. It has `HELP` (one line), `add_arguments(parser)`, and
`run(options) -> int`, which returns the exit code. Keep its imports light at the top: every module is
imported for `--help`.
"""
