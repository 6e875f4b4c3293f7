"""What people start: the command line, the batch engine behind it, the demo."""
