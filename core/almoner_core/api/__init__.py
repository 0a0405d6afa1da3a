"""The API types of almoner.dev/v1alpha1, one file a kind."""
