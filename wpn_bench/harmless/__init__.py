"""Generate responses to prompts, and judge whether each response is harmful, coherent or a refusal."""
