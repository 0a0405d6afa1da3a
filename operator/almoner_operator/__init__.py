"""The operator: watches the custom resources, decides admission, runs pods, writes status."""
