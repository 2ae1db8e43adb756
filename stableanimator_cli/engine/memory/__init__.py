"""What rendering and training need in memory, predicted before anything is loaded."""
