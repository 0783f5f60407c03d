"""What is measured, and what is done about it."""
