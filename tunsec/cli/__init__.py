"""The `tunsec` command. Talks to the daemon over its socket; imports are lazy, it starts fast."""
