"""What a node costs a request, beside a direct call and beside vllm-router: `python -m benchmarks.gateway`."""
