"""The only loop: an event or a deadline goes to the machines, their actions are performed."""
