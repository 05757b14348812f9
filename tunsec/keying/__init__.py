"""Key schedule and signed records of the directory. Pure: entropy and time are arguments."""
