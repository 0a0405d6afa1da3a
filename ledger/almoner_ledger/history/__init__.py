"""What was: usage, executions and entries by any dimension and time, for as long as retention keeps them.

Role: read-only queries over the books, none of which needs the custom resources to exist. `asking` reads what people
ask, `sources` says what each dimension is in which table, `usage`, `executions` and `entries` answer, `export` streams
entries into files. Boundary: never writes, locks nothing, gives no content.
"""
