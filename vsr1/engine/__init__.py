"""Everything that knows vLLM: the policy's engine with latents decoded inside the request."""
