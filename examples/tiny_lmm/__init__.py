"""A tiny LLaVA-architecture model, the visual questions it answers, and its evaluation."""
