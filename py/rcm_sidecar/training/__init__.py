"""The trainer and what it steps with: phases, optimizer, learning rates, weight averages."""
