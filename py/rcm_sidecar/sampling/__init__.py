"""Pictures and videos of prompts: how weights are sampled, in which size, and the drawing itself."""
