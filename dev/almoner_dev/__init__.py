"""Development tools: a real control plane, a node, a model, the demo, the benchmarks."""
