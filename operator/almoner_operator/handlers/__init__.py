"""kopf handlers, one file a kind: bodies validate, delegate, return."""
