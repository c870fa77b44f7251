"""REST and SSE; owns identity and every customer's intent."""
