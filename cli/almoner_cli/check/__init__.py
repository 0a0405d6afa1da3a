"""`almoner check`: is everything installed and in order; a sentence, with the fix, for each thing that is not.

Role: looks from outside, with a kubeconfig and nothing else. `cluster` asks the API server; `installation`, `rights`
and `objects` judge what it says; `command` is the command line. Boundary: reads only. A value of a Secret is never
kept or shown: of Secrets the names of their keys are looked at.
"""
