"""Distillation losses as pure functions of tensors, and the schedule that says which network a step updates."""
