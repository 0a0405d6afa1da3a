"""The demo: Almoner's main job on this machine, from `make demo` to an audited account of what was spent.

Role: manifests.py reads examples/demo, observe.py sees what became of it, view.py shows it live, report.py tells the
end, audit.py compares the books, run.py does one after the other. Boundary: everything goes the way that a user's
objects go; the one look behind the scenes is the audit's, into the ledger's database.
"""
